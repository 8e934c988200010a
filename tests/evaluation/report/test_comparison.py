"""Two runs, made at different times, compared on the rows that both scored."""

import json
from dataclasses import replace

import pytest
from evaluations_for_tests import evaluation

from cloud_hf.evaluation.candidates import ScoredSet, replay_result
from cloud_hf.evaluation.formatting import file_name
from cloud_hf.evaluation.metrics.best_of_n import Problem
from cloud_hf.evaluation.report import write_scores
from cloud_hf.evaluation.report.comparison import compare_results, read_results, write_comparison
from cloud_hf.evaluation.set_results import compare
from cloud_hf.evaluation.stats import json_safe
from cloud_hf.generation import Sample
from cloud_hf.scoring import Score


def write_run(folder, models, **arguments):
    """Write what the comparison reads of a run: its arguments, the sets of its models and their scores."""
    folder.mkdir()
    for name, evaluations in models.items():
        write_scores(evaluations, folder / file_name("scores", name, "parquet"))
    page = {
        "version": 1,
        "arguments": {"models": [*models, "not-scored-yet"], "temperature": 0.0, **arguments},
        "environment": {"versions": {"torch": "2"}, "device": "CPU", "models": dict.fromkeys(models, "5f0c")},
        "styles": {name: {} for name in (*models, "not-scored-yet")},
        "benchmarks": [{"model": name, **part.summary()} for name, found in models.items() for part in found],
    }
    (folder / "report.json").write_text(json.dumps(json_safe(page)))
    return str(folder)


def test_differences_are_those_of_one_run(rows, tmp_path, capsys):
    """Also if the other run has the rows in another order, under other ids."""
    ours, theirs = [[1, 0], [1, 0], [0, 1], [1, 0]], [[0, 1], [3, 2], [1, 1], [0, 1]]
    a = write_run(tmp_path / "a", {"old": [evaluation(rows, ours)]})
    turned = [replace(row, id=f"other/{place}") for place, row in enumerate(rows)][::-1]
    b = write_run(tmp_path / "b", {"new": [evaluation(turned, theirs[::-1])]}, temperature=1.0)
    write_comparison([a, b], str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    [expected] = compare({"a: old": [evaluation(rows, ours)], "b: new": [evaluation(rows, theirs)]})
    [difference] = found["differences"]
    # A bootstrap draws rows by their places
    assert difference == {**json_safe(expected), "difference": {**json_safe(expected.difference), "ci95": difference["difference"]["ci95"]}}  # fmt: skip
    assert found["notes"] == ["Settings differ: temperature is 0.0 in a and 1.0 in b."]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert (
        text in capsys.readouterr().out
        and "a: old − b: new" in text
        and "temperature is 0.0 in a and 1.0 in b" in text
    )


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("combine", "median", "mean"),
        ("read_every", 16, None),
        ("stop_when_stable", 0.1, None),
        ("label_weights", '{"right": 1}', None),
        ("judge_model", "large", None),
        ("judge_mode", "pointwise", "pairwise"),
        ("judge_prompt_file", "judge.md", None),
        ("judge_temperature", 0.5, 0.0),
        ("cascade_goal", "accuracy=0.9", "loss=0.01"),
    ],
)
def test_settings_that_differ_are_named(name, value, default, rows, tmp_path):
    """If a report does not record a setting, its default value counts."""
    runs = {"a": {name: value}, "b": {}, "c": {name: default}}
    a, b, c = (
        read_results(write_run(tmp_path / run, {"m": [evaluation(rows, [[1, 0]] * 4)]}, **arguments), run)
        for run, arguments in runs.items()
    )
    assert compare_results(a, b).notes == [f"Settings differ: {name} is {value!r} in a and {default!r} in b."]
    assert compare_results(b, c).notes == []


