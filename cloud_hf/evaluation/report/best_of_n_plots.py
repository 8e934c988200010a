"""The picture of best-of-N."""

from collections.abc import Mapping
from pathlib import Path

from ..metrics.best_of_n import Curve
from .plots import plt


_MARKERS = "os^DvP"
_LINES = {"first": "--", "random": "--", "longest": "-.", "perfect": ":"}
_GREY = "#5c5c5c"


def plot_curves(
    models: Mapping[str, Curve], yardsticks: Mapping[str, Curve], quality: str, is_share: bool, path: Path
):
    """
    Curves over N with one standard error over prompts.

    Args:
        models (`Mapping[str, Curve]`):
            By name.
        yardsticks (`Mapping[str, Curve]`):
            From [`~best_of_n.baselines`], drawn in grey.
        quality (`str`):
            What the curves show.
        is_share (`bool`):
            Whether that is a share from 0 to 1, shown in percent.
        path (`Path`):
            Picture to write.
    """
    scale = 100 if is_share else 1
    with plt.style.context("tableau-colorblind10"):
        figure, axes = plt.subplots(figsize=(7, 4.4))
        handles = []
        for number, (name, curve) in enumerate(models.items()):
            # Side by side, so that no error bar hides another
            aside = 0.1 * (number - (len(models) - 1) / 2)
            handles.append(
                axes.errorbar(
                    [n + aside for n in curve.values], [scale * value for value in curve.values.values()],
                    [scale * error for error in curve.standard_errors.values()], label=name,
                    marker=_MARKERS[number % len(_MARKERS)], markersize=5, capsize=2.5,
                )
            )  # fmt: skip
        for name, curve in yardsticks.items():
            # On top, where a model that chooses perfectly would hide them
            handles += axes.plot(
                list(curve.values), [scale * value for value in curve.values.values()], _LINES[name], color=_GREY, label=name,
                linewidth=1.3, zorder=3,
            )  # fmt: skip
    sizes = list(next(iter(models.values())).values)
    axes.set(
        xlabel="candidates N", ylabel=f"{quality}{' (%)' if is_share else ''}\n± one standard error over prompts",
        xticks=sizes if len(sizes) <= 20 else sizes[:: len(sizes) // 16],
    )  # fmt: skip
    axes.grid(axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(5, len(handles)), frameon=False
    )
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
