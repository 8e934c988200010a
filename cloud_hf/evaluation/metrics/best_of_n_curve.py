"""Curves of best-of-N: what the chosen candidate is worth, for every N, beside chance, the longest and the best choice."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.rows import check_columns, load_rows, prompt_of, row_name
from .best_of_n import PROBLEM_COLUMNS, candidates, choice_probabilities


@dataclass(frozen=True)
class Problem:
    """
    A prompt with its candidates.

    Args:
        id (`str`):
            Unique in its set.
        prompt (`Any`):
            A string, chat messages, or `{"messages": [...], "tools": [...]}`.
        responses (`tuple[str, ...]`):
            The candidates.
        worth (`tuple[float, ...]`, *optional*):
            What a choice of each is worth; `None` where nobody has judged them.
    """

    id: str
    prompt: Any
    responses: tuple[str, ...]
    worth: tuple[float, ...] | None = None

    @property
    def repeated(self) -> int:
        """Candidates that are the same text as an earlier one."""
        return len(self.responses) - len(set(self.responses))


# --------------------------------------------------------------------------------------------------------- reading


def load_problems(
    name: str, split: str = "test", config: str | None = None, limit: int | None = None, judged: bool = True
) -> list[Problem]:
    """
    Load problems whose candidates somebody wrote before.

    Args:
        name (`str`):
            What [`~cloud_hf.data.rows.load_rows`] takes. Columns: `prompt`; `responses` (list of strings) with `correct` (list of
            booleans or scores), or `candidates` (list of `{"response": ..., "judge_score": ...}`); optional `id`, `tools`.
        split, config (`str`, *optional*):
            Split and configuration of what has them.
        limit (`int`, *optional*):
            Take the first rows only.
        judged (`bool`, *optional*, defaults to `True`):
            Whether the candidates' worth is wanted too.

    Returns:
        `list[Problem]`

    Raises:
        `ValueError`: Naming the first bad row: candidates missing or no text, as many values as candidates not given, a value
            that is no finite number, an id that stands twice.
    """
    rows = load_rows(name, split, config)
    if "candidates" not in rows.column_names:
        check_columns(rows.column_names, PROBLEM_COLUMNS if judged else PROBLEM_COLUMNS[:2], name)
    if not len(rows):
        raise ValueError(f"{name} holds no rows.")
    problems, places = [], {}
    for index, row in enumerate(rows.select(range(min(limit or len(rows), len(rows))))):
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
    return Problem(id_, prompt_of(row), tuple(responses), tuple(map(float, worth)) if judged else None)


# --------------------------------------------------------------------------------------------------------- choosing

# From the rewards of a problem's candidates and N, how often each candidate is chosen
Chooser = Callable[[Sequence[float], int], list[float]]


def best_of_the_first(rewards: Sequence[float], n: int) -> list[float]:
    """Choose among the first n candidates, in the order in which they were written; the first of equal ones."""
    best = max(range(n), key=lambda place: rewards[place])
    return [float(place == best) for place in range(len(rewards))]


@dataclass(frozen=True)
class Curve:
    """
    What the chosen candidate is worth.

    Args:
        values (`dict[int, float]`):
            Mean worth by N.
        standard_errors (`dict[int, float]`):
            Over prompts: how far the mean would vary with other prompts. NaN for one prompt.
        standard_errors_over_seeds (`dict[int, float]`):
            Over seeds: how far it varies with other sampled critiques of the same candidates. NaN for one seed.
        of_all (`tuple[float, float]`):
            Mean worth and standard error over prompts of a choice among all candidates of each problem, however many it has.
    """

    values: dict[int, float]
    standard_errors: dict[int, float]
    standard_errors_over_seeds: dict[int, float]
    of_all: tuple[float, float]

    def summary(self) -> dict[str, Any]:
        """For JSON, which has no NaN: an unknown error is `None`."""
        names = ("standard_errors", "standard_errors_over_seeds")
        errors = {name: {n: _known(error) for n, error in getattr(self, name).items()} for name in names}
        value, error = self.of_all
        return {"rates": self.values, **errors, "rate_of_all": value, "standard_error_of_all": _known(error)}


def draw_curve(
    rewards: Sequence[Sequence[Sequence[float]]],
    worth: Sequence[Sequence[float]],
    sizes: Sequence[int],
    weights: Sequence[Sequence[float]] | None = None,
    choose: Chooser = choice_probabilities,
) -> Curve:
    """
    The curve of one chooser.

    Args:
        rewards (`Sequence[Sequence[Sequence[float]]]`):
            For each seed and problem the rewards of its candidates.
        worth (`Sequence[Sequence[float]]`):
            For each problem what its candidates are worth.
        sizes (`Sequence[int]`):
            The N, at most the fewest candidates that a problem has.
        weights (`Sequence[Sequence[float]]`, *optional*):
            For each problem how much its candidates count in the mean: the votes behind `worth`, say. 1 by default.
        choose (`Chooser`, *optional*, defaults to [`choice_probabilities`]):
            By default the mean over all draws of N candidates, in closed form.

    Returns:
        [`Curve`]

    Raises:
        [`NothingJudged`]: If nothing that is chosen has any weight.
    """
    weights = [[1.0] * len(values) for values in worth] if weights is None else weights

    def mean(n: int | None) -> tuple[float, float, float]:
        """Value, error over prompts and error over seeds for n candidates, or all of them."""
        by_seed = [
            [_sums(choose(values, n or len(values)), *found) for values, *found in zip(of_seed, worth, weights, strict=True)]
            for of_seed in rewards
        ]  # fmt: skip
        pooled = [tuple(map(statistics.fmean, zip(*seeds, strict=True))) for seeds in zip(*by_seed, strict=True)]
        spread = statistics.stdev(ratio(sums)[0] for sums in by_seed) if len(by_seed) > 1 else math.nan
        return *ratio(pooled), spread / math.sqrt(len(by_seed))

    points = {n: mean(n) for n in sizes}
    columns = [{n: point[place] for n, point in points.items()} for place in range(3)]
    return Curve(*columns, of_all=mean(None)[:2])


def _sums(chosen: Sequence[float], worth: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The weighted worth of a problem's choice, and the weight."""
    return (
        math.fsum(p * value * weight for p, value, weight in zip(chosen, worth, weights, strict=True)),
        math.fsum(p * weight for p, weight in zip(chosen, weights, strict=True)),
    )


