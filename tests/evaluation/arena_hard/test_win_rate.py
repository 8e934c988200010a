"""ArenaHard's arithmetic by hand, against a Bradley-Terry fit, and against the published leaderboard."""

import csv
import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from shared_data import read_rows, shared_data

from cloud_hf.evaluation.arena_hard.win_rate import Question, Votes, load_answers, load_questions, win_rate


VERDICTS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


# ---------------------------------------------------------------------------------------------------------- votes


@pytest.mark.parametrize(
    ("baseline_first", "answer_first", "expected"),
    [
        ("A>>B", "A>>B", (3, 0, 3)),  # whichever comes first
        ("B>>A", "A>>B", (6, 0, 0)),
        ("A>>B", "B>>A", (0, 0, 6)),
        ("B>A", "A>B", (2, 0, 0)),
        ("A>B", "A=B", (0, 1, 1)),
        ("A=B", "A=B", (0, 2, 0)),
        ("A>B", "A>>B", (3, 0, 1)),
        (None, "A>>B", (0, 0, 0)),
        ("B>>A", None, (0, 0, 0)),
    ],
)
def test_votes_by_hand(baseline_first, answer_first, expected):
    votes = Votes.of(baseline_first, answer_first)
    assert (votes.wins, votes.ties, votes.losses) == expected
    assert votes.number == sum(expected) and votes.points == expected[0] + expected[1] / 2


def test_changing_sides_changes_the_sign():
    mirror = dict(zip(VERDICTS, reversed(VERDICTS), strict=True))
    for first in VERDICTS:
        for second in VERDICTS:
            ours, theirs = Votes.of(first, second), Votes.of(mirror[first], mirror[second])
            assert (ours.wins, ours.ties, ours.losses) == (theirs.losses, theirs.ties, theirs.wins)


# -------------------------------------------------------------------------------------------------------- win rate


def test_win_rate_by_hand():
    """Of 6 + 2 + 2 votes 6 are won and 2 shared."""
    found = win_rate([Votes(6, 0, 0), Votes(0, 2, 0), Votes(0, 0, 2), Votes()])
    assert found.value == 0.7 and (found.wins, found.ties, found.losses, found.questions) == (6, 2, 2, 3)
    # Residuals 6 - 0.7 · 6, 1 - 0.7 · 2 and 0 - 0.7 · 2
    assert found.standard_error == pytest.approx(math.sqrt((1.8**2 + 0.4**2 + 1.4**2) * 3 / 2) / 10)
    assert found.ci95[0] < 0.7 < found.ci95[1] and found.ci95_by_question[0] < 0.7 < found.ci95_by_question[1]
    assert win_rate([Votes(2, 0, 0)]).summary()["standard_error"] is None
    assert win_rate([Votes(2, 0, 0)] * 5).ci95 == (1.0, 1.0)
    with pytest.raises(ValueError, match="judged"):
        win_rate([Votes()])


def fit_bradley_terry(table):
    """Win probabilities against the baseline from likeliest strengths, all models at once; ties count half for both."""
    won = np.array([votes.points for votes in table])
    lost = np.array([votes.number - votes.points for votes in table])

    def loss(strengths):  # of the models; the baseline has strength 0
        return float(np.sum(won * np.logaddexp(0, -strengths) + lost * np.logaddexp(0, strengths)))

    strengths = minimize(loss, np.zeros(len(table)), method="BFGS", options={"gtol": 1e-9}).x
    return 1 / (1 + np.exp(-strengths))


def test_win_rates_are_bradley_terry():
    tables = [[Votes(3, 1, 1), Votes(1, 0, 3)], [Votes(1, 2, 6), Votes(0, 1, 1)], [Votes(9, 0, 2)]]
    totals = [
        Votes(*(sum(getattr(v, kind) for v in votes) for kind in ("wins", "ties", "losses"))) for votes in tables
    ]
    assert [win_rate(votes).value for votes in tables] == pytest.approx(fit_bradley_terry(totals), abs=1e-6)


def test_official_interval_draws_votes():
    """Its width is that of a mean of independent votes; by question it is wider where the votes of a question agree."""
    votes = [Votes.of("B>>A", "A>>B") if number % 2 else Votes.of("A>>B", "B>>A") for number in range(500)]
    found = win_rate(votes, rounds=4000)
    width = 2 * 1.96 * math.sqrt(0.25 / 3000)
    assert found.ci95[1] - found.ci95[0] == pytest.approx(width, rel=0.08)
    assert found.ci95_by_question[1] - found.ci95_by_question[0] == pytest.approx(width * math.sqrt(6), rel=0.08)
    assert found.standard_error == pytest.approx(math.sqrt(0.25 / 499), rel=1e-6)
    assert win_rate(votes) == win_rate(votes) and win_rate(votes, seed=1).ci95 != win_rate(votes).ci95


