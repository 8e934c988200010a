import contextlib
import fcntl
import io
import json
import random
import time
from collections import Counter
from contextlib import nullcontext

import pytest
from builders_for_tests import Builder, read_rejects, read_rows
from datasets import Dataset, load_from_disk
from shared_data import read_rows as read_jsonl
from shared_data import shared_data
from trl import TrlParser

from cloud_hf.data.builders.prompt_sources import prompt_id
from cloud_hf.data.builders.prompts import ARGUMENTS, main
from cloud_hf.data.duplicates import EvaluationNGrams, find_near_duplicates, words


SCRIPT = "build_prompts"
WORDS = [f"word{number}" for number in range(2000)]


def text_of(length, seed):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def write(path, prompts, column="prompt"):
    path.write_text("\n".join(json.dumps({column: prompt}) for prompt in prompts))
    return path


def build(tmp_path, *options, out="out", fails=False):
    """Run the script in this process; what it printed, or the error it ended with."""
    options = ["--output_dir", tmp_path / out, *options]
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        pytest.raises((ValueError, SystemExit)) if fails else nullcontext() as error,
    ):
        main(*TrlParser(ARGUMENTS).parse_args_and_config(list(map(str, options))))
    return str(error.value) if fails else printed.getvalue()


def record(folder):
    return json.loads((folder / "build.json").read_text())


def check_everything_is_accounted_for(folder):
    """Kept and left out are all rows, each once; and so say the counts."""
    rows, rejects, counts = read_rows(folder), read_rejects(folder), record(folder)["counts"]
    assert counts["rows_read"] == len(rows) + len(rejects)
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({(reject["source"], reject["index"]) for reject in rejects}) == len(rejects)
    assert counts["rows"] == len(rows) and counts["dropped"] + counts["failed"] == len(rejects)
    for source, outcomes in counts["sources"].items():
        assert outcomes["read"] == sum(number for outcome, number in outcomes.items() if outcome != "read")
        assert outcomes["kept"] == sum(row["source"] == source for row in rows)
        reasons = Counter(reject["reason"] for reject in rejects if reject["source"] == source)
        assert reasons == {name: n for name, n in outcomes.items() if name not in ("read", "kept") and n}


@pytest.fixture
def paper(tmp_path):
    """UltraFeedback and UltraInteract_pair in small, in the layouts of the Hub."""
    feedback = [{"source": "flan", "instruction": text_of(30, seed), "models": ["a"]} for seed in range(20)]
    (tmp_path / "feedback.jsonl").write_text("\n".join(map(json.dumps, feedback)))
    turn = [
        {"from": "user", "value": "Solve."},
        {"from": "assistant", "value": "How?"},
        {"from": "user", "value": "So."},
    ]
    interact = []
    for seed in range(100, 160):
        row = {
            "task": "Math",
            "trajectory": [{"from": "user", "value": text_of(30, seed)}],
            "chosen": "a",
            "rejected": "b",
        }
        interact += [row, row, {**row, "trajectory": turn}]
    Dataset.from_list(interact).to_parquet(tmp_path / "interact.parquet")
    return ["--feedback_name", tmp_path / "feedback.jsonl", "--interact_name", tmp_path / "interact.parquet"]


def test_the_prompts_of_the_paper(paper, tmp_path):
    output = build(tmp_path, "--sources", "ultrainteract", "ultrafeedback", *paper)
    rows = read_rows(tmp_path / "out")
    assert [row["source"] for row in rows] == ["ultrafeedback"] * 20 + ["ultrainteract"] * 20
    assert [row["prompt"] for row in rows[:20]] == [text_of(30, seed) for seed in range(20)]
    assert {row["prompt"] for row in rows[20:]} < {text_of(30, seed) for seed in range(100, 160)}
    check_everything_is_accounted_for(tmp_path / "out")
    outcomes = {"read": 180, "exact duplicate": 60, "several turns": 60, "not drawn": 40, "kept": 20}
    assert record(tmp_path / "out")["counts"]["sources"]["ultrainteract"] == outcomes
    assert "ultrafeedback: 20 read" in output and "Wrote 40 prompts to" in output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Prompts" in card and "near_duplicate_threshold" in card and "exact duplicate" in card

    build(tmp_path, "--sources", "ultrainteract", *paper, out="alone")
    alone = {row["id"]: row for row in read_rows(tmp_path / "alone")}
    assert len(alone) == 60 and all(alone[row["id"]] == row for row in rows[20:])
    build(tmp_path, "--sources", "ultrafeedback", "ultrainteract", "--seed", "1", *paper, out="other")
    assert {row["id"] for row in read_rows(tmp_path / "other")} != {row["id"] for row in rows}


