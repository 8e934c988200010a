"""Self-consistency, uncertainty and probes in the report."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..analysis import Robustness
from ..arguments import picture_name
from ..metrics.self_consistency import DRAWS, AccuracyCurve, SelfConsistency
from ..metrics.uncertainty import SPREAD, Uncertainty
from ..probes import Measure, ProbeResult
from ..stats import Estimate
from .analysis_plots import plot_probe, plot_rejection, plot_self_consistency
from .report import Evaluation
from .tables import table_head, table_line


def write_robustness(
    results: dict[str, Robustness], evaluations: dict[str, list[Evaluation]], output_dir: Path
) -> list[str]:
    """
    Draw the pictures, and write the sections.

    Args:
        results (`dict[str, Robustness]`):
            By model.
        evaluations (`dict[str, list[Evaluation]]`):
            By model, of the same sets in the same order.
        output_dir (`Path`):
            Folder for the pictures. `reliability.png` is drawn apart.

    Returns:
        `list[str]`: Markdown lines.
    """
    names = [evaluation.name for evaluation in next(iter(evaluations.values()))]
    lines = []
    curves = {
        name: {
            f"{model}, T = {part.temperature:g}": part
            for model, found in results.items()
            for part in found.self_consistency.get(name, [])
        }
        for name in names
    }
    if curves := {name: parts for name, parts in curves.items() if parts}:
        pictures = {name: picture_name("self_consistency", name) for name in curves}
        for name, parts in curves.items():
            as_scored = {
                model: evaluation.row_accuracy().value
                for model, found in evaluations.items()
                for evaluation in found
                if evaluation.name == name
            }
            plot_self_consistency(parts, as_scored, output_dir / pictures[name])
        lines += [*self_consistency_section(curves, pictures), ""]
    certainties = {name: {model: found.uncertainty[name] for model, found in results.items()} for name in names}
    pictures = {}
    for name, models in certainties.items():
        if last := {f"{model}, {parts[-1].critiques}": parts[-1] for model, parts in models.items() if parts}:
            pictures[name] = picture_name("rejection", name)
            plot_rejection(last, output_dir / pictures[name])
    lines += [*uncertainty_sections(certainties, pictures, "reliability.png"), ""]
    probes = {model: found.probes for model, found in results.items()}
    pictures = {}
    for found in zip(*probes.values(), strict=True):
        if any(not math.isnan(measure.estimate.value) for part in found for measure in part.measures):
            pictures[found[0].name] = picture_name("probe", found[0].name)
            plot_probe(dict(zip(probes, found, strict=True)), output_dir / pictures[found[0].name])
    return lines + ([*probes_section(probes, pictures), ""] if any(probes.values()) else [])


# ------------------------------------------------------------------------------------------------ self-consistency

SELF_CONSISTENCY = f"""## Self-consistency

