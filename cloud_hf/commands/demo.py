"""Open the demo from a checkout of the repository."""

import sys
from pathlib import Path

from ..cli import run


APP = Path(__file__).parents[2] / "spaces" / "demo" / "app.py"


def main(arguments: list[str]):
    if not APP.is_file():
        raise ValueError(
            "The demo is not part of the installed package: clone the repository, run `pip install -e '.[demo]'` in it, and "
            "run the command again."
        )
    sys.path.insert(0, str(APP.parent))
    run(APP.stem, arguments, "cloud-hf demo")
