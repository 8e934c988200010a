"""Names of models, sets and files."""

import pytest

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
