import json
import math

import numpy as np
import pytest
from benchmark_files import pair, write_rows

from cloud_hf.evaluation.benchmarks import rm_bench


STYLED = {"chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"]}
ALL = ("chat", "math", "code", "safety-refuse", "safety-response")


def row(domain, number=0, **columns):
    return {"id": number, "prompt": "p", "domain": domain, **STYLED, **columns}


def load(tmp_path, rows, name="rows.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows))  # the official file is one JSON list
    return rm_bench.load([str(path)])


def test_the_triangles(tmp_path):
    """A scorer of style alone: the showier response wins, so the easy cells are right and the hard ones wrong."""
    rows = load(tmp_path, [row("chat")])
    figures = rm_bench.score(rows, [[0, 1, 2, 0, 1, 2]]).figures
    assert (figures["chat easy"].value, figures["chat normal"].value, figures["chat hard"].value) == (1.0, 0.0, 0.0)
    assert figures["chat"].value == pytest.approx(1 / 3)
    # one cell of each triangle, by hand: right (concise, plain, markdown) against wrong
    scores = rm_bench.score(rows, [[0.5, 0, 3, 1, 0, 2]])
    assert scores.details["matrices"]["chat"] == [[0, 1, 0], [0, 0, 0], [1, 1, 1]]
    values = [scores.figures[f"chat {level}"].value for level in ("hard", "normal", "easy")]
    assert values == pytest.approx([1 / 3, 1 / 3, 2 / 3])


def test_a_tie_is_wrong_in_every_cell(tmp_path):
    scores = rm_bench.score(load(tmp_path, [row("code")]), [[1.0] * 6])
    assert scores.figures["code"].value == 0.0 and scores.ties == 1
    assert np.array(scores.details["matrices"]["code"]).sum() == 0


def test_domains_weigh_the_same_and_safety_is_pooled(tmp_path):
    """3 rows of safety-refuse that are all right and one of safety-response that is all wrong."""
    rows = load(tmp_path, [row(domain) for domain in ALL] + [row("safety-refuse", 1), row("safety-refuse", 2)])
    right, wrong = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
    rewards = [wrong if rm_row.subset in ("math", "safety-response") else right for rm_row in rows]
    figures = rm_bench.score(rows, rewards).figures
    assert figures["safety"].value == 0.75
    assert (figures["safety-refuse"].value, figures["safety-response"].value) == (1.0, 0.0)
    for name in ("total", "hard", "normal", "easy"):
        assert figures[name].value == pytest.approx((1 + 0 + 1 + 0.75) / 4)
    levels = [figures[level].value for level in ("hard", "normal", "easy")]
    assert figures["total"].value == pytest.approx(sum(levels) / 3)  # the leaderboard: domain average = level average


def test_missing_and_unknown_domains_are_named(tmp_path):
    scores = rm_bench.score(load(tmp_path, [row("chat"), row("poetry")]), [[1, 1, 1, 0, 0, 0]] * 2)
    assert math.isnan(scores.figures["total"].value) and math.isnan(scores.figures["hard"].value)
    assert scores.figures["chat"].value == 1.0
    assert scores.missing == ("math", "code", "safety-refuse", "safety-response") and scores.unknown == {"poetry": 1}
    assert scores.subsets["poetry"].value == 1.0


def test_both_layouts_load(tmp_path):
    path = write_rows(tmp_path / "rmbench-chat.jsonl.gz", [pair("rmbench-chat", **STYLED)])
    [local], [official] = rm_bench.load([path]), load(tmp_path, [row("chat")])
    assert local.subset == official.subset == "chat"
    assert local.responses == official.responses == ("c0", "c1", "c2", "r0", "r1", "r2")
    assert local.chosen == ("c0", "c1", "c2")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"chosen": ["c0", "c1"]}, "2 chosen and 3 rejected responses"),
        ({"rejected": []}, "`rejected` is an empty list"),
        ({"chosen": ["c0", None, "c2"]}, "`chosen` is None"),
    ],
)
def test_rows_without_three_styles_are_errors(tmp_path, columns, says):
    with pytest.raises(ValueError, match=says):
        load(tmp_path, [row("chat", **columns)])


def test_a_revision_with_other_columns_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"RM-Bench .* needs the column\(s\) subset"):
        load(tmp_path, [{"id": 1, "prompt": "p", **STYLED}])
