"""Run an example script in its own process, or import its command."""

import importlib
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
    """The module with a script's `ARGUMENTS` and `main`: its command, or itself if it has none."""
    if (EXAMPLES.parent / f"cloud_hf/commands/{script}.py").exists():
        return importlib.import_module(f"cloud_hf.commands.{script}")
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(script)
    finally:
        sys.path.remove(str(EXAMPLES))
