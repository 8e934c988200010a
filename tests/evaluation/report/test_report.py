"""Tables and comparisons of models, on rows made by hand."""

import math

import pytest
from benchmark_files import pair, write_rows
from pyarrow import parquet

from cloud_hf.data.journal import key_of
from cloud_hf.evaluation.analysis import assess_uncertainty, probe_rows
from cloud_hf.evaluation.benchmarks import BENCHMARKS, reward_bench, rm_bench
from cloud_hf.evaluation.fitting import FittedRow, FittedRows
from cloud_hf.evaluation.metrics.pairs import summarize_pairs
from cloud_hf.evaluation.report import (
    Evaluation,
    compare,
    evaluation_of_pairs,
    headline_estimates,
    markdown,
    write_scores,
)
from cloud_hf.evaluation.report.plots import plot_benchmarks, plot_margins, plot_reliability
from cloud_hf.scoring import Score


def score_of(reward: float, reason: str = "stop") -> Score:
    return Score(reward, "Fine.", (reward,), ("Fine.",), 0.0, (reason,))


def evaluation(rows, rewards, module=reward_bench, dropped=0) -> Evaluation:
    scores = [[score_of(reward) for reward in row] for row in rewards]
    return Evaluation(
        "bench",
        "A bench",
        module.score(rows, rewards),
        rows,
        scores,
        dropped,
        shortened=1,
        benchmark=BENCHMARKS["rm_bench" if module is rm_bench else "reward_bench"],
    )


@pytest.fixture
def rows(tmp_path):
    names = ["hep-go", "hep-go", "hep-rust", "made-up"]
    return reward_bench.load(
        [write_rows(tmp_path / "rows.jsonl", [pair(name, number) for number, name in enumerate(names)])]
    )


def test_models_are_compared_row_by_row(rows):
    """Right, right, wrong against wrong, right, tie; the row of an unknown subset does not count."""
    first = evaluation(rows, [[1, 0], [1, 0], [0, 1], [1, 0]])
    second = evaluation(rows, [[0, 1], [3, 2], [1, 1], [0, 1]])
    [found] = compare({"a": [first], "b": [second]})
    assert found.models == ("a", "b") and (found.first_better, found.second_better) == (1, 0)
    assert found.difference.value == pytest.approx(1 / 3) and found.difference.n == 3
    low, high = found.difference.ci95
    assert low == 0 and high == 1
    assert len(compare({"a": [first], "b": [second], "c": [first]})) == 3


def test_rows_of_unknown_subsets_are_nowhere(rows):
    """Their margins, their certainty and their answers to probes are none of the benchmark's."""
    found = evaluation(rows, [[1, 0], [2, 0], [3, 0], [0, 50]])
    fitted = FittedRows([FittedRow(place, {}, row.prompt, [], []) for place, row in enumerate(rows)], 0, 0)
    assert found.known == [True, True, True, False] and found.margins() == [1, 2, 3]
    [certainty] = assess_uncertainty([found], {})["bench"]
    assert certainty.metrics["ece"].n == 3 and certainty.selective_accuracy.random == 1.0
    assert [part.row.id for part in probe_rows([found], [fitted])] == [row.id for row in rows[:3]]
    alone = evaluation(rows[3:], [[0, 50]])
    assert alone.margins() == [] and assess_uncertainty([alone], {0.5: [alone]}) == {"bench": []}


def test_only_common_rows_are_compared(rows):
    first, second = evaluation(rows[:2], [[1, 0], [1, 0]]), evaluation(rows[1:3], [[0, 1], [1, 0]])
    [found] = compare({"a": [first], "b": [second]})
    assert found.difference.n == 1 and found.difference.value == 1 and found.difference.ci95 is None
    assert compare({"a": [first], "b": [evaluation(rows[2:3], [[1, 0]])]}) == []


