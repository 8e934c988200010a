"""The study of the paper's claims: a small run of it, its resume, and the committed report."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest


CLAIMS = Path(__file__).parents[1] / "benchmarks" / "claims"
RESULTS = CLAIMS.parent / "results" / "claims"
MODULES = [path.stem for path in CLAIMS.glob("*.py")]
SMALL = (
    "levels=[2]", "width=16", "base_steps=2", "pairs=32", "critic_passes=1", "held_out=4", "sampled=2", "outcome_passes=1",
)  # fmt: skip


@pytest.fixture
def claims(monkeypatch):
    """Import the study's modules, whose names are short, for one test."""
    monkeypatch.syspath_prepend(str(CLAIMS))
    import run

    yield run
    for name in MODULES:
        sys.modules.pop(name, None)


def scores_of(root):
    found = {}
    for path in sorted((root / "results").glob("scores_*.npz")):
        with np.load(path) as file:
            found |= {f"{path.stem}/{name}": values.tolist() for name, values in file.items()}
    return found


def test_a_killed_study_resumes_to_the_same_scores(claims, tmp_path):
    import report

    # One arm of each kind: what it is trained on, its trainer, and what its passes follow
    arms = ["classic", "cloud", "classic_compute", "shuffled", "blank", "frozen", "stage4"]
    command = ["--quick", "--tasks", "shell", "--output_dir", str(tmp_path), "--arms", *arms, "--set", *SMALL]
    claims.main(command)
    scores, cells = scores_of(tmp_path), tmp_path / "shell" / "seed0"
    kept = (cells / "classic" / "cell.json").stat().st_mtime_ns
    # A kill leaves a part, and what needs it is not there yet
    (cells / "cloud").rename(cells / "cloud.part")
    for name in ("stage4", "cloud_samples"):
        shutil.rmtree(cells / name)
    claims.main(command)
    assert scores_of(tmp_path) == scores and (cells / "classic" / "cell.json").stat().st_mtime_ns == kept
    report.main(["--results", str(tmp_path / "results")])
    written = json.loads((tmp_path / "results" / "report.json").read_text())
    rewards = np.array(scores["scores_shell/seed0/cloud/rewards"])
    accuracy = np.heaviside(rewards[:, :1] - rewards[:, 1:], 0.5).mean()
    assert written["arms"]["shell"]["cloud"]["accuracy"] == pytest.approx(accuracy, rel=1e-4)
    assert {one["verdict"] for one in written["findings"]} == {"inconclusive", "not run"}  # one seed shows nothing


def test_policies_are_trained_on_rewards_and_resume(claims, tmp_path, monkeypatch):
    import rl_check
    import rl_summary

    # Too small to learn to answer
    monkeypatch.setattr(rl_check, "final_answer", lambda completion: "Answer A")
    rl = ("policy_steps=1", "steps=2", "problems=2", "num_generations=2", "evaluate_every=2")
    folders = ["--output_dir", str(tmp_path), "--results", str(tmp_path)]
    command = [*folders, "--seeds", "0", "--judges", "classic", "oracle", "--set", *SMALL, "--set_rl", *rl]
    rl_check.main(command)
    found = rl_summary.summarise(tmp_path)["shell"]
    assert list(found) == ["classic", "oracle"]
    assert all(one["steps"] == [0, 2] and len(one["mean"]["solved"]) == 2 for one in found.values())
    written = (tmp_path / "rl_answers.npz").read_bytes()
    shutil.rmtree(tmp_path / "rl" / "shell" / "seed0" / "classic")
    rl_check.main(command)
    assert (tmp_path / "rl_answers.npz").read_bytes() == written


def test_stage_1_ends_once_enough_critiques_are_exact(claims):
    import training
    from transformers import TrainerControl, TrainerState

    shares = iter([0.2, 0.7])
    stop = training.StopWhenExact(lambda: next(shares), 0.7)
    ended = []
    for step in range(1, 2 * training.CHECK_EVERY + 1):
        control = TrainerControl()
        stop.on_step_end(None, TrainerState(global_step=step), control)
        ended.append(control.should_training_stop)
    assert ended == [False] * (2 * training.CHECK_EVERY - 1) + [True] and stop.shares == [0.2, 0.7]


def test_shares_of_solved_and_favoured_answers(claims):
    import rl_summary

    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    curves = rl_summary.curves_of(np.array([[0, 0, 0], [0, 1, -1]]), rewards)
    assert curves["solved"] == pytest.approx([1, 1 / 3])
    assert curves["favoured"] == pytest.approx([1 / 3, 2 / 3])
    assert curves["answered"] == pytest.approx([1, 2 / 3])
    assert curves["reward"] == pytest.approx([-1 / 3, 1])


def test_the_committed_report_follows_from_the_committed_scores(claims):
    import report

    started = time.monotonic()
    made = report.make_report(RESULTS)
    assert time.monotonic() - started < 60
    assert made == json.loads((RESULTS / "report.json").read_text(encoding="utf-8"))


def test_only_the_prompt_tells_right_from_wrong(claims):
    import tasks

    for task in tasks.TASKS:
        found = tasks.problems(task, "test", [2, 3], 60, 0)
        assert len({problem.prompt for problem in found}) == 60
        for problem in found:
            lengths = {len(tasks.response(choice)) for choice in problem.choices}
            critiques = {len(problem.critique(choice).split()) for choice in problem.choices}
            assert len(lengths) == len(critiques) == 1 and problem.answer in problem.choices
        train = {problem.prompt for problem in tasks.problems(task, "train", [2, 3], 400, 0)}
        assert not train & {problem.prompt for problem in found}


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_real_run_on_a_tiny_model(claims, tmp_path, monkeypatch, capfd):
    import real_figures
    import real_model
    from models_for_tests import save_language_model

    base = save_language_model(tmp_path / "base", max_position_embeddings=1024)
    pair = {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "It is 5!"}
    critiques = {"chosen_feedback": "Right.", "rejected_feedback": "Wrong sum."}
    for name in ("train", "held-out"):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": f"{name}-{i}", **pair, **critiques}) + "\n" for i in range(4))
        )
    (tmp_path / "rows.yaml").write_text(
        "{train: [train.jsonl], pairs: 4, max_length: 576, evaluation: {held: held-out.jsonl}, rows: 4, eval_max_length: 576}"
    )
    run, results = tmp_path / "run", tmp_path / "results"
    options = ["--base", base, "--data", tmp_path, "--rows", tmp_path / "rows.yaml", "--output_dir", run]
    for kept in (0, 6):
        real_model.main(list(map(str, options)))
        assert capfd.readouterr().out.count("kept from an earlier run") == kept
    real_figures.main(["--run", str(run), "--results", str(results)])
    figures = json.loads((results / "figures.json").read_text())
    assert figures["pooled"]["classic"]["n"] == 4 and figures["training"]["cloud"]["steps"] == 1
    assert "accuracy" in (results / "cards" / "cloud.md").read_text()


@pytest.mark.full
def test_quick_run(claims, tmp_path):
    started = time.monotonic()
    claims.main(["--quick", "--output_dir", str(tmp_path)])
    assert time.monotonic() - started < 15 * 60
