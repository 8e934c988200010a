"""Sections of an evaluation report: benchmarks, differences, best-of-N, self-consistency, uncertainty, probes, critiques."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..analysis import METRICS, SPREAD, Uncertainty
from ..arena_hard.win_rate import WinRate
from ..candidates import SetResult
from ..formatting import (
    NONE,
    NUMBER,
    PERCENT,
    POINTS,
    WHOLE_PERCENT,
    Form,
    Section,
    Table,
    picture_name,
    render,
    show,
    show_estimate,
)
from ..generative_judges import JudgeReport, RatingReport
from ..metrics.calibration import FEW_PAIRS
from ..metrics.self_consistency import DRAWS, AccuracyCurve, CombinedAccuracy, SelfConsistency
from ..probes import Measure, ProbeResult, Unit
from ..probes.probe import SHARE, SHARE_DIFFERENCE
from ..set_results import CritiqueResult, Difference, Evaluation, headline_estimates
from ..stats import NO_ROWS, powers_of_two


# ------------------------------------------------------------------------------------------------------- benchmarks


# Summaries of `BestOfN`, by dataset and model
BestOfNSummaries = Mapping[str, Mapping[str, Mapping[str, Any]]]


def markdown(
    results: Mapping[str, list[Evaluation]], differences: Sequence[Difference], best_of_n: BestOfNSummaries
) -> str:
    """Return [`result_sections`] as Markdown."""
    return render(result_sections(results, differences, best_of_n)).rstrip()


def result_sections(
    results: Mapping[str, list[Evaluation]], differences: Sequence[Difference], best_of_n: BestOfNSummaries
) -> list[Section]:
    """Build the sections about the models' evaluations and about best-of-N. All models must have the same sets, in the same order."""
    sections = [Section(tables=[headline_table(results)])] if any(results.values()) else []
    if differences:
        sections.append(Section("Models on the same rows", tables=[difference_table(differences)]))
    for name, by_model in best_of_n.items():
        sections.append(Section(f"Best-of-N: {name}", tables=[_best_of_n_table(by_model)], notes=_left_out(by_model)))
    for evaluations in zip(*results.values(), strict=True):
        sections.append(_benchmark_section(dict(zip(results, evaluations, strict=True))))
    return sections


def headline_table(results: Mapping[str, list[Evaluation]]) -> Table:
    """Return the headline estimates with their 95 % intervals: a row for each benchmark, a column for each model."""
    quoted = [headline_estimates(evaluations) for evaluations in zip(*results.values(), strict=True)]
    rows = [[label, *map(show_estimate, estimates)] for label, estimates in quoted]
    return Table(["benchmark", *results], rows)


def _benchmark_section(evaluations: Mapping[str, Evaluation]) -> Section:
    """Build a benchmark's section: metrics (except those without rows), subsets, the benchmark's own tables, and notes."""
    by_model = {model: evaluation.scores for model, evaluation in evaluations.items()}
    scores, first = list(by_model.values()), next(iter(evaluations.values()))
    # Models may have different metrics, because they may have dropped different rows
    names = dict.fromkeys(name for found in scores for name in found.figures)
    figures = {name: [found.figures.get(name, NO_ROWS) for found in scores] for name in names}
    rows = [
        [f"**{name}**", *map(show_estimate, estimates)]
        for name, estimates in figures.items()
        if any(estimate.n for estimate in estimates)
    ]
    # If a subset is also a metric, or is the only subset, it would appear twice
    subsets = dict.fromkeys(name for found in scores for name in found.subsets if name not in names)
    if len(subsets) > 1:
        rows += [[f"– {name}", *(show_estimate(found.subsets.get(name)) for found in scores)] for name in subsets]
    tables = [Table(["", *evaluations], rows)]
    if first.benchmark is not None and first.benchmark.tables is not None:
        tables += first.benchmark.tables(by_model)
    # A note that applies to several models appears once
    noted: dict[str, list[str]] = {}
    for model, evaluation in evaluations.items():
        for note in evaluation.notes():
            noted.setdefault(note, []).append(model)
    notes = [f"{', '.join(models)}: {note}" for note, models in noted.items()]
    return Section(first.title, tables=tables, notes=notes)


DIFFERENCE = Form(digits=2, sign="+")