def test_two_datasets_with_duplicates_and_an_evaluation_set(tmp_path):
    one, two, planted = text_of(40, 1), text_of(40, 2), text_of(40, 3)
    gram, clean = words(planted)[5:18], text_of(40, 4)
    shared_12, shared_13 = (f"{text_of(9, 5)} {' '.join(gram[:n])} {text_of(9, 6)}" for n in (12, 13))
    write(tmp_path / "a.jsonl", [one, f" {one} ", clean, shared_12], "question")
    write(
        tmp_path / "b.jsonl",
        [two, one.upper() + ".", clean, shared_13, "What is 2+2?", two[:-6] + "other"],
        "question",
    )
    write(tmp_path / "eval.jsonl", [planted, "what is 2 + 2"], "text")
    write(tmp_path / "eval2.jsonl", [text_of(40, 9)], "text")
    options = ["--dataset_name", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--prompt_column", "question"]
    sets = [str(tmp_path / "eval.jsonl"), str(tmp_path / "eval2.jsonl")]
    decontaminate = ["--decontaminate_against", *sets, "--decontaminate_column", "text"]
    output = build(tmp_path, *options, *decontaminate)

    rows = read_rows(tmp_path / "out")
    assert [(row["source"], row["prompt"]) for row in rows] == [("a", one), ("a", clean), ("a", shared_12), ("b", two)]
    assert [row["id"] for row in rows] == [prompt_id(row["source"], row["prompt"]) for row in rows]
    check_everything_is_accounted_for(tmp_path / "out")
    rejects = {(reject["source"], reject["index"]): reject for reject in read_rejects(tmp_path / "out")}
    of_one = {"duplicate_of": rows[0]["id"], "its_source": "a", "similarity": 1.0}
    assert rejects["a", 1]["reason"] == "exact duplicate" and rejects["a", 1]["details"] == of_one
    assert rejects["b", 1]["reason"] == "near-duplicate" and rejects["b", 1]["details"] == of_one
    assert rejects["b", 2]["details"]["duplicate_of"] == rows[1]["id"]
    names = ["eval.jsonl", "eval2.jsonl"]
    assert rejects["b", 3]["details"] == {"ngrams": {names[0]: " ".join(gram)}}
    assert rejects["b", 4]["details"] == {"ngrams": {names[0]: "what is 2 2"}}
    assert rejects["b", 5]["details"]["duplicate_of"] == rows[3]["id"]
    assert 0.8 <= rejects["b", 5]["details"]["similarity"] < 1
    found = record(tmp_path / "out")
    assert [found["counts"]["overlaps"][name]["prompts"] for name in names] == [2, 0]
    assert f"2 prompt(s) overlap with {names[0]}" in output and f"0 prompt(s) overlap with {names[1]}" in output
    against = found["settings"]["decontaminate_against"]
    assert [(name, part["rows"], len(part["hash"])) for name, part in against.items()] == [
        (names[0], 2, 32),
        (names[1], 1, 32),
    ]
    for written in ("build.json", "README.md", "rejects.jsonl", "journal.jsonl"):
        assert str(tmp_path) not in (tmp_path / "out" / written).read_text()
    write(tmp_path / "eval2.jsonl", [text_of(40, 8)], "text")
    assert "`decontaminate_against` was" in build(tmp_path, *options, *decontaminate, fails=True)

    # Ids do not depend on other rows or on where the data lie, and our own output can be read again
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "a.jsonl", [clean, "something new", one])
    build(
        tmp_path, "--dataset_name", tmp_path / "elsewhere" / "a.jsonl", "--near_duplicate_threshold", "2", out="moved"
    )
    moved = {row["prompt"]: row["id"] for row in read_rows(tmp_path / "moved")}
    assert moved[one] == rows[0]["id"] and moved[clean] == rows[1]["id"]
    build(tmp_path, *options, "--limit", "2", out="limited")
    assert [row["prompt"] for row in read_rows(tmp_path / "limited")] == [one, two]
    build(tmp_path, "--dataset_name", tmp_path / "out", "--source_name", "a", out="again")
    assert [row["prompt"] for row in read_rows(tmp_path / "again")] == [row["prompt"] for row in rows]


