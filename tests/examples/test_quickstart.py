"""The main job: one real run of the quickstart, with its bars."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from shared_data import read_rows, shared_data

from cloud_hf import CritiqueFormat, TransformersScorer
from cloud_hf.evaluation import evaluate_pairs
from cloud_hf.loading import load_reward_model
from cloud_hf.training.encoding import encode_pairs


ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.quickstart, pytest.mark.timeout(4800)]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    run = tmp_path_factory.mktemp("quickstart")
    subprocess.run([sys.executable, str(ROOT / "examples/quickstart.py"), "--output_dir", str(run)], check=True)
    return run


def test_report_and_bars(quickstart):
    report = json.loads((quickstart / "report.json").read_text())
    assert report["version"] == 1 and set(report["arms"]) == {"classic", "cloud"}
    classic, cloud = report["arms"]["classic"], report["arms"]["cloud"]
    for arm in (classic, cloud):
        assert arm["n"] == 500 and arm["ci95"][0] <= arm["accuracy"] <= arm["ci95"][1]
        assert set(arm["by_difficulty"]) == {"1", "2", "3", "4"} and set(arm["best_of_n"]) == {"1", "2", "3", "4"}
        assert arm["best_of_n"]["1"] == pytest.approx(0.25)
        assert arm["train_cpu_s"] > 0 and arm["wall_s"] > 0
    assert classic["train_flops"] >= cloud["train_flops"] > 0
    # On problems it never saw, the classic model is barely above chance, which is a half
    assert classic["accuracy"] > 0.5
    hard = [(arm["by_difficulty"]["3"] + arm["by_difficulty"]["4"]) / 2 for arm in (classic, cloud)]
    assert hard[1] - hard[0] >= 0.15
    assert max(stage["peak_gb"] for stage in report["stages"].values()) <= 4
    page = (quickstart / "report.md").read_text()
    for name in ("accuracy.png", "rewards.png", "best_of_n.png"):
        assert f"({name})" in page and (quickstart / name).read_bytes().startswith(b"\x89PNG")
    assert page.count("reward **") == 3 and "What to try next" in page


def test_training_ids_are_scoring_ids_on_every_row(quickstart):
    """What stage 3 trained on is what the model is scored on, generated ids included."""
    rows = load_from_disk(quickstart / "self-critiques").select(range(300))
    model, tokenizer = load_reward_model(str(quickstart / "cloud"))
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    for pair, row in zip(encode_pairs(rows, critique_format, None, "error"), rows, strict=True):
        for side in ("chosen", "rejected"):
            prefix = critique_format.encode_prefix(row["prompt"], row[side]).input_ids
            assert pair[f"{side}_ids"] == [*prefix, *row[f"{side}_feedback_ids"], critique_format.end_token_id]


@pytest.mark.parametrize("rows_per_file", [4, pytest.param(12, marks=pytest.mark.full)])
def test_every_real_pairwise_file_is_scored(quickstart, rows_per_file):
    """A tiny model is near chance; what counts is that all rows pass or are counted."""
    seen = 0
    for name in ("classic", "cloud"):
        model, tokenizer = load_reward_model(str(quickstart / name))
        for path in sorted((shared_data() / "eval").iterdir()):
            rows = read_rows(path)
            if not isinstance(rows[0].get("chosen"), str):
                continue
            rows = Dataset.from_list(
                [{key: row[key] for key in ("id", "prompt", "chosen", "rejected")} for row in rows]
            )
            rows = rows.select(range(0, len(rows), max(1, len(rows) // rows_per_file)))
            result = evaluate_pairs(
                TransformersScorer(model, tokenizer, batch_size=4),
                rows,
                CritiqueFormat.from_config(model.config, tokenizer),
                context_length=2048,
                overlong_policy="truncate_prompt",
                max_new_tokens=16,
            )
            assert result.n + result.dropped == len(rows) and 0 <= result.accuracy <= 1, path.name
            seen += 1
    assert seen >= 50