def difference_table(
    differences: Sequence[Difference],
    form: Form = POINTS,
    what: str = "Mean share of right/wrong pairs in the right order, with equal weights for all rows",
) -> Table:
    """Return the paired differences between models, one row for each set and pair of models; `what` describes the compared metric."""
    rows = [
        {
            "benchmark": found.benchmark,
            "models": " − ".join(found.models),
            "difference": show_estimate(found.difference, form, with_n=False),
            "rows": found.difference.n,
            "first better": found.first_better,
            "second better": found.second_better,
        }
        for found in differences
    ]
    return Table.of(rows, note=f"{what}; intervals from a paired bootstrap over rows.")


def _best_of_n_table(by_model: Mapping[str, Mapping[str, Any]]) -> Table:
    sizes = sorted({size for result in by_model.values() for size in result["rates"]})

    def cell(result: Mapping[str, Any], n: int) -> str:
        error = result["standard_errors"].get(n)
        return show(result["rates"].get(n)) + ("" if error is None else f" ± {show(error)}")

    return Table(
        ["model", *(f"N = {size}" for size in sizes), "problems"],
        [[model, *(cell(found, n) for n in sizes), found["problems"]] for model, found in by_model.items()],
        note="Correctness of the candidate with the highest reward, ± one standard error over problems.",
    )