def test_names_are_not_shortened_twice(rows, tmp_path):
    """Reports contain short names instead of absolute paths. Shortened again, `a/x~1` would be `x~1`."""
    names = ("a/x~1", "b/x", "a-x~2")
    folder = write_run(tmp_path / "a", {name: [evaluation(rows, [[1, 0]] * 4)] for name in names})
    assert set(read_results(folder, "a").outcomes["bench"]) == set(names)


def test_rows_and_sets_of_one_run_are_counted(rows, tmp_path):
    changed = [*rows[1:3], replace(rows[0], responses=("Another", "No"))]
    other = replace(evaluation(rows, [[1, 0]] * 4), name="more")
    a = write_run(tmp_path / "a", {"m": [evaluation(rows[:3], [[1, 0]] * 3), other]})
    b = write_run(tmp_path / "b", {"m": [evaluation(changed, [[0, 1]] * 3)]})
    found = compare_results(read_results(a, "a"), read_results(b, "b"))
    [difference] = found.differences
    assert difference.difference.n == 2 and difference.difference.value == 1 and difference.first_better == 2
    assert found.notes == ["bench: rows that only one side has: 1 (a: m), 1 (b: m).", "more: not in b."]


def test_equal_rows_count_as_often_as_both_have_them(rows, tmp_path):
    same = [replace(rows[0], id=str(place)) for place in range(3)]
    a = write_run(tmp_path / "a", {"m": [evaluation(same, [[1, 0], [0, 1], [1, 0]])]})
    b = write_run(tmp_path / "b", {"m": [evaluation(same[:2], [[1, 0], [1, 0]])]})
    found = compare_results(read_results(a, "a"), read_results(b, "b"))
    assert found.differences[0].difference.n == 2 and found.notes == [
        "bench: rows that only one side has: 1 (a: m), 0 (b: m)."
    ]


def write_choices(folder, rewards, problems, title="gsm8k.jsonl"):
    """Write what the comparison reads of best_of_n.py, with these rewards of each problem's candidates."""
    folder.mkdir(exist_ok=True)
    scores = [[[Score.of([Sample(reward)]) for reward in row] for row in rewards]]
    result = replay_result(ScoredSet(title, title, problems, {"m": scores}, [], {"m": 0}), 2)
    page = {
        "version": 2,
        "arguments": {"models": ["runs/m"], "temperature": 0.0, "num_seeds": 1},
        "environment": {"versions": {"torch": "2"}, "device": "CPU", "models": {"m": "5f0c"}},
        "styles": {"m": {}},
        "results": result.summaries({"m": "runs/m"}),
    }
    (folder / "best_of_n.json").write_text(json.dumps(json_safe(page)))
    return str(folder)


def problems(*worth):
    return [Problem(str(n), f"{n}?", ("a", "b"), of_problem) for n, of_problem in enumerate(worth)]