def test_chats_and_strings_together(tmp_path):
    system = {"role": "system", "content": text_of(200, 0)}
    chats = [[system, {"role": "user", "content": text_of(8, seed)}] for seed in range(5)]
    chats.append([{"role": "user", "content": "Hello there"}])
    write(tmp_path / "chats.jsonl", [*chats, [*chats[0], {"role": "assistant", "content": "It ends here."}]])
    write(tmp_path / "strings.jsonl", ["Hello there", "Goodbye"])
    build(tmp_path, "--dataset_name", tmp_path / "chats.jsonl", tmp_path / "strings.jsonl")
    rows = read_rows(tmp_path / "out")
    assert [row["prompt"] for row in rows] == [*chats, [{"role": "user", "content": "Goodbye"}]]
    check_everything_is_accounted_for(tmp_path / "out")
    reasons = [reject["reason"] for reject in read_rejects(tmp_path / "out")]
    assert reasons == ["not a prompt", "exact duplicate"]


def test_chats_overlap_by_all_that_the_user_says(tmp_path):
    """A short turn, such as "yes", does not count as an overlap."""

    def chat(*turns):
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]

    question = text_of(20, 0)
    write(tmp_path / "eval.jsonl", [chat(question, "Do you?", "Yes"), chat("Hello", "Hello to you", "Bye")])
    clean = [chat(text_of(20, 1), text_of(20, 0), "Yes"), chat("Hello", "Who is it?", "Me")]
    overlapping = [chat("Hello", "Well?", question), chat("Hello", "Well?", "bye!")]
    write(tmp_path / "rows.jsonl", clean + overlapping)
    build(tmp_path, "--dataset_name", tmp_path / "rows.jsonl", "--decontaminate_against", tmp_path / "eval.jsonl")
    assert [row["prompt"] for row in read_rows(tmp_path / "out")] == clean


