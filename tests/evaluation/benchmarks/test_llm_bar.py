import json
import math

import pytest
from benchmark_files import pair, write_rows

from cloud_hf.evaluation.benchmarks import llm_bar


def write_official(folder, labels):
    folder.mkdir(parents=True)
    rows = [{"input": f"q{n}", "output_1": "one", "output_2": "two", "label": label} for n, label in enumerate(labels)]
    (folder / "dataset.json").write_text(json.dumps(rows))
    return str(folder / "dataset.json")


def test_the_official_files(tmp_path, monkeypatch):
    """The default source is a tree of files; here the tree is on disk."""
    for name in llm_bar.SUBSETS:
        write_official(tmp_path / ("" if name == "Natural" else "Adversarial") / name, [1, 2])
    monkeypatch.setattr(llm_bar, "FILES", str(tmp_path))
    rows = llm_bar.load()
    assert [row.id for row in rows[:3]] == ["Natural/0", "Natural/1", "Neighbor/0"] and len(rows) == 10
    assert rows[0].responses == ("one", "two") and rows[1].responses == ("two", "one")
    assert rows[0].prompt == "q0" and [row.subset for row in rows[::2]] == list(llm_bar.SUBSETS)


def test_averages_of_subsets(tmp_path):
    """Each subset weighs the same, however many rows it has; a tie is wrong."""
    names = [
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ]
    rows = (
        [pair(name) for name in names] + [pair("llmbar-natural", n) for n in (1, 2, 3)] + [pair("llmbar-case-base_9")]
    )
    rows = llm_bar.load([write_rows(tmp_path / "rows.jsonl", rows)])
    rewards = [(1, 0), (1, 0), (0, 1), (1, 1), (1, 0)] + [(0, 1)] * 3 + [(1, 0)]
    scores = llm_bar.score(rows, rewards)
    assert [scores.figures[name].value for name in llm_bar.SUBSETS] == [0.25, 1.0, 0.0, 0.0, 1.0]
    assert scores.figures["Adversarial"].value == 0.5 and scores.figures["Average"].value == pytest.approx(0.45)
    assert scores.figures["Base-9"].value == 1.0 and scores.figures["Average"].n == 8
    assert scores.ties == 1 and scores.unknown == {}


def test_missing_and_unknown_subsets(tmp_path):
    rows = llm_bar.load([write_official(tmp_path / "Constraint", [1]), write_official(tmp_path / "FairEval", [2])])
    scores = llm_bar.score(rows, [(1, 0), (1, 0)])
    assert math.isnan(scores.value) and scores.missing == llm_bar.SUBSETS and scores.unknown == {"FairEval": 1}
    assert scores.figures["Constraint"].value == 1.0 and math.isnan(scores.figures["Natural"].value)


def test_bad_rows_are_named(tmp_path):
    with pytest.raises(ValueError, match="row 1: `label` is 3; it must be 1 or 2"):
        llm_bar.load([write_official(tmp_path / "Natural", [1, 3])])
    with pytest.raises(ValueError, match=r"needs the column\(s\) subset"):
        llm_bar.load([write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])])
