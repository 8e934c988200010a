"""The comparison with TRL's trainer, on a random model."""

import json
import runpy
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "against_trl.py"


def test_all_sides_train_on_the_same_tokens(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--tiny", "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    result = json.loads(output.read_text())
    sides = {"trl", "padded", "padding_free", "shared_prompt"}
    assert set(result["seconds"]) == set(result["mean_loss"]) == sides and set(
        result["times_as_fast_as_trl"]
    ) == sides - {"trl"}
    ours = [result["mean_loss"][side] for side in sides - {"trl"}]  # TRL's head is another
    assert max(ours) - min(ours) < 1e-4 and result["pairs"] == 4
