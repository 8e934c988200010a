"""
Pairwise preference in a browser: show the accuracy, margins and calibration of rewards for chosen and rejected responses.

python spaces/pairwise_preference/app.py
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import evaluate
import gradio as gr
from PIL import Image

from cloud_hf import spaces_ui as ui
from cloud_hf.cli import UsageError, run
from cloud_hf.evaluation.benchmarks.reward_bench import OFFICIAL_COUNTS
from cloud_hf.evaluation.report.plots import plot_margins, plot_reliability


# Load the module from its file: given a folder, `evaluate` looks for a module with the folder's name, but a Space's folder may have
# another name
MODULE = str(Path(__file__).with_name("pairwise_preference.py"))
MOST_SUBSETS_SHOWN = 100
LARGEST_REWARD = 1e100
INTRODUCTION = """
# Pairwise preference

How often a reward model prefers the chosen response of a pair, by how much, and how well its rewards are calibrated as
Bradley-Terry log-odds.
"""
EXAMPLES = [
    "chosen,rejected\n1.0,0.0\n2.0,3.0\n0.5,0.5\n-1.0,-4.0\n0.3,-0.2\n1.7,0.9",
    '{"chosen": 1.0, "rejected": 0.0, "subset": "math-prm"}\n{"chosen": 2.0, "rejected": 3.0, "subset": "hep-go"}\n'
    '{"chosen": 0.5, "rejected": 0.5, "subset": "math-prm"}\n{"chosen": -1.0, "rejected": -4.0, "subset": "donotanswer"}',
]


# ------------------------------------------------------------------------------------------------------- metrics


def read_pairs(text: str) -> tuple[list[float], list[float], list[str] | None]:
    """Read the chosen and rejected rewards from a table, and the subsets if the table has them."""
    columns = ui.read_table(text, ("chosen", "rejected"), ("subset",))
    subsets = columns.get("subset")
    return (
        read_numbers("chosen", columns["chosen"]),
        read_numbers("rejected", columns["rejected"]),
        subsets and [str(subset) for subset in subsets],
    )


def read_numbers(name: str, values: list) -> list[float]:
    """Convert rewards to numbers. The module itself rejects rewards that are not finite."""
    if not isinstance(values, list):
        raise ValueError(f"`{name}` is {values!r:.60}; give a list of numbers.")
    numbers = []
    for row, value in enumerate(values):
        try:
            numbers.append(math.nan if isinstance(value, bool) else float(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"Row {row}: `{name}` is {value!r:.60}, not a number.") from error
        if LARGEST_REWARD < abs(numbers[-1]) < math.inf:
            raise ValueError(f"Row {row}: `{name}` is {value!r:.60}; rewards are limited to ±{LARGEST_REWARD:g}.")
    return numbers


def compute(
    chosen: list[float], rejected: list[float], subsets: list[str] | None = None, num_bins: int = 10
) -> dict[str, Any]:
    """
    Compute metrics with the module pairwise_preference. chosen, rejected: lists of rewards, one per pair; subsets
    (optional): list of subset names, one per pair; num_bins: number of bins for the calibration error.
    """
    with ui.user_errors():
        chosen, rejected = read_numbers("chosen", chosen), read_numbers("rejected", rejected)
        if not isinstance(num_bins, int) or not 1 <= num_bins <= 1000:
            raise ValueError(f"`num_bins` is {num_bins!r:.60}; it must be an integer from 1 to 1000.")
        if subsets is not None and not (isinstance(subsets, list) and all(isinstance(name, str) for name in subsets)):
            raise ValueError(f"`subsets` is {subsets!r:.60}; give a list of names, or leave it out.")
        if not len(chosen) == len(rejected) == len(chosen if subsets is None else subsets):
            raise ValueError(
                f"{len(chosen)} chosen and {len(rejected)} rejected rewards"
                f"{'' if subsets is None else f' and {len(subsets)} subsets'}: give the same number of each."
            )
        module = evaluate.load(MODULE, keep_in_memory=True)
        return module.compute(chosen=chosen, rejected=rejected, subsets=subsets, num_bins=num_bins)


# ------------------------------------------------------------------------------------------------------- on the page


def list_figures(results: dict) -> str:
    """Show the metrics as tables."""
    low, high = results["accuracy_ci95"]
    temperature, better = results["temperature"], results["log_loss_at_temperature"]
    rows = [
        ("Accuracy, a tie is wrong", percent(results["accuracy"]), f"95 % interval {percent(low)} to {percent(high)}"),
        ("Accuracy, a tie counts half", percent(results["accuracy_ties_half"]), f"ties: {results['ties']}"),
        ("Pairs", results["n"], ""),
        ("Margin, mean", f"{results['margin']:.4g}", "chosen − rejected"),
        ("Margin, median", f"{results['margin_median']:.4g}", ""),
        ("Margin, standard deviation", f"{results['margin_std']:.4g}", ""),
        ("Log loss", f"{results['log_loss']:.4f}", "nats; random guessing costs ln 2 = 0.6931"),
        ("Calibration error", f"{results['ece']:.4f}", "mean gap between confidence and accuracy"),
    ]
    if temperature is None:
        rows.append(("Best temperature", "none", "no pair is wrong, or the mean margin is not positive"))
    else:
        rows.append(("Best temperature", f"{temperature:.4g}", f"log loss {better:.4f} with margins divided by it"))
    tables = [ui.make_table("Metrics", ("Metric", "Value", "Note"), rows)]
    if sections := results.get("section_scores"):
        scores = [(name, f"{score:.1f} %") for name, score in sections.items()]
        tables.append(ui.make_table(_caption_of_sections(results["missing_subsets"]), ("Section", "Score"), scores))
    if subsets := results.get("subset_accuracies"):
        shown = [(name, percent(accuracy)) for name, accuracy in list(subsets.items())[:MOST_SUBSETS_SHOWN]]
        rest = len(subsets) - len(shown)
        caption = "Accuracy by subset" + (f" (the first {len(shown)}; {rest} more are in the download)" * (rest > 0))
        tables.append(ui.make_table(caption, ("Subset", "Accuracy"), shown))
    return "".join(tables)


def _caption_of_sections(missing: list[str]) -> str:
    """Return the caption. It names any missing subsets, because only the complete benchmark gives the official scores."""
    if not missing:
        return "RewardBench sections, official weights"
    known = len(OFFICIAL_COUNTS) - len(missing)
    return (
        f"RewardBench, only {known} of its {len(OFFICIAL_COUNTS)} subsets, so these are not the official scores. "
        f"Missing: {', '.join(missing)}"
    )


def percent(share: float) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def draw(plot, margins: list[float]) -> Image.Image:
    """Draw one of the library's plots."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        plot({"": {"these pairs": margins}}, path)
        return Image.open(path).convert("RGB")


