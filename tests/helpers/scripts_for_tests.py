"""Run an example script in its own process, or import its command."""

import importlib
import re
import subprocess
import sys
from pathlib import Path


EXAMPLES = Path(__file__).parents[2] / "examples"


CPU = ["--use_cpu", "--bf16", "False", "--per_device_train_batch_size", "2", "--report_to", "none"]


def run(script, *options, fails=False):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{script}.py"), *map(str, options)], capture_output=True, text=True
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def command_module(script):
    """The module with a script's `ARGUMENTS` and `main`: the one it runs, or the script itself."""
    if command := re.search(r'run\("([\w.]+)"\)', (EXAMPLES / f"{script}.py").read_text()):
        return importlib.import_module(command[1])
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(script)
    finally:
        sys.path.remove(str(EXAMPLES))
