"""Cascades on recorded rewards: fit their weights, compute accuracy against tokens, and choose a threshold on dev rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product, takewhile

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ...cascade import CascadeFit, StageFit, run_cascade
from ..stats import Estimate, mean_estimate, share


FEWEST_PAIRS = 20  # minimum number of right/wrong dev pairs; with fewer, a threshold would be down to chance
# Thresholds at which a curve is computed: evenly spaced in log-odds, plus 1, where every stage scores every response
THRESHOLDS = (*(float(expit(odds)) for odds in np.arange(0, 8.01, 0.25)), 1.0)


@dataclass(frozen=True)
class StageScores:
    """
    One model's rewards for all responses, and their cost in tokens.

    Args:
        name (`str`):
            The model's name in messages and tables.
        rewards, tokens (`Sequence[Sequence[float]]`):
            Reward and number of critique tokens, by prompt and response.
        one_at_a_time (`bool`, *optional*, defaults to `False`):
            See [`~cascade.CascadeStage`].
    """

    name: str
    rewards: Sequence[Sequence[float]]
    tokens: Sequence[Sequence[float]]
    one_at_a_time: bool = False

    def part(self, places: Sequence[int]) -> "StageScores":
        """Return the scores of the prompts at these indices."""
        rewards, tokens = ([rows[place] for place in places] for rows in (self.rewards, self.tokens))
        return StageScores(self.name, rewards, tokens, self.one_at_a_time)


# -------------------------------------------------------------------------------------------------------- weights


def fit_stages(stages: Sequence[StageScores], correct: Sequence[Sequence[float]]) -> tuple[StageFit, ...]:
    """
    Fit each stage's weights by logistic regression on pairs of a better and a worse response to the same prompt. Weights are never
    negative.

    `correct` has one list per prompt, with the value of each response (higher is better). With n pairs, each pair's target is
    (n + 1) / (n + 2) instead of 1 (Platt's rule), so weights stay finite even if a stage orders every pair correctly. Raises `ValueError`
    if there are fewer than 20 pairs.
    """
    pairs = [
        (row, better, worse)
        for row, worth in enumerate(correct)
        for better, worse in product(range(len(worth)), repeat=2)
        if worth[better] > worth[worse]
    ]
    if len(pairs) < FEWEST_PAIRS:
        raise ValueError(
            f"The dev rows have {len(pairs)} pairs of a right and a wrong response; a cascade's threshold needs at least {FEWEST_PAIRS}."
        )
    before_P, fits = np.zeros(len(pairs)), []
    for stage in stages:
        better_P = np.array([stage.rewards[row][place] for row, place, _ in pairs], dtype=float)
        worse_P = np.array([stage.rewards[row][place] for row, _, place in pairs], dtype=float)
        fits.append(_fit_stage(better_P, worse_P, before_P))
        before_P = fits[-1].slope * (better_P - worse_P) + fits[-1].prior * before_P
    return tuple(fits)


def _fit_stage(better_P: np.ndarray, worse_P: np.ndarray, before_P: np.ndarray) -> StageFit:
    ones = np.ones(len(better_P))
    slope, prior = _logistic(np.stack([better_P - worse_P, before_P], axis=1), ones)
    rewards, before = np.r_[better_P, worse_P], np.r_[before_P, -before_P]
    # `_logistic` allows no negative weights, so an offset of either sign needs two weights: up and down. Standardising the rewards keeps
    # both weights small
    middle, spread = rewards.mean(), rewards.std() or 1.0
    features = np.stack([(rewards - middle) / spread, before, np.ones_like(rewards), -np.ones_like(rewards)], axis=1)
    one_slope, one_prior, up, down = _logistic(features, np.r_[ones, -ones])
    one_slope /= spread
    center = middle - (up - down) / one_slope if one_slope > 0 else middle
    return StageFit(slope, prior, one_slope, float(center), one_prior)


def _logistic(features_PF: np.ndarray, signs_P: np.ndarray) -> list[float]:
    """Return the non-negative weights that minimise the logistic loss for outcomes of ±1."""
    count = len(features_PF) + 2
    signed_PF = features_PF * signs_P[:, None]
    scale_F = np.abs(signed_PF).mean(0)
    scale_F[scale_F == 0] = 1.0
    signed_PF = signed_PF / scale_F  # features on one scale, so that one step size suits all weights

    def loss(weights_F: np.ndarray) -> tuple[float, np.ndarray]:
        odds_P = signed_PF @ weights_F
        right, wrong = (count - 1) / count, 1 / count
        value = right * np.logaddexp(0, -odds_P) + wrong * np.logaddexp(0, odds_P)
        slope_P = wrong * expit(odds_P) - right * expit(-odds_P)
        return float(value.mean()), signed_PF.T @ slope_P / len(odds_P)

    start = np.zeros(features_PF.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start))
    return (found.x / scale_F).tolist()


# ---------------------------------------------------------------------------------------------------------- points


@dataclass(frozen=True)
class CascadePoint:
    """Result of a cascade with one threshold on some rows."""

    threshold: float  # the probability at which a prompt is decided, the same for all stages
    worth: tuple[float, ...]  # value of the chosen response, by row: 1 or 0 for pairs
    tokens: tuple[float, ...]  # critique tokens, by row
    rewards: tuple[tuple[float, ...], ...]  # the cascade's rewards, by row and response
    # Indices of the responses that each stage scored, by row and stage
    asked: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def reached(self) -> tuple[float, ...]:
        """Share of all responses that each stage scored."""
        responses = sum(map(len, self.rewards))
        return tuple(sum(map(len, places)) / responses for places in zip(*self.asked, strict=True))

    @cached_property
    def accuracy(self) -> Estimate:
        """Mean value of the chosen responses, with its 95 % interval over rows."""
        return share(self.worth)

    @cached_property
    def tokens_per_row(self) -> Estimate:
        """Mean number of critique tokens per row, with a bootstrap interval."""
        return mean_estimate(self.tokens)


def run_recorded(
    stages: Sequence[StageScores], fits: Sequence[StageFit], threshold: float, correct: Sequence[Sequence[float]]
) -> CascadePoint:
    """
    Run a cascade on recorded rewards.

    Examples:

    ```python
    >>> cheap = StageScores("cheap", [[3.0, 0.0], [0.1, 0.0]], [[0, 0], [0, 0]])
    >>> full = StageScores("full", [[1.0, 0.0], [0.0, 1.0]], [[30, 30], [30, 30]])
    >>> point = run_recorded([cheap, full], [StageFit(1.0), StageFit(2.0)], 0.9, [[1, 0], [0, 1]])
    >>> point.worth, point.tokens  # the cheap model's margin is large enough to decide the first pair
    ((1.0, 1.0), (0, 60))
    ```
    """
    fit = CascadeFit(tuple(fits), (threshold,) * (len(stages) - 1))
    judged = run_cascade(
        fit,
        [stage.one_at_a_time for stage in stages],
        list(map(len, correct)),
        lambda number, picks: [stages[number].rewards[row][place] for row, place in picks],
    )
    tokens = [
        sum(stage.tokens[row][place] for stage, places in zip(stages, one.asked, strict=True) for place in places)
        for row, one in enumerate(judged)
    ]
    rewards = tuple(tuple(one.rewards) for one in judged)
    worth = tuple(map(worth_of_best, rewards, correct))
    asked = tuple(tuple(map(tuple, one.asked)) for one in judged)
    return CascadePoint(threshold, worth, tuple(tokens), rewards, asked)


def worth_of_best(rewards: Sequence[float], worth: Sequence[float]) -> float:
    """
    Return the value of the response with the highest reward. If several responses tie for it, return the lowest of their values, because a
    tie does not count as right.
    """
    return float(min(value for reward, value in zip(rewards, worth, strict=True) if reward == max(rewards)))


def cascade_curve(
    stages: Sequence[StageScores], fits: Sequence[StageFit], correct: Sequence[Sequence[float]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[CascadePoint]:  # fmt: skip
    """Run a cascade on recorded rewards with each threshold."""
    return [run_recorded(stages, fits, threshold, correct) for threshold in thresholds]


# ----------------------------------------------------------------------------------------------- choosing on dev


@dataclass(frozen=True)
class Goal:
    """
    The goal for choosing a threshold; set exactly one field.

    Args:
        accuracy (`float`, *optional*):
            Minimum accuracy on the dev rows. Thresholds are tried from 1 downwards for as long as they reach this accuracy; of these, the
            one that uses the fewest tokens is chosen.
        loss (`float`, *optional*):
            Largest acceptable loss in accuracy; 0.01 is one percentage point. The reference is the last stage alone or a run in which every
            stage scores every response, whichever is less accurate. The threshold is chosen as for `accuracy`.
        tokens (`float`, *optional*):
            Maximum mean number of tokens per row. Of the thresholds within this budget, the one with the highest accuracy is chosen.
        threshold (`float`, *optional*):
            The threshold itself. Unless it is 1, it must allow the last stage to skip at least one response in the dev rows.

    Raises:
        `ValueError`: If not exactly one field is set, or if its value is out of range.
    """

    accuracy: float | None = None
    loss: float | None = None
    tokens: float | None = None
    threshold: float | None = None

    def __post_init__(self):
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"The cascade's goal sets {len(given)} fields; set exactly one of accuracy, loss, tokens and threshold."
            )
        [(name, value)] = given.items()
        low, high = {"accuracy": (0, 1), "loss": (0, 1), "tokens": (0, np.inf), "threshold": (0.5, 1)}[name]
        if not low <= value <= high:
            raise ValueError(f"A cascade's {name} is {value}; it must be from {low:g} to {high:g}.")


def fit_cascade(
    stages: Sequence[StageScores], correct: Sequence[Sequence[float]], goal: Goal
) -> tuple[CascadeFit, list[CascadePoint]]:
    """
    Fit a cascade's weights and choose its threshold on dev rows.

    Args:
        stages (`Sequence[StageScores]`):
            Each stage's scores for all dev rows, with the cheapest stage first.
        correct (`Sequence[Sequence[float]]`):
            Value of each response by row: `[1, 0]` for a pair.
        goal ([`Goal`]):
            How to choose the threshold.

    Returns:
        `tuple[CascadeFit, list[CascadePoint]]`: The fit, and its results on the dev rows at each threshold. These results are slightly
        optimistic, because the weights were fitted on the same rows.

    Raises:
        `ValueError`: If there are fewer than two stages, if all weights are 0, or if the dev rows do not support the goal: there are too few
            pairs, no threshold reaches the accuracy or stays within the token budget, or the last stage scores every response even at the
            given threshold.
    """
    if len(stages) < 2:
        raise ValueError("A cascade needs at least two stages, the cheapest first.")
    fits = fit_stages(stages, correct)
    if not any(fit.slope for fit in fits):
        raise ValueError(
            f"No stage orders the pairs of the {len(correct)} dev rows better than chance, so all weights are 0 and every choice would be "
            "a tie. Omit the cascade, or use better stages."
        )
    if goal.threshold is not None:
        curve = cascade_curve(stages, fits, correct, (*THRESHOLDS[:-1], goal.threshold, 1.0))
        chosen = curve[-2]
    else:
        curve = cascade_curve(stages, fits, correct)
        alone = [worth_of_best(*pair) for pair in zip(stages[-1].rewards, correct, strict=True)]
        chosen = _choose(curve, goal, float(np.mean(alone)))
    last = stages[-1].name
    if goal.threshold is not None and chosen.threshold < 1 and chosen.tokens == curve[-1].tokens:
        raise ValueError(
            f"With the threshold {goal.threshold:g}, {last} still scores every response of all {len(correct)} dev rows, so no data "
            "supports this threshold. Lower it."
        )
    return CascadeFit(fits, (chosen.threshold,) * (len(stages) - 1)), curve


def _choose(curve: Sequence[CascadePoint], goal: Goal, last_stage: float) -> CascadePoint:
    rows = curve[0].accuracy.n
    if goal.tokens is not None:
        affordable = [point for point in curve if point.tokens_per_row.value <= goal.tokens]
        if not affordable:
            least = min(point.tokens_per_row.value for point in curve)
            raise ValueError(
                f"No threshold stays within {goal.tokens:g} tokens per row: the lowest mean on the {rows} dev rows is {least:.1f}. "
                "Raise the budget."
            )
        return max(affordable, key=lambda point: (point.accuracy.value, -point.tokens_per_row.value))
    target = goal.accuracy or 0.0
    if goal.loss is not None:
        target = min(last_stage, curve[-1].accuracy.value) - goal.loss
    # Start at threshold 1, where every stage scores everything, and lower the threshold only while the goal is met: a low threshold that
    # meets the goal by luck must not be chosen
    enough = list(takewhile(lambda point: point.accuracy.value >= target - 1e-12, reversed(curve)))
    if not enough:
        raise ValueError(
            f"The accuracy target is {target:.3g}, but at threshold 1, where the search starts and every stage scores every response, accuracy "
            f"on the {rows} dev rows is {curve[-1].accuracy.value:.3f}. Lower the target."
        )
    return min(enough, key=lambda point: (point.tokens_per_row.value, -point.accuracy.value))
