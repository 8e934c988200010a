"""Report section and plot of accuracy against tokens read."""

from collections.abc import Mapping, Sequence
from pathlib import Path


from .style import WIDTH, add_grid, styles_of  # isort: skip  # before pyplot: chooses the backend
from matplotlib import pyplot as plt

from ..formatting import Form, Section, Table, picture_name, show_estimate
from ..metrics.accuracy_by_tokens import Anytime
from .plots import save, with_reach


ANYTIME = """\
Each critique is read up to a given number of tokens. Its reward is the last one read by then, or the final one if the critique ends earlier.
The rewards of several critiques are combined as in the rest of the report; a weight by likelihood is always that of the complete critique.
Accuracy is row accuracy (share of right/wrong pairs in the right order), and tokens are means over responses, both with 95 % intervals over
rows."""

# By model
AnytimeResults = Mapping[str, Anytime]


def anytime_sections(by_dataset: Mapping[str, AnytimeResults]) -> list[Section]:
    """Build the sections about accuracy against tokens read, by set and model."""
    sections = [Section("Accuracy against tokens read", ANYTIME)]
    for name, by_model in by_dataset.items():
        rows = [
            {
                "model": model,
                "tokens of a critique": "all" if point.limit is None else f"at most {point.limit}",
                "tokens per response": show_estimate(point.tokens, Form(digits=1), with_n=False),
                "accuracy": show_estimate(point.accuracy),
            }
            for model, found in by_model.items()
            for point in found.points
        ]
        picture = {picture_name("anytime", name): "accuracy against tokens read"}
        sections.append(
            Section(f"Accuracy against tokens read: {name}", tables=[Table.of(rows)], pictures=picture, level=3)
        )
    return sections


def plot_anytime(by_model: AnytimeResults, path: Path, models: Sequence[str] = ()):
    """
    Plot each model's accuracy against the mean number of tokens read per response, with 95 % intervals. The last point is for complete
    critiques.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6))
    styles = styles_of(by_model, models)
    for model, found in by_model.items():
        tokens = [point.tokens.value for point in found.points]
        values, reach = with_reach([point.accuracy for point in found.points])
        axes.errorbar(tokens, values, reach, label=model, linestyle=styles[model].line, **styles[model].points())
    n = max(found.points[-1].accuracy.n for found in by_model.values())
    axes.set(
        xlabel="critique tokens read per response (mean)", ylabel=f"row accuracy (%)\nwith 95 % interval over {n} rows"
    )
    add_grid(axes)
    save(figure, axes, path)
