"""Evaluations, comparisons of models, and critiques against references, on rows made by hand."""

import json
import math

import pytest
from benchmark_files import pair, write_rows
from evaluations_for_tests import evaluation, score_of
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat, Score, TransformersScorer
from cloud_hf.evaluation.analysis import assess_uncertainty, probe_rows
from cloud_hf.evaluation.benchmarks import rm_bench
from cloud_hf.evaluation.context_fitting import FittedRow, FittedRows, fit_rows
from cloud_hf.evaluation.formatting import render
from cloud_hf.evaluation.metrics.critique_quality import CritiqueRow, ReferenceLoss, reference_losses
from cloud_hf.evaluation.metrics.pairs import summarize_pairs
from cloud_hf.evaluation.report.tables import critique_section
from cloud_hf.evaluation.set_results import (
    CritiqueResult,
    compare,
    evaluation_of_pairs,
    fittable,
    fitted_rows,
    headline_estimates,
    losses_of_sets,
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


def test_ids_that_occur_twice_in_a_preference_set_are_counted():
    """There an id may name a prompt with several pairs, so each row counts; rows without an id have none twice."""
    rows = [{"id": id_, "prompt": "p", "chosen": "a", "rejected": "b"} for id_ in ("x", "y", "x", None, None)]
    fitted = FittedRows([FittedRow(place, row, "p", ["a", "b"], [1, 1]) for place, row in enumerate(rows)], 0, 0)
    pairs = summarize_pairs(fitted, [[score_of(1), score_of(0)]] * 5)
    found = evaluation_of_pairs("set", "set", fitted, pairs)
    assert len(found.rows) == 5 and found.summary()["repeated_ids"] == 1
    assert "Rows that repeat the `id` of an earlier row, but are counted: 1." in found.notes()


def test_rows_without_a_group_are_a_subset_of_their_own():
    """They do not join a group called `all` or `None`."""
    groups = ["all", "all", None, "None", None]
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "topic": group} for group in groups]
    fitted = FittedRows([FittedRow(place, row, "p", ["a", "b"], [1, 1]) for place, row in enumerate(rows)], 0, 0)
    scores = [[score_of(reward), score_of(0)] for reward in (1, 1, -1, 1, 1)]
    expected = {"all": (2, 1.0), "(none)": (2, 0.5), "None": (1, 1.0)}
    pairs = summarize_pairs(fitted, scores, "topic")
    assert {name: (part["n"], part["accuracy"]) for name, part in pairs.by_group.items()} == expected
    subsets = evaluation_of_pairs("set", "set", fitted, pairs).scores.subsets
    assert {name: (part.n, part.value) for name, part in subsets.items()} == expected
    assert set(evaluation_of_pairs("set", "set", fitted, summarize_pairs(fitted, scores)).scores.subsets) == {"all"}


def test_rows_keep_their_prompt_when_it_is_shortened():
    """Otherwise the hash of a row, by which runs are compared, would depend on the model's context."""
    row = {
        "prompt": [{"role": "user", "content": "long"}] * 2,
        "chosen": "a",
        "rejected": "b",
        "tools": '[{"name": "f"}]',
    }
    tables = []
    for prompt in (row["prompt"][1:], row["prompt"]):
        fitted = FittedRows([FittedRow(0, row, prompt, ["a", "b"], [1, 1])], 0, len(prompt) % 2)
        pairs = summarize_pairs(fitted, [[score_of(1), score_of(0)]])
        found = evaluation_of_pairs("set", "set", fitted, pairs)
        assert found.rows[0].prompt == {"messages": row["prompt"], "tools": [{"name": "f"}]}
        tables.append(list(found.table()))
    assert tables[0] == tables[1]


def test_rows_of_styles_count_their_share(tmp_path):
    row = pair("chat", chosen=["c0", "c1", "c2"], rejected=["r0", "r1", "r2"])
    rows = rm_bench.load([write_rows(tmp_path / "rows.jsonl", [row])])
    found = evaluation(rows, [[3, 2, 1, 2.5, 0, 0]], rm_bench)
    assert found.row_outcomes() == {"chat/0": 7 / 9}
    assert found.margins()[:3] == [0.5, 3, 3] and len(found.margins()) == 9


