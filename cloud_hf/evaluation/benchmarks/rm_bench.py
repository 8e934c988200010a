"""RM-Bench: right versus wrong responses in every combination of three styles (arXiv 2410.16184, THU-KEG/RM-Bench)."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...data.rows import check_columns
from ..formatting import Table, show
from ..rows import BenchmarkRow, check_unique, make_row, read_sources, split_rewards, text_of
from ..stats import BenchmarkScores, by_subset, collect_scores, share, weighted_mean


HUB_ID = "THU-KEG/RM-Bench"
STYLES = ("concise", "detailed plain", "detailed markdown")
# The official code pools the two halves of safety, so all their rows carry the same weight
DOMAINS = {"chat": ("chat",), "math": ("math",), "code": ("code",), "safety": ("safety-refuse", "safety-response")}

# Cells of the matrix by level. A cell's row is the style of the right response, and its column is the style of the wrong one. In hard
# cells the wrong response is showier, and in easy cells the right one is.
LEVELS = {"hard": np.triu_indices(3, k=1), "normal": np.diag_indices(3), "easy": np.tril_indices(3, k=-1)}


def load(names: Sequence[str] | None = None) -> list[BenchmarkRow]:
    """
    Load RM-Bench, by default `THU-KEG/RM-Bench`.

    The columns `chosen` and `rejected` are lists of three responses in the order of `STYLES`. The other columns are `prompt`,
    `domain` (or `subset`, as in `rmbench-chat`) and optionally `id`.
    """
    rows = []
    for source, index, row in read_sources([HUB_ID] if names is None else names, "train"):
        domain = "domain" if "domain" in row else "subset"
        check_columns(list(row), ("prompt", "chosen", "rejected", domain), f"RM-Bench ({source})")
        subset = text_of(source, index, row, domain).removeprefix("rmbench-")
        made = make_row(source, index, row, subset, row["chosen"], row["rejected"])
        if len(made.chosen) != len(STYLES) or len(made.rejected) != len(STYLES):
            raise ValueError(
                f"{source}, row {made.id!r}: {len(made.chosen)} chosen and {len(made.rejected)} rejected responses; "
                f"RM-Bench has one of each style ({', '.join(STYLES)})."
            )
        rows.append(made)
    return check_unique(rows)


def win_matrix(chosen: Sequence[float], rejected: Sequence[float]) -> np.ndarray:
    """Compare all styles: cell (i, j) is 1 if the right response in style i has a higher reward than the wrong one in style j."""
    return (np.asarray(chosen)[:, None] > np.asarray(rejected)[None, :]).astype(float)


def score(rows: Sequence[BenchmarkRow], rewards: Sequence[Sequence[float]]) -> BenchmarkScores:
    """
    Score RM-Bench like the official code and leaderboard. A tie counts as wrong.

    `"chat"`, `"math"`, `"code"` and `"safety"` are each the mean of the domain's hard, normal and easy accuracies; `"hard"`,
    `"normal"` and `"easy"` are means over the four domains, and `"total"` is the mean of all. The halves of safety have
    estimates of their own. Each domain and each half also has an estimate for each level (`"chat hard"`, …), and a style matrix in
    `details`.
    """
    split = split_rewards(rows, rewards)
    matrices = by_subset(rows, [win_matrix(chosen, rejected) for chosen, rejected in split])
    names = (*DOMAINS, *DOMAINS["safety"])
    parts = {name: [m for part in DOMAINS.get(name, (name,)) for m in matrices.get(part, ())] for name in names}
    levels = {
        name: {level: [m[cells].mean() for m in parts[name]] for level, cells in LEVELS.items()} for name in parts
    }
    averages = {name: [m.mean() for m in parts[name]] for name in parts}  # each level has three cells
    equal = dict.fromkeys(DOMAINS, 1.0)
    figures = {"total": weighted_mean(averages, equal)}
    figures |= {level: weighted_mean({name: levels[name][level] for name in DOMAINS}, equal) for level in LEVELS}
    for name in parts:
        figures[name] = share(averages[name])
        figures |= {f"{name} {level}": share(levels[name][level]) for level in LEVELS}
    outcomes = {name: [m.mean() for m in members] for name, members in matrices.items()}
    subsets = [part for halves in DOMAINS.values() for part in halves]
    means = {name: np.mean(found, axis=0).tolist() for name, found in {**matrices, **parts}.items() if found}
    details = {"styles": list(STYLES), "matrices": means}
    scores = {"benchmark": "RM-Bench", "headline": "total", "figures": figures, "details": details}
    return collect_scores(rows, split, outcomes, subsets, **scores)


def tables(by_model: Mapping[str, BenchmarkScores]) -> list[Table]:
    """Return a report table of the style matrices, domain by domain."""
    rows = [
        [f"{domain}, {model}, {style}", *map(show, shares)]
        for domain in DOMAINS
        for model, scores in by_model.items()
        for style, shares in zip(STYLES, scores.details["matrices"].get(domain, []), strict=False)
    ]
    columns = ["right response", *(f"against {style}" for style in STYLES)]
    return [Table(columns, rows, title="Right responses of each style against wrong ones of each:")]
