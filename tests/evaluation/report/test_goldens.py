"""
Complete reports, compared with those in `goldens/`. `REGOLDEN=1 pytest tests/evaluation/report/test_goldens.py` writes these again; name every
difference in the commit that does so.
"""

import json
import os
from pathlib import Path

import pytest
from benchmark_files import pair, write_rows
from matplotlib.figure import Figure
from models_for_tests import make_model
from scripted_scorer import open_scripted_backend

from cloud_hf.commands import best_of_n, evaluate_rewards
from cloud_hf.evaluation import scoring_arguments
from cloud_hf.evaluation.arena_hard.judge import Judged
from cloud_hf.evaluation.arena_hard.win_rate import Question, Votes
from cloud_hf.evaluation.candidates import ScoredSet, arena_results
from cloud_hf.evaluation.metrics.best_of_n import Problem
from cloud_hf.evaluation.report import best_of_n_section, files, render
from cloud_hf.generation import Sample
from cloud_hf.scoring import Score


GOLDENS = Path(__file__).parent / "goldens"


def compare(name: str, found: str | dict):
    """JSON within rounding, text to the letter."""
    path = GOLDENS / name
    if isinstance(found, dict):
        found = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 9))
    if os.environ.get("REGOLDEN"):
        path.write_text(found if isinstance(found, str) else json.dumps(found, indent=1) + "\n", encoding="utf8")
    if isinstance(found, str):
        assert found == path.read_text(encoding="utf8")
    else:
        assert_close(found, json.loads(path.read_text()), name)


def assert_close(found, expected, where: str):
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            assert_close(found[place], value, f"{where} {place}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-7), where
    else:
        assert found == expected, where


@pytest.fixture
def folder(base_folder, tmp_path, monkeypatch):
    """Two models and all kinds of sets, with paths that are the same in every run."""
    for name, critique in (("cloud", True), ("classic", False)):
        make_model(base_folder, critique=critique).config.save_pretrained(tmp_path / "models" / name)
    _write_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring_arguments, "open_any_model", open_scripted_backend)
    for module in (best_of_n, files):
        monkeypatch.setattr(module, "environment", fixed_environment)
    # Drawing takes most of the time, and other tests look at pictures
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
    return tmp_path


def fixed_environment(args) -> dict:
    """Everything that differs from day to day and machine to machine."""
    models = dict.fromkeys(args.models, "5f0c")
    return {
        "date": "2026-01-02",
        "versions": {"cloud_hf": "1"},
        "device": "CPU",
        "models": models,
        "limit": args.limit,
    }


def texts(number: int, subset: str = "") -> dict:
    return {
        "prompt": f"What is {number} and 3? {subset}",
        "chosen": f"{number} + 3 = {number + 3}." + " Surely." * (number % 3),
        "rejected": f"It is {number * 3}." + " I think so." * (number % 2),
    }