The reward is the mean over k critiques, sampled once for all k. Each figure is the row accuracy (share of right and wrong
responses in the right order), as the mean over {DRAWS} draws of k critiques of each response, ± the standard deviation over these
draws: what other critiques would change. It shrinks to 0 at the largest k, which can be drawn in one way only. In
brackets the 95 % interval over rows (Wilson's, as if each row were wholly right or wrong). Length of the reasoning:
{{length_of}}; quarters of equal size, or each value where they are few."""


def self_consistency_section(by_dataset: dict[str, dict[str, SelfConsistency]], pictures: dict[str, str]) -> list[str]:
    """
    The section on self-consistency.

    Args:
        by_dataset (`dict[str, dict[str, SelfConsistency]]`):
            By set and line of the picture.
        pictures (`dict[str, str]`):
            By set the name of its picture.
    """
    lengths = dict.fromkeys(found.length_of for lines in by_dataset.values() for found in lines.values())
    lines = [SELF_CONSISTENCY.format(length_of="; ".join(lengths))]
    for name, curves in by_dataset.items():
        last = max(found.num_critiques for found in curves.values())
        sizes = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k <= last} | {last})
        lines += ["", f"### Self-consistency: {name}", ""]
        lines += table_head(["critiques of", "rows", "n", *(f"k = {k}" for k in sizes)])
        for label, found in curves.items():
            for curve in (found.everything, *found.buckets):
                shown = curve.label if curve is found.everything else f"length {curve.label}"
                lines.append(table_line([label, shown, curve.rows, *(_curve_cell(curve, k) for k in sizes)]))
        lines += ["", f"![accuracy by the number of critiques]({pictures[name]})"]
    return lines


def _curve_cell(curve: AccuracyCurve, k: int) -> str:
    if k > len(curve.accuracy):
        return "–"
    low, high = curve.intervals[k - 1]
    return (
        f"{curve.accuracy[k - 1]:.1%} ± {100 * curve.standard_errors[k - 1]:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    )


# ----------------------------------------------------------------------------------------------------- uncertainty

REJECTION = """## Rejection of uncertain pairs

Accuracy on the pairs kept when the least certain ones are left undecided: those with the smallest margin, or those whose rewards
spread most over the critiques (root of the sum of both rewards' variances). The area under the curve of accuracy by rejected
fraction is that of random rejection if the measure says nothing, and the oracle's if all wrong pairs go first; the gain says
how far it is on that way. Intervals are a bootstrap's over rows; there is none where all pairs are right, or all wrong."""

CALIBRATION = """## Calibration

The reward margin read as Bradley-Terry log-odds, against the outcome. Log loss in nats: not knowing costs 0.693. ECE: mean
distance between confidence and accuracy over ten bins. Temperature: what margins must be divided by for the least log
loss, fitted on these very pairs; above 1 the model is too sure of itself. Intervals are a bootstrap's over rows; that of the ECE leans upwards, because
resampling adds noise to a sum of absolute values."""


def uncertainty_sections(
    by_dataset: dict[str, dict[str, list[Uncertainty]]], pictures: dict[str, str], reliability: str
) -> list[str]:
    """
    The sections on rejection and calibration.

    Args:
        by_dataset (`dict[str, dict[str, list[Uncertainty]]]`):
            By set and model.
        pictures (`dict[str, str]`):
            By set the name of the picture of its rejection curves.
        reliability (`str`):
            Name of the reliability diagram.
    """
    found = [(name, model, part) for name, models in by_dataset.items() for model in models for part in models[model]]
    lines = [REJECTION, ""]
    lines += table_head(["set", "model", "rewards", "rejected by", "pairs", "area", "random", "oracle", "gain"])
    lines += [line for name, model, part in found for line in _rejection_lines(name, model, part)]
    for name, picture in pictures.items():
        lines += ["", f"![accuracy by rejected fraction on {name}]({picture})"]
    lines += ["", CALIBRATION, ""]
    lines += table_head(["set", "model", "rewards", "pairs", "log loss", "ECE", "temperature", "log loss then"])
    lines += [_calibration_line(*part) for part in found]
    return [*lines, "", f"![reliability of the rewards as probabilities]({reliability})"]


def _rejection_lines(name: str, model: str, part: Uncertainty) -> Iterator[str]:
    for certainty, curve in part.selective_accuracy.curves.items():
        gain = part.selective_accuracy.normalised_aurc(certainty)
        yield table_line(
            [
                name,
                model,
                part.critiques,
                "spread of the rewards" if certainty == SPREAD else "size of the margin",
                curve.area.n,
                _percent(curve.area),
                f"{part.selective_accuracy.random:.1%}",
                f"{part.selective_accuracy.oracle.area.value:.1%}",
                "–" if gain is None else f"{gain:.0%}",
            ]
        )


def _calibration_line(name: str, model: str, part: Uncertainty) -> str:
    fitted = part.calibration
    known = not math.isnan(fitted.temperature)
    return table_line(
        [
            name,
            model,
            part.critiques,
            part.ece.n,
            _number(part.log_loss),
            _number(part.ece),
            f"{fitted.temperature:.2f}" if known else "–",
            f"{fitted.log_loss_at_temperature:.3f}" if known else "–",
        ]
    )


# ---------------------------------------------------------------------------------------------------------- probes

PROBES = """## Probes

Each figure with its 95 % interval over rows and the number of rows it rests on. A right pair is one that the model had in the right
order before; it is lost if it no longer is."""


def probes_section(results: dict[str, list[ProbeResult]], pictures: dict[str, str]) -> list[str]:
    """
    The section on probes.

    Args:
        results (`dict[str, list[ProbeResult]]`):
            For each model the same probes in the same order.
        pictures (`dict[str, str]`):
            By probe the name of its picture, for those that have figures.
    """
    lines = [PROBES]
    for found in zip(*results.values(), strict=True):
        first = found[0]
        lines += ["", f"### {first.title}", "", first.about, ""]
        if first.name not in pictures:
            lines.append("There is no figure: no row could be altered.")
            continue
        lines += table_head(["", *results])
        lines += _measure_lines([part.measures for part in found], "**{}**")
        for name in first.by_dataset:
            head = [part.by_dataset.get(name, [])[:1] for part in found]
            lines += _measure_lines(head, f"– {name}: {{}}")
        for model, part in zip(results, found, strict=True):
            if part.left_out:
                lines += ["", f"- {model}: altered chats that the model cannot read, left out: {part.left_out}."]
        lines += ["", f"![{first.title}]({pictures[first.name]})"]
    return lines


def _measure_lines(by_model: Sequence[Sequence[Measure]], form: str) -> list[str]:
    labels = dict.fromkeys(
        (measure.label, measure.unit)
        for measures in by_model
        for measure in measures
        if not math.isnan(measure.estimate.value)
    )
    lines = []
    for label, unit in labels:
        cells = []
        for measures in by_model:
            known = [measure for measure in measures if (measure.label, measure.unit) == (label, unit)]
            cells.append(_measure_cell(known[0]) if known else "–")
        lines.append(table_line([form.format(label), *cells]))
    return lines


def _measure_cell(measure: Measure) -> str:
    figure, unit = measure.estimate, measure.unit
    if math.isnan(figure.value):
        return "–"
    # Rounding errors of rewards are shown as such
    is_tiny = unit.scale == 1.0 and 0 < abs(figure.value) < 10**-unit.digits
    form, mark = ".1e" if is_tiny else f".{unit.digits}f", "%" if unit.scale == 100.0 else ""
    text = f"{unit.scale * figure.value:{form}}{mark}"
    if figure.ci95 is not None:
        text += " ({} to {})".format(*(f"{unit.scale * end:{form}}" for end in figure.ci95))
    return f"{text}, n = {figure.n}"


def _percent(figure: Estimate) -> str:
    interval = "" if figure.ci95 is None else f" ({100 * figure.ci95[0]:.1f} to {100 * figure.ci95[1]:.1f})"
    return f"{figure.value:.1%}{interval}"


def _number(figure: Estimate) -> str:
    interval = "" if figure.ci95 is None else f" ({figure.ci95[0]:.3f} to {figure.ci95[1]:.3f})"
    return f"{figure.value:.3f}{interval}"
