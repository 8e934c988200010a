"""
Pairwise preference in a browser: rewards of chosen and rejected responses in; accuracy, margins and calibration out.

python spaces/pairwise_preference/app.py
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import evaluate
import gradio as gr
from PIL import Image

from cloud_hf.evaluation.report.plots import plot_margins, plot_reliability
from cloud_hf.spaces_ui import analytics_wanted, in_our_words, launch_options, make_table, read_table, read_text


# By its file: a Space's folder has another name than its module
MODULE = str(Path(__file__).with_name("pairwise_preference.py"))
MOST_SUBSETS_SHOWN = 100
LARGEST_REWARD = 1e100
INTRODUCTION = """
# Pairwise preference

How a reward model treats preference pairs: how often the chosen response has the higher reward, by how much, and how far the
rewards can be believed as Bradley-Terry log-odds.
"""
EXAMPLES = [
    "chosen,rejected\n1.0,0.0\n2.0,3.0\n0.5,0.5\n-1.0,-4.0\n0.3,-0.2\n1.7,0.9",
    '{"chosen": 1.0, "rejected": 0.0, "subset": "math-prm"}\n{"chosen": 2.0, "rejected": 3.0, "subset": "hep-go"}\n'
    '{"chosen": 0.5, "rejected": 0.5, "subset": "math-prm"}\n{"chosen": -1.0, "rejected": -4.0, "subset": "donotanswer"}',
]


# ------------------------------------------------------------------------------------------------------- the numbers


def read_pairs(text: str) -> tuple[list[float], list[float], list[str] | None]:
    """Chosen and rejected rewards of a table, and the subsets if it has them."""
    columns = read_table(text, ("chosen", "rejected"), ("subset",))
    subsets = columns.get("subset")
    return (
        read_numbers("chosen", columns["chosen"]),
        read_numbers("rejected", columns["rejected"]),
        subsets and [str(subset) for subset in subsets],
    )


def read_numbers(name: str, values: list) -> list[float]:
    """Rewards as numbers; the module refuses those that are not finite."""
    if not isinstance(values, list):
        raise ValueError(f"`{name}` is {values!r:.60}; give a list of numbers.")
    numbers = []
    for row, value in enumerate(values):
        try:
            numbers.append(math.nan if isinstance(value, bool) else float(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"Row {row}: `{name}` is {value!r:.60}, not a number.") from error
        if LARGEST_REWARD < abs(numbers[-1]) < math.inf:
            raise ValueError(f"Row {row}: `{name}` is {value!r:.60}; rewards go up to {LARGEST_REWARD:g}.")
    return numbers


def compute(
    chosen: list[float], rejected: list[float], subsets: list[str] | None = None, num_bins: int = 10
) -> dict[str, object]:
    """
    All figures of the module pairwise_preference. chosen and rejected: rewards, one pair per place; subsets (optional): the
    subset of each pair; num_bins: bins of the calibration error.
    """
    with in_our_words():
        chosen, rejected = read_numbers("chosen", chosen), read_numbers("rejected", rejected)
        if not isinstance(num_bins, int) or not 1 <= num_bins <= 1000:
            raise ValueError(f"`num_bins` is {num_bins!r:.60}; it is a whole number from 1 to 1000.")
        if subsets is not None and not (isinstance(subsets, list) and all(isinstance(name, str) for name in subsets)):
            raise ValueError(f"`subsets` is {subsets!r:.60}; give a list of names, or leave it out.")
        if not len(chosen) == len(rejected) == len(chosen if subsets is None else subsets):
            raise ValueError(
                f"{len(chosen)} chosen and {len(rejected)} rejected rewards"
                f"{'' if subsets is None else f' and {len(subsets)} subsets'}: give as many of each."
            )
        module = evaluate.load(MODULE, keep_in_memory=True)
        return module.compute(chosen=chosen, rejected=rejected, subsets=subsets, num_bins=num_bins)


# ------------------------------------------------------------------------------------------------------- on the page


def list_figures(results: dict) -> str:
    """The figures as tables."""
    low, high = results["accuracy_ci95"]
    temperature, better = results["temperature"], results["log_loss_at_temperature"]
    rows = [
        ("Accuracy, a tie is wrong", percent(results["accuracy"]), f"95 % interval {percent(low)} to {percent(high)}"),
        ("Accuracy, a tie counts half", percent(results["accuracy_ties_half"]), f"ties: {results['ties']}"),
        ("Pairs", results["n"], ""),
        ("Margin, mean", f"{results['margin']:.4g}", "chosen − rejected"),
        ("Margin, median", f"{results['margin_median']:.4g}", ""),
        ("Margin, standard deviation", f"{results['margin_std']:.4g}", ""),
        ("Log loss", f"{results['log_loss']:.4f}", "nats; not knowing costs ln 2 = 0.6931"),
        ("Calibration error", f"{results['ece']:.4f}", "mean distance of confidence and accuracy"),
    ]
    if temperature is None:
        rows.append(("Best temperature", "none", "no pair is wrong, or the mean margin is not positive"))
    else:
        rows.append(("Best temperature", f"{temperature:.4g}", f"margins divided by it: log loss {better:.4f}"))
    tables = [make_table("Figures", ("Figure", "Value", "Note"), rows)]
    if sections := results.get("section_scores"):
        scores = [(name, f"{score:.1f} %") for name, score in sections.items()]
        tables.append(make_table("RewardBench sections, official weights", ("Section", "Score"), scores))
    if subsets := results.get("subset_accuracies"):
        shown = [(name, percent(accuracy)) for name, accuracy in list(subsets.items())[:MOST_SUBSETS_SHOWN]]
        rest = len(subsets) - len(shown)
        caption = "Accuracy by subset" + (f" (the first {len(shown)}; {rest} more are in the download)" * (rest > 0))
        tables.append(make_table(caption, ("Subset", "Accuracy"), shown))
    return "".join(tables)


def percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def draw(plot, margins: list[float]) -> Image.Image:
    """A picture of the library."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        plot({"these pairs": margins}, path)
        return Image.open(path).convert("RGB")


