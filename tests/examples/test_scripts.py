"""The scripts as a user types them, each in its own process."""

import importlib
import json
from dataclasses import fields
from pathlib import Path

import pytest
from datasets import load_from_disk
from models_for_tests import save_language_model
from scripts_for_tests import CPU, run
from shared_data import shared_data

from cloud_hf.cli import COMMANDS
from cloud_hf.evaluation.scoring_arguments import short_names
from cloud_hf.loading import load_reward_model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "id": str(i), "topic": i % 2, "prompt": f"What is {i} + 30?", "chosen": f"It is {i + 30}.", "rejected": f"It is {i}.",
            "chosen_feedback": "Right, and clear.", "rejected_feedback": "Wrong sum.",
        }
        for i in range(8)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def runs(base_folder, pairs, tmp_path_factory):
    """All stages, one after the other."""
    out = tmp_path_factory.mktemp("runs")
    data = ["--dataset_name", pairs, "--max_length", 300, "--max_steps", 3, *CPU]
    said = [run("train_critique_sft", "--model_name_or_path", base_folder, "--output_dir", out / "sft", *data)]
    said.append(run(
        "build_self_critiques", "--model_name_or_path", out / "sft", "--dataset_name", pairs, "--output_dir", out / "self",
        "--max_new_tokens", 6, "--batch_size", 4, "--longer_tries", 0, "--truncated", "keep",
    ))  # fmt: skip
    data[1] = out / "self"
    said.append(run("train_cloud", "--model_name_or_path", out / "sft", "--output_dir", out / "cloud", *data))
    data[1] = pairs
    said.append(run("train_classic", "--model_name_or_path", base_folder, "--output_dir", out / "classic", *data))
    (out / "said").write_text("\n".join(text.splitlines()[-1] for text in said))
    return out


def test_stages_end_with_what_to_run_next(runs):
    lines = (runs / "said").read_text().splitlines()
    commands = ["self-critiques", "train-cloud", "evaluate", "evaluate"]
    for line, name, folder in zip(lines, commands, ("sft", "self", "cloud", "classic"), strict=True):
        check_last_line(line, name, runs / folder)


def check_last_line(line, name, folder):
    """It names the output folder, and a command with options that it has."""
    written, _, following = line.partition(" Next: cloud-hf ")
    assert written.startswith("Wrote ") and str(folder) in written and following.split()[0] == name, line
    command = importlib.import_module(COMMANDS[name][0])
    options = {f"--{field.name}" for kind in command.ARGUMENTS for field in fields(kind)}
    assert {word for word in following.split() if word.startswith("--")} <= options, line


def test_stages_hand_over_to_each_other(runs):
    self_critiques = load_from_disk(runs / "self")
    assert len(self_critiques) == 8
    assert self_critiques[0]["chosen"] == "It is 30."
    assert all(len(ids) <= 6 for ids in self_critiques["chosen_feedback_ids"])
    assert set(self_critiques["chosen_finish_reason"]) <= {"stop", "length"}
    stats = json.loads((runs / "self/generation.json").read_text())
    assert stats["critiques"] == 16 and stats["flops"] > 0
    for name, critique in (("cloud", True), ("classic", False)):
        model, _ = load_reward_model(str(runs / name))
        assert model.config.critique == critique
        assert (runs / name / "README.md").exists()
        assert json.loads((runs / name / "trainer_state.json").read_text())["total_flos"] > 0


