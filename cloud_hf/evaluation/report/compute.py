"""Accuracy against compute: a point for everything that was evaluated, and the report's sections about compute, cascades and halving."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...data.journal import key_of
from ...data.row_values import judged_chat
from ..cascade_results import CascadeResult, worth_of
from ..compute import is_estimated
from ..context_fitting import SetKey
from ..ensembles import Ensemble
from ..formatting import PERCENT, POINTS, Form, Section, Table, show, show_estimate
from ..generative_judges import JudgeReport, RatingReport
from ..halving_results import HalvingResult
from ..metrics.best_of_n import expected_best_of
from ..scored_sets import ModelResults
from ..set_results import Evaluation
from ..stats import Estimate, powers_of_two, share


PICTURE = "accuracy_vs_compute.png"

COMPUTE = f"""\
Row accuracy (for best-of-N, the value of the choice among all candidates) against the critique tokens of all responses in a row, without
prompts and end tokens; a model without critiques has 0. Self-consistency counts all k critiques, an ensemble those of its members, and a
judge all its tokens, including prompts. Seconds differ from run to run, so they appear only in the plot and in `compute.json`; each model's
total is divided among its responses in proportion to their tokens plus one.

![accuracy against tokens and seconds]({PICTURE})"""

ESTIMATED = (
    "Token numbers that involve {} are estimates: the journal lacks these numbers, as those of earlier versions do, so the critiques were "
    "tokenized again."
)

CASCADES = """\
A cascade scores all responses with its first stage, and those that may still be the best with the next stage, until the probability that a
row's leader is the better response reaches the threshold. The weights and the threshold for the even rows are fitted on the odd rows, and
vice versa. "Reached" is the share of responses that each stage scored. `cascade(…)_SET.json` contains the fit on all rows, for
`CascadeScorer`."""

_TOKENS = Form(digits=1)
_SCORE = Form(digits=2)


@dataclass(frozen=True)
class ComputePoint:
    """Accuracy on a set, and its cost."""

    dataset: str
    model: str
    setting: str  # how the model was used
    accuracy: Estimate
    tokens: float  # per row
    seconds: float = math.nan  # per row
    is_chosen: bool = True  # false for a cascade's points at thresholds other than the chosen one
    series: str = ""  # in plots, points of the same model and series form a curve
    has_estimated_tokens: bool = False  # see `compute.is_estimated`

    @property
    def label(self) -> str:
        """The name of the point's curve in plots."""
        return ", ".join(filter(None, [self.model, self.series]))

    def summary(self) -> dict[str, Any]:
        """Return the point in JSON form, without seconds, which differ from run to run."""
        return {
            "dataset": self.dataset,
            "model": self.model,
            "setting": self.setting,
            "accuracy": self.accuracy.summary(),
            "tokens_per_row": self.tokens,
            "is_chosen": self.is_chosen,
            **({"has_estimated_tokens": True} if self.has_estimated_tokens else {}),
        }


def compute_points(
    results: Mapping[str, ModelResults],
    shown: Mapping[str, str],
    ensembles: Sequence[Ensemble] = (),
    cascades: Sequence[CascadeResult] = (),
    judged: JudgeReport | RatingReport | None = None,
) -> list[ComputePoint]:
    """Collect the points of all models, ensembles, cascades and, if there is one, the judge."""
    points: list[ComputePoint] = []
    combined = {one.name for one in [*ensembles, *cascades]}
    single = {shown[name]: found for name, found in results.items() if name not in combined}
    for model, found in single.items():
        if found.costs:  # a judge has no costs
            with_sides = [key for key in found.costs if key[0] in ("benchmark", "pairs")]
            of_model: list[ComputePoint] = []
            for evaluation, key in zip(found.evaluations, with_sides, strict=True):
                of_model += _points_of_model(model, found, evaluation, key)
            of_model += _points_of_choices(model, found, shown)
            scored = [scores for _, scores in found.parts.values()]
            scored += [part.row_scores for parts in found.sampled.values() for part in parts]
            estimated = any(map(is_estimated, scored))
            points += [replace(point, has_estimated_tokens=estimated) for point in of_model]
    for ensemble in ensembles:
        points += [_point_of_ensemble(ensemble, one, points) for one in results[ensemble.name].evaluations]
    for cascade in cascades:
        points += _points_of_cascade(cascade)
    if judged is not None:
        judges = {model: found.evaluations for model, found in single.items() if not found.costs}
        points += [_point_of_judge(model, one, judged) for model, found in judges.items() for one in found]
    return points