def _left_out(by_model: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return notes on the problems that are not among those of the table."""
    reasons = {"dropped": "they do not fit the model's context", "bad": "they cannot be used"}
    return [
        f"{model}: Problems left out because {reason}: {found[key]}."
        for model, found in by_model.items()
        for key, reason in reasons.items()
        if found[key]
    ]


# ---------------------------------------------------------------------------------- best-of-N on sets of candidates

_MEANINGS = {
    "first": "always the first candidate",
    "random": "any of the N",
    "longest": "the one with the most characters",
    "perfect": "the best of the N",
}
_SCORE = Form(digits=2)


def best_of_n_section(result: SetResult, picture: str | None = None) -> Section:
    """Build the section about a set of candidates; `picture` is the file with its curves."""
    sizes = list(next(iter(result.curves.values())).values)
    # Wide tables are hard to read; plots and best_of_n.json have all sizes
    shown = sizes if len(sizes) <= 8 else sorted({*powers_of_two(sizes[-1]), sizes[-1]})
    tables = [_curve_table(result, shown)]
    if result.differences:
        form = POINTS if result.is_share else DIFFERENCE
        rows = [
            [" − ".join(models), show_estimate(found, form, with_n=False), found.n]
            for models, found in result.differences.items()
        ]
        note = "Choice among all candidates, on the same problems, with a paired bootstrap over problems."
        tables.append(Table(["models", "difference", "problems"], rows, note=note))
    if result.first_candidates is not None:
        tables.append(_win_rate_table({**result.win_rates, "first candidates": result.first_candidates}))
    if any(seeds > 1 for seeds in result.scored.seeds().values()):
        tables.append(_seed_table(result, shown))
    pictures = {} if picture is None else {picture: f"{result.quality} of the chosen candidate, by N"}
    return Section(result.title, tables=tables, notes=result.notes, pictures=pictures)


def _curve_table(result: SetResult, sizes: list[int]) -> Table:
    form = PERCENT if result.is_share else _SCORE
    curves = {f"**{name}**": curve for name, curve in result.curves.items()}
    curves |= {f"{name} ({_MEANINGS[name]})": curve for name, curve in result.yardsticks.items()}
    rows = []
    for label, curve in curves.items():
        cells = [show(curve.values[n], form, error=curve.standard_errors[n]) for n in sizes]
        value, error = curve.of_all
        rows.append([label, *cells, show(value, form, error=error)])
    note = f"{result.quality.capitalize()} of the chosen candidate, ± one standard error over prompts."
    return Table(["", *(f"N = {n}" for n in sizes), "all"], rows, note=note)


def _seed_table(result: SetResult, sizes: list[int]) -> Table:
    form = Form(100.0, 2, " points") if result.is_share else Form()
    rows = [
        [name, seeds, *(show(result.curves[name].standard_errors_over_seeds[n], form) for n in sizes)]
        for name, seeds in result.scored.seeds().items()
        if seeds > 1
    ]
    title = "Standard error over seeds (other critiques of the same candidates):"
    return Table(["", "seeds", *(f"N = {n}" for n in sizes)], rows, title)


WIN_RATES = (
    "Win rate of the first seed's choice among all candidates against the baseline's answers. A strong verdict counts as three votes. The "
    "official interval resamples votes, and is too narrow, because the votes on a question are not independent; the interval by question is a "
    "little too narrow below a few hundred questions."
)


def _win_rate_table(win_rates: Mapping[str, WinRate]) -> Table:
    rows = [
        {
            "answers": name,
            "win rate": show(found.value),
            "95 %, official": PERCENT.interval(found.ci95),
            "95 %, by question": PERCENT.interval(found.ci95_by_question),
            "wins : ties : losses": f"{found.wins} : {found.ties} : {found.losses}",
            "questions": found.questions,
        }
        for name, found in win_rates.items()
    ]
    return Table.of(rows, note=WIN_RATES)


# ------------------------------------------------------------------------------------------------ self-consistency

SELF_CONSISTENCY = f"""\
The reward is the mean over k critiques, sampled once for all k. Each number is the row accuracy (share of right/wrong pairs in the right
order), as the mean over {DRAWS} draws of k critiques of each response. ± gives its standard error over critiques, from a bootstrap over
the critiques of each response: how much it would change with other critiques of the same rows. Brackets give the 95 % interval over rows
(Wilson's, as if each row were entirely right or wrong; too wide if rows are right in only some of the draws). Length of the reasoning:
{{length_of}}; rows are split into quarters of equal size, or by value if there are few values."""


def self_consistency_sections(by_dataset: Mapping[str, Mapping[str, SelfConsistency]]) -> list[Section]:
    """Build the sections about self-consistency, by set and label."""
    lengths = dict.fromkeys(found.length_of for curves in by_dataset.values() for found in curves.values())
    text = f"{SELF_CONSISTENCY.format(length_of='; '.join(lengths))}\n\n{COMBINED}"
    sections = [Section("Self-consistency", text)]
    for name, curves in by_dataset.items():
        last = max(found.num_critiques for found in curves.values())
        sizes = sorted({*powers_of_two(min(last, 64)), last})  # more columns would be hard to read
        rows = [
            [
                label,
                curve.label if curve is found.everything else f"length {curve.label}",
                curve.rows,
                *(_curve_cell(curve, k) for k in sizes),
            ]
            for label, found in curves.items()
            for curve in (found.everything, *found.buckets)
        ]
        table = Table(["critiques of", "rows", "n", *(f"k = {k}" for k in sizes)], rows)
        picture = {picture_name("self_consistency", name): "accuracy by the number of critiques"}
        tables = [table, _combination_table(curves)]
        sections.append(Section(f"Self-consistency: {name}", tables=tables, pictures=picture, level=3))
    return sections


COMBINED = """\
The second table of a set shows the row accuracy with all critiques for each way to combine their rewards (`--combine`), with its 95 %
interval over rows, and then its difference from the mean on the same rows, with a paired bootstrap interval. The trimmed mean drops the
lowest and the highest quarter of the rewards. In a vote, each critique of a response is compared with each critique of the other responses,
and the response's reward is the share of comparisons that it wins (ties count half). Likelihood weights a critique by the geometric mean of
its tokens' probabilities, if the backend records them."""


def _combination_table(curves: Mapping[str, SelfConsistency]) -> Table:
    names = dict.fromkeys(part.combination for found in curves.values() for part in found.combinations)
    rows = [
        [label, found.num_critiques, *(_combination_cell(found.combinations, name) for name in names)]
        for label, found in curves.items()
    ]
    return Table(["critiques of", "k", *(name.replace("_", " ") for name in names)], rows)


def _combination_cell(parts: Sequence[CombinedAccuracy], name: str) -> str:
    found = next((part for part in parts if part.combination == name), None)
    if found is None:
        return NONE
    accuracy = show_estimate(found.accuracy, with_n=False)
    return accuracy if name == "mean" else f"{accuracy}; {show_estimate(found.minus_mean, POINTS, with_n=False)}"


def _curve_cell(curve: AccuracyCurve, k: int) -> str:
    if k > len(curve.accuracy):
        return NONE
    return show(curve.accuracy[k - 1], error=curve.standard_errors[k - 1], ci95=curve.intervals[k - 1])


# ----------------------------------------------------------------------------------------------------- uncertainty

REJECTION = """\
Accuracy on the remaining pairs after the least certain ones are rejected: those with the smallest margin, or those whose rewards vary most
over the critiques (root of the sum of both rewards' variances). The area is the area under the curve of accuracy by rejected fraction. It
equals that of random rejection if the measure of certainty is useless, and the oracle's if all wrong pairs are rejected first; the gain is
its position on the scale from random (0%) to oracle (100%). Intervals come from a bootstrap over rows, and are a little too narrow below a
few hundred rows. There is no interval if all pairs are right, or all wrong."""

CALIBRATION = f"""\
Reward margins, read as Bradley-Terry log-odds, compared with outcomes. Log loss: in nats; guessing costs 0.693. ECE: mean distance between
confidence and accuracy over ten bins. Temperature: the divisor of the margins that minimises the log loss, fitted on these same pairs;
above 1, the model is overconfident. Intervals come from a bootstrap over rows, and are a little too narrow: in simulations, 93 % of them
contain the true value. The ECE has no interval: noise inflates absolute values, so even a calibrated model has an ECE above 0, and the
fewer the pairs, the larger it is. The diagram has a panel for each set. Its error bars are Wilson's 95 % intervals, the area of a marker
grows with the number of pairs in its bin, and the line skips bins of fewer than {FEW_PAIRS} pairs."""


def uncertainty_sections(
    by_dataset: Mapping[str, Mapping[str, list[Uncertainty]]], pictures: Mapping[str, str], reliability: str
) -> list[Section]:
    """Build the sections about selective accuracy and calibration, by set and model. `pictures` maps each set to its plot's file."""
    found = [(name, model, part) for name, models in by_dataset.items() for model in models for part in models[model]]
    rejection = Table.of(row for part in found for row in _rejection_rows(*part))
    calibration = Table.of(_calibration_row(*part) for part in found)
    curves = {picture: f"accuracy by rejected fraction on {name}" for name, picture in pictures.items()}
    diagram = {reliability: "reliability of the rewards as probabilities"}
    return [
        Section("Selective accuracy", REJECTION, [rejection], pictures=curves),
        Section("Calibration", CALIBRATION, [calibration], pictures=diagram),
    ]


def _rejection_rows(name: str, model: str, part: Uncertainty) -> Iterator[dict[str, Any]]:
    for certainty, curve in part.selective_accuracy.curves.items():
        yield {
            "set": name,
            "model": model,
            "rewards": part.critiques,
            "rejected by": "spread of the rewards" if certainty == SPREAD else "size of the margin",
            "pairs": curve.area.n,
            "area": show_estimate(curve.area, with_n=False),
            "random": show(part.selective_accuracy.random),
            "oracle": show(part.selective_accuracy.oracle.area.value),
            "gain": show(part.selective_accuracy.normalised_aurc(certainty), WHOLE_PERCENT),
        }


def _calibration_row(name: str, model: str, part: Uncertainty) -> dict[str, Any]:
    titles = {key: title for key, (title, _) in METRICS.items()} | {"ece": "ECE"}
    return {
        "set": name,
        "model": model,
        "rewards": part.critiques,
        "pairs": part.metrics["ece"].n,
        **{title: show_estimate(part.metrics[key], NUMBER, with_n=False) for key, title in titles.items()},
        "temperature": show(part.calibration.temperature, Form(digits=2)),
        "log loss then": show(part.calibration.log_loss_at_temperature, NUMBER),
    }


# ---------------------------------------------------------------------------------------------------------- probes

PROBES = """\
Each estimate has its 95 % interval over rows and the number of rows behind it. A right pair is one that the model orders correctly before the
alteration. It is lost if the wrong response has the higher reward afterwards, and tied if the rewards are equal; a wrong pair is won if the
right response has the higher reward afterwards."""


# A probe's result by model
ProbeResults = Mapping[str, ProbeResult]


def has_measures(by_model: ProbeResults) -> bool:
    """Check whether a probe could alter any row."""
    return any(not math.isnan(part.estimate.value) for found in by_model.values() for part in found.measures)


def probe_picture(by_model: ProbeResults) -> str:
    """Return the name of a probe's picture."""
    return picture_name("probe", next(iter(by_model.values())).name)


def probe_sections(probes: Sequence[ProbeResults]) -> list[Section]:
    """Build the sections about probes."""
    return [Section("Probes", PROBES), *map(_probe_section, probes)]


def _probe_section(by_model: ProbeResults) -> Section:
    first, found = next(iter(by_model.values())), by_model.values()
    if not has_measures(by_model):
        nothing = f"{first.about}\n\nThere are no results: no row could be altered."
        return Section(first.title, nothing, level=3)
    rows = _measure_rows([part.measures for part in found], "**{}**")
    for name in dict.fromkeys(name for part in found for name in part.by_dataset):
        # A probe's first metric summarises it
        rows += _measure_rows([part.by_dataset.get(name, [])[:1] for part in found], f"– {name}: {{}}")
    notes = [
        f"{model}: altered chats left out because the model cannot read them: {part.left_out}."
        for model, part in by_model.items()
        if part.left_out
    ]
    pictures = {probe_picture(by_model): first.title}
    return Section(first.title, first.about, [Table(["", *by_model], rows)], notes, pictures, level=3)


def _measure_rows(by_model: Sequence[Sequence[Measure]], form: str) -> list[list[str]]:
    """Build a row for each metric that at least one model has."""
    found = [{(part.label, part.unit): part.estimate for part in measures} for measures in by_model]
    known = dict.fromkeys(key for part in found for key, estimate in part.items() if not math.isnan(estimate.value))
    return [
        [form.format(label), *(show_estimate(part.get((label, unit)), _form_of(unit)) for part in found)]
        for label, unit in known
    ]


def _form_of(unit: Unit) -> Form:
    return {SHARE: PERCENT, SHARE_DIFFERENCE: POINTS}.get(unit) or Form(unit.scale, unit.digits, exponent=True)


# -------------------------------------------------------------------------------------------------------- critiques

JUDGE = """\
The judge compares each right response with each wrong one of its row, in both orders; identical pairs are judged once. The margin of a pair
is the mean lead of the right response over both verdicts, from -2 to 2. A pair without a readable verdict in one of the orders counts as a tie,
and ties count as wrong. Tokens are those of prompts and completions, including retries, as counted by the server. The cost requires
`--judge_price` and a server that reports both counts."""

RATINGS = """\
The judge rates every response on its own, and the rating is the reward; identical responses are rated once. A response without a readable
rating gets the middle of the scale. Tokens are those of prompts and completions, including retries, as counted by the server. The cost
requires `--judge_price` and a server that reports both counts."""

CRITIQUES = """\
The model's own critique of each response (the first if there are several) compared with the reference critique. Loss: mean cross-entropy of
the reference critique's tokens after the response, in nats; only the transformers backend computes it. Overlap (chrF2, BLEU: 0 to 100)
measures similarity of wording, not whether a critique is right."""

_COST = Form(digits=4, exponent=True)


def judge_section(judged: JudgeReport | RatingReport) -> Section:
    """Build the section about the judge's behaviour."""
    if isinstance(judged, RatingReport):
        about, unit = RATINGS, "rating"
        row = {
            "responses": judged.responses,
            "unreadable": judged.unreadable,
            "mean": show(judged.mean, Form(digits=2)),
            "standard deviation": show(judged.std, Form(digits=2)),
            "different ratings": judged.distinct,
        }
    else:
        about, unit = JUDGE, "verdict"
        row = {
            "pairs": judged.pairs,
            "right wins": judged.right,
            "ties": judged.ties,
            "unreadable": judged.unreadable,
            "orders agree": show(judged.orders_agree),
            "first shown wins": show(judged.first_shown_wins),
        }
    row |= {
        f"tokens per {unit}": show(judged.tokens_per_verdict, Form(digits=0)),
        f"cost per {unit}": show(judged.cost_per_verdict, _COST),
        "cost": show(judged.cost, _COST),
    }
    return Section("Judge", about, [Table.of([row])])


def critique_section(results: Mapping[str, Sequence[CritiqueResult]]) -> Section:
    """Build the section that compares critiques with references, by model."""
    parts = [(model, result) for model, found in results.items() for result in found]
    rows = [
        {
            "set": result.name,
            "model": model,
            "critiques": result.quality.n,
            "loss per token": show(result.quality.loss_per_token, NUMBER),
            "chrF": show(result.quality.chrf, Form(digits=1)),
            "BLEU": show(result.quality.bleu, Form(digits=1)),
            "words": show(result.quality.words, Form(digits=1)),
            "words, reference": show(result.quality.reference_words, Form(digits=1)),
            "empty": result.quality.empty,
        }
        for model, result in parts
    ]
    notes = [f"{model}, {result.name}: {note}" for model, result in parts for note in result.notes()]
    return Section("Critiques compared with references", CRITIQUES, [Table.of(rows)], notes)
