"""Plots for the study's report."""

from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt


def findings(report: dict[str, Any], path: Path):
    """Plot the difference behind each finding with its interval, in one panel per task."""
    tasks, found = list(report["arms"]), report["findings"]
    figure, panels = plt.subplots(
        1,
        len(tasks),
        figsize=(3.4 * len(tasks) + 3.2, 0.34 * len(found) + 1),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, task in zip(panels[0], tasks, strict=True):
        for place, one in enumerate(found):
            part = one["tasks"][task]
            if part is None:
                continue
            low, high = part["over_seeds"] or (part["mean"], part["mean"])
            panel.plot([100 * low, 100 * high], [place, place], color="tab:blue", lw=2)
            panel.plot(100 * part["mean"], place, "o", color="tab:blue")
        panel.axvline(0, color="grey", lw=0.8)
        panel.set(title=task, xlabel="points (95% over seeds)")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_yticks(range(len(found)), [one["claim"] for one in found])
    panels[0][0].invert_yaxis()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def compute(report: dict[str, Any], path: Path):
    """Plot accuracy by the compute needed to judge one response."""
    tasks = list(report["arms"])
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, layout="constrained")
    for panel, task in zip(panels[0], tasks, strict=True):
        arms = report["arms"][task]
        for name in ("classic", "classic_compute", "ensemble", "cloud", "stage4"):
            if name in arms:
                panel.plot(arms[name]["inference_flops"], 100 * arms[name]["accuracy"], "o", label=name)
        curves = report["self_consistency"][task]
        for name in ("T = 0.5, mean", "T = 1.0, mean"):
            if name in curves:
                # This is an upper bound, because the prefix is processed only once; but most tokens are critique tokens
                flops = [count * arms["cloud"]["inference_flops"] for count in map(int, curves[name])]
                panel.plot(flops, [100 * value for value in curves[name].values()], ".-", lw=1, label=f"cloud, {name}")
        panel.set(title=task, xlabel="FLOPs a response", ylabel="pairs in the right order, %", xscale="log")
        panel.legend(frameon=False, fontsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def rl(found: dict[str, Any], path: Path):
    """Plot the shares of solved and of favoured problems by step, in one panel per task and reward."""
    shown = [(task, judge, one) for task, judges in found.items() for judge, one in judges.items()]
    figure, panels = plt.subplots(
        1, len(shown), figsize=(3.2 * len(shown) + 0.6, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (task, judge, one) in zip(panels[0], shown, strict=True):
        for name, colour in (("solved", "tab:blue"), ("favoured", "tab:orange")):
            for curves in one["seeds"].values():
                panel.plot(one["steps"], [100 * share for share in curves[name]], color=colour, lw=0.7, alpha=0.5)
            panel.plot(one["steps"], [100 * share for share in one["mean"][name]], color=colour, lw=2, label=name)
        panel.set(title=f"{task}: reward of {judge}", xlabel="GRPO steps", ylim=(0, 102))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("held-out problems, %")
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
