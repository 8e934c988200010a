"""Numbers, tables and names as reports show them."""

import math

import pytest

from cloud_hf.evaluation.formatting import NUMBER, POINTS, Form, Table, file_name, picture_name, show, show_estimate
from cloud_hf.evaluation.stats import Estimate, json_safe


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (show(0.5), "50.0%"),
        (show(0.5, error=0.025, ci95=(0.25, 0.75), n=12), "50.0% ± 2.5 (25.0 to 75.0), n = 12"),
        (show(0.5, error=math.nan), "50.0%"),
        (show(None), "–"),
        (show(math.nan, n=3), "–"),
        (show(-0.5, POINTS, ci95=(-1.0, 0.5)), "-50.0 points (-100.0 to +50.0)"),
        (show(0.69314, NUMBER), "0.693"),
        (show(0.0001, NUMBER), "0.000"),
        (show(0.0001, Form(exponent=True), ci95=(0.0, 0.5)), "1.0e-04 (0.0e+00 to 5.0e-01)"),
        (show_estimate(None), "–"),
        (show_estimate(Estimate(1.0, 2)), "100.0%, n = 2"),
        (show_estimate(Estimate(0.5, 2, (0.25, 0.75)), NUMBER, with_n=False), "0.500 (0.250 to 0.750)"),
    ],
)
def test_numbers(shown, expected):
    assert shown == expected


def test_text_cannot_break_a_table():
    table = Table(["", "a|b"], [["x\ny", 1]], title="Above:", note="Below.")
    assert table.markdown() == "Above:\n\n|  | a/b |\n|---|---:|\n| x y | 1 |\n\nBelow."


def test_json_has_no_nan():
    found = json_safe({"a": Estimate(math.nan, 1, (0.0, 1.0)), 2: [(math.nan, None, "x", True)]})
    assert found == {"a": {"value": None, "n": 1, "ci95": [0.0, 1.0]}, 2: [[None, None, "x", True]]}


def test_file_names():
    assert file_name("journal", "a/cloud", "jsonl") == "journal_a-cloud.jsonl"
    assert picture_name("best_of_n", "ArenaHard, math") == "best_of_n_ArenaHard-math.png"
    assert picture_name("rejection", "my (own) pairs.jsonl") == "rejection_my-own-pairs.jsonl.png"
