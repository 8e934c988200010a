"""What best-of-N found on one set of candidates, for people and for programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..arena_hard.win_rate import WinRate
from ..metrics.best_of_n import Curve
from .tables import table_head, table_line


_MEANINGS = {
    "first": "the first candidate, chosen by nobody",
    "random": "any of the N",
    "longest": "the one with the most characters",
    "perfect": "the best of the N",
}


@dataclass(frozen=True)
class SetResult:
    """
    Best-of-N on one set.

    Args:
        name (`str`):
            The dataset, as the command line names it.
        title (`str`):
            Its name in tables.
        quality (`str`):
            What a choice is worth, such as `"correctness"`.
        is_share (`bool`):
            Whether that goes from 0 to 1 and is shown in percent.
        curves (`dict[str, Curve]`):
            By model.
        yardsticks (`dict[str, Curve]`):
            See [`~best_of_n.baselines`].
        counts (`dict[str, int]`):
            Problems, candidates, and what was left out.
        seeds (`dict[str, int]`):
            By model, how often the candidates were scored.
        win_rates (`dict[str, WinRate]`):
            On ArenaHard: by model the win rate of the candidates it chose among all.
        first_candidates ([`WinRate`], *optional*):
            On ArenaHard: that of the first candidates, chosen by nobody.
        notes (`list[str]`):
            What must be known beside the figures.
    """

    name: str
    title: str
    quality: str
    is_share: bool
    curves: dict[str, Curve]
    yardsticks: dict[str, Curve]
    counts: dict[str, int]
    seeds: dict[str, int]
    win_rates: dict[str, WinRate] = field(default_factory=dict)
    first_candidates: WinRate | None = None
    notes: list[str] = field(default_factory=list)

    def summaries(self, models: Mapping[str, str]) -> list[dict[str, Any]]:
        """
        For JSON, one entry for each model.

        Args:
            models (`Mapping[str, str]`):
                From the names of the curves to those of the command line.
        """
        return [self._summary(name, model) for name, model in models.items()]

    def _summary(self, name: str, model: str) -> dict[str, Any]:
        summary = {"model": model, "dataset": self.name, "title": self.title, "quality": self.quality, **self.counts}
        summary |= {"seeds": self.seeds[name], **self.curves[name].summary(), "notes": self.notes}
        summary["yardsticks"] = [{"name": key, **curve.summary()} for key, curve in self.yardsticks.items()]
        if "perfect" in self.yardsticks:
            summary["oracle"] = self.yardsticks["perfect"].values
        if self.first_candidates is not None:
            summary["win_rate"] = self.win_rates[name].summary()
            summary["win_rate_of_first_candidates"] = self.first_candidates.summary()
        return summary

    def markdown(self) -> list[str]:
        """The section of a report."""
        sizes = list(next(iter(self.curves.values())).values)
        shown = sizes if len(sizes) <= 8 else [n for n in sizes if n & (n - 1) == 0 or n == sizes[-1]]
        labels = {name: f"{name} ({_MEANINGS[name]})" for name in self.yardsticks}
        rows = [(f"**{name}**", curve) for name, curve in self.curves.items()]
        rows += [(labels[name], curve) for name, curve in self.yardsticks.items()]
        lines = [f"## {self.title}", "", *table_head(["", *(f"N = {n}" for n in shown), "all"])]
        for label, curve in rows:
            cells = [self._cell(curve.values[n], curve.standard_errors[n]) for n in shown]
            lines.append(table_line([label, *cells, self._cell(*curve.of_all)]))
        lines += ["", f"{self.quality.capitalize()} of the chosen candidate, ± one standard error over prompts.", ""]
        if self.first_candidates is not None:
            lines += [*_win_rate_table({**self.win_rates, "first candidates": self.first_candidates}), ""]
        if any(seeds > 1 for seeds in self.seeds.values()):
            lines += [*self._seed_table(shown), ""]
        return [*lines, *(f"- {note}" for note in self.notes), ""]

    def _cell(self, value: float, error: float) -> str:
        known = not math.isnan(error)
        if self.is_share:
            return f"{value:.1%}" + (f" ± {100 * error:.1f}" if known else "")
        return f"{value:.2f}" + (f" ± {error:.2f}" if known else "")

    def _seed_table(self, shown: Sequence[int]) -> list[str]:
        lines = ["Standard error over seeds (other critiques of the same candidates):", ""]
        lines += table_head(["", "seeds", *(f"N = {n}" for n in shown)])
        for name, curve in self.curves.items():
            if self.seeds[name] > 1:
                errors = (curve.standard_errors_over_seeds[n] for n in shown)
                cells = (f"{100 * error:.2f} points" if self.is_share else f"{error:.3f}" for error in errors)
                lines.append(table_line([name, self.seeds[name], *cells]))
        return lines


def _win_rate_table(win_rates: Mapping[str, WinRate]) -> list[str]:
    lines = table_head(
        ["answers", "win rate", "95 %, official", "95 %, by question", "wins : ties : losses", "questions"]
    )
    for name, found in win_rates.items():
        lines.append(
            table_line(
                [
                    name,
                    f"{found.value:.1%}",
                    *(f"{100 * low:.1f} to {100 * high:.1f}" for low, high in (found.ci95, found.ci95_by_question)),
                    f"{found.wins} : {found.ties} : {found.losses}",
                    found.questions,
                ]
            )
        )
    return [
        *lines,
        "",
        "Win rate against the baseline's answers, of the first seed's choice among all candidates. A strong verdict is three "
        "votes. The official interval draws votes, and is too narrow, since those of a question are not independent.",
    ]  # fmt: skip
