"""`cloud-hf score`: options or JSON lines in, JSON lines out."""

import io
import json
import sys

import pytest
from models_for_tests import make_model
from tokenizers_for_tests import make_tokenizer
from user_rows import CHATS, TRANSCRIPT, assistant

from cloud_hf import cli
from cloud_hf.commands.score import summary
from cloud_hf.loading import load_reward_model
from cloud_hf.scores import Sample, Score


ROWS = [
    {
        "id": "a",
        "prompt": "What is 2 + 2?",
        "response": "4",
        "critique": "replaced",
        "rewards": [1.0],
        "partial_rewards": [[1.0]],
    },
    {"id": "b", "prompt": [{"role": "user", "content": "Hi"}], "response": "Hello ü"},
]


@pytest.fixture(scope="module")
def models(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, options in (("cloud", {}), ("classic", {"critique": False})):
        make_model(base_folder, **options).save_pretrained(folder / name)
        make_tokenizer("llama3").save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def keep_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)


def run(capsys, *arguments) -> list[dict]:
    cli.main(["score", *map(str, arguments)])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def expected(models, name, **options):
    model, tokenizer = load_reward_model(str(models / name))
    prompts, responses = [row["prompt"] for row in ROWS], [row["response"] for row in ROWS]
    return model.score(prompts, responses, tokenizer, **options)


def test_one_response(models, capsys):
    options = ("--prompt", ROWS[0]["prompt"], "--response", "4", "--max_new_tokens", 5)
    [found] = run(capsys, "--model", models / "cloud", "--read_every", 2, *options)
    score, _ = expected(models, "cloud", max_new_tokens=5, read_every=2)
    assert found.pop("reward") == pytest.approx(score.reward, abs=1e-5)
    assert found.pop("partial_rewards") == [pytest.approx(rewards, abs=1e-5) for rewards in score.partial_rewards]
    assert found == {"critique": score.critique, "finish_reason": score.finish_reasons[0]}
    [found] = run(capsys, "--model", models / "classic", *options)
    assert found == {"reward": pytest.approx(expected(models, "classic")[0].reward, abs=1e-5)}


def test_json_lines_keep_their_keys(models, capsys, tmp_path, monkeypatch):
    lines = "\n".join(map(json.dumps, ROWS)) + "\n\n"
    (tmp_path / "in.jsonl").write_text(lines)
    options = ("--model", models / "cloud", "--num_critiques", 2, "--temperature", 1, "--max_new_tokens", 5)
    assert run(capsys, *options, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl") == []
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run(capsys, *options, "--input", "-") == found
    for row, again, score in zip(
        ROWS, found, expected(models, "cloud", num_critiques=2, temperature=1.0, max_new_tokens=5, seed=0), strict=True
    ):
        assert {key: again[key] for key in ("id", "prompt", "response")} == {
            key: row[key] for key in ("id", "prompt", "response")
        }
        assert "partial_rewards" not in again
        assert again["critiques"] == list(score.critiques) and again["critique"] == score.critique
        assert again["rewards"] == pytest.approx(score.rewards, abs=1e-5)


def test_nothing_of_an_earlier_scoring_is_left(models, capsys, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(ROWS[0]))
    [found] = run(capsys, "--model", models / "classic", "--input", tmp_path / "in.jsonl")
    assert found.keys() == {"id", "prompt", "response", "reward"}


def test_an_empty_critique_is_still_a_critique():
    score = Score.of([Sample(1.0, "", (), "length")])
    assert summary(score, has_critique=True) == {"reward": 1.0, "critique": "", "finish_reason": "length"}
    assert summary(score, has_critique=False) == {"reward": 1.0}


def test_a_lone_surrogate_in_another_column_is_kept(models, capsys, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({**ROWS[0], "note": "\ud800é"}))
    run(capsys, "--model", models / "classic", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    [line] = (tmp_path / "out.jsonl").read_text(encoding="utf8").splitlines()
    assert json.loads(line)["note"] == "\ud800é" and "é" in line


def test_rows_of_other_forms(models, capsys, tmp_path):
    """As in a preference set."""
    rows = [
        {"prompt": CHATS, "response": "A"},
        {"prompt": TRANSCRIPT, "response": "A"},
        {"prompt": json.dumps(CHATS), "response": [assistant("A")]},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = run(capsys, "--model", models / "classic", "--input", tmp_path / "in.jsonl")
    assert len({row["reward"] for row in found}) == 1 and [row["prompt"] for row in found] == [
        row["prompt"] for row in rows
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "Row 1 is [1]; give an object"),
        ("{", "Row 1 is not JSON"),
        ('{"prompt": "x", "response": 1}', "Row 1: `response` is 1; give a string or a list of chat messages"),
        ('{"prompt": [], "response": "x"}', "Row 1: `prompt`"),
        (json.dumps({"prompt": "x " * 4000, "response": "x"}), "Row 1: "),
    ],
)
def test_rows_are_checked_before_the_model_loads(line, says, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cloud_hf.commands.score.open_any_model", None)
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["score", "--model", str(models / "cloud"), "--input", str(tmp_path / "in.jsonl"), "--max_new_tokens", "9"]
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and "in.jsonl" in error and says in error


def test_no_rows_and_no_file_for_the_output(models, tmp_path, capsys):
    arguments = ["score", "--model", str(models / "cloud"), "--input", str(tmp_path / "in.jsonl")]
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "has no rows" in capsys.readouterr().err
    (tmp_path / "in.jsonl").write_text(json.dumps(ROWS[0]))
    for output, says in (
        (tmp_path / "no" / "out.jsonl", "its folder does not exist"),
        (tmp_path, "which is a folder"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--output", str(output)])
        assert says in capsys.readouterr().err
