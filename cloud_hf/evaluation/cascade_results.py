"""Cascades of scored models, fitted on each half of a set's rows and evaluated on the other half."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cascade import CascadeFit
from ..data.row_values import listed
from ..scores import Sample, Score
from .compute import Cost
from .context_fitting import FittedRow, FittedRows, RowScores
from .ensembles import check_different, read_members
from .metrics.best_of_n import expected_best_of
from .metrics.cascade import (
    FEWEST_PAIRS,
    THRESHOLDS,
    CascadePoint,
    Goal,
    StageScores,
    fit_cascade,
    run_recorded,
    worth_of_best,
)
from .stats import json_safe


SAMPLED = "@"  # `cloud@4`: the mean reward over the first four critiques that self-consistency samples


@dataclass(frozen=True)
class StagePart:
    """
    A stage's rows, scores and cost on a set. `num_critiques` is the number of sampled critiques to average over, or `None` to use the
    model's ordinary rewards ("as scored" in reports).
    """

    fitted: FittedRows
    scores: RowScores
    cost: Cost
    num_critiques: int | None = None

    def by_index(self) -> dict[int, tuple[FittedRow, list[float], list[float], list[float]]]:
        """Map each row's index to the row and to the reward, tokens and seconds of each response."""
        found = {}
        for row, scores, tokens in zip(self.fitted.rows, self.scores, self.cost.tokens, strict=True):
            kept = slice(self.num_critiques)
            rewards = [
                score.reward if self.num_critiques is None else sum(score.rewards[kept]) / self.num_critiques
                for score in scores
            ]
            written = [sum(of_response[kept]) for of_response in tokens]
            found[row.index] = (row, rewards, written, [self.cost.seconds_of(count) for count in written])
        return found


@dataclass(frozen=True)
class CascadeResult:
    """A cascade on a set; each half of the rows is evaluated with the weights and the threshold fitted on the other half."""

    name: str
    dataset: str
    stages: tuple[str, ...]  # as on the command line
    # Thresholds for the even rows (chosen on the odd rows) and for the odd rows (chosen on the even rows)
    thresholds: tuple[float, float]
    chosen: CascadePoint  # over all rows, at the chosen thresholds
    curve: list[CascadePoint]  # over all rows, one point per threshold
    seconds: list[float]  # per row, for each point of `curve` and then for `chosen`; NaN if unknown
    fit: CascadeFit  # on all rows, for use outside this run
    last: CascadePoint  # the last stage alone, which scores every response

    def summary(self) -> dict[str, Any]:
        """Return the result in JSON form, without seconds, which differ from run to run."""

        def point(found: CascadePoint) -> dict[str, Any]:
            return {
                "accuracy": found.accuracy.summary(),
                "tokens_per_row": found.tokens_per_row.summary(),
                "reached": found.reached,
            }

        return json_safe(
            {
                "model": self.name,
                "dataset": self.dataset,
                "stages": self.stages,
                "thresholds": self.thresholds,
                "chosen": point(self.chosen),
                "last_stage": point(self.last),
                "curve": [{"threshold": one.threshold, **point(one)} for one in self.curve],
                "fit": self.fit,
            }
        )


@dataclass(frozen=True)
class Cascade:
    """A cascade of models that are all scored in one run."""

    # Short names, the cheapest first, each with the number of sampled critiques to average over, or `None` for the model's ordinary rewards
    stages: tuple[tuple[str, int | None], ...]
    goal: Goal
    one_at_a_time: bool = False  # whether each later stage scores the contenders of a row one at a time

    @property
    def labels(self) -> tuple[str, ...]:
        """The stages as written on the command line."""
        return tuple(name if count is None else f"{name}{SAMPLED}{count}" for name, count in self.stages)

    @property
    def name(self) -> str:
        """The cascade's name in reports and file names."""
        return f"cascade({','.join(self.labels)})"

    def combine(
        self, kind: str, dataset: str, parts: Sequence[StagePart]
    ) -> tuple[FittedRows, RowScores, CascadeResult]:
        """
        Run the cascade on those rows of a set that all stages have scored; `kind` is the set's kind.

        Returns the rows, the scores at the chosen thresholds, and the result. Raises `ValueError` if the cascade cannot be fitted to its
        goal on these rows.
        """
        found = [part.by_index() for part in parts]
        first = parts[0].fitted
        rows = [row for row in first.rows if all(row.index in scored for scored in found)]
        correct = [worth_of(kind, row) for row in rows]
        stages, seconds = [], []
        for number, ((name, _), scored) in enumerate(zip(self.stages, found, strict=True)):
            _, rewards, tokens, spent = zip(*(scored[row.index] for row in rows), strict=True)
            stages.append(StageScores(name, rewards, tokens, number > 0 and self.one_at_a_time))
            seconds.append(spent)
        try:
            chosen, curve, fits = self._cross_fit(stages, correct)
            all_rows, _ = fit_cascade(stages, correct, self.goal)
        except ValueError as error:
            raise ValueError(f"{self.name} on {dataset}: {error}") from error
        last = _alone(stages[-1], correct)
        if kind == "problems":
            # As in best-of-N, the value of a choice among tied candidates is its expectation
            chosen, last, *curve = (
                replace(point, worth=tuple(map(expected_best_of, point.rewards, correct)))
                for point in (chosen, last, *curve)
            )
        times = [_seconds_per_row(point, seconds) for point in (*curve, chosen)]
        thresholds = (fits[0].thresholds[0], fits[1].thresholds[0])
        result = CascadeResult(self.name, dataset, self.labels, thresholds, chosen, curve, times, all_rows, last)
        kept = replace(first, rows=rows, dropped=first.dropped + len(first.rows) - len(rows))
        scores = [[Score.of([Sample(reward)]) for reward in of_row] for of_row in chosen.rewards]
        return kept, scores, result

    def _cross_fit(
        self, stages: Sequence[StageScores], correct: Sequence[Sequence[float]]
    ) -> tuple[CascadePoint, list[CascadePoint], list[CascadeFit]]:
        """Evaluate each half of the rows with the other half's fit, at the chosen threshold and at all others. Also return both fits."""
        halves = [range(start, len(correct), 2) for start in (0, 1)]
        fits, points = [], []
        for half, other in (halves, halves[::-1]):
            dev, test = ([stage.part(rows) for stage in stages] for rows in (other, half))
            fit, _ = fit_cascade(dev, [correct[row] for row in other], self.goal)
            fits.append(fit)
            worth = [correct[row] for row in half]
            points.append([run_recorded(test, fit.stages, one, worth) for one in (*fit.thresholds[:1], *THRESHOLDS)])
        pooled = [_interleave(*pair) for pair in zip(*points, strict=True)]
        return pooled[0], pooled[1:], fits


