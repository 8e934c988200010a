"""Public preference sets become pairs, which train and are evaluated."""

import json
import shlex
from itertools import takewhile

import pytest
from datasets import concatenate_datasets, load_dataset, load_from_disk
from public_rows import BAD, GOOD, PROMPTS, SETS, rows_of
from scripts_for_tests import CPU, run
from tokenizers_for_tests import make_tokenizer
from trainers_for_tests import make_trainer
from user_rows import case

from cloud_hf import CritiqueFormat, TransformersScorer
from cloud_hf.cli import main as cloud_hf
from cloud_hf.cli import parse
from cloud_hf.commands import prepare
from cloud_hf.data.public_layouts import LAYOUTS
from cloud_hf.data.row_values import judged_chat
from cloud_hf.evaluation import evaluate_pairs
from cloud_hf.training.encoding import ENCODED_COLUMNS, encode_pairs


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def convert(dataset, output, *options):
    """Run the command in this process, and return the pairs."""
    command = ["--dataset_name", dataset, "--output_dir", output, *options]
    prepare.main(*parse(prepare.ARGUMENTS, list(map(str, command))))
    return load_from_disk(output)


def convert_rows(tmp_path, rows, *options):
    return convert(write(tmp_path / "rows.jsonl", rows), tmp_path / "pairs", *options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """All sets, prepared with margins where they have ratings."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, (layout, _) in SETS.items():
        rated = ["--margins", "True"] if LAYOUTS[layout].margin else []
        convert(write(folder / f"{layout}.jsonl", rows_of(name)), folder / layout, *rated)
    return folder


@pytest.mark.parametrize("layout", [layout for layout, _ in SETS.values()])
def test_every_set_becomes_pairs(layout, prepared):
    record = json.loads((prepared / layout / "build.json").read_text())
    assert record["settings"]["layout"] == layout
    rows = load_from_disk(prepared / layout)
    assert len(set(rows["id"])) == 3
    for row, question in zip(rows, PROMPTS, strict=True):
        prompt, chosen = judged_chat(row["prompt"], row["chosen"])
        assert (chosen, judged_chat(row["prompt"], row["rejected"])[1]) == (GOOD, BAD)
        assert (prompt if isinstance(prompt, str) else prompt[-1]["content"]).endswith(question)
        assert row.get("margin", 2.0) == 2.0
    assert ("margin" in rows.column_names) == bool(LAYOUTS[layout].margin)


def test_every_set_trains_and_is_evaluated(prepared, classic_model, tmp_path):
    rows = {layout: load_from_disk(prepared / layout) for layout, _ in SETS.values()}
    critique_format = CritiqueFormat(make_tokenizer("llama3"), critique=False)
    encoded = [encode_pairs(each, critique_format, None, "error") for each in rows.values()]
    together = concatenate_datasets([each.select_columns(ENCODED_COLUMNS) for each in encoded])
    options = {"max_steps": 1, "per_device_train_batch_size": len(together)}
    assert make_trainer(classic_model, tmp_path, together, **options).train().training_loss > 0
    scorer = TransformersScorer(classic_model, make_tokenizer("llama3"))
    for each in rows.values():
        assert evaluate_pairs(scorer, each, critique_format).n == 3


def test_tools_of_a_prompt_are_kept(tmp_path):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    pair = {"chosen": "a", "rejected": "b"}
    asked = [{"messages": [{"role": "user", "content": "Where?"}], "tools": tools} for tools in ([tool], [])]
    rows = convert_rows(tmp_path, [{"prompt": prompt, **pair} for prompt in asked])
    assert rows["prompt"][:] == [prompt["messages"] for prompt in asked]
    assert json.loads(rows[0]["tools"]) == [tool] and rows[1]["tools"] is None


def test_ties_of_distilabel_are_left_out(tmp_path):
    row = rows_of("Argilla's Orca DPO pairs")[0]
    assert len(convert_rows(tmp_path, [row, {**row, "status": "tie"}])) == 1


def test_margins_are_differences_of_ratings(tmp_path):
    rows = [
        {"prompt": "p", "response": text, "helpfulness": rating}
        for text, rating in (("a", 1), ("b", 4), ("c", None), ("d", 3))
    ]
    [pair] = convert_rows(tmp_path, rows, "--margins", "True")
    assert (pair["chosen"], pair["rejected"], pair["margin"]) == ("b", "a", 3.0)
    assert (pair["chosen_rating"], pair["rejected_rating"]) == (4.0, 1.0)
    pairs = convert(tmp_path / "rows.jsonl", tmp_path / "all", "--pairs", "all")
    assert [(row["id"], row["chosen"], row["rejected"]) for row in pairs] == [
        ("0/1-3", "b", "d"), ("0/1-0", "b", "a"), ("0/3-0", "d", "a"),
    ]  # fmt: skip
    assert "margin" not in pairs.column_names


def test_what_is_left_out_is_counted_by_kind(tmp_path, capsys):
    rows = rows_of("Chatbot Arena")
    rows += [{**rows[0], "winner": "tie"}, {**rows[1], "winner": "tie (bothbad)"}, {**rows[2], "winner": "tie"}]
    rows.append({**rows[0], "conversation_a": rows[0]["conversation_b"]})
    assert len(convert_rows(tmp_path, rows)) == 3
    printed = capsys.readouterr().out
    assert "Left out: 2 x tie, 1 x tie (bothbad), 1 x identical responses." in printed
    rejects = [json.loads(line) for line in (tmp_path / "pairs/rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == ["3", "4", "5", "6"]


def test_unrated_and_lone_responses_are_counted(tmp_path, capsys):
    [full, part, one] = rows_of("UltraFeedback")
    for completion in (part["completions"][0], *one["completions"][:2]):
        completion |= {"annotations": {"honesty": {"Rating": "N/A"}}, "fine-grained_score": None}
    assert len(convert_rows(tmp_path, [full, part, one])) == 2
    printed = capsys.readouterr().out
    assert "3 x response without a rating, 1 x prompt with fewer than two rated responses" in printed


def test_bad_rows_are_named_and_dropped_on_request(tmp_path, capsys):
    rows = rows_of("PKU-SafeRLHF")
    rows[0]["better_response_id"], rows[1]["response_1"] = 7, " "
    with pytest.raises(ValueError, match=r"row 0: `better_response_id` is 7; .* Also row 1: `chosen` is empty"):
        convert_rows(tmp_path, rows)
    assert not (tmp_path / "pairs").exists()
    assert len(convert_rows(tmp_path, rows, "--bad_rows", "drop")) == 1
    assert "2 x bad row" in capsys.readouterr().out


def test_a_bad_response_drops_its_prompt(tmp_path):
    rows = rows_of("HelpSteer 2")
    rows[1]["helpfulness"] = "good"
    assert len(convert_rows(tmp_path, rows, "--bad_rows", "drop")) == 2


def test_a_dropped_prompt_does_not_merge_its_neighbours(tmp_path):
    rated = [("A", "a1", 4), ("A", "a2", 1), ("B", "", 3), ("B", "b2", 1), ("A", "a3", 3), ("A", "a4", 0)]
    rows = [{"prompt": prompt, "response": text, "helpfulness": rating} for prompt, text, rating in rated]
    pairs = convert_rows(tmp_path, rows, "--layout", "helpsteer2", "--bad_rows", "drop", "--margins", "True")
    found = [(row["id"], row["chosen"], row["rejected"], row["margin"]) for row in pairs]
    assert found == [("0", "a1", "a2", 3.0), ("4", "a3", "a4", 3.0)]


def test_ratings_that_contradict_the_pair_are_bad(tmp_path):
    rows = rows_of("UltraFeedback binarized")
    rows[2]["score_chosen"] = 1.0
    with pytest.raises(ValueError, match=r"row 2: `score_chosen` \(1\) is below `score_rejected` \(6\)"):
        convert_rows(tmp_path, rows)


def test_repeated_ids_are_replaced_and_kept(tmp_path):
    rows = [{**row, "id": "same"} for row in rows_of("Tulu 3")]
    pairs = convert_rows(tmp_path, rows)
    assert pairs["id"] == ["0", "1", "2"] and pairs["source_id"] == ["same"] * 3


def test_csv_and_parquet_read_like_json(tmp_path, prepared):
    expected = list(load_from_disk(prepared / "arena_55k"))
    rows = load_dataset("json", data_files=str(prepared / "arena_55k.jsonl"), split="train")
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_parquet(tmp_path / "part-0.parquet")
    for number, name in enumerate(("rows.csv", "*.parquet")):
        assert list(convert(tmp_path / name, tmp_path / f"out-{number}")) == expected


def test_the_card_names_source_and_licence(tmp_path):
    folder = tmp_path / "downloaded"
    folder.mkdir()
    write(folder / "train.jsonl", rows_of("HelpSteer 3"))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# HelpSteer 3\n")
    convert(folder, tmp_path / "pairs")
    card = (tmp_path / "pairs/README.md").read_text()
    assert "license: cc-by-4.0" in card and "| `downloaded` | `cc-by-4.0` |" in card


def test_the_last_line_says_what_to_run_next(tmp_path, capsys):
    convert_rows(tmp_path, rows_of("Nectar"))
    *_, last = capsys.readouterr().out.splitlines()
    written, _, command = last.partition(" Next: ")
    assert written == f"3 pairs in {tmp_path / 'pairs'}."
    assert shlex.split(command)[:2] == ["cloud-hf", "train-classic"]
    assert str(tmp_path / "pairs") in shlex.split(command)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layout", "nonsense"], "`layout` is 'nonsense'; it must be one of auto, ultrafeedback"),
        (["--layout", "helpsteer3"], "lacks context, response1, response2, overall_preference for `layout` helpsteer3; it fits `nectar`"),
        (["--margins", "True"], "`margins` needs ratings, which `layout` nectar does not have"),
        (["--pairs", "some"], "`pairs` is 'some'; use best_worst or all"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        convert_rows(tmp_path, rows_of("Nectar"), *options)


# ------------------------------------------------------------------------------- errors of other commands lead here


@pytest.mark.parametrize("name", ["05_helpsteer2", "08_nectar"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_named_command_converts_the_rows(name, command, tmp_path, monkeypatch, capsys, base_folder):
    monkeypatch.chdir(tmp_path)
    options = {
        "train": ["train-classic", "--model_name_or_path", str(base_folder), "--output_dir", "rm", *CPU],
        "evaluate": ["evaluate", "--models", str(base_folder), "--output_dir", "results"],
    }
    with pytest.raises(SystemExit):
        cloud_hf([*options[command], "--dataset_name", case(f"{name}.jsonl")])
    [error] = capsys.readouterr().err.strip().splitlines()[-1:]
    words = shlex.split(error[error.index("cloud-hf prepare") :])
    cloud_hf(words[1:])
    assert len(load_from_disk(words[-1])) == 4


# The sets behind RewardBench are read by functions like theirs, and would take two minutes more
@pytest.mark.full
@pytest.mark.parametrize(
    "name", [*takewhile(lambda name: name != "RewardBench", SETS), "RewardBench", "OpenAI preferences"]
)
def test_the_scripts_from_rows_to_a_report(name, base_folder, tmp_path):
    rows, pairs, model = write(tmp_path / "rows.jsonl", rows_of(name)), tmp_path / "pairs", tmp_path / "rm"
    run("prepare_preferences", "--dataset_name", rows, "--output_dir", pairs)
    run(
        "train_classic", "--model_name_or_path", base_folder, "--dataset_name", pairs, "--output_dir", model,
        "--max_steps", 1, *CPU,
    )  # fmt: skip
    run("evaluate_rewards", "--models", model, "--dataset_name", pairs, "--output_dir", tmp_path / "results")
    assert json.loads((tmp_path / "results/report.json").read_text())["results"][0]["n"] == 3
