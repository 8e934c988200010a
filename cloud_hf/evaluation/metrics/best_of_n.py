"""Best-of-N: problems with candidates, the value of the highest-reward candidate for every N, and baselines."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from ...critique_format import CritiqueFormat
from ...data.bad_rows import BadRows
from ...data.preference_rows import POSITION, read_prompts
from ...data.row_values import listed, prompt_of, response_of
from ...data.rows import check_columns, load_rows
from ...scoring import Score, Scorer
from ..context_fitting import FittedRows, fit_rows, score_rows
from ..stats import Summarised, json_safe


PROBLEM_COLUMNS = ("prompt", "responses", "correct")


@dataclass(frozen=True)
class Problem:
    """A prompt with its candidates; `id` is unique in its set."""

    id: str
    prompt: Any
    responses: tuple[str, ...]
    worth: tuple[float, ...] | None = None  # value of choosing each candidate; None if the candidates are not judged

    @property
    def repeated(self) -> int:
        """Number of candidates that repeat the text of an earlier one."""
        return len(self.responses) - len(set(self.responses))


def load_problems(
    name: str, split: str = "test", config: str | None = None, limit: int | None = None, judged: bool = True,
    bad_rows: str = "error",
) -> list[Problem]:  # fmt: skip
    """
    Load problems with their candidates and, if `judged`, the values of the candidates. Raises `ValueError` if there are bad rows (unless
    `bad_rows` is `"drop"`) or if two rows have the same id; the message names the rows.

    The columns are `prompt`; either `responses` (list of strings) and `correct` (list of booleans or scores), or `candidates` (list of
    `{"response": ..., "judge_score": ...}`); and optionally `id` and `tools`.
    """
    rows = load_rows(name, split, config)
    if "candidates" not in rows.column_names:
        check_columns(rows.column_names, PROBLEM_COLUMNS if judged else PROBLEM_COLUMNS[:2], name)
    if not len(rows):
        raise ValueError(f"{name} contains no rows.")
    problems: list[Problem] = []
    places: dict[str, int] = {}
    rows = read_prompts(rows.select(range(min(limit or len(rows), len(rows)))), name, bad_rows, numbered=True)
    bad = BadRows(name, bad_rows)
    row: Any
    for row in rows:
        index = row[POSITION]
        try:
            problem = _read_problem(index, row, judged)
        except ValueError as error:
            bad.add(index, row, str(error))
            continue
        if problem.id in places:
            raise ValueError(f"{name}: rows {places[problem.id]} and {index} have the same id {problem.id!r}.")
        places[problem.id] = index
        problems.append(problem)
    bad.settle(len(rows))
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
    """Return a row's candidates. Raises `ValueError` unless all are text and `correct` contains a finite number for each."""
    responses, correct = listed(row["responses"]), listed(row["correct"])
    if not isinstance(responses, list) or not responses:
        raise ValueError(f"`responses` is {responses!r:.60}; give a non-empty list of strings.")
    responses = [response_of({"responses": response}, "responses", allow_empty=True) for response in responses]
    if not all(isinstance(response, str) for response in responses):
        raise ValueError("`responses` contains a response that is not plain text; candidates must be plain text.")
    if not isinstance(correct, list) or len(correct) != len(responses):
        raise ValueError(f"`correct` is {correct!r:.60}; give one value for each of the {len(responses)} responses.")
    if not all(isinstance(value, int | float) for value in correct):
        raise ValueError(f"`correct` is {correct!r:.60}; give booleans or numbers.")
    if bad := [value for value in correct if not math.isfinite(value)]:
        raise ValueError(f"a candidate's value is {bad[0]}; give finite numbers.")
    return responses


def sizes_of(problems: Sequence[Problem], largest: int) -> list[int]:
    """Return N = 1, 2, … up to `largest` or the smallest number of candidates per problem, whichever is lower."""
    return list(range(1, min(largest, *(len(problem.responses) for problem in problems)) + 1))


def candidate_counts(problems: Sequence[Problem]) -> dict[str, int]:
    """
    Return the number of problems, the minimum and maximum number of candidates per problem, the number of problems with more than the
    minimum, and the number of repeated candidates.
    """
    counts = Counter(len(problem.responses) for problem in problems)
    return {
        "problems": len(problems),
        "fewest_candidates": min(counts),
        "most_candidates": max(counts),
        "problems_with_more_than_the_fewest": len(problems) - counts[min(counts)],
        "repeated_candidates": sum(problem.repeated for problem in problems),
    }