def test_choices_among_candidates_are_compared(rows, tmp_path, capsys):
    """On the problems of both runs, also next to the results of evaluate_rewards.py; scores are not shown as points."""
    ours = problems(*[(1.0, 0.0)] * 8)
    a = write_choices(tmp_path / "a", [[1.0, 0.0]] * 8, ours)
    b = write_choices(tmp_path / "b", [[0.0, 1.0]] * 2 + [[1.0, 0.0]] * 4 + [[0.0, 0.0]], ours[:7][::-1])
    write_comparison([a, b], str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    [difference] = found["differences"]
    assert (difference["benchmark"], difference["models"]) == ("Best-of-N, gsm8k.jsonl", ["a: m", "b: m"])
    assert difference["difference"]["value"] == pytest.approx(2.5 / 7) and difference["difference"]["n"] == 7
    assert (difference["first_better"], difference["second_better"]) == (3, 0)
    assert found["notes"] == ["Best-of-N, gsm8k.jsonl: rows that only one side has: 1 (a: m), 0 (b: m)."]
    assert "| Best-of-N, gsm8k.jsonl | a: m − b: m | +35.7 points (" in capsys.readouterr().out
    for folder, name in ((tmp_path / "c", "old"), (tmp_path / "d", "new")):
        write_run(folder, {name: [evaluation(rows, [[1, 0]] * 4)]})
        write_choices(folder, [[1.0, 0.0] if name == "old" else [0.0, 1.0]] * 3, problems(*[(9.0, 1.5)] * 3))
    write_comparison([str(tmp_path / "c"), str(tmp_path / "d")], None)
    text = capsys.readouterr().out
    assert "| bench | c: old − d: new | 0 points" in text or "| bench | c: old − d: new | +0.0 points" in text
    assert "| Best-of-N, gsm8k.jsonl | c: m − d: m | +7.50 |" in text


def test_ensembles_are_compared(rows, tmp_path):
    """They are results, but not models of the command line."""
    for name, rewards in (("a", [1, 0]), ("b", [0, 1])):
        folder = write_run(tmp_path / name, {"m": [evaluation(rows, [rewards] * 4)]})
        write_scores([evaluation(rows, [[0, 1]] * 4)], tmp_path / name / "scores_mean(m,n).parquet")
        page = json.loads((tmp_path / name / "report.json").read_text())
        page["benchmarks"].append({**page["benchmarks"][0], "model": "mean(m,n)"})
        (tmp_path / name / "report.json").write_text(json.dumps(page))
        write_choices(tmp_path / name, [[1.0, 0.0]], problems((1.0, 0.0)))
        page = json.loads((tmp_path / name / "best_of_n.json").read_text())
        page["results"].append({**page["results"][0], "model": "mean(m,n)"})
        (tmp_path / name / "best_of_n.json").write_text(json.dumps(page))
    found = compare_results(read_results(folder, "b"), read_results(str(tmp_path / "a"), "a"))
    for name in ("bench", "Best-of-N, gsm8k.jsonl"):
        pairs = {part.models for part in found.differences if part.benchmark == name}
        assert pairs == {
            (f"b: {ours}", f"a: {theirs}") for ours in ("m", "mean(m,n)") for theirs in ("m", "mean(m,n)")
        }


def test_choices_that_cannot_be_compared(tmp_path):
    a = write_choices(tmp_path / "a", [[1.0, 0.0]], problems((1.0, 0.0)))
    b = write_choices(tmp_path / "b", [[1.0, 0.0]], problems((0.0, 1.0)))
    with pytest.raises(
        ValueError, match=r"a and b have no rows in common\. Best-of-N, gsm8k\.jsonl: rows that only one side has"
    ):
        write_comparison([a, b], None)
    b = write_choices(tmp_path / "b", [[1.0, 0.0]], problems((1.0, 0.0)), "other.jsonl")
    with pytest.raises(ValueError, match=r"gsm8k\.jsonl: not in b\. Best-of-N, other\.jsonl: not in a"):
        write_comparison([a, b], None)
    page = json.loads((tmp_path / "b" / "best_of_n.json").read_text())
    del page["results"][0]["choices"]
    (tmp_path / "b" / "best_of_n.json").write_text(json.dumps(page))
    with pytest.raises(ValueError, match=r"best_of_n\.json was written by an earlier version that did not record"):
        write_comparison([a, b], None)


def test_runs_that_cannot_be_compared(rows, tmp_path):
    a = write_run(tmp_path / "a", {"m": [evaluation(rows[:1], [[1, 0]])]})
    b = write_run(tmp_path / "b", {"m": [evaluation([replace(rows[0], prompt="Another?")], [[1, 0]])]})
    with pytest.raises(ValueError, match=r"a and b have no rows in common\. bench: rows that only one side has: 1"):
        write_comparison([a, b], None)
    with pytest.raises(ValueError, match=r"has no report\.json"):
        write_comparison([a, str(tmp_path)], None)
    (tmp_path / "b" / "scores_m.parquet").unlink()
    with pytest.raises(ValueError, match=r"scores_m\.parquet is missing, or was written by an earlier version"):
        write_comparison([a, b], None)
