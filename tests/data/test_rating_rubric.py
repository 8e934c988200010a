"""The rubric of a judge that rates: how a rating is read, and files that replace it."""

import pytest

from cloud_hf.data.rating_rubric import Rubric, read_rubric


BODY = "Rate {response} to {conversation}."


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("[[3]] at first, then [[7]]", "7"),
        ("[[ 7.5 ]]", "7.5"),
        ("[[11]]", None),
        ("7", None),
        ("[[0]]", None),
        ("", None),
    ],
)
def test_the_last_rating_on_the_scale_counts(answer, rating):
    assert Rubric().read(answer) == rating


def test_a_file_replaces_instructions_and_scale(tmp_path):
    path = tmp_path / "rubric.txt"
    path.write_text(f"---\npattern: 'Score: (\\d+)%'\nlowest: 0\nhighest: 100\n---\n{BODY}\n---\nEnd with Score: 50%.")
    rubric = read_rubric(str(path))
    assert rubric.template.startswith(BODY) and rubric.template.endswith("50%.")
    assert rubric.read("Score: 20%. No, Score: 100%") == "100" and rubric.middle == 50
    path.write_text(BODY)
    assert read_rubric(str(path)) == Rubric(BODY) and "{response}" in read_rubric(None).template


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Rate {response}.", r"contains \{conversation\} 0 times"),
        (f"---\nscale: 5\n---\n{BODY}", "contains the key 'scale'; use only the keys pattern, lowest, highest"),
        (f"---\n[1\n---\n{BODY}", "is not valid YAML"),
        (f"---\nlowest: 5\nhighest: 1\n---\n{BODY}", "`lowest` is 5 and `highest` is 1"),
        (f"---\npattern: '('\n---\n{BODY}", "is not a regular expression"),
        (f"---\npattern: 'x'\n---\n{BODY}", "has 0 groups; it must have exactly one"),
    ],
)
def test_unusable_files_are_refused(tmp_path, text, says):
    (tmp_path / "rubric.txt").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_rubric(str(tmp_path / "rubric.txt"))
