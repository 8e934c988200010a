"""The published datasets, rebuilt from small ones made here in their place."""

import json

import pytest
from builders_for_tests import run_script
from datasets import Dataset, DatasetDict, load_from_disk
from hub_for_tests import run_with_hub, serve_hub
from scripts_for_tests import EXAMPLES

from cloud_hf.data.rows import load_rows


SCRIPT = "build_official_ultra_llama"


def published_rows(ids, critique="good"):
    return [
        {"id": name, "chosen": f"c {name}", "rejected": f"r {name}", "chosen_feedback": critique, "rejected_feedback": "bad"}
        for name in ids
    ]  # fmt: skip


@pytest.fixture
def sources(tmp_path):
    """Published splits and the sources of their prompts, as folders and files."""
    train = [f"interact-{i}" for i in (5, 0, 7)] + [f"feedback-{i}" for i in (3, 1)]
    splits = {"train": published_rows(train, ["good"]), "test": published_rows(["feedback-0", "interact-2"], ["good"])}
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(tmp_path / "published")
    feedback = Dataset.from_list([{"instruction": f"Instruction {i}?", "source": "x"} for i in range(4)])
    feedback.to_json(tmp_path / "feedback.jsonl")
    turns = [{"from": "assistant", "value": "Hm."}, {"from": "user", "value": "Then?"}]
    trajectories = [[{"from": "user", "value": f"Task {i}?"}, *turns[: i % 3]] for i in range(8)]
    interact = Dataset.from_list([{"task": "Math", "trajectory": trajectory} for trajectory in trajectories])
    interact.to_parquet(tmp_path / "interact.parquet")
    return {
        "--dataset_name": tmp_path / "published",
        "--feedback_name": tmp_path / "feedback.jsonl",
        "--interact_name": tmp_path / "interact.parquet",
    }


def options(sources, out, *more):
    return [*(word for pair in sources.items() for word in pair), "--output_dir", out, *more]


ORACLE = ("--mode", "oracle", "--check_counts", "False")


def test_prompts_are_put_back(sources, tmp_path):
    ended = run_script(SCRIPT, *options(sources, tmp_path / "out", *ORACLE), log_dir=tmp_path)
    assert ended.status == 0 and "5 train rows, 2 test rows" in ended.output, ended.output
    built = load_from_disk(str(tmp_path / "out"))
    prompts = ["Task 5?", "Task 0?", "Task 7?", "Instruction 3?", "Instruction 1?"]
    assert built["train"]["prompt"] == prompts and built["test"]["prompt"] == ["Instruction 0?", "Task 2?"]
    published = load_from_disk(str(sources["--dataset_name"]))
    for split in ("train", "test"):
        assert built[split].remove_columns("prompt").to_list() == published[split].to_list()
    assert load_rows(str(tmp_path / "out"), "test").num_rows == 2
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["counts"] == {
        "rows_train": 5, "rows_test": 2, "rows_from_feedback": 3, "rows_from_interact": 4, "empty_prompts": 0,
        "rows_whose_prompts_were_compared": 7,
    }  # fmt: skip
    assert "Published CLoud data" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["feedback-0", "feedback-4", "interact-9"], "1 of 4 ids are beyond the 4 rows of the source of `feedback` prompts, such as 'feedback-4' (train row 1); 1 of 4 ids are beyond the 8 rows"),
        (["feedback-0", "12"], "1 of 3 ids do not have the form feedback-0"),
        (["feedback-0", "interact-1", "feedback-0"], "1 of 4 ids are repeated, such as 'feedback-0' (train row 2)"),
    ],
)  # fmt: skip
def test_every_id_must_have_a_prompt(ids, message, sources, tmp_path):
    splits = {"train": ids, "test": ["interact-0"]}
    splits = {split: Dataset.from_list(published_rows(names)) for split, names in splits.items()}
    DatasetDict(splits).save_to_disk(tmp_path / "bad")
    sources["--dataset_name"] = tmp_path / "bad"
    ended = run_script(SCRIPT, *options(sources, tmp_path / "out", *ORACLE), log_dir=tmp_path)
    assert ended.status == 2 and message in ended.output, ended.output
    assert not (tmp_path / "out").exists()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_contents_never_replace_a_finished_dataset(sources, tmp_path):
    """A source in another order, and other published critiques, both with as many rows as before."""
    first = run_script(SCRIPT, *options(sources, tmp_path / "out", *ORACLE), log_dir=tmp_path)
    assert first.status == 0, first.output
    before = contents(tmp_path / "out")
    interact = load_rows(str(sources["--interact_name"]))
    interact.select(range(len(interact))[::-1]).to_parquet(tmp_path / "reversed.parquet")
    splits = load_from_disk(str(sources["--dataset_name"]))
    splits.map(lambda row: {"chosen_feedback": "other"}).save_to_disk(tmp_path / "other")
    for option, path, message in (
        ("--interact_name", "reversed.parquet", "do not fit the prompts of rows 0 to 7 of the source of `interact`"),
        ("--dataset_name", "other", "`train_hash` was"),
    ):
        changed = run_script(
            SCRIPT, *options(sources | {option: tmp_path / path}, tmp_path / "out", *ORACLE), log_dir=tmp_path
        )
        assert changed.status == 2 and message in changed.output, changed.output
        assert contents(tmp_path / "out") == before
    again = run_script(SCRIPT, *options(sources, tmp_path / "out", *ORACLE), log_dir=tmp_path)
    assert again.status == 0 and contents(tmp_path / "out") == before, again.output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mode", "oracle"], "The train split of the published data has 5 rows instead of 117k"),
        (["--mode", "self-gen"], "`model_size` is None; use 8b or 70b"),
        (["--mode", "oracle", "--model_size", "8b"], "`model_size` applies only to `mode` 'self-gen'"),
        (["--mode", "both"], "`mode` is 'both'; use oracle or self-gen"),
    ],
)
def test_mistakes_end_with_a_sentence(more, message, sources, tmp_path):
    ended = run_script(SCRIPT, *options(sources, tmp_path / "out", *more), log_dir=tmp_path)
    assert ended.status == 2 and message in ended.output and not (tmp_path / "out").exists()


def test_all_is_found_on_the_hub_by_its_own_names(sources, tmp_path):
    splits = load_from_disk(str(sources["--dataset_name"]))
    repos = {}
    for name in ("ankner/Llama3-8b-ultra-self-gen-70b", "openbmb/UltraFeedback", "openbmb/UltraInteract_pair"):
        repos[name] = folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(repos["ankner/Llama3-8b-ultra-self-gen-70b"] / f"{split}-00000-of-00001.parquet")
    feedback = repos["openbmb/UltraFeedback"] / "evol_instruct.jsonl"
    feedback.write_bytes(sources["--feedback_name"].read_bytes())
    interact = repos["openbmb/UltraInteract_pair"] / "0000_pair.parquet"
    interact.write_bytes(sources["--interact_name"].read_bytes())
    more = ["--mode", "self-gen", "--model_size", "70b", "--check_counts", "False", "--output_dir", tmp_path / "out"]
    with serve_hub(repos) as server:
        ended = run_with_hub(server, tmp_path / "cache", EXAMPLES / f"{SCRIPT}.py", *more)
    assert ended.returncode == 0, ended.stderr[-3000:]
    built = load_from_disk(str(tmp_path / "out"))
    assert built["train"]["prompt"][:2] == ["Task 5?", "Task 0?"] and built["test"]["prompt"][1] == "Task 2?"
