"""Plots for reports. `models` lists all models of the run, so that each model has the same style in all plots; see `style.py`."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


from .style import COLORS, GREY, LINES, ON_TOP, WIDTH, Style, add_grid, styles_of  # isort: skip  # before pyplot: chooses the backend
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import MARGIN, Uncertainty
from ..metrics.best_of_n import Curve
from ..metrics.calibration import FEW_PAIRS, Calibration, calibrate
from ..metrics.selective_accuracy import FRACTIONS
from ..metrics.self_consistency import AccuracyCurve, SelfConsistency
from ..probes import ProbeResult
from ..probes.probe import SHARE
from ..set_results import Evaluation, headline_estimates
from ..stats import Estimate, powers_of_two, wilson
from .compute import ComputePoint


_FLAT_LINES = (":", "--", "-.")
_BASELINES: dict[str, Any] = {"first": (0, (4, 1, 1, 1, 1, 1)), "random": "--", "longest": "-.", "perfect": ":"}
# Curves end where fewer pairs are left
_FEWEST_PAIRS = 20


# ------------------------------------------------------------------------------------------------ shared by all plots


def save(figure: Figure, axes: Axes, path: Path, handles: list | None = None):
    """Save a single-panel plot with the legend above the panel."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    columns = 2 if len(handles) < 5 else 3
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def save_panels(figure: Figure, panels: Iterable[Axes], path: Path):
    """Save a multi-panel plot with one shared legend below the panels."""
    entries = {}
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def spell(sizes: Iterable[int]) -> str:
    """Return the row counts of several models as text: one number if all are equal, otherwise the smallest and the largest."""
    found = sorted(set(sizes))
    return "–".join(map(str, dict.fromkeys([found[0], found[-1]]))) if found else "0"


def with_reach(estimates: Sequence[Estimate], scale: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """Return scaled values, shape `(N,)`, and how far their intervals reach below and above them, shape `(2, N)`."""
    values = scale * np.array([one.value for one in estimates])
    # An estimate without an interval is a point; reshaping keeps `.T` valid even if there are no estimates
    ends = scale * np.array([one.ci95 or (one.value, one.value) for one in estimates]).reshape(-1, 2)
    return values, np.abs(ends.T - values)


def _draw_estimates(
    axes: Axes,
    names: Sequence[str],
    by_model: Mapping[str, Sequence[Estimate | None]],
    models: Sequence[str],
    scale: float = 100.0,
):
    """Draw each model's estimate with its interval for each name; the estimates for one name are stacked vertically."""
    styles, sizes = styles_of(by_model, models), [set() for _ in names]
    for number, (model, estimates) in enumerate(by_model.items()):
        offset = (number - (len(by_model) - 1) / 2) * 0.65 / len(by_model)
        known = [(place, one) for place, one in enumerate(estimates) if one is not None and not math.isnan(one.value)]
        values, reach = with_reach([one for _, one in known], scale)
        places = [place + offset for place, _ in known]
        axes.errorbar(values, places, xerr=reach, linestyle="none", label=model, **styles[model].points())
        for place, one in known:
            sizes[place].add(one.n)
    shown = [f"{name} (n = {spell(found)})" for name, found in zip(names, sizes, strict=True)]
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 46) for name in shown])
    axes.set_ylim(len(names) - 0.5, -0.5)
    add_grid(axes, "x")


# ---------------------------------------------------------------------------------------------- benchmarks and pairs


def plot_benchmarks(results: Mapping[str, list[Evaluation]], path: Path, models: Sequence[str] = ()):
    """Draw the headline estimates of all benchmarks with their 95 % intervals; see [`~set_results.headline_estimates`]."""
    quoted = [headline_estimates(evaluations) for evaluations in zip(*results.values(), strict=True)]
    by_model = {model: [estimates[number] for _, estimates in quoted] for number, model in enumerate(results)}
    figure, axes = plt.subplots(figsize=(WIDTH, 1.4 + len(quoted) * (0.25 + 0.17 * len(results))))
    _draw_estimates(axes, [label for label, _ in quoted], by_model, models)
    axes.set(xlim=(-2, 102), xlabel="headline metric (%), with 95 % interval")
    save(figure, axes, path)