class NothingJudged(ValueError):
    """Nothing that was chosen has any weight, so there is no mean."""


def ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """
    A sum over another, and its standard error over the pairs.

    Args:
        pairs (`Sequence[tuple[float, float]]`):
            For each prompt what it adds to the numerator and to the denominator.

    Returns:
        `tuple[float, float]`: The error is the linearised one of a ratio; the ordinary one of a mean where all denominators
        are 1, and NaN for one pair.

    Raises:
        [`NothingJudged`]: If the denominators add up to 0.
    """
    total = math.fsum(below for _, below in pairs)
    if not total:
        raise NothingJudged("None of the chosen candidates was judged.")
    value = math.fsum(above for above, _ in pairs) / total
    if len(pairs) < 2:
        return value, math.nan
    residuals = math.fsum((above - value * below) ** 2 for above, below in pairs)
    return value, math.sqrt(residuals * len(pairs) / (len(pairs) - 1)) / total


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error


# ------------------------------------------------------------------------------------------------------ yardsticks


def yardsticks(
    problems: Sequence[Problem],
    sizes: Sequence[int],
    worth: Sequence[Sequence[float]] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
) -> dict[str, Curve]:
    """
    The curves to hold a model's against.

    Args:
        problems (`Sequence[Problem]`):
            The problems.
        sizes (`Sequence[int]`):
            The N.
        worth, weights:
            See [`draw_curve`]. `worth` defaults to that of the problems.

    Returns:
        `dict[str, Curve]`: `"random"` takes any of the N, `"longest"` the one with the most characters, `"perfect"` the best.
    """
    worth = [problem.worth for problem in problems] if worth is None else worth
    choosers = {
        "random": [[0.0] * len(problem.responses) for problem in problems],
        "longest": [[float(len(response)) for response in problem.responses] for problem in problems],
        "perfect": worth,
    }
    return {name: draw_curve([rewards], worth, sizes, weights) for name, rewards in choosers.items()}


def sizes_of(problems: Sequence[Problem], largest: int) -> list[int]:
    """1, 2, … up to the fewest candidates that a problem has, and at most `largest`."""
    return list(range(1, min(largest, *(len(problem.responses) for problem in problems)) + 1))


def candidate_counts(problems: Sequence[Problem]) -> dict[str, int]:
    """How many problems have how many candidates, and candidates that repeat another of their problem."""
    counts = Counter(len(problem.responses) for problem in problems)
    return {
        "problems": len(problems),
        "fewest_candidates": min(counts),
        "most_candidates": max(counts),
        "problems_with_more_than_the_fewest": len(problems) - counts[min(counts)],
        "repeated_candidates": sum(problem.repeated for problem in problems),
    }
