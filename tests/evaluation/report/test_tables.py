"""Tables of a report, on rows made by hand."""

import pytest
from benchmark_files import pair, write_rows
from evaluations_for_tests import evaluation

from cloud_hf.evaluation.benchmarks import reward_bench, rm_bench
from cloud_hf.evaluation.report import markdown
from cloud_hf.evaluation.report.plots import plot_benchmarks
from cloud_hf.evaluation.set_results import compare


def test_the_matrix_of_styles_is_in_the_report(tmp_path):
    rows = [pair("chat", n, chosen=["c0", "c1", "c2"], rejected=["r0", "r1", "r2"]) for n in range(2)]
    rows = rm_bench.load([write_rows(tmp_path / "rows.jsonl", rows)])
    found = evaluation(rows, [[3, 2, 1, 2.5, 0, 0], [3, 3, 3, 0, 0, 0]], rm_bench)
    text = markdown({"a": [found]}, [], {})
    assert "| right response | against concise | against detailed plain | against detailed markdown |" in text
    assert "| chat, a, concise | 100.0% | 100.0% | 100.0% |" in text
    assert "| chat, a, detailed plain | 50.0% | 100.0% | 100.0% |" in text
    assert "math, a, concise" not in text


def test_the_report_says_what_must_be_known(rows):
    results = {
        "a|b": [evaluation(rows, [[1, 0], [1, 0], [0, 1], [1, 0]], dropped=2)],
        "c": [evaluation(rows, [[1, 0], [1, 1], [1, 1], [0, 1]])],
    }
    counts = {"problems": 1, "dropped": 3, "bad": 2}
    best_of_n = {"set": {"c": {"rates": {1: 0.5, 2: 0.75}, "standard_errors": {1: None, 2: 0.1}, **counts}}}
    text = markdown(results, compare(results), best_of_n)
    lines = text.splitlines()
    assert lines[0] == "| benchmark | a/b | c |"
    assert "| **Reasoning, pooled** | 66.7% (20.8 to 93.9), n = 3 | 33.3% (6.1 to 79.2), n = 3 |" in text
    assert "– hep-go | 100.0% (34.2 to 100.0), n = 2 | 50.0% (9.5 to 90.5), n = 2 |" in text
    assert "- a|b, c: Rows of subsets that are not part of the benchmark" in text and "made-up (1)" in text
    assert "- a|b: Rows left out because they do not fit the model's context: 2." in text
    assert "- c: Rows whose best right and best wrong responses have equal rewards: 2." in text
    assert "- a|b, c: No rows of alpacaeval-easy" in text
    assert "| c | 50.0% | 75.0% ± 10.0% | 1 |" in text
    assert "- c: Problems left out because they do not fit the model's context: 3." in text
    assert "- c: Problems left out because they cannot be used: 2." in text
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.count("|") > 2 for line in tables)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_models_that_dropped_different_subsets_share_a_report(tmp_path, order):
    """Without its only prior set a model has no `Score`: the headline is one that both have, and the figure a dash."""
    names = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm", "shp"]
    rows = reward_bench.load([write_rows(tmp_path / "rows.jsonl", [pair(name) for name in names])])
    found = {"a": evaluation(rows, [[1, 0]] * 5), "b": evaluation(rows[:4], [[1, 0]] * 3 + [[0, 1]])}
    results = {name: [found[name]] for name in order}
    text = markdown(results, compare(results), {})
    cells = {"a": ("100.0%, n = 4", "100.0%, n = 5"), "b": ("75.0%, n = 4", "–")}
    assert f"| A bench, Average | {' | '.join(cells[name][0] for name in order)} |" in text
    assert f"| **Score** | {' | '.join(cells[name][1] for name in order)} |" in text
    plot_benchmarks(results, tmp_path / "benchmarks.png")
    few = {"a": [evaluation(rows[:1], [[1, 0]])], "b": [evaluation(rows[1:2], [[1, 0]])]}
    assert "| A bench, all rows weighted equally | 100.0% (20.7 to 100.0), n = 1 |" in markdown(few, [], {})
