"""Best-of-N problems: load prompts with their candidates, check and count them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...data.rows import check_columns, load_rows, prompt_of, row_name


PROBLEM_COLUMNS = ("prompt", "responses", "correct")


@dataclass(frozen=True)
class Problem:
    """A prompt with its candidates; `id` is unique in its set."""

    id: str
    prompt: Any
    responses: tuple[str, ...]
    worth: tuple[float, ...] | None = None  # value of each candidate when chosen; None if they are not judged

    @property
    def repeated(self) -> int:
        """Number of candidates that repeat the text of an earlier one."""
        return len(self.responses) - len(set(self.responses))


def load_problems(
    name: str, split: str = "test", config: str | None = None, limit: int | None = None, judged: bool = True
) -> list[Problem]:
    """
    Load problems with existing candidates, with their worth if `judged`. Raises `ValueError` naming the first bad row, or two
    rows with the same id.

    Columns are `prompt`; `responses` (list of strings) with `correct` (list of booleans or scores), or `candidates` (list of
    `{"response": ..., "judge_score": ...}`); optional `id`, `tools`.
    """
    rows = load_rows(name, split, config)
    if "candidates" not in rows.column_names:
        check_columns(rows.column_names, PROBLEM_COLUMNS if judged else PROBLEM_COLUMNS[:2], name)
    if not len(rows):
        raise ValueError(f"{name} holds no rows.")
    problems: list[Problem] = []
    places: dict[str, int] = {}
    for index, row in enumerate(rows.select(range(min(limit or len(rows), len(rows)))).to_list()):
        try:
            problem = _read_problem(index, row, judged)
        except ValueError as error:
            raise ValueError(f"{name}, {row_name(index, row)}: {error}") from error
        if problem.id in places:
            raise ValueError(f"{name}: rows {places[problem.id]} and {index} have the same id {problem.id!r}.")
        places[problem.id] = index
        problems.append(problem)
    return problems


def _read_problem(index: int, row: dict[str, Any], judged: bool) -> Problem:
    if row.get("candidates") is not None:
        found = row["candidates"]
        if not isinstance(found, list) or not all(isinstance(one, dict) and "response" in one for one in found):
            raise ValueError(
                f"`candidates` is {found!r:.60}; give a list of objects with `response` and `judge_score`."
            )
        responses, worth = ([one.get(key) for one in found] for key in ("response", "judge_score"))
        if judged and None in worth:
            raise ValueError(f"`judge_score` of candidate {worth.index(None)} is missing; give a number.")
    else:
        responses, worth = row.get("responses"), row.get("correct")
    worth = worth if judged else [0.0] * len(responses or [])
    responses = candidates({"responses": responses, "correct": worth})
    id_ = str(index if row.get("id") is None else row["id"])
    return Problem(id_, prompt_of(row), tuple(responses), tuple(map(float, worth or ())) if judged else None)


def candidates(row: dict[str, Any]) -> list[str]:
    """
    Return the candidates of a row. Raises `ValueError` if they are not text, or their worth is not one finite number
    each.
    """
    responses, correct = row["responses"], row["correct"]
    if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
        raise ValueError(f"`responses` is {responses!r:.60}; give a non-empty list of strings.")
    if not isinstance(correct, list) or len(correct) != len(responses):
        raise ValueError(f"`correct` is {correct!r:.60}; give one value for each of the {len(responses)} responses.")
    if not all(isinstance(value, int | float) for value in correct):
        raise ValueError(f"`correct` is {correct!r:.60}; give booleans or numbers.")
    if bad := [value for value in correct if not math.isfinite(value)]:
        raise ValueError(f"a candidate is worth {bad[0]}; give finite numbers.")
    return responses


def sizes_of(problems: Sequence[Problem], largest: int) -> list[int]:
    """Return N = 1, 2, … up to the fewest candidates of a problem, and at most `largest`."""
    return list(range(1, min(largest, *(len(problem.responses) for problem in problems)) + 1))


def candidate_counts(problems: Sequence[Problem]) -> dict[str, int]:
    """Count problems, their fewest and most candidates, and candidates that repeat another of their problem."""
    counts = Counter(len(problem.responses) for problem in problems)
    return {
        "problems": len(problems),
        "fewest_candidates": min(counts),
        "most_candidates": max(counts),
        "problems_with_more_than_the_fewest": len(problems) - counts[min(counts)],
        "repeated_candidates": sum(problem.repeated for problem in problems),
    }