def test_what_is_quoted_where_rows_are_missing(rows):
    found = evaluation(rows, [[1, 0], [1, 0], [0, 1], [1, 0]])
    label, [figure] = headline_estimates([found])
    assert math.isnan(found.scores.value) and label == "A bench, all rows weighted equally"
    assert figure.value == pytest.approx(2 / 3) and figure.n == 3


# ------------------------------------------------------------------------------------ critiques against references


CRITIQUE_ROWS = [
    CritiqueRow("a", "What is 2+2?", "4", "It is right."),
    CritiqueRow("b", "What is 2+3?", "4", "It is wrong, since 2+3 is 5."),
]


def fit(rows, context=None, policy="error"):
    critique_format = CritiqueFormat(make_tokenizer("llama3"))
    return fit_rows(fittable(rows), lambda row: row["responses"], critique_format, context, policy, 8)


def critique_score(critique: str, reason: str = "stop") -> Score:
    return Score(0.5, critique, (0.5,), (critique,), 0.0, (reason,))


def test_figures_rows_and_notes():
    fitted = fit([*CRITIQUE_ROWS, CritiqueRow("long", "word " * 300, "r", "c")], 200, "drop")
    assert fitted_rows(fitted) == CRITIQUE_ROWS
    scores = [[critique_score("It is right.")], [critique_score("It is", "length")]]
    result = CritiqueResult.of("set", fitted, scores, [ReferenceLoss(3.0, 6), ReferenceLoss(0.0, 0)])
    assert (result.quality.n, result.quality.loss_per_token, result.quality.loss_tokens) == (2, 0.5, 6)
    assert result.notes() == [
        "Rows left out because they do not fit the model's context: 1.",
        "Rows without a loss, because they do not fit the model's context with their reference critique: 1.",
        "Critiques cut at the token budget: 50.0%.",
    ]
    assert [(row["row"], row["critique"], row["reference"]) for row in result.table()] == [
        ("a", "It is right.", "It is right."),
        ("b", "It is", "It is wrong, since 2+3 is 5."),
    ]
    assert json.loads(json.dumps(result.summary(), allow_nan=False))["dataset"] == "set"
    text = render([critique_section({"a|b": [result], "classic": []})])
    assert "| set | a/b | 2 | 0.500 |" in text and "- a|b, set: Critiques cut at the token budget: 50.0%." in text


def test_losses_need_a_model_in_this_process(model):
    class Elsewhere:
        def score(self, prompts, responses, **options):
            raise AssertionError

    sets = {"set": fit(CRITIQUE_ROWS)}
    tokenizer = make_tokenizer("llama3")
    assert losses_of_sets(Elsewhere(), sets, "error", 2) == {"set": None}
    found = losses_of_sets(TransformersScorer(model, tokenizer), sets, "error", 2)
    assert found == {"set": reference_losses(model, tokenizer, CRITIQUE_ROWS, 2)}
    result = CritiqueResult.of("set", sets["set"], [[critique_score("x")]] * 2, None)
    assert result.quality.loss_per_token is None and "| – |" in render([critique_section({"m": [result]})])


def test_reference_critiques_that_do_not_fit(model):
    """By their policy an error before anything is scored, or rows that have no loss and change none of the others."""
    tokenizer = make_tokenizer("llama3")
    sets = {"set": fit([*CRITIQUE_ROWS, CritiqueRow("long", "p", "r", "word " * 600)], 512)}
    scorer = TransformersScorer(model, tokenizer)
    with pytest.raises(ValueError, match=r"\(id 'long'\): .* Set `overlong_policy`"):
        losses_of_sets(scorer, sets, "error", 2)
    [first, second, third] = losses_of_sets(scorer, sets, "drop", 2)["set"]
    assert third == ReferenceLoss(0.0, 0)
    alone = reference_losses(model, tokenizer, CRITIQUE_ROWS, 2)
    assert [first.nats, second.nats] == pytest.approx([loss.nats for loss in alone], rel=1e-5)
