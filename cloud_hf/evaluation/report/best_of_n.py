"""Sections of a best-of-N report."""

from collections.abc import Mapping

from ..arena_hard.win_rate import WinRate
from ..candidates import SetResult
from ..tables import PERCENT, Form, Table, show
from .markdown import Section


_MEANINGS = {
    "first": "the first candidate, chosen by nobody",
    "random": "any of the N",
    "longest": "the one with the most characters",
    "perfect": "the best of the N",
}
_SCORE = Form(digits=2)


def best_of_n_section(result: SetResult, picture: str | None = None) -> Section:
    """Make the section on a set of candidates; `picture` is the file with its curves."""
    sizes = list(next(iter(result.curves.values())).values)
    # A wide table is hard to read; pictures and best_of_n.json have all sizes
    shown = sizes if len(sizes) <= 8 else [n for n in sizes if n & (n - 1) == 0 or n == sizes[-1]]
    tables = [_curve_table(result, shown)]
    if result.first_candidates is not None:
        tables.append(_win_rate_table({**result.win_rates, "first candidates": result.first_candidates}))
    if any(seeds > 1 for seeds in result.scored.seeds().values()):
        tables.append(_seed_table(result, shown))
    pictures = {} if picture is None else {picture: f"{result.quality} of the chosen candidate, by N"}
    return Section(result.title, tables=tables, notes=result.notes, pictures=pictures)


def _curve_table(result: SetResult, sizes: list[int]) -> Table:
    form = PERCENT if result.is_share else _SCORE
    curves = {f"**{name}**": curve for name, curve in result.curves.items()}
    curves |= {f"{name} ({_MEANINGS[name]})": curve for name, curve in result.yardsticks.items()}
    rows = []
    for label, curve in curves.items():
        cells = [show(curve.values[n], form, error=curve.standard_errors[n]) for n in sizes]
        value, error = curve.of_all
        rows.append([label, *cells, show(value, form, error=error)])
    note = f"{result.quality.capitalize()} of the chosen candidate, ± one standard error over prompts."
    return Table(["", *(f"N = {n}" for n in sizes), "all"], rows, note=note)


def _seed_table(result: SetResult, sizes: list[int]) -> Table:
    form = Form(100.0, 2, " points") if result.is_share else Form()
    rows = [
        [name, seeds, *(show(result.curves[name].standard_errors_over_seeds[n], form) for n in sizes)]
        for name, seeds in result.scored.seeds().items()
        if seeds > 1
    ]
    title = "Standard error over seeds (other critiques of the same candidates):"
    return Table(["", "seeds", *(f"N = {n}" for n in sizes)], rows, title)


def _win_rate_table(win_rates: Mapping[str, WinRate]) -> Table:
    rows = [
        [
            name,
            show(found.value),
            PERCENT.interval(found.ci95),
            PERCENT.interval(found.ci95_by_question),
            f"{found.wins} : {found.ties} : {found.losses}",
            found.questions,
        ]
        for name, found in win_rates.items()
    ]
    return Table(
        ["answers", "win rate", "95 %, official", "95 %, by question", "wins : ties : losses", "questions"],
        rows,
        note="Win rate against the baseline's answers, of the first seed's choice among all candidates. A strong verdict is three "
        "votes. The official interval draws votes, and is too narrow, since those of a question are not independent.",
    )