# Margins of right/wrong pairs, by set and model
Margins = Mapping[str, Mapping[str, Sequence[float]]]


def plot_margins(by_set: Margins, path: Path, models: Sequence[str] = ()):
    """Draw the distribution of reward margins (right minus wrong response) of each model, one panel for each set."""
    figure, grid = _panels(len(by_set), 2, 2.8, "response pairs (%)")
    for axes, (name, margins) in zip(grid.flat, by_set.items(), strict=False):
        everything = np.concatenate([np.asarray(values, dtype=float) for values in margins.values()])
        # Outliers are few and go into the outermost bins
        reach = float(np.quantile(np.abs(everything), 0.99)) or 1.0
        bins = np.linspace(-reach, reach, 52).tolist()  # odd number of bins: equal rewards fall in the middle bin
        styles = styles_of(margins, models)
        for model, values in margins.items():
            shares = np.full(len(values), 100 / len(values))
            clipped = np.clip(values, -reach, reach)
            axes.hist(
                clipped, bins, weights=shares, histtype="step", linewidth=1.8, label=model, **styles[model].stroke()
            )
        axes.axvline(0, color=GREY, linewidth=1, linestyle="--", zorder=ON_TOP)
        axes.set_title(f"{name} (n = {spell(map(len, margins.values()))} pairs)")
        axes.set_xlabel("right minus wrong reward (nats)")
        axes.tick_params(labelleft=True)
    figure.suptitle("right of 0 is correct, equal rewards are in the middle bin, outliers in the outermost bins")
    save_panels(figure, grid.flat, path)


def plot_reliability(by_set: Margins, path: Path, models: Sequence[str] = ()):
    """
    Plot reliability diagrams, one panel for each set. The x axis is the Bradley-Terry probability of the preferred response, and the y axis
    is how often that response is right, with Wilson intervals. The area of a marker grows with the number of pairs in its bin.
    """
    figure, grid = _panels(len(by_set), 2, 3.4, "preferred response is right (%),\nwith 95 % interval (Wilson)")
    for axes, (name, margins) in zip(grid.flat, by_set.items(), strict=False):
        axes.plot([50, 100], [50, 100], color=GREY, linewidth=1, linestyle="--", label="calibrated", zorder=ON_TOP)
        styles = styles_of(margins, models)
        for model, values in margins.items():
            _draw_bins(axes, calibrate(values), styles[model], model)
        axes.set(xlim=(48, 102), ylim=(-2, 105), xlabel="probability of the preferred response (%)")
        axes.set_title(f"{name} (n = {spell(map(len, margins.values()))} pairs)")
        axes.tick_params(labelleft=True)
    save_panels(figure, grid.flat, path)


def _draw_bins(axes: Axes, found: Calibration, style: Style, label: str):
    confidences, accuracies, counts = (np.array(column) for column in zip(*found.bins, strict=True))
    x, y = 100 * confidences, 100 * accuracies
    ends = 100 * np.array([wilson(accuracy, count) for _, accuracy, count in found.bins]).T
    color = style.color
    axes.errorbar(x, y, yerr=np.abs(ends - y), linestyle="none", color=color, capsize=3, linewidth=1)
    # A line through bins with few pairs would only show noise
    axes.plot(x, np.where(counts < FEW_PAIRS, np.nan, y), color=color, linewidth=1.4)
    face = color if style.filled else "white"
    areas = 8 + 150 * counts / counts.sum()
    axes.scatter(x, y, s=areas, edgecolors=color, facecolors=face, marker=style.marker, label=label, zorder=2.5)