def test_rows_that_hold_no_prompt_are_counted_and_named(tmp_path):
    lines = [b'{"prompt": "One"}', b'{"prompt": ""}', b'{"prompt": null}', b'{"prompt": "\xff"}', b'{"prompt": "Two"}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    output = build(tmp_path, "--dataset_name", tmp_path / "rows.jsonl")
    assert "rows: 5 read, 1 empty, 1 not UTF-8, 1 not a prompt, 2 kept" in output
    assert [row["prompt"] for row in read_rows(tmp_path / "out")] == ["One", "Two"]
    rejects = read_rejects(tmp_path / "out")
    assert [(reject["index"], reject["kind"], reject["reason"]) for reject in rejects] == [
        (1, "failed", "empty"),
        (2, "failed", "not a prompt"),
        (3, "failed", "not UTF-8"),
    ]
    write(tmp_path / "blank.jsonl", ["", " "])
    assert "Every row was left out" in build(
        tmp_path, "--dataset_name", tmp_path / "blank.jsonl", out="none", fails=True
    )
    assert read_rows(tmp_path / "none") == []


def test_what_cannot_be_read_is_said_first(tmp_path):
    write(tmp_path / "rows.jsonl", ["a", "b"], "prompts")
    write(tmp_path / "numbers.jsonl", [1, 2])
    (tmp_path / "surrogate.jsonl").write_text('{"prompt": "a"}\n{"prompt": "half \\ud83d"}\n')
    fine = write(tmp_path / "fine.jsonl", ["a", "b"])
    flat = write(tmp_path / "flat.jsonl", ["a", "b"], "trajectory")
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}')
    cases = [
        (["--dataset_name", tmp_path / "rows.jsonl"], "rename 'prompts' to 'prompt'"),
        (["--dataset_name", tmp_path / "numbers.jsonl"], "the column 'prompt' contains int64"),
        (["--dataset_name", tmp_path / "surrogate.jsonl"], "surrogate"),
        (["--dataset_name", tmp_path / "absent.jsonl"], "no such file"),
        (["--sources", "ultrafeedback", "--feedback_name", fine], "column(s) instruction"),
        (["--dataset_name", fine, "--decontaminate_against", tmp_path / "rows.jsonl"], "--decontaminate_column"),
        (
            ["--sources", "ultrainteract", "--interact_name", flat],
            "does not contain lists of turns with `from` and `value`",
        ),
        (["--dataset_name", fine, "--decontaminate_against", bad], "row 1, column 'prompt'"),
        ([], "Nothing to read"),
        (["--sources", "ultra"], "`sources` names ultra"),
        (["--dataset_name", fine, fine], "Two sources have the name 'fine'"),
        (["--dataset_name", fine, "--source_name", "a", "b"], "2 name(s) for 1 dataset(s)"),
        (["--dataset_name", fine, "--near_duplicate_threshold", 0], "`near_duplicate_threshold` is 0"),
        (["--dataset_name", fine, "--ngram", 0], "`ngram` is 0"),
        (["--dataset_name", fine, "--limit", 0], "`limit` is 0"),
    ]
    for options, message in cases:
        assert message in build(tmp_path, *options, fails=True)
        assert not (tmp_path / "out").exists()


def test_a_folder_is_not_mixed_with_another_dataset(tmp_path):
    prompts = write(tmp_path / "rows.jsonl", ["a", "b", "c"])
    build(tmp_path, "--dataset_name", prompts)
    before = read_rows(tmp_path / "out")
    build(tmp_path, "--dataset_name", prompts)
    assert read_rows(tmp_path / "out") == before
    assert "`ngram` was 13 and is now 5" in build(tmp_path, "--dataset_name", prompts, "--ngram", "5", fails=True)
    assert "`limit` was null and is now 2" in build(tmp_path, "--dataset_name", prompts, "--limit", "2", fails=True)
    assert read_rows(tmp_path / "out") == before
    Dataset.from_dict({"prompt": ["x"]}).save_to_disk(tmp_path / "foreign")
    assert "already contains other files" in build(tmp_path, "--dataset_name", prompts, out="foreign", fails=True)
    assert load_from_disk(str(tmp_path / "foreign")).to_list() == [{"prompt": "x"}]
    message = build(tmp_path, "--dataset_name", tmp_path / "foreign", out="foreign", fails=True)
    assert "`output_dir` is one of the datasets" in message


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    prompts = write(tmp_path / "rows.jsonl", ["a", "b", "c"])
    build(tmp_path, "--dataset_name", prompts)
    with (tmp_path / "out" / "journal.jsonl").open() as other_run:
        fcntl.flock(other_run, fcntl.LOCK_EX)
        assert "Another process is writing" in build(tmp_path, "--dataset_name", prompts, fails=True)


def is_locked(path):
    """Whether a run is at work."""
    if path.exists():
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def test_a_killed_run_ends_in_the_same_dataset_when_it_is_given_again(tmp_path):
    prompts = write(tmp_path / "rows.jsonl", [text_of(60, seed % 400) for seed in range(500)])
    options = ["--dataset_name", prompts]
    build(tmp_path, *options, out="whole")
    generator = random.Random(0)
    killed = 0
    for _ in range(12):
        builder = Builder(SCRIPT, "--output_dir", tmp_path / "out", *options, log_dir=tmp_path)
        while builder.process.is_alive() and not is_locked(tmp_path / "out" / "journal.jsonl"):
            time.sleep(0.005)
        time.sleep(generator.uniform(0.0, 0.1))
        killed += builder.process.is_alive()
        builder.kill()
    assert killed
    build(tmp_path, *options)
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "whole")
    assert read_rejects(tmp_path / "out") == read_rejects(tmp_path / "whole")
    assert not (tmp_path / "out" / ".writing").exists()