def _interleave(even: CascadePoint, odd: CascadePoint) -> CascadePoint:
    """
    Merge a point for the even rows and a point for the odd rows into a point for all rows. If the two thresholds differ, the result
    has the threshold of the even rows.
    """

    def join(name: str) -> tuple:
        values: list[Any] = [None] * (len(even.worth) + len(odd.worth))
        values[::2], values[1::2] = getattr(even, name), getattr(odd, name)
        return tuple(values)

    return CascadePoint(even.threshold, *map(join, ("worth", "tokens", "rewards", "asked")))


def _alone(stage: StageScores, correct: Sequence[Sequence[float]]) -> CascadePoint:
    """Return the point of a stage that scores every response; its rewards are not converted to log-odds."""
    rewards = tuple(map(tuple, stage.rewards))
    worth = tuple(map(worth_of_best, rewards, correct))
    asked = tuple((tuple(range(len(of_row))),) for of_row in rewards)
    return CascadePoint(1.0, worth, tuple(map(sum, stage.tokens)), rewards, asked)


def _seconds_per_row(point: CascadePoint, seconds: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the mean seconds per row that a cascade spent on the responses it scored; `seconds` is indexed by stage, row and response."""
    total = sum(
        seconds[stage][row][place]
        for row, of_row in enumerate(point.asked)
        for stage, places in enumerate(of_row)
        for place in places
    )
    return total / len(point.asked)


def worth_of(kind: str, row: FittedRow) -> list[float]:
    """
    Return the value of each response: the column `correct` for the kind `"problems"`. For other kinds, the value is 1 for right responses,
    which come first, and 0 for wrong ones.
    """
    # Decide by the kind instead of looking for the column: a preference set may also have a column `correct`
    if kind == "problems":
        return [float(value) for value in listed(row.row["correct"])]
    right = row.row["num_chosen"] if kind == "benchmark" else 1
    return [float(place < right) for place in range(len(row.responses))]


# ---------------------------------------------------------------------------------------------------------- reading


def read_goal(text: str) -> Goal:
    """Parse a goal such as `"loss=0.01"`. Raises `ValueError` if the goal is not valid."""
    name, _, value = text.partition("=")
    try:
        return Goal(**{name: float(value)})
    except TypeError:
        raise ValueError(
            f"`cascade_goal` is {text!r}; write accuracy=, loss=, tokens= or threshold=, followed by a number."
        ) from None
    except ValueError as error:
        raise ValueError(f"`cascade_goal` is {text!r}: {error}") from error


def read_cascades(
    texts: Sequence[str], models: Sequence[str], goal: Goal, one_at_a_time: bool = False, sampled: int | None = None
) -> list[Cascade]:
    """
    Parse cascades such as `"cheap,full,full@4"`, whose stages are names or short names of `models`. `sampled` is the number of critiques
    that self-consistency samples. Raises `ValueError` if a stage is unknown, listed twice or the only one, or if it uses more critiques
    than `sampled`.
    """
    found: list[Cascade] = []
    for text in texts:
        parts = [part.strip().partition(SAMPLED) for part in text.split(",")]
        names = read_members("cascade", text, [name for name, _, _ in parts], models)
        counts = [count for _, _, count in parts]
        if any(count and not (count.isdecimal() and 1 < int(count) <= (sampled or 0)) for count in counts):
            raise ValueError(
                f"`cascade` {text!r}: the number after {SAMPLED} must be between 2 and `self_consistency` "
                f"({sampled or 'not set'}). Change the number or `self_consistency`."
            )
        stages = tuple((name, int(count) if count else None) for name, count in zip(names, counts, strict=True))
        if len(set(stages)) < max(2, len(stages)):
            raise ValueError(f"`cascade` {text!r} needs at least two different stages, the cheapest first.")
        found.append(Cascade(stages, goal, one_at_a_time))
    check_different("cascade", found)
    return found


def check_rows(sizes: Mapping[str, int]):
    """Raise `ValueError` if a set has too few rows to fit a cascade on each half."""
    for name, size in sizes.items():
        if size < 2 * FEWEST_PAIRS:
            raise ValueError(
                f"`cascade` chooses a threshold on each half of a set's rows, so a set needs at least {2 * FEWEST_PAIRS} "
                f"rows, but {name} has {size}."
            )
