"""The pictures of self-consistency, rejection and probes."""

import math
import textwrap
from pathlib import Path

import numpy as np

from ..metrics.selective_accuracy import FRACTIONS
from ..metrics.self_consistency import AccuracyCurve, SelfConsistency
from ..metrics.uncertainty import MARGIN, Uncertainty
from ..probes import ProbeResult
from .benchmark_plots import COLORS, GREY, LINES, MARKERS, pick
from .plots import plt


def plot_self_consistency(curves: dict[str, SelfConsistency], as_scored: dict[str, float], path: Path):
    """
    Accuracy by the number of critiques: a panel for all rows, and one for each length of the reasoning.

    Args:
        curves (`dict[str, SelfConsistency]`):
            For each line its curves.
        as_scored (`dict[str, float]`):
            For each model its accuracy without self-consistency, as flat lines in the first panel.
        path (`Path`):
            Picture to write.
    """
    panels = 1 + max(len(found.buckets) for found in curves.values())
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(8, 0.9 + 2.6 * lines), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes in grid.flat[panels:]:
        axes.set_axis_off()
    for panel, axes in enumerate(grid.flat[:panels]):
        titles = []
        for number, (label, found) in enumerate(curves.items()):
            parts = [found.everything, *found.buckets]
            if panel < len(parts):
                _draw_curve(axes, parts[panel], number, label)
                titles.append(f"{parts[panel].label} (n = {parts[panel].rows})")
        # By the length of critiques, the quarters of models differ
        shown = titles[0] if len(set(titles)) == 1 else f"quarter {panel} of each model"
        axes.set_title(shown if panel == 0 else f"length {shown}", fontsize=9)
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
    for number, (label, value) in enumerate(as_scored.items()):
        grid[0, 0].axhline(
            100 * value,
            color=pick(COLORS[::-1], number),
            linestyle=pick((":", "--", "-."), number),
            label=f"{label}, as scored",
        )
    sizes = range(1, 1 + max(found.num_critiques for found in curves.values()))
    ticks = [size for size in sizes if size & (size - 1) == 0]
    for axes in grid.flat[:panels]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, ticks)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("critiques averaged, k")
    for axes in grid[:, 0]:
        axes.set_ylabel("row accuracy (%)")
    figure.suptitle(f"length: {next(iter(curves.values())).length_of}", fontsize=9)
    _finish(figure, grid, path)


def _draw_curve(axes, curve: AccuracyCurve, number: int, label: str):
    sizes = np.arange(1, 1 + len(curve.accuracy))
    values, errors = 100 * np.array(curve.accuracy), 100 * np.array(curve.standard_errors)
    color = pick(COLORS, number)
    marked = sizes & (sizes - 1) == 0  # powers of two, evenly spaced on this axis
    axes.plot(sizes, values, color=color, linewidth=1.4)
    axes.errorbar(
        sizes[marked], values[marked], yerr=(errors[marked], np.minimum(errors[marked], 100 - values[marked])), capsize=2,
        markersize=4, linestyle="none", color=color, marker=pick(MARKERS, number), label=f"{label} (± standard error over critiques)",
    )  # fmt: skip
    low, high = 100 * np.array(curve.intervals).T
    axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0, label=f"{label} (95 % over rows)")


def plot_rejection(found: dict[str, Uncertainty], path: Path):
    """Accuracy of the pairs that are kept by the fraction that is rejected, one panel for each model."""
    columns = min(len(found), 2)
    lines = -(-len(found) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4 * columns, 0.9 + 3 * lines), sharey=True, squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    percents = 100 * np.array(FRACTIONS)
    for axes, (label, part) in zip(grid.flat, found.items(), strict=False):
        for number, (name, curve) in enumerate(part.selective_accuracy.curves.items()):
            axes.plot(
                percents, 100 * np.array(curve.accuracy), linestyle=pick(LINES, number), color=pick(COLORS, number),
                marker=pick(MARKERS, number), markersize=3.5,
                label="by size of the margin" if name == MARGIN else "by spread of the rewards",
            )  # fmt: skip
        axes.plot(
            percents, 100 * np.array(part.selective_accuracy.oracle.accuracy), ":", color="black", label="oracle"
        )
        axes.axhline(100 * part.selective_accuracy.random, color=GREY, linestyle="--", linewidth=1, label="random")
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("pairs rejected (%)")
        axes.tick_params(labelleft=True)
        axes.grid(color="#dddddd")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy on the pairs kept (%)")
    _finish(figure, grid, path)


def plot_probe(results: dict[str, ProbeResult], path: Path):
    """A probe's figures with their 95 % intervals, one panel for each unit."""
    first = next(iter(results.values()))
    labels: dict = {}
    for result in results.values():
        for measure in result.measures:
            if math.isnan(measure.estimate.value):
                continue
            labels.setdefault(measure.unit, {}).setdefault(measure.label)
    heights = [0.6 + len(names) * (0.22 + 0.16 * len(results)) for names in labels.values()]
    figure, grid = plt.subplots(
        len(labels), 1, figsize=(8, 0.8 + sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axes, (unit, names) in zip(grid[:, 0], labels.items(), strict=True):
        for number, (model, result) in enumerate(results.items()):
            offset = (number - (len(results) - 1) / 2) * 0.6 / len(results)
            known = {measure.label: measure.estimate for measure in result.measures if measure.unit == unit}
            points = [
                (place + offset, known[name])
                for place, name in enumerate(names)
                if name in known and not math.isnan(known[name].value)
            ]
            values = unit.scale * np.array([point.value for _, point in points])
            ends = unit.scale * np.array([point.ci95 or (point.value, point.value) for _, point in points])
            spans = np.abs(ends.T - values) if len(points) else np.zeros((2, 0))
            axes.errorbar(
                values, [place for place, _ in points], xerr=spans, linestyle="none", capsize=3, label=model,
                color=pick(COLORS, number), marker=pick(MARKERS, number), markersize=5,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), [textwrap.fill(name, 46) for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(unit.label)
        if unit.scale == 100.0:
            axes.set_xlim(-3, 103)
        else:
            axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
    figure.suptitle(f"{first.title}: figures with 95 % intervals", fontsize=10)
    _finish(figure, grid, path)


def _finish(figure, grid, path: Path):
    """One legend for all panels, below them."""
    entries = {}
    for axes in grid.flat:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
