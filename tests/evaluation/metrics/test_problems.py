"""Problems are loaded from either layout, and bad rows are named."""

import json
import math

import pytest

from cloud_hf.evaluation.metrics.problems import load_problems


ROW = {"id": "a", "prompt": "p", "responses": ["x", "y"], "correct": [1.0, 0.5]}
CANDIDATES = [{"response": "x", "judge_score": 1.0}, {"response": "y", "judge_score": None}]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**ROW, "responses": []}, r"row 0 \(id 'a'\): `responses` is \[\]; give a non-empty list"),
        ({**ROW, "responses": ["x", None]}, "`responses` is"),
        ({**ROW, "correct": [1.0]}, "give one value for each of the 2 responses"),
        ({**ROW, "correct": [1.0, None]}, "give booleans or numbers"),
        ({**ROW, "correct": [1.0, math.nan]}, "a candidate is worth nan; give finite numbers"),
        ({"id": "a", "prompt": "p", "candidates": CANDIDATES}, "`judge_score` of candidate 1 is missing"),
        (
            {"id": "a", "prompt": "p", "candidates": ["x", "y"]},
            r"`candidates` is \['x', 'y'\]; give a list of objects",
        ),
        (
            {"id": "a", "prompt": "p", "candidates": [{"text": "x"}]},
            "`candidates` is .*; give a list of objects with `resp",
        ),
        ({"id": "a", "prompt": "p", "candidates": []}, "`responses` is"),
        ({"id": "a", "prompt": "p", "responses": ["x"]}, "needs the column.* correct"),
    ],
)
def test_bad_rows_are_named(row, says, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=says):
        load_problems(str(path))


def test_ids_are_unique(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (ROW, {**ROW, "id": "b"}, ROW)))
    with pytest.raises(ValueError, match="rows 0 and 2 have the same id 'a'"):
        load_problems(str(path))
    assert [problem.id for problem in load_problems(str(path), limit=2)] == ["a", "b"]
    assert load_problems(str(path), limit=1, judged=False)[0].worth is None
