"""The pictures of a report."""

from pathlib import Path

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot as plt


# Okabe and Ito: told apart with any colour vision
_COLORS = {"cloud": "#0072B2", "classic": "#D55E00"}


def plot_accuracy_by_group(arms: dict[str, dict[str, dict]], label: str, path: Path):
    """
    Grouped bars of accuracy with 95 % intervals.

    Args:
        arms (`dict[str, dict[str, dict]]`):
            For each model, `accuracy` and `ci95` by group.
        label (`str`):
            What the groups are.
        path (`Path`):
            Picture to write.
    """
    figure, axes = plt.subplots(figsize=(7, 4))
    groups = sorted({group for by_group in arms.values() for group in by_group})
    width = 0.8 / len(arms)
    for place, (arm, by_group) in enumerate(arms.items()):
        present = [(x, by_group[group]) for x, group in enumerate(groups) if group in by_group]
        heights = [result["accuracy"] for _, result in present]
        errors = [
            [max(0.0, height - result["ci95"][0]) for height, (_, result) in zip(heights, present, strict=True)],
            [max(0.0, result["ci95"][1] - height) for height, (_, result) in zip(heights, present, strict=True)],
        ]
        positions = [x + (place - (len(arms) - 1) / 2) * width for x, _ in present]
        axes.bar(positions, heights, width * 0.95, yerr=errors, capsize=3, label=arm, color=_COLORS.get(arm))
    axes.axhline(0.5, color="grey", linestyle="--", linewidth=1, label="chance")
    axes.set(xticks=range(len(groups)), xticklabels=groups, xlabel=label, ylabel="pair accuracy", ylim=(0, 1.05))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=len(arms) + 1, frameon=False)
    _save(figure, path)


def plot_reward_distributions(arms: dict[str, tuple[list[float], list[float]]], path: Path):
    """Histograms of the rewards of chosen and rejected responses, one panel per model."""
    figure, panels = plt.subplots(1, len(arms), figsize=(4.5 * len(arms), 3.6), squeeze=False)
    for axes, (arm, (chosen, rejected)) in zip(panels[0], arms.items(), strict=True):
        low, high = min(*chosen, *rejected), max(*chosen, *rejected)
        bins = [low + (high - low) * step / 40 for step in range(41)] if high > low else 1
        axes.hist(chosen, bins, alpha=0.65, label="chosen", color="#0072B2")
        axes.hist(rejected, bins, alpha=0.65, label="rejected", color="#E69F00", hatch="//")
        axes.set(title=arm, xlabel="reward (nats)", ylabel="responses")
        axes.legend(frameon=False)
    _save(figure, path)


def plot_best_of_n(arms: dict[str, dict], path: Path):
    """Best-of-N curves with standard errors; the grey lines are chance and a perfect choice."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for arm, result in arms.items():
        sizes = sorted(result["rates"])
        rates = [result["rates"][n] for n in sizes]
        errors = [result["standard_errors"][n] or 0.0 for n in sizes]
        axes.errorbar(sizes, rates, errors, marker="o", capsize=3, label=arm, color=_COLORS.get(arm))
    last = next(iter(arms.values()))
    axes.plot(sizes, [last["oracle"][n] for n in sizes], color="grey", linestyle=":", label="perfect choice")
    axes.axhline(last["rates"][1], color="grey", linestyle="--", linewidth=1, label="chance")
    axes.set(xticks=sizes, xlabel="candidates N", ylabel="correct", ylim=(0, 1.05))
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure, path: Path):
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