def test_ids_that_stand_twice_in_a_preference_set_are_counted():
    """There an id may name a prompt with several pairs, so each row counts; rows without an id have none twice."""
    rows = [{"id": id_, "prompt": "p", "chosen": "a", "rejected": "b"} for id_ in ("x", "y", "x", None, None)]
    fitted = FittedRows([FittedRow(place, row, "p", ["a", "b"], [1, 1]) for place, row in enumerate(rows)], 0, 0)
    pairs = summarize_pairs(fitted, [[score_of(1), score_of(0)]] * 5)
    found = evaluation_of_pairs("set", "set", fitted, pairs)
    assert len(found.rows) == 5 and found.summary()["repeated_ids"] == 1
    assert "Rows whose `id` an earlier row has, counted all the same: 1." in found.notes()


def test_rows_of_styles_count_their_share(tmp_path):
    row = pair("chat", chosen=["c0", "c1", "c2"], rejected=["r0", "r1", "r2"])
    rows = rm_bench.load([write_rows(tmp_path / "rows.jsonl", [row])])
    found = evaluation(rows, [[3, 2, 1, 2.5, 0, 0]], rm_bench)
    assert found.row_outcomes() == {"chat/0": 7 / 9}
    assert found.margins()[:3] == [0.5, 3, 3] and len(found.margins()) == 9


def test_the_matrix_of_styles_is_in_the_report(tmp_path):
    rows = [pair("chat", n, chosen=["c0", "c1", "c2"], rejected=["r0", "r1", "r2"]) for n in range(2)]
    rows = rm_bench.load([write_rows(tmp_path / "rows.jsonl", rows)])
    found = evaluation(rows, [[3, 2, 1, 2.5, 0, 0], [3, 3, 3, 0, 0, 0]], rm_bench)
    text = markdown({"a": [found]}, [], {})
    assert "| right response | against concise | against detailed plain | against detailed markdown |" in text
    assert "| chat, a, concise | 100.0% | 100.0% | 100.0% |" in text
    assert "| chat, a, detailed plain | 50.0% | 100.0% | 100.0% |" in text
    assert "math, a, concise" not in text


def test_what_is_quoted_where_rows_are_missing(rows):
    found = evaluation(rows, [[1, 0], [1, 0], [0, 1], [1, 0]])
    label, [figure] = headline_estimates([found])
    assert math.isnan(found.scores.value) and label == "A bench, all rows alike"
    assert figure.value == pytest.approx(2 / 3) and figure.n == 3


def test_the_report_says_what_must_be_known(rows):
    results = {
        "a|b": [evaluation(rows, [[1, 0], [1, 0], [0, 1], [1, 0]], dropped=2)],
        "c": [evaluation(rows, [[1, 0], [1, 1], [1, 1], [0, 1]])],
    }
    best_of_n = {"set": {"c": {"rates": {1: 0.5, 2: 0.75}, "standard_errors": {1: None, 2: 0.1}, "problems": 1}}}
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
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.count("|") > 2 for line in tables)


def test_all_scores_are_in_the_parquet_file(rows, tmp_path):
    found = evaluation(rows, [[1, 0], [1, 0], [0.25, 1], [1, 0]])
    write_scores([found, found], tmp_path / "scores.parquet")
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    assert len(table) == 16
    assert table[4] == {
        "benchmark": "bench", "row": "hep-rust/2", "subset": "hep-rust", "response": 0, "is_chosen": True, "reward": 0.25,
        "rewards": [0.25], "critiques": ["Fine."], "finish_reasons": ["stop"],
    }  # fmt: skip


def test_pictures_of_extreme_results(rows, tmp_path):
    """One row has no interval, equal rewards have no margin, and eight models outnumber the colours."""
    results = {f"model {number}": [evaluation(rows[:1], [[1, 1]])] for number in range(8)}
    margins = {name: found.margins() for name, [found] in results.items()}
    plot_benchmarks(results, tmp_path / "benchmarks.png")
    plot_margins(margins, tmp_path / "margins.png")
    plot_reliability(margins, tmp_path / "reliability.png")
    sizes = {key_of(path.read_bytes().hex()): path.stat().st_size for path in tmp_path.glob("*.png")}
    assert len(sizes) == 3 and min(sizes.values()) > 5000