def show(text: str, file: str | None, downloads: Path):
    """Compute the metrics of a table. Returns updates in the order of the page's outputs: results column, metrics, both plots, download."""
    with ui.user_errors():
        chosen, rejected, subsets = read_pairs(text if file is None else ui.read_text(file))
    results = compute(chosen, rejected, subsets)
    margins = [right - wrong for right, wrong in zip(chosen, rejected, strict=True)]
    download = Path(mkdtemp(dir=downloads)) / "pairwise_preference.json"
    download.write_text(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False), encoding="utf8")
    return (
        gr.Column(visible=True),
        list_figures(results),
        draw(plot_margins, margins),
        draw(plot_reliability, margins),
        str(download),
    )


def build(downloads: Path) -> gr.Blocks:
    """Build the page; `downloads` is the folder for downloadable files."""
    with gr.Blocks(title="Pairwise preference", analytics_enabled=ui.analytics_wanted()) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                text = gr.Textbox(
                    label="Rewards",
                    info="CSV, JSON lines or JSON with the columns chosen, rejected and, if you like, subset. "
                    "Shift + Enter computes.",
                    placeholder="chosen,rejected\n1.0,0.0\n2.0,3.0",
                    lines=8,
                    max_lines=20,
                )
                file = ui.upload_box()
                button = gr.Button("Compute", variant="primary")
                gr.Examples(EXAMPLES, [text], label="Examples")
            with gr.Column(min_width=300):
                status = gr.HTML(min_height=40)
                with gr.Column(visible=False) as results:
                    outputs = [
                        results,
                        gr.HTML(label="Metrics", padding=False),
                        make_picture("Margins", "Histogram of the margins"),
                        make_picture("Reliability", "Reliability diagram; its bins are included in the download"),
                        gr.DownloadButton("Download the metrics (JSON)"),
                    ]
        ui.compute_on(
            [button.click, text.submit],
            lambda *values: show(*values, downloads),
            [text, file],
            outputs,
            show_progress_on=status,
        )
        gr.api(compute, api_name="compute")
    return page


def make_picture(label: str, alt_text: str) -> gr.Image:
    """Create an image component with a download button."""
    return gr.Image(
        label=label, alt_text=alt_text, format="png", interactive=False, buttons=["download", "fullscreen"]
    )


def main(arguments: Sequence[str]):
    """Serve the page until the process is told to stop."""
    if arguments:
        raise UsageError(f"Unknown option `{arguments[0]}`: this app has no options.")
    with TemporaryDirectory() as folder:
        build(Path(folder)).queue(max_size=20).launch(**ui.launch_options())


if __name__ == "__main__":
    run("app")
