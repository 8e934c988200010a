"""The claims that the study tests, and the rule by which each is judged. Both were written before any test problem was scored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


RULE = (
    "Rule, fixed before the test problems were scored: on a task, a claim is *reproduced* if the 95% interval of the difference over "
    "seeds (Student's) and the one over seeds and problems (hierarchical bootstrap) both lie above 0; *not reproduced* if the first "
    "lies below +2 points; otherwise, or with fewer than three seeds, *inconclusive*. Overall it takes two tasks, and for *reproduced* "
    "no task without."
)


@dataclass(frozen=True)
class Comparison:
    """A difference between outcomes, with one value per problem of a seed; `cells` names the arms that it needs."""

    title: str
    cells: tuple[str, ...]
    values: Callable[[Any, int], np.ndarray]


@dataclass(frozen=True)
class Finding:
    """A claim and the difference that would support it."""

    claim: str
    source: str
    comparison: Comparison
    by_level: bool = False  # whether the report shows the difference by difficulty


def arms(first: str, second: str, measure: str = "outcomes") -> Comparison:
    """Compare two arms on the same problems."""
    return Comparison(
        f"{first} - {second}",
        (first, second),
        lambda scores, seed: getattr(scores, measure)(seed, first) - getattr(scores, measure)(seed, second),
    )


def more_critiques(temperature: float) -> Comparison:
    """Compare the mean reward of 16 sampled critiques with the reward of one."""
    title = f"16 - 1 critiques at T = {temperature}"
    return Comparison(
        title,
        ("cloud", "cloud_samples"),
        lambda scores, seed: (
            scores.sampled(seed, "cloud", temperature, 16, "mean")
            - scores.sampled(seed, "cloud", temperature, 1, "mean")
        ),
    )


FINDINGS = (
    Finding("CLoud beats classic at equal training compute", "paper", arms("cloud", "classic_compute"), True),
    Finding("CLoud beats classic after the same steps on the same rows", "paper", arms("cloud", "classic")),
    Finding(
        "CLoud picks better among candidates than classic", "paper", arms("cloud", "classic_compute", "best_of_n")
    ),
    Finding("Own critiques beat the oracle's in stage 3", "paper", arms("cloud", "off_policy")),
    Finding("The critique loss helps (λ = 1.25 against 0)", "paper", arms("cloud", "lambda_0")),
    Finding("Averaging 16 critiques helps at T = 0.5", "paper", more_critiques(0.5), True),
    Finding("Averaging 16 critiques helps at T = 1", "paper", more_critiques(1.0), True),
    Finding("Stage 1 helps, at equal passes", "control", arms("cloud", "no_stage1")),
    Finding("Content helps: own critiques beat those of other rows", "control", arms("cloud", "shuffled")),
    Finding("Content helps: critiques beat blank tokens", "control", arms("cloud", "blank")),
    Finding("The head adds to the critic's verdict word", "control", arms("cloud", "verdict")),
    Finding("Joint training beats a head on a frozen critic", "control", arms("cloud", "frozen")),
    Finding("CLoud beats an ensemble of five classic models", "control", arms("cloud", "ensemble")),
    Finding("Rewriting critiques during training helps", "extension", arms("online", "cloud")),
    Finding("Stage 4 helps, at equal data and compute", "extension", arms("stage4", "longer")),
    Finding("Stage 4 beats stage 3", "extension", arms("stage4", "cloud")),
    Finding("The policy term of stage 4 helps", "extension", arms("stage4", "stage4_no_policy")),
)
