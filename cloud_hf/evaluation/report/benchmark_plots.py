"""The pictures of a benchmark report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..metrics.calibration import calibrate
from .plots import plt
from .report import Evaluation, headline_estimates


# Okabe and Ito: told apart with any colour vision; shapes tell them apart in grey
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":")
GREY = "#6b6b6b"


def plot_benchmarks(results: dict[str, list[Evaluation]], path: Path):
    """The headline figures of all benchmarks with their 95 % intervals; see [`~report.headline_estimates`]."""
    quoted = [headline_estimates(evaluations) for evaluations in zip(*results.values(), strict=True)]
    names = [label for label, _ in quoted]
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + len(names) * (0.25 + 0.17 * len(results))))
    for number, model in enumerate(results):
        offset = (number - (len(results) - 1) / 2) * 0.7 / len(results)
        known = [(place + offset, figures[number]) for place, (_, figures) in enumerate(quoted)]
        values = [100 * found.value for _, found in known]
        ends = [[100 * end for end in found.ci95 or (found.value, found.value)] for _, found in known]
        spans = [[abs(value - end[side]) for value, end in zip(values, ends, strict=True)] for side in (0, 1)]
        axes.errorbar(
            values, [place for place, _ in known], xerr=spans, linestyle="none", capsize=3, label=model,
            color=pick(COLORS, number), marker=pick(MARKERS, number),
        )  # fmt: skip
    axes.set(xlim=(-2, 102), xlabel="figure of the benchmark (%), with 95 % interval")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    save(figure, axes, path)


def plot_margins(margins: dict[str, Sequence[float]], path: Path):
    """
    Distribution of reward margins.

    Args:
        margins (`dict[str, Sequence[float]]`):
            For each model the rewards of right responses minus those of wrong ones.
        path (`Path`):
            Picture to write.
    """
    figure, axes = plt.subplots(figsize=(7.5, 4))
    everything = np.concatenate([np.asarray(values, dtype=float) for values in margins.values()])
    # Few margins lie far out; they go into the last bins
    reach = float(np.quantile(np.abs(everything), 0.99)) or 1.0
    bins = np.linspace(-reach, reach, 51)
    for number, (model, values) in enumerate(margins.items()):
        shares = np.full(len(values), 100 / len(values))
        axes.hist(
            np.clip(values, -reach, reach), bins, weights=shares, histtype="step", linewidth=1.8, label=model,
            color=pick(COLORS, number), linestyle=pick(LINES, number),
        )  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
    axes.set(
        xlabel="reward of the right minus reward of the wrong response (nats)\nright of 0 is correct; outermost bins hold all beyond",
        ylabel="response pairs (%)",
    )
    save(figure, axes, path)


def plot_reliability(margins: dict[str, Sequence[float]], path: Path):
    """How often the preferred response is right, by the Bradley-Terry probability that the rewards give it; see [`plot_margins`]."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    axes.plot([50, 100], [50, 100], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    for number, (model, values) in enumerate(margins.items()):
        found = calibrate(values)
        confidences, accuracies, counts = (np.array(column) for column in zip(*found.bins, strict=True))
        errors = 100 * np.sqrt(accuracies * (1 - accuracies) / counts)
        axes.errorbar(
            100 * confidences, 100 * accuracies, yerr=errors, capsize=3, markersize=5, linewidth=1.4,
            label=f"{model} (ECE {found.ece:.3f})", color=pick(COLORS, number), marker=pick(MARKERS, number),
        )  # fmt: skip
    axes.set(
        xlim=(48, 102), ylim=(0, 105), xlabel="probability of the preferred response (%)",
        ylabel="preferred response is right (%), ± one standard error",
    )  # fmt: skip
    save(figure, axes, path)


def pick(values: Sequence[str], number: int) -> str:
    """The one for this model, over again where models outnumber them."""
    return values[number % len(values)]


def save(figure, axes, path: Path):
    """Write a picture of one panel, its legend above it."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
