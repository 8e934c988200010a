"""Types for probes, and metrics shared by several probes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...critique_format import CritiqueFormat
from ...scoring import Score
from ..rows import BenchmarkRow
from ..stats import Estimate, mean_estimate, share


@dataclass(frozen=True)
class Unit:
    """The unit of an estimate: its axis label, the factor by which values are multiplied for display, and the digits shown."""

    label: str
    scale: float
    digits: int


SHARE = Unit("share (%)", 100.0, 1)
SHARE_DIFFERENCE = Unit("difference of shares (points)", 100.0, 1)
REWARD = Unit("reward (nats)", 1.0, 3)
CORRELATION = Unit("rank correlation", 1.0, 3)


@dataclass(frozen=True)
class Measure:
    """A probe's estimate with its label and unit."""

    label: str
    unit: Unit
    estimate: Estimate

    def summary(self) -> dict[str, Any]:
        """Return the estimate in JSON form; shares are from 0 to 1."""
        return {"label": self.label, "unit": self.unit.label, **self.estimate.summary()}


@dataclass(frozen=True)
class ProbeRow:
    """
    A row with the scores of its unaltered responses.

    Args:
        dataset (`str`):
            The set to which the row belongs.
        row ([`BenchmarkRow`]):
            The row, with the prompt that the model saw.
        scores (`list[Score]`):
            Scores of the row's responses, one per response.
        paraphrases (`tuple[str, ...]`, *optional*):
            The user's paraphrases of the prompt.
    """

    dataset: str
    row: BenchmarkRow
    scores: list[Score]
    paraphrases: tuple[str, ...] = ()

    @property
    def rewards(self) -> list[float]:
        """Rewards, one per response."""
        return [score.reward for score in self.scores]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """See [`BenchmarkRow.pairs`]."""
        return self.row.pairs()

    def ordered_pairs(self, sign: int = 1) -> list[tuple[int, int]]:
        """Return the pairs that the model orders correctly; with `sign=-1`, those that it orders incorrectly."""
        rewards = self.rewards
        return [pair for pair in self.pairs() if np.sign(rewards[pair[0]] - rewards[pair[1]]) == sign]


@dataclass(frozen=True)
class Variant:
    """
    An altered chat.

    Args:
        label (`str`):
            Name of the alteration in reports.
        place (`int`):
            Index within the row of the response that was altered, or whose prompt was altered; -1 if the response is new.
        prompt (`Any`):
            A string, chat messages, or `{"messages": [...], "tools": [...]}`.
        response (`str`):
            The response.
    """

    label: str
    place: int
    prompt: Any
    response: str


@dataclass(frozen=True)
class ScoredVariant:
    """An altered chat with its score; `stays_text` is false if some of its text became a control token."""

    variant: Variant
    score: Score
    stays_text: bool = True

    @property
    def reward(self) -> float:
        """The reward of the altered chat."""
        return self.score.reward


@dataclass(frozen=True)
class ProbedRow:
    """A row and its altered chats, keyed by label and place."""

    row: ProbeRow
    variants: dict[tuple[str, int], ScoredVariant]

    def places(self, label: str) -> list[int]:
        """Return the indices of the responses that have a variant with this label."""
        return [place for found, place in self.variants if found == label]


@dataclass(frozen=True)
class Probe:
    """
    A test for one failure mode of reward models. A probe alters rows, measures them unaltered, or scores them again.

    Args:
        title (`str`):
            The probe's name in reports.
        about (`str`):
            Description for reports: what is altered and counted.
        measure (`Callable`, *optional*):
            `measure(probed_rows)` returns the metrics, the most important one first.
        alter (`Callable`, *optional*):
            `alter(probe_row, critique_format)` returns a row's altered chats. Without it, `measure` gets all rows unaltered.
        controls (`bool`, *optional*, defaults to `False`):
            Add a control for each alteration of a wrong response; see [`with_controls`].
        checks_text (`bool`, *optional*, defaults to `False`):
            Check whether the altered chats contain control tokens that the chat template did not write.
        rescore (`Callable`, *optional*):
            `rescore(probe_rows, scorer, journal, batch_size, seed, options)` scores rows again and returns the metrics; `measure` is then
            not called.
        most_rows (`int`, *optional*):
            Maximum number of rows passed to `rescore`, spread evenly over the sets.

    Examples:

    ```python
    >>> def alter(row, critique_format):
    ...     return [Variant("upper case", place, row.row.prompt, text.upper()) for place, text in enumerate(row.row.responses)]
    >>> def measure(rows):
    ...     return [Measure("reward change, upper case", REWARD, reward_change(rows, "upper case"))]
    >>> SHOUTING = Probe("Shouting", "Responses in upper case.", measure, alter)
    ```
    """

    title: str
    about: str
    measure: Callable[[Sequence[ProbedRow]], list[Measure]] = lambda rows: []
    alter: Callable[[ProbeRow, CritiqueFormat], list[Variant]] | None = None
    controls: bool = False
    checks_text: bool = False
    rescore: Callable[..., list[Measure]] | None = None
    most_rows: int | None = None


def labels_of(rows: Sequence[ProbedRow]) -> list[str]:
    """List the labels of all variants in order of appearance."""
    return list(dict.fromkeys(label for row in rows for label, _ in row.variants))


