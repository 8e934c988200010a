import math

import pytest
import torch
from benchmark_files import pair, write_rows
from models_for_tests import make_model, save_language_model
from shared_data import shared_data
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CritiqueFormat
from cloud_hf.evaluation.metrics import critique_quality
from cloud_hf.evaluation.metrics.critique_quality import CritiqueRow, ReferenceLoss, reference_losses, score_critiques


ROWS = [
    CritiqueRow("0", "What is 2+2?", "4", "Right."),
    CritiqueRow("1", [{"role": "user", "content": "Name a river."}], "The Nile.", "It names one, and says no more."),
    CritiqueRow("2", "Say hi.", "", "Empty."),
]


def test_losses_are_those_of_the_logits(model):
    """Each reference token's cross-entropy, read off the language model's own logits row by row."""
    tokenizer = make_tokenizer("llama3")
    losses = reference_losses(model, tokenizer, ROWS, batch_size=2)
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    for row, loss in zip(ROWS, losses, strict=True):
        encoded = critique_format.encode(row.prompt, row.response, row.critique)
        ids = torch.tensor([encoded.input_ids])
        with torch.no_grad():
            log_probs = model.language_model(ids).logits[0].log_softmax(-1)
        places = range(encoded.prefix_length, len(encoded.input_ids))
        expected = -sum(log_probs[place - 1, ids[0, place]].item() for place in places)
        assert loss.nats == pytest.approx(expected, rel=1e-4) and loss.tokens == len(places)
    assert reference_losses(model, tokenizer, ROWS, batch_size=1)[1].nats == pytest.approx(losses[1].nats, rel=1e-5)


def test_what_has_no_loss_is_refused(model, classic_model):
    with pytest.raises(ValueError, match="classic reward model"):
        reference_losses(classic_model, make_tokenizer("llama3"), ROWS)
    with pytest.raises(
        ValueError,
        match=r"Row 3 \(id 'long'\): \d+ tokens with its critique, but the limit is 512.* 1 of 4 rows are over-long",
    ):
        reference_losses(model, make_tokenizer("llama3"), [*ROWS, CritiqueRow("long", "word " * 600, "r", "c")])


def test_overlap_and_length():
    references = ["The answer is right.", "The answer names the wrong river."]
    same = score_critiques(references, references, [ReferenceLoss(6.0, 4), ReferenceLoss(2.0, 4)])
    assert same.chrf == pytest.approx(100) and same.bleu == pytest.approx(100)
    assert (same.n, same.words, same.reference_words, same.empty) == (2, 5.0, 5.0, 0)
    assert same.loss_per_token == 1.0 and same.loss_tokens == 8
    other = score_critiques(["Zzz", " "], references)
    assert other.chrf < 5 and other.bleu == pytest.approx(0) and (other.words, other.empty) == (0.5, 1)
    assert other.loss_per_token is None and other.summary()["loss_tokens"] == 0
    near = score_critiques(["The answer is quite right.", "It names the wrong river."], references)
    assert other.chrf < near.chrf < same.chrf and other.bleu < near.bleu < same.bleu


def test_one_critique_of_reference_for_each():
    with pytest.raises(ValueError, match="1 written critiques and 2 reference critiques"):
        score_critiques(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="1 losses for 2 reference critiques"):
        score_critiques(["a", "b"], ["b", "c"], [ReferenceLoss(1.0, 1)])


def test_both_layouts_load(tmp_path):
    single = {"prompt": "p", "response": "r", "critique": "c"}
    double = pair("x", chosen_feedback="of the good one", rejected_feedback=["of the bad one", "once more"])
    rows = critique_quality.load(
        [write_rows(tmp_path / "a.jsonl", [single]), write_rows(tmp_path / "b.jsonl", [double])]
    )
    assert [(row.response, row.critique) for row in rows] == [
        ("r", "c"),
        ("good", "of the good one"),
        ("bad", "of the bad one"),
    ]
    assert len({row.id for row in rows}) == 3
    with pytest.raises(ValueError, match="row 0: `critique` is '  '; give a critique as text"):
        critique_quality.load([write_rows(tmp_path / "c.jsonl", [{**single, "critique": "  "}])])
    with pytest.raises(ValueError, match=r"needs the column\(s\) critique"):
        critique_quality.load([write_rows(tmp_path / "d.jsonl", [{"prompt": "p", "response": "r"}])])
    with pytest.raises(ValueError, match=r"e\.jsonl, row 0: `tools` is not JSON"):
        critique_quality.load([write_rows(tmp_path / "e.jsonl", [{**single, "tools": "{"}])])


def test_critiques_are_named_by_the_position_of_their_row_in_the_file(tmp_path):
    row = {"prompt": "p", "response": "r", "critique": "c"}
    file = write_rows(tmp_path / "rows.jsonl", [{**row, "prompt": None}, row, {**row, "critique": ""}, row])
    assert [one.id for one in critique_quality.load([file], bad_rows="drop")] == [
        f"{file}/1/response",
        f"{file}/3/response",
    ]


def test_real_reference_critiques(tmp_path):
    """Every file of reference critiques loads; the model's own words are scored against its shortest ones."""
    model = make_model(save_language_model(tmp_path, max_position_embeddings=16_384))
    tokenizer = make_tokenizer("llama3")
    for name, count in (("critiques_prometheus_mt_bench_eval", 960), ("critiques_qa_feedback_human", 216)):
        rows = critique_quality.load([str(shared_data() / "eval_critiques" / f"{name}.jsonl.gz")])
        assert len(rows) == count
        rows = sorted(rows, key=lambda row: len(str(row.prompt)) + len(row.response))[:3]
        losses = reference_losses(model, tokenizer, rows)
        scores = model.score([row.prompt for row in rows], [row.response for row in rows], tokenizer, max_new_tokens=4)
        quality = score_critiques([score.critique for score in scores], [row.critique for row in rows], losses)
        assert math.isfinite(quality.loss_per_token) and quality.loss_tokens > 30
        assert 0 <= quality.chrf < 50 and quality.words <= 4 < quality.reference_words