# ------------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class BestOfN(Summarised):
    """
    Best-of-N by reward.

    Args:
        problems, dropped, bad (`int`):
            Number of problems scored, number of problems dropped because they are too long, and number of problems left out because they
            cannot be used (only with `bad_rows="drop"`).
        rates (`dict[int, float]`):
            For each n, the expected correctness of the best of n candidates drawn without replacement. Candidates with equal rewards
            are equally likely to be chosen. `rates[1]` is chance.
        standard_errors (`dict[int, float]`):
            Standard error of each rate over problems; NaN for a single problem.
        oracle (`dict[int, float]`):
            Rates of a perfect choice among n candidates.
    """

    problems: int
    rates: dict[int, float]
    standard_errors: dict[int, float]
    oracle: dict[int, float]
    dropped: int
    bad: int = 0


def evaluate_best_of_n(
    scorer: Scorer,
    rows: Dataset,
    critique_format: CritiqueFormat,
    *,
    context_length: int | None = None,
    overlong_policy: str = "error",
    bad_rows: str = "error",
    max_new_tokens: int = 1024,
    **score_options,
) -> BestOfN:
    """
    Score all candidates of every problem and choose by reward.

    Args:
        scorer ([`Scorer`]):
            Any backend.
        rows (`Dataset`):
            Columns `prompt`, `responses` (list of strings) and `correct` (list of booleans or scores, one per response).
        critique_format, context_length, overlong_policy, bad_rows, max_new_tokens, score_options:
            See [`evaluate_pairs`].

    Returns:
        [`BestOfN`]

    Raises:
        `ValueError`: If a row is bad; raised before anything is scored. The message names the first bad row.
    """
    name = "Best-of-N"
    check_columns(rows.column_names, PROBLEM_COLUMNS, name)
    total, rows = len(rows), read_prompts(rows, name, bad_rows, numbered=True)
    limits = context_length, overlong_policy, max_new_tokens, bad_rows
    fitted = fit_rows(rows, candidates, critique_format, *limits, name)
    fitted = replace(fitted, bad=fitted.bad + total - len(rows))
    scores = score_rows(scorer, fitted.rows, max_new_tokens=max_new_tokens, **score_options)
    return summarize_best_of_n(fitted, scores)


def summarize_best_of_n(fitted: FittedRows, scores: Sequence[Sequence[Score]]) -> BestOfN:
    """Compute best-of-N from the candidates' scores, for N up to the smallest number of candidates per problem."""
    rewards = [[score.reward for score in row_scores] for row_scores in scores]
    correct = [[float(value) for value in listed(row.row["correct"])] for row in fitted.rows]
    sizes = range(1, min(map(len, rewards)) + 1)
    curve = best_of_n_curve([rewards], correct, sizes)
    oracle = best_of_n_curve([correct], correct, sizes)
    return BestOfN(len(rewards), curve.values, curve.standard_errors, oracle.values, fitted.dropped, fitted.bad)


# --------------------------------------------------------------------------------------------------------- choosing

# Maps the rewards of a problem's candidates, and N, to each candidate's probability of being chosen
Chooser = Callable[[Sequence[float], int], list[float]]


def choice_probabilities(rewards: Sequence[float], n: int) -> list[float]:
    """
    Compute, in closed form, the probability that each candidate has the highest reward among n drawn without replacement. Candidates with
    equal rewards are equally likely to be chosen.

    Examples:

    ```python
    >>> choice_probabilities([2.0, 5.0, 1.0], 2)
    [0.3333333333333333, 0.6666666666666666, 0.0]
    ```
    """
    draws, not_above = math.comb(len(rewards), n), len(rewards)
    probabilities = {}
    for reward, times in sorted(Counter(rewards).items(), reverse=True):
        # Draws in which all n candidates are at or below this reward, but not all are below it
        found = math.comb(not_above, n) - math.comb(not_above - times, n)
        probabilities[reward] = found / draws / times
        not_above -= times
    return [probabilities[reward] for reward in rewards]


def expected_best_of(rewards: Sequence[float], correct: Sequence[float], n: int | None = None) -> float:
    """Compute the expected correctness of the candidate with the highest reward among n (default: all) drawn without replacement."""
    chances = choice_probabilities(rewards, n or len(rewards))
    return math.fsum(p * value for p, value in zip(chances, correct, strict=True))


def best_of_the_first(rewards: Sequence[float], n: int) -> list[float]:
    """Choose the candidate with the highest reward among the first n; the earliest wins a tie."""
    best = max(range(n), key=lambda place: rewards[place])
    return [float(place == best) for place in range(len(rewards))]


