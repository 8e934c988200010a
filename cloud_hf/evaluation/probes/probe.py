"""What a probe is: how it alters rows, and what it counts in the rewards."""

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
    """What a figure is measured in: the label of its axis, what its value is multiplied with there, and its digits."""

    label: str
    scale: float
    digits: int


SHARE = Unit("share (%)", 100.0, 1)
REWARD = Unit("reward (nats)", 1.0, 3)
CORRELATION = Unit("rank correlation", 1.0, 3)


@dataclass(frozen=True)
class Measure:
    """A figure of a probe: what it says, its unit, and the value with its interval over rows."""

    label: str
    unit: Unit
    estimate: Estimate

    def summary(self) -> dict[str, Any]:
        """For JSON; shares are from 0 to 1."""
        return {"label": self.label, "unit": self.unit.label, **self.estimate.summary()}


@dataclass(frozen=True)
class ProbeRow:
    """
    A row as probes see it.

    Args:
        dataset (`str`):
            The set it belongs to.
        row ([`BenchmarkRow`]):
            The row, its prompt perhaps shortened to fit the model.
        scores (`list[Score]`):
            How the model scored its responses.
        paraphrases (`tuple[str, ...]`, *optional*):
            Other wordings of the prompt that the user gave.
    """

    dataset: str
    row: BenchmarkRow
    scores: list[Score]
    paraphrases: tuple[str, ...] = ()

    @property
    def rewards(self) -> list[float]:
        """The rewards of the responses."""
        return [score.reward for score in self.scores]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The places of each right and wrong response."""
        for right in range(self.row.num_chosen):
            for wrong in range(self.row.num_chosen, len(self.row.responses)):
                yield right, wrong

    def ordered_pairs(self) -> list[tuple[int, int]]:
        """Those pairs that the model has in the right order."""
        return [(right, wrong) for right, wrong in self.pairs() if self.rewards[right] > self.rewards[wrong]]


@dataclass(frozen=True)
class Variant:
    """
    An altered chat.

    Args:
        label (`str`):
            What was altered.
        place (`int`):
            Which of the row's responses it was made of; -1 if of none.
        prompt (`Any`):
            The prompt.
        response (`str`):
            The response.
    """

    label: str
    place: int
    prompt: Any
    response: str


@dataclass(frozen=True)
class ScoredVariant:
    """An altered chat with its score; `stays_text` is false where text in it has become a control token."""

    variant: Variant
    score: Score
    stays_text: bool = True

    @property
    def reward(self) -> float:
        """The chat's reward."""
        return self.score.reward


@dataclass(frozen=True)
class ProbedRow:
    """A row and its altered chats, by label and place."""

    row: ProbeRow
    variants: dict[tuple[str, int], ScoredVariant]

    def places(self, label: str) -> list[int]:
        """Which responses were altered so."""
        return [place for found, place in self.variants if found == label]


@dataclass(frozen=True)
class Probe:
    """
    A way in which reward models fail.

    Args:
        title (`str`):
            Its name in reports.
        about (`str`):
            What is altered and what is counted, for reports.
        measure (`Callable`):
            `measure(probed_rows)` gives its figures, the most important first.
        alter (`Callable`, *optional*):
            `alter(probe_row, critique_format)` gives altered chats. Without, the probe looks at the rows as they are, all of
            them.
        checks_text (`bool`, *optional*, defaults to `False`):
            Find out whether the altered chats have control tokens that the chat template did not write.
    """

    title: str
    about: str
    measure: Callable[[Sequence[ProbedRow]], list[Measure]]
    alter: Callable[[ProbeRow, CritiqueFormat], list[Variant]] | None = None
    checks_text: bool = False


# --------------------------------------------------------------------------------------------- figures that probes share


def labels_of(rows: Sequence[ProbedRow]) -> list[str]:
    """What was altered, in order of appearance."""
    return list(dict.fromkeys(label for row in rows for label, _ in row.variants))


def reward_change(rows: Sequence[ProbedRow], label: str) -> Estimate:
    """Mean over rows of the reward after the alteration minus the one before."""
    return mean_estimate(
        [
            np.mean([row.variants[label, place].reward - row.row.rewards[place] for place in places])
            for row in rows
            if (places := row.places(label))
        ]
    )


def lost_pairs(row: ProbedRow, label: str) -> list[float]:
    """For each pair that was in the right order, and whose wrong response was altered, whether it is lost: 0 or 1."""
    altered = row.places(label)
    return [
        float(row.row.rewards[right] <= row.variants[label, wrong].reward)
        for right, wrong in row.row.ordered_pairs()
        if wrong in altered
    ]


def share_of_rows(outcomes: Sequence[Sequence[float]]) -> Estimate:
    """Mean over rows of their mean outcome; rows without outcomes do not count."""
    return share([float(np.mean(row)) for row in outcomes if len(row)])