def _points_of_model(model: str, found: ModelResults, evaluation: Evaluation, key: SetKey) -> Iterator[ComputePoint]:
    """Yield a model's points: as scored, with 1, 2, 4, … and all sampled critiques, and with critiques that are only partially read."""
    name, cost = evaluation.name, found.costs[key]
    yield ComputePoint(name, model, "as scored", evaluation.row_accuracy(), cost.per_row, cost.seconds_per_row)
    sampled = zip(found.robustness.self_consistency.get(name, []), found.sampled_costs.values(), strict=False)
    for critiques, costs in sampled:
        curve, count, series = critiques.everything, critiques.num_critiques, f"T = {critiques.temperature:g}"
        for k in sorted({*powers_of_two(count), count}):
            accuracy = Estimate(curve.accuracy[k - 1], curve.rows, curve.intervals[k - 1])
            tokens, seconds = k / count * costs[key].per_row, k / count * costs[key].seconds_per_row
            yield ComputePoint(name, model, f"{series}, k = {k}", accuracy, tokens, seconds, series=series)
    read = found.robustness.anytime.get(name)
    responses = sum(len(row.responses) for row in evaluation.rows) / len(evaluation.rows)
    for point in read.points if read else ():
        if point.limit is not None:
            tokens = point.tokens.value * responses
            seconds = cost.seconds_per_row * tokens / cost.per_row if cost.per_row else math.nan
            setting = f"read to {point.limit} tokens"
            yield ComputePoint(name, model, setting, point.accuracy, tokens, seconds, series="read early")


def _points_of_choices(model: str, found: ModelResults, shown: Mapping[str, str]) -> Iterator[ComputePoint]:
    """Yield a point for each set of problems; its accuracy is the mean value of the candidates that a model chooses."""
    for key, cost in found.costs.items():
        if key[0] == "problems":
            fitted, scores = found.parts[key]
            worth = [
                expected_best_of([score.reward for score in row], worth_of("problems", read))
                for row, read in zip(scores, fitted.rows, strict=True)
            ]
            dataset = shown.get(key[1], key[1])
            yield ComputePoint(dataset, model, "as scored", share(worth), cost.per_row, cost.seconds_per_row)


def _point_of_ensemble(ensemble: Ensemble, evaluation: Evaluation, points: Sequence[ComputePoint]) -> ComputePoint:
    """Return an ensemble's point, whose cost is the sum of its members' costs."""
    members = [
        point
        for point in points
        if point.dataset == evaluation.name and point.model in ensemble.members and point.setting == "as scored"
    ]
    tokens, seconds = sum(point.tokens for point in members), sum(point.seconds for point in members)
    return ComputePoint(evaluation.name, ensemble.name, "as scored", evaluation.row_accuracy(), tokens, seconds)


def _points_of_cascade(found: CascadeResult) -> Iterator[ComputePoint]:
    for point, seconds in zip([*found.curve, found.chosen], found.seconds, strict=True):
        is_chosen = point is found.chosen
        setting = "chosen threshold" if is_chosen else f"threshold {point.threshold:.3g}"
        tokens = point.tokens_per_row.value
        yield ComputePoint(found.dataset, found.name, setting, point.accuracy, tokens, seconds, is_chosen)


