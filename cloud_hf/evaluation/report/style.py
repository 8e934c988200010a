"""
The style of all plots: text sizes, and the colour, marker and line of each model.

Pages show plots about 850 pixels wide. No plot is wider than `WIDTH` inches, so that its text is at least 9 points on a page.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib


matplotlib.use("Agg")  # needs no display
from matplotlib.axes import Axes


WIDTH = 8.0
# The background is white, even on dark pages
matplotlib.rcParams |= {
    "font.size": 10,
    "legend.fontsize": 10,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "savefig.facecolor": "white",
}

# Okabe-Ito palette: distinguishable with any colour vision; marker shapes distinguish series in greyscale
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":")
GREY = "#6b6b6b"
# The lines for chance and for the best possible result are drawn over the models' curves, which would otherwise hide them
ON_TOP = 5
_GRID = "#dddddd"


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of a series; a model's first series has filled markers."""

    color: str
    marker: str
    line: str
    filled: bool = True

    def points(self) -> dict[str, Any]:
        """Return plot options for a series drawn as points."""
        face = self.color if self.filled else "white"
        return {"color": self.color, "marker": self.marker, "markersize": 5, "capsize": 3, "markerfacecolor": face}

    def stroke(self) -> dict[str, Any]:
        """Return plot options for a series drawn as a line."""
        return {"color": self.color, "linestyle": self.line}


def styles_of(labels: Iterable[str], models: Sequence[str] = ()) -> dict[str, Style]:
    """
    Return the style of each label in a plot.

    Args:
        labels (`Iterable[str]`):
            Names of models. A name followed by a comma and more text, as in `"cloud, T = 1"`, gets the model's colour.
        models (`Sequence[str]`, *optional*):
            All models of a run, so that each model has the same style in all plots of the run. Defaults to the labels.
    """
    labels = list(labels)
    models = list(models or labels)
    styles: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for label in labels:
        owners = [model for model in models if label == model or label.startswith(f"{model}, ")]
        owner = max(owners, key=len) if owners else label
        number = models.index(owner) if owners else len(models) + len(styles)
        variant = seen[owner] = seen.get(owner, -1) + 1
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        styles[label] = Style(color, marker, LINES[(number + variant) % len(LINES)], filled=variant == 0)
    return styles


def describe_styles(models: Sequence[str]) -> Mapping[str, dict[str, str]]:
    """Return the colour and marker of each model, in JSON form."""
    return {name: {"color": style.color, "marker": style.marker} for name, style in styles_of(models).items()}


def add_grid(axes: Axes, axis: str = "both"):
    """Draw a light grid behind the data."""
    axes.grid(axis=axis, color=_GRID)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
