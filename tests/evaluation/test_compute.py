"""Numbers of critique tokens: those written, or an estimate where a journal lacks them."""

from dataclasses import replace

from tokenizers_for_tests import make_tokenizer

from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.evaluation.compute import is_estimated, token_counts
from cloud_hf.scores import Sample, Score


FORMAT = CritiqueFormat(make_tokenizer("llama3"))
TEXT = "It is right."
ENCODED = len(FORMAT.tokenizer(TEXT, add_special_tokens=False)["input_ids"])


def scored(*critiques, **changes):
    return replace(Score.of([Sample(0.0, text, ids) for text, ids in critiques]), **changes)


def test_the_tokens_that_were_written_are_counted():
    """A text need not be encoded as it was written, and special tokens leave no text."""
    rows = [[scored((TEXT, (5,) * 30), ("", (9, 9)))], [scored((TEXT, (5,)))]]
    assert token_counts(rows, FORMAT) == [[[30, 2]], [[1]]]
    without_ids = [[replace(score, critique_ids=()) for score in row] for row in rows]
    assert token_counts(without_ids, FORMAT) == [[[30, 2]], [[1]]] and not is_estimated(without_ids)


def test_unknown_numbers_are_estimated_up_to_the_maximum():
    known, unknown = scored((TEXT, (5,) * 30)), scored((TEXT, ()), (f"{TEXT} {TEXT}", ()))
    rows = [[known, unknown], [unknown]]
    assert is_estimated(rows) and not is_estimated([[known]])
    [[first, second], [third]] = token_counts(rows, FORMAT)
    assert first == [30] and second == third and second[0] == ENCODED < second[1]
    assert token_counts(rows, FORMAT, ENCODED + 1) == [[[30], [ENCODED, ENCODED + 1]], [[ENCODED, ENCODED + 1]]]


def test_models_without_critiques_have_no_tokens():
    classic = [[Score.of([Sample(1.0)]), scored(("", ()), critique_tokens=())]]
    assert token_counts(classic, CritiqueFormat(make_tokenizer("llama3"), critique=False)) == [[[0], [0]]]
    assert not is_estimated(classic)