def test_self_critiques_keep_prompts_and_other_columns(base_folder, tmp_path):
    """A string prompt stays a string, shortened or not, and columns of similar names stay as they are."""
    row = {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No.", "chosen_feedback": "a", "rejected_feedback": "b"}
    rows = [{**row, "chosen_feedback_model": "gpt-4"}, {**row, "prompt": "word " * 300, "chosen_feedback_model": "x"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = run(
        "build_self_critiques", "--model_name_or_path", base_folder, "--dataset_name", tmp_path / "rows.jsonl",
        "--output_dir", tmp_path / "out", "--max_new_tokens", 4, "--overlong_policy", "truncate_prompt", "--truncated", "keep",
    )  # fmt: skip
    first, second = load_from_disk(tmp_path / "out")
    assert first["prompt"] == "Hello?" and first["chosen_feedback_model"] == "gpt-4"
    assert second["prompt"].startswith("…") and isinstance(first["chosen_feedback"], str)
    assert "Wrote 2 rows to" in out and "1 prompt(s) were shortened" in out


def test_evaluation_reports_every_model(runs, pairs, tmp_path):
    out = run(
        "evaluate_rewards", "--models", runs / "cloud", runs / "classic", "--dataset_name", pairs, "--output_dir", tmp_path,
        "--max_new_tokens", 6, "--group_column", "topic",
    )  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["version"] == 1
    assert [Path(row["model"]).name for row in report["results"]] == ["cloud", "classic"]
    for row in report["results"]:
        assert row["n"] == 8 and set(row["by_group"]) == {"0", "1"}
        assert f"{row['accuracy']:.1%}" in out
    check_last_line(out.splitlines()[-1], "best-of-n", tmp_path)
    [scores] = tmp_path.glob("scores_*cloud_*.jsonl")
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    right = sum(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert right / 8 == report["results"][0]["accuracy"]


def test_names_that_end_alike_are_told_apart():
    names = ["a/cloud", "b/cloud", "c/classic"]
    assert short_names(names) == {"a/cloud": "a/cloud", "b/cloud": "b/cloud", "c/classic": "classic"}


def test_best_of_n_on_real_rows(runs, tmp_path):
    run(
        "best_of_n", "--models", runs / "classic", "--dataset_name", shared_data() / "eval/gsm8k_bon4.jsonl.gz",
        "--output_dir", tmp_path, "--limit", 4, "--overlong_policy", "drop",
    )  # fmt: skip
    [result] = json.loads((tmp_path / "best_of_n.json").read_text())["results"]
    assert result["problems"] + result["dropped"] == 4 and (tmp_path / "best_of_n.png").exists()


def test_cloud_trains_on_real_critiques(tmp_path):
    """Eight steps on GPT-4 critiques of real answers, with a byte-level tokenizer."""
    base_folder = save_language_model(tmp_path / "base", max_position_embeddings=4096, initializer_range=0.05)
    data = shared_data() / "train/cloud_pairs_arenabench_gpt4.jsonl.gz"
    options = ["--max_length", 3000, "--overlong_policy", "drop", "--max_steps", 8, "--logging_steps", 1, *CPU]
    options += ["--learning_rate", 1e-3, "--gradient_checkpointing", "False"]
    run(
        "train_cloud",
        "--model_name_or_path",
        base_folder,
        "--dataset_name",
        data,
        "--output_dir",
        tmp_path / "cloud",
        *options,
    )
    state = json.loads((tmp_path / "cloud" / "trainer_state.json").read_text())
    log = [entry for entry in state["log_history"] if "lm_loss" in entry]
    assert state["global_step"] == len(log) == 8
    assert log[-1]["lm_loss"] < log[0]["lm_loss"]


@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("train_cloud", ["--dataset_name", "absent.jsonl"], "no such file"),
        ("evaluate_rewards", ["--models", "CLASSIC", "--dataset_name", "PAIRS", "--limit", "0"], "`limit` is 0"),
        ("train_cloud", ["--dataset_name", "PAIRS", "--eval_strategy", "steps"], "has no splits"),
        ("evaluate_rewards", ["--models", "BASE", "--dataset_name", "PAIRS"], "not a CLoud model"),
        (
            "build_self_critiques",
            ["--model_name_or_path", "CLASSIC", "--dataset_name", "PAIRS"],
            "classic reward model",
        ),
    ],
)
def test_mistakes_end_with_a_sentence(script, options, says, runs, pairs, base_folder, tmp_path):
    names = {"BASE": base_folder, "PAIRS": pairs, "CLASSIC": runs / "classic"}
    options = [names.get(option, option) for option in options]
    if script == "train_cloud":
        options += ["--model_name_or_path", base_folder, *CPU]
    assert says in run(script, *options, "--output_dir", tmp_path, fails=True)
