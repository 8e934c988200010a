import signal
import subprocess
import sys


BLOCKED = """
import signal
import time

from cloud_hf.data.folder import DatasetFolder
from cloud_hf.data.run import complete_build

# A shell that runs the tests in the background has its children ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)


def block():
    print("blocked", flush=True)
    time.sleep(120)


complete_build(block, DatasetFolder("out", "", {}))
"""


def test_the_first_interrupt_ends_blocking_work(tmp_path):
    with subprocess.Popen([sys.executable, "-c", BLOCKED], cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "blocked\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.startswith("Interrupted.")