# ----------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """Value of the chosen candidate for each N."""

    values: dict[int, float]
    standard_errors: dict[int, float]  # over prompts; NaN for a single prompt
    # Over seeds, that is, resampled critiques of the same candidates; NaN for a single seed
    standard_errors_over_seeds: dict[int, float]
    # Value of the choice among all candidates of each problem, however many there are, and its standard error over prompts
    of_all: tuple[float, float]

    def summary(self) -> dict[str, Any]:
        """Return the curve in JSON form; standard errors that are NaN become `None`."""
        curve = json_safe(self)
        value, error = curve.pop("of_all")
        return {"rates": curve.pop("values"), **curve, "rate_of_all": value, "standard_error_of_all": error}


def best_of_n_curve(
    rewards: Sequence[Sequence[Sequence[float]]],
    worth: Sequence[Sequence[float]],
    sizes: Sequence[int],
    weights: Sequence[Sequence[float]] | None = None,
    choose: Chooser = choice_probabilities,
) -> Curve:
    """
    Compute the best-of-N curve: the mean value of the candidate chosen from N. By default, the mean is over all ways to draw N
    candidates; `choose` can replace this rule.

    `rewards` is indexed by seed, problem and candidate; `worth` and `weights` (such as the number of votes behind a value) by problem and
    candidate. `sizes` lists the values of N, none of which may exceed the smallest number of candidates per problem. Raises
    [`NothingJudged`] if the chosen candidates have no weight.
    """

    def mean(n: int | None) -> tuple[float, float, float]:
        """Return the value and its standard errors over prompts and over seeds, for n candidates (`None`: all candidates)."""
        by_seed = [
            [
                _weigh(choose(found, n or len(found)), worth[place], weights[place] if weights else None)
                for place, found in enumerate(of_seed)
            ]
            for of_seed in rewards
        ]
        pooled = [
            (statistics.fmean(above), statistics.fmean(below))
            for above, below in (zip(*of_problem, strict=True) for of_problem in zip(*by_seed, strict=True))
        ]
        spread = statistics.stdev(ratio(sums)[0] for sums in by_seed) if len(by_seed) > 1 else math.nan
        return *ratio(pooled), spread / math.sqrt(len(by_seed))

    points = {n: mean(n) for n in sizes}
    values, errors, errors_over_seeds = ({n: point[place] for n, point in points.items()} for place in range(3))
    return Curve(values, errors, errors_over_seeds, of_all=mean(None)[:2])


def _weigh(
    probabilities: Sequence[float], worth: Sequence[float], weights: Sequence[float] | None
) -> tuple[float, float]:
    """Return the expected product of the chosen candidate's value and weight, and its expected weight."""
    if weights is None:  # the weight is exactly 1; the sum of the probabilities may be 1 - 1e-16
        return math.fsum(p * value for p, value in zip(probabilities, worth, strict=True)), 1.0
    shares = [p * weight for p, weight in zip(probabilities, weights, strict=True)]
    return math.fsum(share * value for share, value in zip(shares, worth, strict=True)), math.fsum(shares)


class NothingJudged(ValueError):
    """The chosen candidates have no weight, so their mean is undefined."""


def ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """
    Compute the ratio of two sums and its standard error over prompts; `pairs` contains each prompt's terms of the numerator and the
    denominator. The error is linearised: it equals the standard error of a mean if all denominators are 1, and is NaN for a single
    prompt. Raises [`NothingJudged`] if the denominators sum to 0.
    """
    total = math.fsum(below for _, below in pairs)
    if not total:
        raise NothingJudged("None of the chosen candidates was judged.")
    value = math.fsum(above for above, _ in pairs) / total
    if len(pairs) < 2:
        return value, math.nan
    residuals = math.fsum((above - value * below) ** 2 for above, below in pairs)
    return value, math.sqrt(residuals * len(pairs) / (len(pairs) - 1)) / total


def baselines(
    problems: Sequence[Problem],
    sizes: Sequence[int],
    worth: Sequence[Sequence[float]] | None = None,
    weights: Sequence[Sequence[float]] | None = None,
) -> dict[str, Curve]:
    """
    Compute the baseline curves: `"random"` chooses any of the N candidates, `"longest"` the one with the most characters, and
    `"perfect"` the best one. `worth` defaults to the values recorded in the problems; see [`best_of_n_curve`].
    """
    worth = [problem.worth or () for problem in problems] if worth is None else worth
    rewards: dict[str, Sequence[Sequence[float]]] = {
        "random": [[0.0] * len(problem.responses) for problem in problems],
        "longest": [[float(len(response)) for response in problem.responses] for problem in problems],
        "perfect": worth,
    }
    return {name: best_of_n_curve([found], worth, sizes, weights) for name, found in rewards.items()}


draw_curve, yardsticks = best_of_n_curve, baselines  # their names in version 0.1
