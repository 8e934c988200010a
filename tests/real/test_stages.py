"""Every stage and the evaluation as a user types them, on a real model and real rows."""

import json
import math
import shutil

import pytest
import torch
from datasets import load_from_disk
from safetensors import safe_open
from scripts_for_tests import CPU, run
from shared_data import read_rows
from transformers import AutoModel, AutoTokenizer

import cloud_hf  # noqa: F401  registers the model class


TOKENS = 8
LIMIT = 2


@pytest.fixture(scope="module")
def runs(smollm2, critiqued_pairs, tmp_path_factory):
    """All stages, one after another: two steps of one pair each."""
    out = tmp_path_factory.mktemp("runs")
    data = ["--dataset_name", critiqued_pairs, "--max_steps", 2, "--logging_steps", 1, *CPU]
    data += ["--per_device_train_batch_size", 1, "--save_strategy", "no", "--gradient_checkpointing", "False"]
    run("train_classic", "--model_name_or_path", smollm2, "--output_dir", out / "classic", *data)
    run("train_critique_sft", "--model_name_or_path", smollm2, "--output_dir", out / "critic-sft", *data)
    run(
        "build_self_critiques", "--model_name_or_path", out / "critic-sft", "--dataset_name", critiqued_pairs,
        "--output_dir", out / "self-critiques", "--max_new_tokens", TOKENS, "--longer_tries", 0, "--truncated", "keep",
    )  # fmt: skip
    data[1] = out / "self-critiques"
    run("train_cloud", "--model_name_or_path", out / "critic-sft", "--output_dir", out / "cloud", *data)
    yield out
    shutil.rmtree(out)  # gigabytes, of which pytest would keep three runs


def read_weight(folder, name):
    with safe_open(folder / "model.safetensors", "pt") as file:
        [key] = [key for key in file.keys() if key.endswith(name)]  # noqa: SIM118
        return file.get_tensor(key).float()


@pytest.mark.parametrize(
    ("stage", "start"), [("classic", "base"), ("critic-sft", "base"), ("cloud", "critic-sft")], ids=lambda name: name
)
def test_each_stage_learns(runs, smollm2, stage, start):
    log = json.loads((runs / stage / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 20 and math.isfinite(loss) for loss in losses)
    before = smollm2 if start == "base" else runs / start
    for name in ("layers.0.self_attn.q_proj.weight", "layers.29.mlp.down_proj.weight"):
        assert not torch.equal(read_weight(before, name), read_weight(runs / stage, name)), name


def test_self_critiques_are_the_critics_own_words(runs, critiqued_pairs):
    rows, written = read_rows(critiqued_pairs), load_from_disk(runs / "self-critiques")
    tokenizer = AutoTokenizer.from_pretrained(runs / "critic-sft")
    assert [row["id"] for row in rows] == written["id"]
    for side in ("chosen", "rejected"):
        assert [row[side] for row in rows] == written[side]
        for critique, ids in zip(written[f"{side}_feedback"], written[f"{side}_feedback_ids"], strict=True):
            assert 0 < len(ids) <= TOKENS and critique == tokenizer.decode(ids).strip()


def test_evaluation_reports_the_rewards_of_the_saved_models(runs, evaluation_file, tmp_path):
    """As a model loaded by an Auto class gives them, of a real benchmark file."""
    run(
        "evaluate_rewards", "--models", runs / "cloud", runs / "classic", "--dataset_name", evaluation_file, "--limit", LIMIT,
        "--max_new_tokens", TOKENS, "--output_dir", tmp_path,
    )  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["environment"]["limit"] == LIMIT
    rows = read_rows(evaluation_file)[:LIMIT]
    prompts, chosen = [row["prompt"] for row in rows], [row["chosen"] for row in rows]
    for name in ("cloud", "classic"):
        model, tokenizer = (kind.from_pretrained(runs / name) for kind in (AutoModel, AutoTokenizer))
        scores = model.score(prompts, chosen, tokenizer, max_new_tokens=TOKENS)
        [file] = tmp_path.glob(f"scores_*{name}*.jsonl")
        written = read_rows(file)
        assert [score.critiques for score in scores] == [tuple(row.get("chosen_critiques", [""])) for row in written]
        assert [score.reward for score in scores] == pytest.approx([row["chosen_reward"] for row in written], abs=1e-3)