def _write_sets(folder: Path):
    names = ["hep-go", "hep-rust", "math-prm", "alpacaeval-easy", "refusals-offensive", "shp", "made-up"]
    rows = [pair(name, number, **texts(number, name)) for name in names for number in range(4)]
    rows += [pair("hep-go", 4, prompt="Same", chosen="Alike", rejected="Alike")]
    write_rows(folder / "rb.jsonl", rows)
    sums = [f"{number} + {number} = {2 * number}" for number in range(9)]
    four = [
        pair(
            name, number, prompt=f"Double {number}, {name}.", chosen=[sums[number]], rejected=["0", "It is 1.", "Two!"]
        )
        for name in ("Factuality", "Math", "Safety")
        for number in range(5)
    ]
    for number in range(3):
        four.append(
            {
                **pair("Ties"),
                "id": f"ref:{number}",
                "chosen": [sums[number]],
                "rejected": ["a", "bb"],
                "prompt": "One.",
            }
        )
        four.append(
            {
                **pair("Ties"), "id": f"tied:{number}", "chosen": [sums[number], f"+{number}"], "rejected": ["a", "bb"],
                "prompt": "Any.",
            }
        )  # fmt: skip
    write_rows(folder / "rb2.jsonl", four)
    domains = ("chat", "math", "code", "safety-refuse", "safety-response")
    styles = {
        "chosen": ["+ is it.", "Yes, + it is.", "**Yes**, + it is."],
        "rejected": ["No.", "No, it isn't.", "**No**!"],
    }
    write_rows(
        folder / "rm.jsonl", [pair(name, n, prompt=f"Is it {n}?", **styles) for name in domains for n in range(2)]
    )
    columns = [{"topic": "ab"[n % 2], "swaps": n // 4, "reworded": [f"Tell me {n}."] * (n > 4)} for n in range(12)]
    rows = [{"id": f"p{n}", **texts(n, "pairs"), **extra} for n, extra in enumerate(columns)]
    rows.append({**rows[0], "prompt": "word " * 500})
    write_rows(folder / "pairs.jsonl", rows)
    problems = [
        {
            "id": f"q{n}", "prompt": f"Add {n} to 1.", "correct": [place == 1 for place in range(3 + n % 2)],
            "responses": [f"{n} {'+' * (place == 1)} {place}" * (1 + place) for place in range(3 + n % 2)],
        }
        for n in range(6)
    ]  # fmt: skip
    write_rows(folder / "bon.jsonl", problems)
    judged = [{"response": text, "judge_score": len(text) % 7} for text in ("Yes.", "No, never.", "+ it is.", "Yes.")]
    write_rows(
        folder / "judged.jsonl", [{"id": f"s{n}", "prompt": f"Is it {n}?", "candidates": judged} for n in range(3)]
    )
    write_rows(
        folder / "references.jsonl",
        [
            {"prompt": f"What is {n}?", "response": f"+ {n}", "critique": "It is right, and clear enough."}
            for n in range(4)
        ],
    )


def test_evaluation(folder):
    args = evaluate_rewards.EvaluationArguments(
        models=["models/cloud", "models/classic"],
        output_dir="out",
        benchmarks=["reward_bench=rb.jsonl", "reward_bench_2=rb2.jsonl", "rm_bench=rm.jsonl"],
        dataset_name=["pairs.jsonl"],
        best_of_n=["bon.jsonl"],
        reference_critiques=["references.jsonl"],
        group_column="topic",
        length_column="swaps",
        paraphrase_column="reworded",
        self_consistency=4,
        self_consistency_temperatures=[0.5, 1.0],
        probes=["all"],
        probe_rows=5,
        overlong_policy="drop",
        max_new_tokens=100,
        seed=3,
    )
    evaluate_rewards.main(args)
    out = folder / "out"
    compare("report.json", json.loads((out / "report.json").read_text()))
    compare("report.md", (out / "report.md").read_text(encoding="utf8"))
    written = sorted(path.name for path in out.iterdir())
    compare("files.json", {"files": written})
    for name in ("reward_bench_cloud", "reward_bench_prior_sets_cloud", "reward_bench_2_cloud"):
        compare(f"{name}.json", json.loads((out / f"{name}.json").read_text()))


def test_best_of_n(folder):
    args = best_of_n.BestOfNArguments(
        models=["models/cloud", "models/classic"],
        output_dir="out",
        dataset_name=["bon.jsonl", "judged.jsonl"],
        overlong_policy="drop",
        max_new_tokens=100,
        temperature=1.0,
        num_seeds=3,
        seed=3,
    )
    best_of_n.main(args)
    compare("best_of_n.json", json.loads((folder / "out/best_of_n.json").read_text()))
    compare("best_of_n.md", (folder / "out/best_of_n.md").read_text(encoding="utf8"))


@pytest.mark.parametrize("judge_all", [False, True])
def test_arena_hard(judge_all):
    """Two categories with votes, and one in which nothing that was chosen has any."""
    questions = {f"q{n}": Question(f"q{n}", f"Question {n}?", ("math", "poem", "code")[n % 3]) for n in range(9)}
    problems = [
        Problem(id_, found.prompt, tuple(f"{id_} {n}" * (1 + n) for n in range(4))) for id_, found in questions.items()
    ]
    scores = {
        model: [[[Score.of([Sample((7 * a + step * b) % 5 / 4)]) for b in range(4)] for a in range(9)]]
        for model, step in (("cloud", 3), ("classic", 2))
    }
    verdicts = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
    votes = {
        (problem.id, response): Votes.of(verdicts[(2 * place + number) % 5], verdicts[(place + 3 * number) % 5])
        for place, problem in enumerate(problems)
        for number, response in enumerate(problem.responses)
        if place % 3 != 2
    }
    found = ScoredSet("ArenaHard", "ArenaHard", problems, scores, ["q10"], {"cloud": 1, "classic": 0})
    questions["q10"] = Question("q10", "?", "math")
    results, unjudged = arena_results(found, questions, Judged(votes, {}), 16, judge_all, ["A note."])
    models = {"cloud": "models/cloud", "classic": "models/classic"}
    name = "arena_hard_all" if judge_all else "arena_hard"
    page = {"unjudged": unjudged, "results": [part for result in results for part in result.summaries(models)]}
    compare(f"{name}.json", page)
    compare(f"{name}.md", render([best_of_n_section(result) for result in results]))
