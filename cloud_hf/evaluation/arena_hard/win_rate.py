"""
ArenaHard ([Li et al. 2024](https://arxiv.org/abs/2406.11939)): questions, recorded answers, and the win rate against a baseline.

A judge compares an answer with the baseline's in two games: in the first game, the baseline's answer is A, and in the second it is B.
Each verdict counts as one vote, or as three votes if it is strong (`A>>B`); a tie counts as half a vote for each side. The win rate is the
Bradley-Terry probability of beating the baseline. In version 0.1 the baseline is gpt-4-0314; in version 2.0 it is o3-mini-2025-01-31 for
hard prompts and gemini-2.0-flash-001 for creative writing, reported separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.rows import row_name
from ..metrics.best_of_n import ratio
from ..rows import read_sources
from ..stats import Summarised


# Number of votes that a strong verdict counts for
STRONG = 3
# The official code uses 100, which leaves a few tenths of a point of noise in the bounds of the interval
ROUNDS = 1000


@dataclass(frozen=True)
class Question:
    """A prompt of ArenaHard; `category` is empty in version 0.1."""

    id: str
    prompt: str
    category: str = ""


def load_questions(name: str) -> list[Question]:
    """
    Load the questions from a file or Hub dataset, such as `"lmarena-ai/arena-hard-auto-v0.1"`.

    The id is the column `id`, `question_id` or `uid`; the prompt is the column `prompt`, or the single entry of `turns`. Raises
    `ValueError` if there are no questions, or if a row has no id, has no prompt or repeats an id; the message names the first such row.
    """
    questions: dict[str, Question] = {}
    for _, index, row in read_sources([name], "train"):
        id_ = _id_of(name, index, row)
        turns = row.get("turns")
        prompt = turns[0].get("content") if turns and len(turns) == 1 else row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(
                f"{name}, {row_name(index, row)}: the row has neither a `prompt` with text nor exactly one turn."
            )
        if id_ in questions:
            raise ValueError(f"{name}, row {index}: an earlier row has the same id {id_!r}. List each question once.")
        questions[id_] = Question(id_, prompt, str(row.get("category") or ""))
    if not questions:
        raise ValueError(f"{name} contains no questions.")
    return list(questions.values())


def load_answers(names: Sequence[str], questions: Sequence[Question], model: str | None = None) -> dict[str, str]:
    """
    Load one recorded answer to each question, keyed by question id. Answers to other questions are ignored.

    A row's answer is taken from the first of these columns that the row has:
    - `answers`: the entry for `model` or, without `model`, for the row's `baseline`;
    - `choices`: the last turn of the only entry (the layout of ArenaHard's answer files);
    - `messages`: the content of the last message, or its `answer` if the content is an object;
    - `answer` or `response`: the text itself.

    With `model`, rows with a different `model` or `model_id` are skipped. Raises `ValueError` if a question has no answer or more than one,
    or if an answer is empty or not text.
    """
    wanted, answers = {question.id for question in questions}, {}
    for name, index, row in read_sources(names, "train"):
        id_ = _id_of(name, index, row)
        author = row.get("model") or row.get("model_id")
        if id_ not in wanted or (model and author not in (None, model)):
            continue
        answer = _answer_of(row, model)
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{name}, {row_name(index, row)}: the answer is {answer!r:.60}; give text.")
        if id_ in answers:
            raise ValueError(
                f"{name}, row {index}: question {id_!r} has a second answer. Pass only one model's file, or set `baseline_model`."
            )
        answers[id_] = answer
    if missing := [question.id for question in questions if question.id not in answers]:
        by = f" from {model!r}" if model else ""
        raise ValueError(
            f"{len(missing)} of {len(questions)} questions have no baseline answer{by} in {', '.join(names)} (first: "
            f"{missing[0]!r}). Add a file with the missing answers, or use fewer questions."
        )
    return answers


def _id_of(name: str, index: int, row: dict[str, Any]) -> str:
    for column in ("id", "question_id", "uid"):
        if row.get(column) is not None:
            return str(row[column])
    raise ValueError(f"{name}, row {index} has no `id`, `question_id` or `uid`.")


def _answer_of(row: dict[str, Any], model: str | None) -> Any:
    if row.get("answers") is not None:
        model = model or row.get("baseline")
        if row["answers"].get(model) is None:
            known = ", ".join(sorted(row["answers"]))
            raise ValueError(f"question {row.get('id')!r} has answers from {known}, but none from {model!r}.")
        return row["answers"][model]
    if row.get("choices") is not None:
        [choice] = row["choices"]
        return choice["turns"][-1]["content"]
    if row.get("messages") is not None:
        content = row["messages"][-1]["content"]
        return content.get("answer") if isinstance(content, dict) else content
    return row.get("answer", row.get("response"))


@dataclass(frozen=True)
class Votes:
    """
    Votes from two games between an answer and the baseline's answer: votes for the answer, for neither, and for the baseline.

    Examples:

    ```python
    >>> Votes.of("B>>A", "A>B")  # both for the answer: it was B in the first game and A in the second
    Votes(wins=4, ties=0, losses=0)
    ```
    """

    wins: int = 0
    ties: int = 0
    losses: int = 0

    @classmethod
    def of(cls, baseline_first: str | None, answer_first: str | None) -> "Votes":
        """
        Count the votes from the game in which the baseline was A and from the game in which the answer was A. Return no votes if either
        verdict is missing, because the judge's position bias cancels out only over both games.
        """
        if baseline_first is None or answer_first is None:
            return cls()
        counts = {"wins": 0, "ties": 0, "losses": 0}
        for verdict, for_answer in ((baseline_first, "B"), (answer_first, "A")):
            kind = "ties" if verdict == "A=B" else "wins" if verdict[0] == for_answer else "losses"
            counts[kind] += STRONG if ">>" in verdict else 1
        return cls(**counts)

    @property
    def number(self) -> int:
        """Total number of votes."""
        return self.wins + self.ties + self.losses

    @property
    def points(self) -> float:
        """Votes for the answer, plus half of the ties."""
        return self.wins + self.ties / 2


@dataclass(frozen=True)
class WinRate(Summarised):
    """
    Win rate of answers against the baseline, from 0.0 to 1.0. `ci95` is the official interval of version 0.1, computed from resampled
    votes (version 2.0 uses the middle 90 % of the same resamples). It is too narrow, because the votes on a question are not independent.
    """

    value: float  # Bradley-Terry probability of a win
    ci95: tuple[float, float]
    ci95_by_question: tuple[float, float]  # from resampled questions, each with all its votes
    standard_error: float  # over questions; NaN for a single question
    questions: int  # number of questions with votes
    wins: int
    ties: int
    losses: int


def win_rate(votes: Sequence[Votes], rounds: int = ROUNDS, seed: int = 0) -> WinRate:
    """
    Compute the win rate of answers from the votes on each question, with bootstraps of `rounds` resamples.

    Between two sides, the maximum-likelihood Bradley-Terry probability is the share of votes, with ties counted as half. The same holds for
    several models if each plays only against the baseline. Raises [`~best_of_n.NothingJudged`] if there are no votes.
    """
    votes = [found for found in votes if found.number]
    value, error = ratio([(found.points, found.number) for found in votes])
    rng = np.random.default_rng(seed)
    sums = np.array([[found.wins, found.ties, found.losses] for found in votes])
    totals = sums.sum(axis=0)
    # Resampling n votes or questions with replacement is one multinomial draw of their counts
    by_vote = rng.multinomial(totals.sum(), totals / totals.sum(), size=rounds)
    by_question = rng.multinomial(len(votes), np.full(len(votes), 1 / len(votes)), size=rounds) @ sums
    return WinRate(value, _interval(by_vote), _interval(by_question), error, len(votes), *map(int, totals))


def _interval(counts_B3: np.ndarray) -> tuple[float, float]:
    """Return the middle 95 % of the win rates of resampled wins, ties and losses."""
    rates = (counts_B3[:, 0] + counts_B3[:, 1] / 2) / counts_B3.sum(axis=1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)
