"""Ensembles of scored models: the mean or the lowest of their standardised rewards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..data.rows import short_names
from ..scores import Sample, Score
from .context_fitting import ScoredRows
from .formatting import file_name


# Maps each kind's name on the command line to the function that combines the members' rewards for one response
KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": partial(np.mean, axis=0),
    "lowest": partial(np.min, axis=0),
}


@dataclass(frozen=True)
class Ensemble:
    """
    An ensemble of models that are all scored in one run. The rewards of different models have different scales, so each member's rewards
    are first standardised to mean 0 and standard deviation 1 over all responses of a set.
    """

    kind: str  # key of `KINDS`
    members: tuple[str, ...]  # short names of the models

    @property
    def name(self) -> str:
        """The ensemble's name in reports and file names."""
        return f"{self.kind}({','.join(self.members)})"

    def combine(self, parts: Mapping[str, ScoredRows]) -> ScoredRows:
        """
        Combine the members' rows and scores on a set; `parts` is keyed by short name. Rows that a member lacks count as dropped. Raises
        `ValueError` if no row is left.
        """
        found = [parts[member] for member in self.members]
        by_index = [
            {row.index: scores for row, scores in zip(fitted.rows, row_scores, strict=True)}
            for fitted, row_scores in found
        ]
        first = found[0][0]
        rows = [row for row in first.rows if all(row.index in scored for scored in by_index)]
        if not rows:
            raise ValueError(f"{self.name}: no row fits in every model's context.")
        dropped = first.dropped + len(first.rows) - len(rows)
        shortened = max(fitted.shortened for fitted, _ in found)
        rewards = [_standardised([score.reward for row in rows for score in scored[row.index]]) for scored in by_index]
        combined = iter(KINDS[self.kind](np.array(rewards)).tolist())
        scores = [[Score.of([Sample(next(combined))]) for _ in row.responses] for row in rows]
        return replace(first, rows=rows, dropped=dropped, shortened=shortened), scores


def _standardised(rewards: Sequence[float]) -> np.ndarray:
    values = np.array(rewards)
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)


def read_ensembles(texts: Sequence[str], models: Sequence[str]) -> list[Ensemble]:
    """
    Parse ensembles such as `"mean:a,b"`, whose members are names or short names of `models`. Raises `ValueError` if a kind or member is
    unknown, if a member or ensemble is listed twice, or if there is only one member.
    """
    found = []
    for text in texts:
        kind, _, names = text.partition(":")
        if kind not in KINDS or not names:
            raise ValueError(
                f"`ensembles` {text!r}: write a kind ({', '.join(KINDS)}) followed by models, as in mean:a,b."
            )
        members = tuple(read_members("ensembles", text, names.split(","), models))
        if len(set(members)) < max(2, len(members)):
            raise ValueError(f"`ensembles` {text!r} needs at least two different models.")
        found.append(Ensemble(kind, members))
    check_different("ensembles", found)
    return found


def read_members(option: str, text: str, names: Sequence[str], models: Sequence[str]) -> list[str]:
    """
    Return the short name of each model in `names`. If a name is not among `models`, raises a `ValueError` that names `option` and its value
    `text`.
    """
    shown = short_names(list(models))
    known = shown | {short: short for short in shown.values()}
    names = [name.strip() for name in names]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"`{option}` {text!r}: {unknown[0]!r} is not one of `models` ({', '.join(shown.values())}).")
    return [known[name] for name in names]


def check_model_names(models: Sequence[str], combined: Sequence[str]):
    """Raise `ValueError` if one of `models` would have the same files as the judge, an ensemble or a cascade, whose names are `combined`."""
    spelt = {file_name("scores", name, "parquet"): name for name in combined}
    for name, short in short_names(list(models)).items():
        if other := spelt.get(file_name("scores", short, "parquet")):
            raise ValueError(
                f"`models` contains {name}, which the report would call {short!r}, but {other!r} is also the name of the judge, an "
                "ensemble or a cascade. Rename the model's folder."
            )


def check_different(option: str, found: Sequence[Any]):
    """Raise `ValueError` if an option lists the same combination of models twice."""
    if repeated := [one.name for place, one in enumerate(found) if one in found[:place]]:
        raise ValueError(f"`{option}` lists {repeated[0]} twice. List it once.")
