import subprocess
import sys


SPAWN = """
import multiprocessing
import signal
import sys
from contextlib import nullcontext

from cloud_hf.interrupts import processes_without_interrupts

# A shell that runs the tests in the background has its children ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
context = multiprocessing.get_context("spawn")
with {block}():
    child = context.Process(target=signal.raise_signal, args=(signal.SIGINT,))
    child.start()
child.join()
assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
sys.exit(child.exitcode)
"""


def status(block):
    """The exit status of a process that interrupts itself."""
    return subprocess.run([sys.executable, "-c", SPAWN.format(block=block)], capture_output=True).returncode


def test_ctrl_c_does_not_reach_processes_that_were_started_without():
    assert status("processes_without_interrupts") == 0
    assert status("nullcontext") != 0