def shares(rows: Sequence[ProbedRow], title: str, labels: Sequence[str], outcomes: Callable) -> list[Measure]:
    """Return one share per label. The label replaces `{}` in `title`, and `outcomes(row, label)` returns a row's outcomes."""
    return [
        Measure(title.format(label), SHARE, share_of_rows([outcomes(row, label) for row in rows])) for label in labels
    ]


def share_of_rows(outcomes: Sequence[Sequence[float]]) -> Estimate:
    """Average the mean outcomes of rows; rows without outcomes do not count."""
    return share([float(np.mean(row)) for row in outcomes if len(row)])


def order_changes(margins: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """
    Return two lists, with 1 or 0 for each (before, after) pair of margins: whether the order is reversed, and whether a tie appears or
    disappears.
    """
    signs = [(np.sign(before), np.sign(after)) for before, after in margins]
    reversed_ = [float(before * after < 0) for before, after in signs]
    return reversed_, [float((before == 0) != (after == 0)) for before, after in signs]


mean_figure = mean_estimate  # its name in version 0.1


def reward_changes(rows: Sequence[ProbedRow], labels: Sequence[str]) -> list[Measure]:
    """Return the mean reward change of each alteration."""
    return [Measure(f"reward change, {label}", REWARD, reward_change(rows, label)) for label in labels]


def reward_change(rows: Sequence[ProbedRow], label: str) -> Estimate:
    """Return the mean over rows of the reward after the alteration minus the reward before it."""
    changes = [
        np.mean([row.variants[label, place].reward - row.row.rewards[place] for place in places])
        for row in rows
        if (places := row.places(label))
    ]
    return mean_estimate([float(change) for change in changes])


def lost_pairs(row: ProbedRow, label: str) -> list[float]:
    """
    For each correctly ordered pair whose wrong response was altered, return 1 if the wrong response now has the higher reward, otherwise 0.
    """
    return [float(margin < 0) for margin in _margins_after(row, label, 1)]


def _margins_after(row: ProbedRow, label: str, sign: int) -> list[float]:
    """Return the margins, after the alteration, of the [`ProbeRow.ordered_pairs`] whose wrong response was altered."""
    altered, rewards = row.places(label), row.row.rewards
    return [
        rewards[right] - row.variants[label, wrong].reward
        for right, wrong in row.row.ordered_pairs(sign)
        if wrong in altered
    ]


# ------------------------------------------------------------------------------------------------------- neutral endings

# Text that says nothing about the response. It is repeated and truncated to the length of the ending that it controls for
_NEUTRAL = " This is the end of the text."
_CONTROL_OF = "neutral ending as long as "
CONTROL = (
    "The control appends a neutral ending of the same length instead: rewards that are noise, or that follow the length, lose as many pairs "
    "to the control as to the alteration, so only the difference counts."
)


def neutral(label: str) -> str:
    """Return the label of the control for an alteration."""
    return _CONTROL_OF + label


def altered_labels(rows: Sequence[ProbedRow]) -> list[str]:
    """List the labels of all variants that are not controls, in order of appearance."""
    return [label for label in labels_of(rows) if not label.startswith(_CONTROL_OF)]


def with_controls(row: ProbeRow, variants: Sequence[Variant]) -> list[Variant]:
    """Add a control for each altered wrong response: the original plus a neutral ending that changes the length by the same amount."""
    controls = []
    for variant in variants:
        if variant.place >= row.row.num_chosen:
            response = row.row.responses[variant.place]
            length = abs(len(variant.response) - len(response))
            ending = (_NEUTRAL * (1 + length // len(_NEUTRAL)))[:length]
            controls.append(Variant(neutral(variant.label), variant.place, variant.prompt, response + ending))
    return [*variants, *controls]


def measures_against_controls(rows: Sequence[ProbedRow], labels: Sequence[str], note: str = "") -> list[Measure]:
    """
    Return the metrics of a probe with `controls`. The first metrics are, for each alteration, the share of correctly ordered ("right")
    pairs that it reverses minus the share that its control reverses. They are followed, for each alteration and for its control, by the
    shares of right pairs that are reversed ("lost") or tied, and of incorrectly ordered ("wrong") pairs that are reversed ("won"). `note`
    is added to the labels.
    """
    counted = {
        "right pairs lost": lost_pairs,
        "right pairs tied": lambda row, label: [float(margin == 0) for margin in _margins_after(row, label, 1)],
        "wrong pairs won": lambda row, label: [float(margin > 0) for margin in _margins_after(row, label, -1)],
    }
    measures = [
        Measure(f"right pairs lost beyond the control, {label}{note}", SHARE_DIFFERENCE, _excess(rows, label))
        for label in labels
    ]
    for label in labels:
        for name, outcomes in counted.items():
            measures += shares(rows, f"{name}, {{}}{note}", [label, neutral(label)], outcomes)
    return measures


def _excess(rows: Sequence[ProbedRow], label: str) -> Estimate:
    """
    Return a mean over rows: the share of correctly ordered pairs that an alteration reverses, minus the share that its control reverses.
    Pairs count only if both the alteration and its control were scored.
    """
    labels, differences = (label, neutral(label)), []
    for row in rows:
        places = set(row.places(labels[0])) & set(row.places(labels[1]))
        both = ProbedRow(row.row, {(name, place): row.variants[name, place] for name in labels for place in places})
        lost, control = (lost_pairs(both, name) for name in labels)
        if lost:
            differences.append(float(np.mean(lost) - np.mean(control)))
    return mean_estimate(differences)
