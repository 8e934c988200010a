"""Runs example scripts as `torchrun` would on GPUs: `run_script_for_test.py STRATEGY JSON`, a list of [script, options…]."""

import json
import runpy
import sys
from pathlib import Path

import torch
from train_for_test import DS_CONFIGS, name_strategy, start_processes


EXAMPLES = Path(__file__).parents[2] / "examples"


def main(strategy: str, commands: list[list[str]]):
    start_processes(strategy)
    sys.path.insert(0, str(EXAMPLES))
    for script, *options in commands:
        name_strategy(strategy)
        if strategy not in ("single", "ddp"):
            options += ["--accelerator_config", '{"use_configured_state": true}']
        if strategy.startswith("zero"):
            options += ["--deepspeed", str(DS_CONFIGS / f"{strategy}.json")]
        sys.argv = [script, *options]
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        torch.distributed.barrier()  # the next script reads what the first process writes


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
