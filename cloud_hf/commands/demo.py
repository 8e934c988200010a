"""Open the demo from a checkout of the repository."""

import runpy
import sys
from pathlib import Path


APP = Path(__file__).parents[2] / "spaces" / "demo" / "app.py"


def main(arguments: list[str]):
    if not APP.is_file():
        raise ValueError(
            "The demo is not part of the installed package: clone the repository, run `pip install -e '.[demo]'` in it, and "
            "run the command again."
        )
    sys.argv[1:] = arguments
    sys.path.insert(0, str(APP.parent))
    runpy.run_path(str(APP), run_name="__main__")
