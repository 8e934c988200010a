"""Runs `train_for_test.py` in one process or several."""

import importlib.util
import json
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import pytest
from scripts_for_tests import PROCESSES, as_script


SCRIPT = Path(__file__).parent / "train_for_test.py"


def make_rows(count: int = 36) -> list[dict]:
    """Pairs whose prompts and critiques differ in length."""
    return [
        {
            "prompt": f"What is {i} + 30?" + " please" * (i % 4), "chosen": f"It is {i + 30}.", "rejected": f"It is {i}.",
            "chosen_feedback": "Right, and clear." * (1 + i % 3), "rejected_feedback": "Wrong sum." * (1 + i % 2),
        }
        for i in range(count)
    ]  # fmt: skip


@dataclass
class Launched:
    """The processes of a script that was started in one process or several, and the folders with their output."""

    processes: list
    outputs: list[Path]

    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def wait(self):
        """Wait for all. The first that fails ends the others, which would wait for it."""
        while any(process.is_alive() for process in self.processes):
            connection.wait([process.sentinel for process in self.processes if process.is_alive()])
            if any(process.exitcode for process in self.processes):
                self.kill()
        assert not any(process.exitcode for process in self.processes), self.text()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()

    def text(self) -> str:
        """The end of what they wrote."""
        return "\n".join(
            (output / name).read_text()[-3000:] for output in self.outputs for name in ("stdout", "stderr")
        )


def launch(strategy: str, script: Path, *arguments) -> Launched:
    """Start `script` in two processes, or in one if the strategy is `single`, forked as the other scripts of tests are."""
    count = 1 if strategy == "single" else 2
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launched = Launched([], [])
    for rank in map(str, range(count)):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        output = Path(tempfile.mkdtemp())
        options = (script, list(map(str, arguments)), environment(strategy) | (own if count > 1 else {}), output)
        launched.processes.append(PROCESSES.Process(target=as_script, args=options))
        launched.outputs.append(output)
    for process in launched.processes:
        process.start()
    return launched


def torchrun(script: Path, *arguments) -> list[str]:
    """The command with which a user starts `script` in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return [str(part) for part in (*launcher, script, *arguments)]


def environment(strategy: str) -> dict[str, str]:
    """What the processes of a strategy find in their environment, as its launcher would set it."""
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: pip install 'cloud-hf[deepspeed]'")
    own = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if strategy == "fsdp2":
        own |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
        own |= {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true"}
        own["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return {**os.environ, **own}


def write_spec(folder: Path, strategy: str, runs: list[dict], rows: list[dict] | None = None, **spec) -> Path:
    """The file that `train_for_test.py` reads. Each run has a `name` and a `base`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(rows or make_rows()))
    spec = {
        "strategy": strategy, "runs": runs, "output_dir": str(folder), "rows": str(folder / "rows.json"),
        "batch_size": 4 if strategy == "single" else 2, **spec,
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder / "spec.json"


def run_strategy(folder: Path, strategy: str, runs: list[dict], **spec) -> dict[str, dict]:
    """Train, and return what each run wrote, by name."""
    path = write_spec(folder, strategy, runs, **spec)
    launch(strategy, SCRIPT, path).wait()
    return {run["name"]: json.loads((folder / run["name"] / "result.json").read_text()) for run in runs}
