"""Run an example script in a process of its own."""

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
