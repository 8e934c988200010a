"""Runs `train_for_test.py` in one process or several."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


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


def launch(script: Path, *arguments, processes: int = 1) -> list[str]:
    """The command that starts `script` in that many processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", processes]
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
    command = launch(SCRIPT, path, processes=1 if strategy == "single" else 2)
    done = subprocess.run(command, env=environment(strategy), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return {run["name"]: json.loads((folder / run["name"] / "result.json").read_text()) for run in runs}
