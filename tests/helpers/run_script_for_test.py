"""Runs an example script as `torchrun` would on GPUs: `run_script_for_test.py STRATEGY SCRIPT OPTIONS…`."""

import runpy
import sys
from pathlib import Path

from train_for_test import DS_CONFIGS, name_strategy, start_processes


EXAMPLES = Path(__file__).parents[2] / "examples"


def main(strategy: str, script: str, *options: str):
    start_processes(strategy)
    sys.path.insert(0, str(EXAMPLES))
    name_strategy(strategy)
    sys.argv = [script, *options]
    if strategy not in ("single", "ddp"):
        sys.argv += ["--accelerator_config", '{"use_configured_state": true}']
    if strategy.startswith("zero"):
        sys.argv += ["--deepspeed", str(DS_CONFIGS / f"{strategy}.json")]
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