def test_published_leaderboard_has_such_intervals():
    """
    The verdicts behind the leaderboard are not published with it. Its widths say how many independent votes they rest on: 500
    questions give from 1000 (all slight) to 3000 votes (all strong), fewer ties. Drawn by question, no more than 500
    questions' worth would show.
    """
    path = shared_data() / "arena/arena_hard_leaderboard_20240731.csv"
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] != "gpt-4-0314"]
    numbers = []
    for row in rows:
        rate, low, high = (float(row[name]) / 100 for name in ("score", "rating_q025", "rating_q975"))
        below, above = (float(part) / 100 for part in row["CI"].strip("()").split(","))
        assert (below, above) == (pytest.approx(low - rate, abs=1.01e-4), pytest.approx(high - rate, abs=1.01e-4))
        numbers.append(rate * (1 - rate) / ((high - low) / 2 / 1.96) ** 2)
    assert len(rows) > 50 and 1000 < np.median(numbers) < 3000
    # The same rate and number of votes give the same width here
    row = next(row for row in rows if row["model"] == "gpt-4-0613")
    wins = round(float(row["score"]) / 100 * np.median(numbers))
    found = win_rate([Votes(wins, 0, round(np.median(numbers)) - wins)], rounds=4000)
    assert 100 * (found.ci95[1] - found.ci95[0]) == pytest.approx(
        float(row["rating_q975"]) - float(row["rating_q025"]), rel=0.25
    )


# --------------------------------------------------------------------------------------------------------- reading


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_questions_of_both_versions():
    first = load_questions(str(shared_data() / "arena/arena_hard_v0.1_questions.jsonl"))
    second = load_questions(str(shared_data() / "arena/arena_hard_v2.0_questions.jsonl.gz"))
    assert len(first) == 500 and {question.category for question in first} == {""}
    assert len(second) == 750 and {question.category for question in second} == {"hard_prompt", "creative_writing"}
    answers = load_answers([str(shared_data() / "arena/arena_hard_v0.1_answers.jsonl.gz")], first)
    rows = read_rows(shared_data() / "arena/arena_hard_v0.1_answers.jsonl.gz")
    assert answers == {row["id"]: row["answers"]["gpt-4-0314"] for row in rows}


def test_official_columns(tmp_path):
    turns = [{"content": "Hello?"}]
    path = write(
        tmp_path / "q.jsonl", {"question_id": "1", "category": "arena-hard-v0.1", "cluster": "c", "turns": turns}
    )
    [question] = load_questions(path)
    assert question == Question("1", "Hello?", "arena-hard-v0.1")
    path = write(tmp_path / "q2.jsonl", {"uid": "2", "category": "hard_prompt", "prompt": "Hi?"})
    assert load_questions(path) == [Question("2", "Hi?", "hard_prompt")]
    older = {
        "question_id": "1",
        "model_id": "m",
        "choices": [{"index": 0, "turns": [{"content": "Yes.", "token_len": 2}]}],
    }
    newer = {"uid": "2", "model": "m", "messages": [{"role": "user", "content": {"answer": "Hi?"}}]}
    newer["messages"].append({"role": "assistant", "content": {"answer": "No."}})
    assert load_answers([write(tmp_path / "a.jsonl", older)], [question]) == {"1": "Yes."}
    assert load_answers([write(tmp_path / "b.jsonl", newer)], [Question("2", "Hi?")]) == {"2": "No."}
    plain = write(tmp_path / "c.jsonl", {"id": "1", "response": "So."}, {"id": "9", "response": None})
    assert load_answers([plain], [question]) == {"1": "So."}


def test_answers_of_one_model_are_taken_from_a_file_of_several(tmp_path):
    older = [
        {"question_id": "1", "model_id": name, "choices": [{"turns": [{"content": f"I am {name}."}]}]} for name in "ab"
    ]
    newer = [
        {"uid": "2", "model": name, "messages": [{"role": "assistant", "content": {"answer": f"I am {name}."}}]}
        for name in "ab"
    ]
    questions = [Question("1", "Who?"), Question("2", "Who?")]
    files = [write(tmp_path / "older.jsonl", *older), write(tmp_path / "newer.jsonl", *newer)]
    for name in "ab":
        assert load_answers(files, questions, name) == {"1": f"I am {name}.", "2": f"I am {name}."}
    with pytest.raises(ValueError, match="'1' has a second answer"):
        load_answers(files, questions)
    with pytest.raises(ValueError, match="2 of 2 questions have no baseline answer from 'c'"):
        load_answers(files, questions, "c")
    nameless = write(tmp_path / "nameless.jsonl", {"id": "1", "answer": "So."})
    assert load_answers([nameless], questions[:1], "a") == {"1": "So."}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": "1", "prompt": "a"}, {"id": "1", "prompt": "b"}], "row 1: an earlier row has the same id '1'"),
        (
            [{"id": "1", "prompt": "a"}, {"id": "2", "prompt": " "}],
            r"row 1 \(id '2'\): the row has neither a `prompt`",
        ),
        ([{"id": "1", "turns": [{"content": "a"}, {"content": "b"}]}], "nor exactly one turn"),
        ([{"prompt": "a"}], "row 0 has no `id`"),
    ],
)
def test_bad_questions_are_named(rows, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        load_questions(write(tmp_path / "q.jsonl", *rows))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": "1", "answer": "x"}], r"1 of 2 questions have no baseline answer in .* \(first: '2'\)"),
        ([{"id": "1", "answer": "x"}, {"id": "2", "answer": " "}], r"row 1 \(id '2'\): the answer is ' '"),
        ([{"id": "1", "answer": "x"}, {"id": "1", "answer": "y"}], "'1' has a second answer"),
        ([{"id": "1", "answers": {"m": "x"}, "baseline": "n"}], "has answers from m, but none from 'n'"),
    ],
)
def test_bad_answers_are_named(rows, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        load_answers([write(tmp_path / "a.jsonl", *rows)], [Question("1", "?"), Question("2", "?")])
