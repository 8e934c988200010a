"""Plots of reports in one style. A series' index determines its colour, marker and line."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np


matplotlib.use("Agg")  # without a display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import MARGIN, Uncertainty
from ..metrics.best_of_n import Curve
from ..metrics.calibration import FEW_PAIRS, Calibration, calibrate
from ..metrics.selective_accuracy import FRACTIONS
from ..metrics.self_consistency import AccuracyCurve, SelfConsistency
from ..outcomes import Evaluation, headline_estimates
from ..probes import ProbeResult
from ..probes.probe import SHARE
from ..stats import Estimate, wilson


# Okabe-Ito palette: distinguishable with any colour vision; marker shapes distinguish series in greyscale
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":")
GREY = "#6b6b6b"
_GRID = "#dddddd"
_FLAT_LINES = (":", "--", "-.")
_BASELINES = {"first": "--", "random": "--", "longest": "-.", "perfect": ":"}


# ------------------------------------------------------------------------------------------------ shared by all plots


def pick(values: Sequence[str], number: int) -> str:
    """Return the value for a series; values repeat if there are more series."""
    return values[number % len(values)]


def points(number: int) -> dict[str, Any]:
    """Return the style of a series drawn as points."""
    return {"color": pick(COLORS, number), "marker": pick(MARKERS, number), "markersize": 5, "capsize": 3}


def strokes(number: int) -> dict[str, Any]:
    """Return the style of a series drawn as a line."""
    return {"color": pick(COLORS, number), "linestyle": pick(LINES, number)}


def add_grid(axes: Axes, axis: str = "both"):
    """Draw a light grid behind the data."""
    axes.grid(axis=axis, color=_GRID)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def save(figure: Figure, axes: Axes, path: Path, handles: list | None = None):
    """Write a plot of one panel with its legend above."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    columns = 2 if len(handles) < 5 else 3
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def save_panels(figure: Figure, panels: Iterable[Axes], path: Path):
    """Write a plot of several panels with one shared legend below."""
    entries = {}
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_estimates(
    axes: Axes, names: Sequence[str], by_model: Mapping[str, Sequence[Estimate | None]], scale: float = 100.0
):
    """Draw each model's estimate with its interval for each name; the models of a line are stacked vertically."""
    for number, (model, estimates) in enumerate(by_model.items()):
        offset = (number - (len(by_model) - 1) / 2) * 0.65 / len(by_model)
        known = [(place, one) for place, one in enumerate(estimates) if one is not None and not math.isnan(one.value)]
        values = scale * np.array([one.value for _, one in known])
        # An estimate without an interval is a point; the shape keeps `.T` valid for a model without any estimate
        ends = scale * np.array([one.ci95 or (one.value, one.value) for _, one in known]).reshape(-1, 2)
        places = [place + offset for place, _ in known]
        axes.errorbar(values, places, xerr=np.abs(ends.T - values), linestyle="none", label=model, **points(number))
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 46) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    add_grid(axes, "x")


# ---------------------------------------------------------------------------------------------- benchmarks and pairs


def plot_benchmarks(results: Mapping[str, list[Evaluation]], path: Path):
    """Draw the headline figures of all benchmarks with their 95 % intervals; see [`~outcomes.headline_estimates`]."""
    quoted = [headline_estimates(evaluations) for evaluations in zip(*results.values(), strict=True)]
    by_model = {model: [estimates[number] for _, estimates in quoted] for number, model in enumerate(results)}
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + len(quoted) * (0.25 + 0.17 * len(results))))
    _draw_estimates(axes, [label for label, _ in quoted], by_model)
    axes.set(xlim=(-2, 102), xlabel="figure of the benchmark (%), with 95 % interval")
    save(figure, axes, path)


# By set and model, the margins of its pairs of a right and a wrong response
Margins = Mapping[str, Mapping[str, Sequence[float]]]