def test_real_prompts_and_real_evaluation_sets(tmp_path):
    data = shared_data()
    sources = [data / "train/cloud_pairs_arenabench_gpt4.jsonl.gz", data / "train/pairs_gsm8k_solutions.jsonl.gz"]
    sources.append(data / "train/pairs_hh_harmless.jsonl.gz")
    sets = [str(data / "eval" / name) for name in ("llmbar-natural.jsonl", "gsm8k_solutions.jsonl")]
    build(tmp_path, "--dataset_name", *sources, "--decontaminate_against", *sets)
    rows = read_rows(tmp_path / "out")
    assert {row["source"] for row in rows} == {path.name.split(".")[0] for path in sources}
    check_everything_is_accounted_for(tmp_path / "out")
    read = [row["prompt"] for path in sources for row in read_jsonl(path)]
    order = iter(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}] for prompt in read)
    assert all(row["prompt"] in order for row in rows), "not in the order of the sources"
    evaluation = EvaluationNGrams()
    for name in sets:
        evaluation.add(name, [row["prompt"] for row in read_jsonl(data / "eval" / name)])
    asked = ["\n".join(turn["content"] for turn in row["prompt"] if turn["role"] == "user") for row in rows]
    assert not any(evaluation.find(text) for text in asked)
    assert not find_near_duplicates(["\n".join(turn["content"] for turn in row["prompt"]) for row in rows])
    planted = read_jsonl(data / "eval" / "gsm8k_solutions.jsonl")[0]["prompt"]
    write(tmp_path / "planted.jsonl", [f"Please help me with this. {planted} Thank you.", "Something else entirely"])
    build(tmp_path, "--dataset_name", tmp_path / "planted.jsonl", "--decontaminate_against", *sets, out="planted")
    assert [row["prompt"] for row in read_rows(tmp_path / "planted")] == ["Something else entirely"]


CHAT = [{"role": "user", "content": "Explain the tides to me please"}, {"role": "assistant", "content": "sure"}]


def test_chats_that_end_with_an_answer_give_the_turns_before_it_on_request(tmp_path, capsys):
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    options = ["--dataset_name", tmp_path / "chats.jsonl", "--prompt_column", "messages"]
    assert "Every row was left out" in build(tmp_path, *options, out="none", fails=True)
    assert "1 kept" in build(tmp_path, *options, "--drop_last_answer", "True")
    assert [row["prompt"] for row in read_rows(tmp_path / "out")] == [CHAT[:1]]


def test_the_last_answer_of_an_evaluation_chat_is_ignored(tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    write(tmp_path / "rows.jsonl", [CHAT[0]["content"], "Something else entirely"])
    options = ["--decontaminate_against", tmp_path / "eval.jsonl", "--decontaminate_column", "messages"]
    build(tmp_path, "--dataset_name", tmp_path / "rows.jsonl", *options)
    assert [row["prompt"] for row in read_rows(tmp_path / "out")] == ["Something else entirely"]


def test_transcripts_become_turns_and_failures_are_explained(tmp_path):
    rows = [{"prompt": "\n\nHuman: Explain the tides to me please\n\nAssistant:"}, {"prompt": json.dumps(CHAT)}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = build(tmp_path, "--dataset_name", tmp_path / "rows.jsonl")
    assert [row["prompt"] for row in read_rows(tmp_path / "out")] == [CHAT[:1]]
    assert "rows: 1 prompts are read as transcripts." in out
    assert (
        "1 row(s) not usable, such as row 1 of rows" in out
        and "With `--drop_last_answer`, the turns before the last one become the prompt." in out
    )
