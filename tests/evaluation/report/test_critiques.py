"""Critiques against reference ones in an evaluation."""

import json

import pytest
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat, Score, TransformersScorer
from cloud_hf.evaluation.fitting import fit_rows
from cloud_hf.evaluation.metrics.critique_quality import CritiqueRow, ReferenceLoss, reference_losses
from cloud_hf.evaluation.outcomes import CritiqueResult, fittable, fitted_rows, losses_of_sets
from cloud_hf.evaluation.report.markdown import render
from cloud_hf.evaluation.report.sections import critique_section


ROWS = [
    CritiqueRow("a", "What is 2+2?", "4", "It is right."),
    CritiqueRow("b", "What is 2+3?", "4", "It is wrong, since 2+3 is 5."),
]


def fit(rows, context=None, policy="error"):
    critique_format = CritiqueFormat(make_tokenizer("llama3"))
    return fit_rows(fittable(rows), lambda row: row["responses"], critique_format, context, policy, 8)


def score_of(critique: str, reason: str = "stop") -> Score:
    return Score(0.5, critique, (0.5,), (critique,), 0.0, (reason,))


def test_figures_rows_and_notes():
    fitted = fit([*ROWS, CritiqueRow("long", "word " * 300, "r", "c")], 200, "drop")
    assert fitted_rows(fitted) == ROWS
    scores = [[score_of("It is right.")], [score_of("It is", "length")]]
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

    sets = {"set": fit(ROWS)}
    tokenizer = make_tokenizer("llama3")
    assert losses_of_sets(Elsewhere(), sets, "error", 2) == {"set": None}
    found = losses_of_sets(TransformersScorer(model, tokenizer), sets, "error", 2)
    assert found == {"set": reference_losses(model, tokenizer, ROWS, 2)}
    result = CritiqueResult.of("set", sets["set"], [[score_of("x")]] * 2, None)
    assert result.quality.loss_per_token is None and "| – |" in render([critique_section({"m": [result]})])


def test_reference_critiques_that_do_not_fit(model):
    """By their policy an error before anything is scored, or rows that have no loss and change none of the others."""
    tokenizer = make_tokenizer("llama3")
    sets = {"set": fit([*ROWS, CritiqueRow("long", "p", "r", "word " * 600)], 512)}
    scorer = TransformersScorer(model, tokenizer)
    with pytest.raises(ValueError, match=r"Row 'long': .* choose another `overlong_policy`"):
        losses_of_sets(scorer, sets, "error", 2)
    [first, second, third] = losses_of_sets(scorer, sets, "drop", 2)["set"]
    assert third == ReferenceLoss(0.0, 0)
    alone = reference_losses(model, tokenizer, ROWS, 2)
    assert [first.nats, second.nats] == pytest.approx([loss.nats for loss in alone], rel=1e-5)