def plot_margins(by_set: Margins, path: Path):
    """Draw the distribution of reward margins (right minus wrong response) of each model, one panel for each set."""
    figure, grid = _panels(len(by_set), 2, 6, 3)
    for axes, (name, margins) in zip(grid.flat, by_set.items(), strict=False):
        everything = np.concatenate([np.asarray(values, dtype=float) for values in margins.values()])
        # The few margins far out go into the last bins
        reach = float(np.quantile(np.abs(everything), 0.99)) or 1.0
        bins = np.linspace(-reach, reach, 52).tolist()  # an odd number of bins: equal rewards are in the middle of one
        for number, (model, values) in enumerate(margins.items()):
            shares = np.full(len(values), 100 / len(values))
            clipped = np.clip(values, -reach, reach)
            axes.hist(clipped, bins, weights=shares, histtype="step", linewidth=1.8, label=model, **strokes(number))
        axes.axvline(0, color=GREY, linewidth=1, linestyle="--")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("reward of the right minus reward of the wrong response (nats)")
        axes.tick_params(labelleft=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("response pairs (%)")
    figure.suptitle(
        "right of 0 is correct, equal rewards are in the middle bin; outermost bins hold all beyond", fontsize=9
    )
    save_panels(figure, grid.flat, path)


def plot_reliability(by_set: Margins, path: Path):
    """
    Draw how often the preferred response is right, by its Bradley-Terry probability, one panel for each set: Wilson's intervals, and
    markers whose area grows with the pairs in a bin.
    """
    figure, grid = _panels(len(by_set), 2, 6, 3.6)
    for axes, (name, margins) in zip(grid.flat, by_set.items(), strict=False):
        axes.plot([50, 100], [50, 100], color=GREY, linewidth=1, linestyle="--", label="calibrated")
        for number, (model, values) in enumerate(margins.items()):
            _draw_bins(axes, calibrate(values), number, model)
        axes.set(xlim=(48, 102), ylim=(-2, 105), xlabel="probability of the preferred response (%)")
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelleft=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("preferred response is right (%),\nwith 95 % interval (Wilson)")
    save_panels(figure, grid.flat, path)


def _draw_bins(axes: Axes, found: Calibration, number: int, label: str):
    confidences, accuracies, counts = (np.array(column) for column in zip(*found.bins, strict=True))
    x, y = 100 * confidences, 100 * accuracies
    ends = 100 * np.array([wilson(accuracy, count) for _, accuracy, count in found.bins]).T
    color, marker = pick(COLORS, number), pick(MARKERS, number)
    axes.errorbar(x, y, yerr=np.abs(ends - y), linestyle="none", color=color, capsize=3, linewidth=1)
    # A line through bins of a few pairs would draw noise
    axes.plot(x, np.where(counts < FEW_PAIRS, np.nan, y), color=color, linewidth=1.4)
    axes.scatter(x, y, s=8 + 150 * counts / counts.sum(), color=color, marker=marker, label=label)


def plot_accuracy_by_group(arms: Mapping[str, Mapping[str, dict]], label: str, path: Path):
    """Draw grouped bars: for each model `accuracy` and `ci95` by group. `label` names the groups."""
    figure, axes = plt.subplots(figsize=(7, 4))
    groups = sorted({group for by_group in arms.values() for group in by_group})
    width = 0.8 / len(arms)
    for number, (arm, by_group) in enumerate(arms.items()):
        known = [(place, by_group[group]) for place, group in enumerate(groups) if group in by_group]
        heights = np.array([result["accuracy"] for _, result in known])
        ends = np.array([result["ci95"] for _, result in known]).T
        places = [place + (number - (len(arms) - 1) / 2) * width for place, _ in known]
        errors = np.abs(ends - heights)
        axes.bar(places, heights, width * 0.95, yerr=errors, capsize=3, label=arm, color=pick(COLORS, number))
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.set(xticks=range(len(groups)), xticklabels=groups, xlabel=label, ylim=(0, 1.05))
    axes.set_ylabel("pair accuracy, with 95% interval")
    save(figure, axes, path)


def plot_reward_distributions(arms: Mapping[str, tuple[list[float], list[float]]], path: Path):
    """Draw histograms of the rewards of chosen and rejected responses, one panel per model."""
    size = (4.5 * len(arms), 4.0)
    figure, panels = plt.subplots(1, len(arms), figsize=size, squeeze=False, layout="constrained")
    for axes, (arm, (chosen, rejected)) in zip(panels[0], arms.items(), strict=True):
        low, high = min(*chosen, *rejected), max(*chosen, *rejected)
        bins = np.linspace(low, high, 41) if high > low else 1
        axes.hist(chosen, bins, alpha=0.65, label="chosen", color=COLORS[0])
        axes.hist(rejected, bins, alpha=0.65, label="rejected", color=COLORS[4], hatch="//")
        axes.set(title=arm, xlabel="reward (nats)", ylabel="responses")
    save_panels(figure, panels.flat, path)


# ---------------------------------------------------------------------------------------------------------- best-of-N


def plot_curves(
    models: Mapping[str, Curve], yardsticks: Mapping[str, Curve], quality: str, is_share: bool, path: Path
):
    """
    Draw best-of-N curves with one standard error over prompts, and baselines in grey.

    `quality` names the quantity on the y axis. With `is_share` it is a share from 0 to 1, shown in percent.
    """
    scale, unit = (100, " (%)") if is_share else (1, "")
    figure, axes = plt.subplots(figsize=(7, 4.4))
    handles: list = []
    for number, (name, curve) in enumerate(models.items()):
        # Side by side, so that error bars do not hide each other
        aside = 0.1 * (number - (len(models) - 1) / 2)
        values, errors = ([scale * x for x in part.values()] for part in (curve.values, curve.standard_errors))
        handles.append(axes.errorbar([n + aside for n in curve.values], values, errors, label=name, **points(number)))
    for name, curve in yardsticks.items():
        # Drawn on top; a model that chooses perfectly would otherwise hide them
        values, style = [scale * x for x in curve.values.values()], {"color": GREY, "linewidth": 1.3, "zorder": 3}
        handles += axes.plot(list(curve.values), values, _BASELINES[name], label=name, **style)
    sizes = list(next(iter(models.values())).values)
    axes.set(
        xlabel="candidates N", ylabel=f"{quality}{unit}\n± one standard error over prompts",
        xticks=sizes if len(sizes) <= 20 else sizes[:: len(sizes) // 16],
    )  # fmt: skip
    add_grid(axes, "y")
    save(figure, axes, path, handles)


def plot_best_of_n(arms: Mapping[str, dict], path: Path):
    """Draw best-of-N curves from their summaries; the baselines are chance and a perfect choice."""

    def curve_of(values: dict[int, float], errors: dict[int, float | None]) -> Curve:
        known = {n: errors.get(n) or 0.0 for n in values}
        return Curve(values, known, known, (math.nan, math.nan))

    curves = {arm: curve_of(result["rates"], result["standard_errors"]) for arm, result in arms.items()}
    last = next(iter(arms.values()))
    baselines = {"random": dict.fromkeys(last["rates"], last["rates"][1]), "perfect": last["oracle"]}
    plot_curves(curves, {name: curve_of(values, {}) for name, values in baselines.items()}, "correct", True, path)


# ----------------------------------------------------------------------------------------------------------- analysis


def _panels(count: int, columns: int, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    """Make a grid of `count` panels; the sizes are of one panel, in inches."""
    columns = min(count, columns)
    lines = -(-count // columns)
    size = (width * columns, 0.9 + height * lines)
    figure, grid = plt.subplots(
        lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained", **options
    )
    # The last row of the grid may have unused panels
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return figure, grid


def plot_self_consistency(curves: Mapping[str, SelfConsistency], as_scored: Mapping[str, float], path: Path):
    """
    Draw accuracy by the number of critiques: one panel for all rows, and one per reasoning length.

    `as_scored` holds each model's accuracy without self-consistency, drawn as flat lines in the first panel.
    """
    count = 1 + max(len(found.buckets) for found in curves.values())
    figure, grid = _panels(count, 3, 8 / min(count, 3), 2.6, sharex=True)
    for panel, axes in enumerate(grid.flat[:count]):
        titles = []
        for number, (label, found) in enumerate(curves.items()):
            parts = [found.everything, *found.buckets]
            if panel < len(parts):
                _draw_curve(axes, parts[panel], number, label)
                titles.append(f"{parts[panel].label} (n = {parts[panel].rows})")
        # When rows are split by critique length, quarters differ between models
        shown = titles[0] if len(set(titles)) == 1 else f"quarter {panel} of each model"
        axes.set_title(shown if panel == 0 else f"length {shown}", fontsize=9)
        add_grid(axes)
    for number, (label, value) in enumerate(as_scored.items()):
        style = {"color": pick(COLORS[::-1], number), "linestyle": pick(_FLAT_LINES, number)}
        grid[0, 0].axhline(100 * value, label=f"{label}, as scored", **style)
    ticks = [size for size in range(1, 1 + max(found.num_critiques for found in curves.values())) if _is_power(size)]
    for axes in grid.flat[:count]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, ticks)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("critiques averaged, k")
    for axes in grid[:, 0]:
        axes.set_ylabel("row accuracy (%)")
    figure.suptitle(f"length: {next(iter(curves.values())).length_of}", fontsize=9)
    save_panels(figure, grid.flat, path)


def _is_power(size: int) -> bool:
    return size & (size - 1) == 0


def _draw_curve(axes: Axes, curve: AccuracyCurve, number: int, label: str):
    sizes = np.arange(1, 1 + len(curve.accuracy))
    values, errors = 100 * np.array(curve.accuracy), 100 * np.array(curve.standard_errors)
    marked = [place for place, size in enumerate(sizes) if _is_power(int(size))]  # evenly spaced on this axis
    color = pick(COLORS, number)
    axes.plot(sizes, values, color=color, linewidth=1.4)
    spans = errors[marked], np.minimum(errors[marked], 100 - values[marked])
    errors_label = f"{label} (± one standard error over critiques, bootstrap)"
    axes.errorbar(sizes[marked], values[marked], yerr=spans, linestyle="none", label=errors_label, **points(number))
    low, high = 100 * np.array(curve.intervals).T
    axes.fill_between(sizes, low, high, color=color, alpha=0.15, linewidth=0, label=f"{label} (95 % over rows)")


def plot_rejection(found: Mapping[str, Uncertainty], path: Path):
    """Draw the accuracy of the kept pairs by the rejected fraction, one panel per model."""
    figure, grid = _panels(len(found), 2, 4, 3)
    percents = 100 * np.array(FRACTIONS)
    for axes, (label, part) in zip(grid.flat, found.items(), strict=False):
        for number, (name, curve) in enumerate(part.selective_accuracy.curves.items()):
            measure = "by size of the margin" if name == MARGIN else "by spread of the rewards"
            style = {**strokes(number), "marker": pick(MARKERS, number), "markersize": 3.5}
            axes.plot(percents, 100 * np.array(curve.accuracy), label=measure, **style)
        axes.plot(
            percents, 100 * np.array(part.selective_accuracy.oracle.accuracy), ":", color="black", label="oracle"
        )
        axes.axhline(100 * part.selective_accuracy.random, color=GREY, linestyle="--", linewidth=1, label="random")
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("pairs rejected (%)")
        axes.tick_params(labelleft=True)
        add_grid(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy on the pairs kept (%)")
    save_panels(figure, grid.flat, path)


def plot_probe(results: Mapping[str, ProbeResult], path: Path):
    """Draw a probe's figures with their 95 % intervals by model, one panel for each unit."""
    labels: dict = {}
    for result in results.values():
        for measure in result.measures:
            if not math.isnan(measure.estimate.value):
                labels.setdefault(measure.unit, {}).setdefault(measure.label)
    heights = [0.6 + len(names) * (0.22 + 0.16 * len(results)) for names in labels.values()]
    size = (8, 0.8 + sum(heights))
    figure, grid = plt.subplots(
        len(labels), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axes, (unit, names) in zip(grid[:, 0], labels.items(), strict=True):
        by_model = {}
        for model, result in results.items():
            known = {measure.label: measure.estimate for measure in result.measures if measure.unit == unit}
            by_model[model] = [known.get(name) for name in names]
        _draw_estimates(axes, list(names), by_model, unit.scale)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlabel(unit.label)
        if unit == SHARE:
            axes.set_xlim(-3, 103)
        else:
            axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    title = next(iter(results.values())).title
    figure.suptitle(f"{title}: figures with 95 % intervals", fontsize=10)
    save_panels(figure, grid.flat, path)