def show(text: str, file: str | None, downloads: Path):
    """What the button does: figures, both pictures and the download."""
    with in_our_words():
        chosen, rejected, subsets = read_pairs(text if file is None else read_text(file))
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
    """The page; `downloads` is the folder of files that are offered."""
    with gr.Blocks(title="Pairwise preference", analytics_enabled=analytics_wanted()) as page:
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
                file = gr.File(
                    label="Or a file, which is then read instead",
                    file_types=[".csv", ".tsv", ".txt", ".json", ".jsonl"],
                    height=150,
                )
                button = gr.Button("Compute", variant="primary")
                gr.Examples(EXAMPLES, [text], label="Examples")
            with gr.Column(min_width=300):
                status = gr.HTML(min_height=40)
                with gr.Column(visible=False) as results:
                    figures = gr.HTML(label="Figures", padding=False)
                    margins = make_picture("Margins", "Histogram of the margins")
                    reliability = make_picture("Reliability", "Reliability diagram: the bins are among the figures")
                    download = gr.DownloadButton("Download the figures (JSON)")
        # What an earlier run found must not stand beside the error of this one
        gr.on(
            [button.click, text.submit],
            lambda: gr.Column(visible=False),
            None,
            results,
            queue=False,
            api_visibility="private",
        ).then(
            lambda *values: show(*values, downloads),
            [text, file],
            [results, figures, margins, reliability, download],
            show_progress_on=status,
            api_visibility="private",
        )
        gr.api(compute, api_name="compute")
    return page


def make_picture(label: str, alt_text: str) -> gr.Image:
    return gr.Image(
        label=label, alt_text=alt_text, format="png", interactive=False, buttons=["download", "fullscreen"]
    )


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        build(Path(folder)).queue(max_size=20).launch(**launch_options())