def plot_accuracy_by_group(arms: Mapping[str, Mapping[str, dict]], label: str, path: Path):
    """Draw grouped bars of each model's `accuracy` and `ci95` by group. `label` names the groups."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4))
    groups = sorted({group for by_group in arms.values() for group in by_group})
    width = 0.8 / len(arms)
    styles = styles_of(arms)
    for number, (arm, by_group) in enumerate(arms.items()):
        known = [(place, by_group[group]) for place, group in enumerate(groups) if group in by_group]
        heights = 100 * np.array([result["accuracy"] for _, result in known])
        ends = 100 * np.array([result["ci95"] for _, result in known]).T
        places = [place + (number - (len(arms) - 1) / 2) * width for place, _ in known]
        errors = np.abs(ends - heights)
        axes.bar(places, heights, width * 0.95, yerr=errors, capsize=3, label=arm, color=styles[arm].color)
    axes.axhline(50, color=GREY, linestyle="--", linewidth=1, label="chance", zorder=ON_TOP)
    axes.set(xticks=range(len(groups)), xticklabels=groups, xlabel=label, ylim=(0, 105))
    axes.set_ylabel("pair accuracy (%), with 95 % interval")
    save(figure, axes, path)


def plot_reward_distributions(arms: Mapping[str, tuple[list[float], list[float]]], path: Path):
    """Draw histograms of the rewards of chosen and rejected responses, one panel per model."""
    size = (max(WIDTH / 2, min(WIDTH, 4 * len(arms))), 4.0)
    figure, panels = plt.subplots(1, len(arms), figsize=size, squeeze=False, layout="constrained")
    for axes, (arm, (chosen, rejected)) in zip(panels[0], arms.items(), strict=True):
        low, high = min(*chosen, *rejected), max(*chosen, *rejected)
        bins = np.linspace(low, high, 41) if high > low else 1
        axes.hist(chosen, bins, alpha=0.65, label="chosen", color=COLORS[0])
        axes.hist(rejected, bins, alpha=0.65, label="rejected", color=COLORS[4], hatch="//")
        axes.set(title=f"{arm} (n = {len(chosen)} pairs)", xlabel="reward (nats)", ylabel="responses")
    save_panels(figure, panels.flat, path)


# ---------------------------------------------------------------------------------------------------------- best-of-N


def plot_curves(
    curves: Mapping[str, Curve], baselines: Mapping[str, Curve], quality: str, is_share: bool, path: Path, n: int | None = None,
    models: Sequence[str] = (),
):  # fmt: skip
    """
    Draw best-of-N curves with 95 % intervals over `n` prompts (normal approximation), and baselines in grey on top of them. `quality` names
    the quantity on the y axis; with `is_share` it is a share from 0 to 1, shown in percent.
    """
    scale, unit = (100, " (%)") if is_share else (1, "")
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6))
    styles = styles_of(curves, models)
    handles: list = []
    for number, (name, curve) in enumerate(curves.items()):
        # Place the curves side by side, so that their error bars do not hide each other
        aside = 0.1 * (number - (len(curves) - 1) / 2)
        values = scale * np.array(list(curve.values.values()))
        reach = 1.96 * scale * np.array(list(curve.standard_errors.values()))
        if is_share:  # the interval of a share does not extend beyond 0 and 100 %
            reach = [np.minimum(reach, values), np.minimum(reach, np.abs(100 - values))]
        places = [size + aside for size in curve.values]
        handles.append(axes.errorbar(places, values, reach, label=name, **styles[name].points()))
    for name, curve in baselines.items():
        values, style = [scale * x for x in curve.values.values()], {"color": GREY, "linewidth": 1.5, "zorder": ON_TOP}
        handles += axes.plot(list(curve.values), values, linestyle=_BASELINES[name], label=name, **style)
    sizes = list(next(iter(curves.values())).values)
    axes.set(
        xlabel="candidates N", ylabel=f"{quality}{unit}\nwith 95 % interval (normal) over {n or 'the'} prompts",
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
    found = {name: curve_of(values, {}) for name, values in baselines.items()}
    plot_curves(curves, found, "correct", True, path)


# ----------------------------------------------------------------------------------------------------------- analysis


def _panels(count: int, columns: int, height: float, ylabel: str, **options) -> tuple[Figure, np.ndarray]:
    """Create a grid of `count` panels, each `height` inches high, that share a y axis with the label `ylabel`."""
    columns = min(count, columns)
    lines = -(-count // columns)
    size = (WIDTH if columns > 1 else 0.7 * WIDTH, 0.9 + height * lines)
    figure, grid = plt.subplots(
        lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained", **options
    )
    # The last row of the grid may have unused panels
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    return figure, grid


def plot_self_consistency(
    curves: Mapping[str, SelfConsistency], as_scored: Mapping[str, float], path: Path, models: Sequence[str] = ()
):
    """
    Draw accuracy by the number of critiques: one panel for all rows, and one per reasoning length. `as_scored` contains each model's
    accuracy without self-consistency, which is drawn as a flat line in the first panel.
    """
    count = 1 + max(len(found.buckets) for found in curves.values())
    figure, grid = _panels(count, 3, 2.6, "row accuracy (%)", sharex=True)
    styles = styles_of(curves, models)
    for panel, axes in enumerate(grid.flat[:count]):
        titles = []
        for label, found in curves.items():
            parts = [found.everything, *found.buckets]
            if panel < len(parts):
                _draw_curve(axes, parts[panel], styles[label], label)
                titles.append(f"{parts[panel].label} (n = {parts[panel].rows})")
        # If rows are split by critique length, the quarters differ between models
        shown = titles[0] if len(set(titles)) == 1 else f"quarter {panel} of each model"
        axes.set_title(shown if panel == 0 else f"length {shown}")
        add_grid(axes)
    flat = styles_of(as_scored, models)
    for number, (label, value) in enumerate(as_scored.items()):
        line = _FLAT_LINES[number % len(_FLAT_LINES)]
        grid[0, 0].axhline(100 * value, label=f"{label}, as scored", color=flat[label].color, linestyle=line)
    ticks = powers_of_two(max(found.num_critiques for found in curves.values()))
    for axes in grid.flat[:count]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, ticks)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("critiques averaged, k")
    figure.suptitle(f"length: {next(iter(curves.values())).length_of}")
    save_panels(figure, grid.flat, path)


def _draw_curve(axes: Axes, curve: AccuracyCurve, style: Style, label: str):
    sizes = np.arange(1, 1 + len(curve.accuracy))
    values, errors = 100 * np.array(curve.accuracy), 100 * np.array(curve.standard_errors)
    marked = [size - 1 for size in powers_of_two(len(sizes))]  # evenly spaced on this axis
    axes.plot(sizes, values, linewidth=1.4, **style.stroke())
    spans = errors[marked], np.minimum(errors[marked], 100 - values[marked])
    errors_label = f"{label} (± one standard error over critiques, bootstrap)"
    axes.errorbar(sizes[marked], values[marked], yerr=spans, linestyle="none", label=errors_label, **style.points())
    low, high = 100 * np.array(curve.intervals).T
    axes.fill_between(sizes, low, high, color=style.color, alpha=0.15, linewidth=0, label=f"{label} (95 % over rows)")


def plot_rejection(found: Mapping[str, Uncertainty], path: Path, models: Sequence[str] = ()):
    """
    Plot the accuracy on the kept pairs against the share of rejected pairs, one panel per model. Curves end where fewer than 20 pairs are
    left.
    """
    figure, grid = _panels(len(found), 2, 3, "accuracy on the pairs kept (%)")
    styles = styles_of(found, models)
    for axes, (label, part) in zip(grid.flat, found.items(), strict=False):
        selective = part.selective_accuracy
        pairs = selective.oracle.area.n
        shown = [place for place, share in enumerate(FRACTIONS) if place == 0 or pairs * (1 - share) >= _FEWEST_PAIRS]
        percents = 100 * np.array(FRACTIONS)[shown]
        style, color = styles[label], styles[label].color
        for line, (name, curve) in zip(LINES, selective.curves.items(), strict=False):
            measure = "by size of the margin" if name == MARGIN else "by spread of the rewards"
            accuracy = 100 * np.array(curve.accuracy)[shown]
            axes.plot(percents, accuracy, line, color=color, marker=style.marker, markersize=3.5, label=measure)
        best = 100 * np.array(selective.oracle.accuracy)[shown]
        axes.plot(percents, best, ":", color="black", label="best possible", zorder=ON_TOP)
        axes.axhline(100 * selective.random, color=GREY, linestyle="--", linewidth=1, label="at random", zorder=ON_TOP)
        axes.set_title(f"{textwrap.fill(label, 40)} (n = {pairs} pairs)")
        axes.set(xlim=(-3, 98), xlabel="pairs rejected (%)")
        axes.tick_params(labelleft=True)
        add_grid(axes)
    figure.suptitle(
        f"curves end where fewer than {_FEWEST_PAIRS} pairs are left; 95 % intervals of their areas are in the table"
    )
    save_panels(figure, grid.flat, path)


def plot_compute(points: Sequence[ComputePoint], path: Path, models: Sequence[str] = ()):
    """
    Plot row accuracy against tokens and seconds, with 95 % intervals. A cascade's thresholds form a line, on which only the chosen
    threshold has a marker.
    """
    datasets = list(dict.fromkeys(point.dataset for point in points))
    figure, grid = plt.subplots(
        len(datasets), 2, figsize=(WIDTH, 1.2 + 3.2 * len(datasets)), sharey="row", squeeze=False, layout="constrained"
    )
    labels = list(dict.fromkeys(point.label for point in points))
    styles = styles_of(labels, models)
    for line, dataset in zip(grid, datasets, strict=True):
        here = [point for point in points if point.dataset == dataset]
        for axes, quantity in zip(line, ("tokens", "seconds"), strict=True):
            for label in labels:
                _draw_compute(axes, [point for point in here if point.label == label], quantity, styles[label])
            axes.set_title(f"{dataset} (n = {spell(point.accuracy.n for point in here)} rows)")
            axes.set_xlabel("critique tokens per row" if quantity == "tokens" else "seconds per row, on this machine")
            add_grid(axes)
        line[0].set_ylabel("row accuracy (%), with 95 % interval")
    save_panels(figure, grid.flat, path)


def _draw_compute(axes: Axes, points: Sequence[ComputePoint], quantity: str, style: Style):
    """Draw a curve, and markers with intervals; in a cascade's curve, only the chosen threshold has a marker."""
    known = [(getattr(point, quantity), point) for point in points if not math.isnan(getattr(point, quantity))]
    if not known:
        return
    curve = [(x, point) for x, point in known if not point.is_chosen] or known
    values = [100 * point.accuracy.value for _, point in curve]
    axes.plot([x for x, _ in curve], values, linewidth=1.2, **style.stroke())
    marked = [(x, point) for x, point in known if point.is_chosen]
    values, reach = with_reach([point.accuracy for _, point in marked])
    label = points[0].label
    axes.errorbar([x for x, _ in marked], values, reach, linestyle="none", label=label, **style.points())


