"""Two processes on gloo give the losses, metrics and gradients of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent / "train_for_test.py"


@pytest.mark.parametrize("kind", ["cloud", "classic"])
def test_two_processes_are_one(base_folder, tmp_path, kind):
    rows = [
        {
            "prompt": f"What is {i} + 30?" + " please" * (i % 4), "chosen": f"It is {i + 30}.", "rejected": f"It is {i}.",
            "chosen_feedback": "Right, and clear." * (1 + i % 3), "rejected_feedback": "Wrong sum." * (1 + i % 2),
        }
        for i in range(24)
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    results = []
    for processes, batch_size in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
            launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
        command = [*launcher, SCRIPT, base_folder, tmp_path / "rows.json", folder, batch_size, kind]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads((folder / "result.json").read_text()))
    one, two = results
    assert (one["world_size"], two["world_size"]) == (1, 2)
    names = [
        "loss",
        "pairwise_loss",
        "accuracy",
        "margin",
        "mean_reward",
        "reward_std",
        "eval_pairwise_loss",
        "eval_accuracy",
    ]
    names += ["lm_loss", "critique_length", "eval_lm_loss"] if kind == "cloud" else []
    compared = set()
    for a, b in zip(one["log"], two["log"], strict=True):
        for name in set(names) & set(a):
            assert b[name] == pytest.approx(a[name], abs=2e-5), name
            compared.add(name)
    assert compared == set(names)
    for name, norm in one["norms"].items():
        assert two["norms"][name] == pytest.approx(norm, rel=1e-4, abs=1e-6), name
