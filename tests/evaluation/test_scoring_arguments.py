"""Names of models, sets and files."""

import pytest

from cloud_hf.commands.score import ScoreArguments
from cloud_hf.evaluation.formatting import file_name, picture_name
from cloud_hf.evaluation.scoring_arguments import ScoringArguments, short_names


@pytest.mark.parametrize(
    ("option", "names"), [("models", ["runs/cloud", "./runs/cloud/"]), ("dataset_name", ["a.jsonl", "b", "a.jsonl"])]
)
def test_what_is_named_twice_is_an_error(option, names):
    options = {"models": ["m"], "dataset_name": ["d"], "output_dir": "o", option: names}
    with pytest.raises(ValueError, match=rf"`{option}` lists {names[0]} twice"):
        ScoringArguments(**options)


def test_short_names_tell_names_apart():
    assert short_names(["runs/a/cloud", "runs/b/cloud", "x.jsonl"]) == {
        "runs/a/cloud": "a/cloud",
        "runs/b/cloud": "b/cloud",
        "x.jsonl": "x.jsonl",
    }
    # One set for two purposes, spelt in two ways
    assert short_names(["data/x.jsonl", "./data/x.jsonl"]) == {
        "data/x.jsonl": "x.jsonl",
        "./data/x.jsonl": "x.jsonl",
    }


def test_no_two_names_share_a_file():
    names = ["a/x", "b/x", "a-x", "a b.jsonl", "a-b.jsonl", "y"]
    shown = short_names(names)
    assert shown["b/x"] == "b/x" and shown["y"] == "y"
    assert len({file_name("scores", short, "parquet") for short in shown.values()}) == len(names)
    assert len({picture_name("rejection", short) for short in shown.values()}) == len(names)
    assert short_names(names[::-1]) == shown


SERVER = {"backend": "server", "server_url": ["http://127.0.0.1:1"]}


@pytest.mark.parametrize(
    ("backend", "temperature", "says"),
    [
        ({"backend": "vllm"}, 2.5, "`temperature` is 2.5; `backend` 'vllm' accepts 0 \\(greedy\\) or 0.01 to 2"),
        ({"backend": "vllm"}, 0.001, "or 0.01 to 2"),
        (SERVER, 101.0, "`temperature` is 101; `backend` 'server' accepts 0 \\(greedy\\) or 0.001 to 100"),
        ({}, float("inf"), "`temperature` is inf; it must be a finite number of at least 0"),
        ({"backend": "vllm"}, -1.0, "of at least 0"),
    ],
)
def test_temperatures_that_a_backend_refuses_fail_early(backend, temperature, says):
    with pytest.raises(ValueError, match=says):
        ScoringArguments(models=["m"], dataset_name=["d"], output_dir="o", temperature=temperature, **backend)
    if "vllm" in backend.values():
        with pytest.raises(ValueError, match=says):
            ScoreArguments(model="m", prompt="p", response="r", temperature=temperature, **backend)


def test_temperatures_that_a_backend_takes():
    for backend, temperature in (({"backend": "vllm"}, 2.0), (SERVER, 2.5), ({}, 2.5), ({}, 0.0)):
        args = ScoringArguments(models=["m"], dataset_name=["d"], output_dir="o", temperature=temperature, **backend)
        assert args.temperature == temperature