def _point_of_judge(name: str, evaluation: Evaluation, judged: JudgeReport | RatingReport) -> ComputePoint:
    rates = isinstance(judged, RatingReport)
    # As in `rate_rows` and `judge_rows`, repeated texts are judged once, and a pair of identical responses is not judged
    if rates:
        chats = (judged_chat(row.prompt, response) for row in evaluation.rows for response in row.responses)
        verdicts = len({key_of(*chat) for chat in chats})
    else:
        pairs = (
            (row.prompt, row.responses[right], row.responses[wrong])
            for row in evaluation.rows
            for right, wrong in row.pairs()
        )
        verdicts = 2 * len({key_of(*pair) for pair in pairs if pair[1].strip() != pair[2].strip()})
    tokens = (judged.tokens_per_verdict or 0.0) * verdicts / len(evaluation.rows)
    setting = "ratings" if rates else "both orders"
    return ComputePoint(evaluation.name, name, setting, evaluation.row_accuracy(), tokens)


def compute_sections(points: Sequence[ComputePoint], cascades: Sequence[CascadeResult]) -> list[Section]:
    """Build the sections about compute and about cascades; the table shows only the chosen point of each cascade."""
    rows = [
        {
            "set": point.dataset,
            "model": point.model,
            "setting": point.setting,
            "row accuracy": show_estimate(point.accuracy),
            "tokens per row": show(point.tokens, _TOKENS),
        }
        for point in points
        if point.is_chosen
    ]
    notes = _notes(point.model for point in points if point.has_estimated_tokens)
    sections = [Section("Accuracy against compute", COMPUTE, [Table.of(rows)], notes)]
    if cascades:
        sections.append(Section("Cascades", CASCADES, [Table.of(map(_cascade_row, cascades))], level=3))
    return sections


def _notes(estimated: Iterable[str]) -> list[str]:
    """Return a note on the models whose token numbers are estimates, if there are any."""
    names = ", ".join(dict.fromkeys(estimated))
    return [ESTIMATED.format(names)] if names else []


def _cascade_row(found: CascadeResult) -> dict[str, Any]:
    tokens, full = found.chosen.tokens_per_row, found.last.tokens_per_row.value
    return {
        "set": found.dataset,
        "cascade": found.name,
        "thresholds": ", ".join(f"{threshold:.3f}" for threshold in found.thresholds),
        "accuracy": show_estimate(found.chosen.accuracy),
        "last stage alone": show_estimate(found.last.accuracy, with_n=False),
        "tokens per row": show_estimate(tokens, _TOKENS, with_n=False),
        "share of its tokens": show(tokens.value / full if full else math.nan),
        "reached": ", ".join(show(share) for share in found.chosen.reached),
    }


# -------------------------------------------------------------------------------------------------------- best-of-N

HALVING = """\
Every candidate gets one critique, the better half get a second one, the better half of those get two more, and so on up to the number of
critiques. A cheap model, if given, first drops half of the candidates. The choice is compared with the one based on all critiques of all
candidates, on the same problems, with 95 % bootstrap intervals over problems. Ties are broken at random, averaged over several orders. Tokens
are critique tokens per problem."""


def halving_section(results: Sequence[HalvingResult]) -> Section:
    """Build the section about successive halving."""
    rows = []
    for one in results:
        form, difference = (PERCENT, POINTS) if one.is_share else (_SCORE, _SCORE)
        row = {
            "set": one.title,
            "": one.name,
            "critiques": one.num_critiques,
            "choice": show_estimate(one.worth, form, with_n=False),
            "full choice": show_estimate(one.full_worth, form, with_n=False),
            "difference": show_estimate(one.difference, difference, with_n=False),
            "tokens": show_estimate(one.tokens, _TOKENS, with_n=False),
            "full tokens": show_estimate(one.full_tokens, _TOKENS, with_n=False),
            "share": show(one.share),
        }
        rows.append(row)
    notes = _notes(one.name for one in results if one.has_estimated_tokens)
    return Section("Successive halving", HALVING, [Table.of(rows)], notes)
