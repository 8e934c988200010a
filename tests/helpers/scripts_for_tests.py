"""Run an example script in its own process, or import its command."""

import gc
import importlib
import multiprocessing
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path


EXAMPLES = Path(__file__).parents[2] / "examples"


CPU = ["--use_cpu", "--bf16", "False", "--per_device_train_batch_size", "2", "--report_to", "none"]

# The imports of a script take longer than most of these runs: each process is forked from one that has them. A second list of modules
# would replace this one
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "torch",
        "trl",
        "peft",
        "cloud_hf.commands.evaluate_rewards",
        "cloud_hf.commands.best_of_n",
        "cloud_hf.commands.train_outcome",
        "cloud_hf.data.builders.self_critiques",
        "cloud_hf.rl.trl",
    ]
)


def as_script(path, options, environment, output):
    """Run a script, or a module by its name, in this forked process, its stdout and stderr in the folder `output`."""
    gc.freeze()  # what was imported before the fork, which trainers would collect often
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):  # torch, which is imported, has read it before
        import torch

        torch.set_num_threads(int(threads))
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = [str(path), *options]
    if isinstance(path, str):
        runpy.run_module(path, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")


def start(script, *options):
    """Start an example script or a module as a user types it. Return its process and the folder with its stdout and stderr."""
    output = Path(tempfile.mkdtemp())
    path = script if "." in script else EXAMPLES / f"{script}.py"
    arguments = (path, list(map(str, options)), dict(os.environ), output)
    process = PROCESSES.Process(target=as_script, args=arguments)
    process.start()
    return process, output


def run(script, *options, fails=False):
    """Run an example script or a module to its end. Return its stdout, or its stderr where it `fails`."""
    process, output = start(script, *options)
    process.join()
    stderr = (output / "stderr").read_text()
    assert (process.exitcode != 0) == fails, stderr[-3000:]
    return stderr if fails else (output / "stdout").read_text()


def command_module(script):
    """The module with a script's `ARGUMENTS` and `main`: the one it runs, or the script itself."""
    if command := re.search(r'run\("([\w.]+)"\)', (EXAMPLES / f"{script}.py").read_text()):
        return importlib.import_module(command[1])
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(script)
    finally:
        sys.path.remove(str(EXAMPLES))