def plot_probe(results: Mapping[str, ProbeResult], path: Path, models: Sequence[str] = ()):
    """Draw a probe's estimates with their 95 % intervals by model, one panel for each unit."""
    labels: dict = {}
    for result in results.values():
        for measure in result.measures:
            if not math.isnan(measure.estimate.value):
                labels.setdefault(measure.unit, {}).setdefault(measure.label)
    heights = [0.6 + len(names) * (0.22 + 0.16 * len(results)) for names in labels.values()]
    size = (WIDTH, 0.8 + sum(heights))
    figure, grid = plt.subplots(
        len(labels), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axes, (unit, names) in zip(grid[:, 0], labels.items(), strict=True):
        by_model = {}
        for model, result in results.items():
            known = {measure.label: measure.estimate for measure in result.measures if measure.unit == unit}
            by_model[model] = [known.get(name) for name in names]
        _draw_estimates(axes, list(names), by_model, models, unit.scale)
        axes.set_xlabel(unit.label)
        if unit == SHARE:
            axes.set_xlim(-3, 103)
        else:
            axes.axvline(0, color=GREY, linestyle="--", linewidth=1, zorder=ON_TOP)
    title = next(iter(results.values())).title
    figure.suptitle(f"{title}: estimates with 95 % intervals")
    save_panels(figure, grid.flat, path)
