"""Sets to score: load them, fit them to a model's context, score them in one call, and compute a model's results."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset
from huggingface_hub import EvalResult

from ..combine_critiques import combine_scores
from ..critique_format import CritiqueFormat
from ..data.bad_rows import BadRows
from ..data.journal import key_of
from ..data.preference_rows import POSITION, SIDES, read_preferences, read_prompts
from ..data.row_values import prompt_of
from ..data.rows import row_name
from .analysis import Robustness, assess_uncertainty, read_length
from .benchmarks import LoadedBenchmark, load_benchmarks
from .cascade_results import Cascade, CascadeResult, StagePart
from .compute import Cost, costs_of
from .context_fitting import FittedRow, FittedRows, RowScores, ScoredRows, SetKey, fit_rows, score_rows
from .ensembles import Ensemble
from .environment import describe_set
from .evaluation_arguments import EvaluationArguments
from .generative_judges import JudgeReport, RatingReport, judge_rows, rate_rows
from .journaled_scorer import JournaledScorer
from .metrics import critique_quality
from .metrics.best_of_n import PROBLEM_COLUMNS, candidates, load_problems, summarize_best_of_n
from .metrics.critique_quality import CritiqueRow
from .metrics.pairs import PairEvaluation, pair_responses, summarize_pairs
from .probes import read_paraphrases
from .scoring_arguments import load_datasets, short_names
from .set_results import CritiqueResult, Evaluation, evaluation_of_pairs, fittable


Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Sets:
    """
    All sets of a run. Benchmarks are a list; other kinds are keyed by name. `bad` counts the rows left out as bad while loading, by kind
    and name. `shown` maps names to short names, and `group_column` is the column by which accuracy on pairs is broken down.
    """

    benchmarks: list[LoadedBenchmark]
    pairs: dict[str, Dataset]
    problems: dict[str, Dataset]
    critiques: dict[str, list[CritiqueRow]]
    bad: dict[SetKey, int] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    group_column: str | None = None

    def describe(self) -> list[dict[str, Any]]:
        """Describe each set by kind, name, number of rows and a hash of the rows' contents, in JSON form."""
        columns = ("prompt", *SIDES, *PROBLEM_COLUMNS[1:], "tools")
        parts: list[tuple[str, str, Iterable[Any]]] = []
        parts += [("benchmark", found.name, found.rows) for found in self.benchmarks]
        for kind, datasets in (("pairs", self.pairs), ("problems", self.problems)):
            for name, rows in datasets.items():
                parts.append((kind, name, rows.select_columns([one for one in columns if one in rows.column_names])))
        parts += [("critiques", name, rows) for name, rows in self.critiques.items()]
        return [describe_set(*part) for part in parts]

    def rows(self) -> dict[SetKey, tuple[Iterable[Any], Callable[[dict[str, Any]], list]]]:
        """Return, for each set by kind and name, its rows and a function that returns the responses of a row."""
        names = ("id", "prompt", "responses", "num_chosen")
        found: dict[SetKey, tuple[Iterable[Any], Callable]] = {}
        for one in self.benchmarks:
            rows = [{name: getattr(row, name) for name in names} for row in one.rows]
            found["benchmark", one.name] = rows, lambda row: list(row["responses"])
        for name, rows in self.pairs.items():
            found["pairs", name] = rows, pair_responses
        for name, rows in self.problems.items():
            found["problems", name] = rows, candidates
        for name, rows in self.critiques.items():
            found["critiques", name] = fittable(rows), itemgetter("responses")
        return found

    def fit(self, critique_format: CritiqueFormat, **limits) -> dict[SetKey, FittedRows]:
        """
        Fit the rows of all sets to a model's context; `limits` are the options of [`~context_fitting.fit_rows`]. Returns the rows by kind
        and name. The kinds are `"benchmark"`, `"pairs"`, `"problems"` and, for models that write critiques, `"critiques"`, in this order.
        """
        fitted = {
            (kind, name): fit_rows(rows, responses_of, critique_format, **limits, name=name)
            for (kind, name), (rows, responses_of) in self.rows().items()
            if kind != "critiques" or critique_format.critique
        }
        return {key: replace(part, bad=part.bad + self.bad.get(key, 0)) for key, part in fitted.items()}


def _unfitted(
    name: str, rows: Iterable[Any], responses_of: Callable[[dict[str, Any]], list], bad_rows: str, num_bad: int
) -> FittedRows:
    """
    Return rows with their prompts and responses unchanged, for a judge, whose server has its own context length. `num_bad` rows were left
    out as bad before. Raises `ValueError` if rows are bad, as [`~context_fitting.fit_rows`] does.
    """
    found, bad, total = [], BadRows(name, bad_rows), 0
    for place, row in enumerate(rows):
        index = row.get(POSITION, place)
        total += 1
        try:
            found.append(FittedRow(index, row, prompt_of(row), responses_of(row), []))
        except ValueError as error:
            bad.add(index, row, str(error))
    return FittedRows(found, 0, 0, num_bad + len(bad.settle(total)))


def load_sets(args: EvaluationArguments) -> Sets:
    """
    Load and check all sets, including columns that are needed only after scoring. Raises a `ValueError` that names what is missing or
    wrong.
    """
    columns = [name for name in (args.group_column, args.length_column, args.paraphrase_column) if name]
    pairs = load_datasets(args, (*SIDES, *columns))
    problems = load_datasets(args, PROBLEM_COLUMNS, args.best_of_n)
    critiques = load_datasets(args, (), args.reference_critiques)
    sets = Sets(
        pairs={
            name: read_preferences(rows, name, bad_rows=args.bad_rows, numbered=True) for name, rows in pairs.items()
        },
        problems={name: read_prompts(rows, name, args.bad_rows, numbered=True) for name, rows in problems.items()},
        benchmarks=load_benchmarks(args.benchmarks, args.limit),
        critiques={
            name: critique_quality.read_critique_rows(name, rows, args.bad_rows) for name, rows in critiques.items()
        },
        shown=short_names([*args.dataset_name, *args.best_of_n, *args.reference_critiques]),
        group_column=args.group_column,
    )
    for kind, loaded, kept in (("pairs", pairs, sets.pairs), ("problems", problems, sets.problems)):
        sets.bad.update({(kind, name): len(rows) - len(kept[name]) for name, rows in loaded.items()})
    for name, rows in critiques.items():
        # The ids of a row's critiques differ only in the last part
        sets.bad["critiques", name] = len(rows) - len({one.id.rpartition("/")[0] for one in sets.critiques[name]})
    if args.update_card:
        check_all_scored({key: (0, count) for key, count in sets.bad.items()})
    shown = short_names(args.dataset_name)
    for found in sets.benchmarks:
        if found.name in shown.values():
            raise ValueError(
                f"A preference set and a benchmark are both called {found.name!r}, so the report could not tell them "
                "apart. Rename the set."
            )
    # An invalid value must raise an error here, not after hours of scoring
    for name in sets.problems:
        _check_shares(name, args)
    for name, rows in sets.pairs.items():
        _check_columns(name, rows, args)
    return sets


def check_all_scored(left_out: Mapping[SetKey, tuple[int, int]]):
    """
    Raise `ValueError` if `update_card` is not possible because a set is incomplete. `left_out` maps kinds and names of sets to the number
    of over-long rows and the number of bad rows.
    """
    for (kind, name), (overlong, bad) in left_out.items():
        if kind in ("benchmark", "pairs") and (overlong or bad):  # the other kinds are not in cards
            rows = f"{overlong} over-long" if overlong else f"{bad} bad"
            cure = "shorten or remove them" if overlong else "repair or remove them"
            raise ValueError(
                f"`update_card` needs metrics over all rows, but {rows} row(s) of {name} would be left out: {cure}, or "
                "omit `update_card`."
            )


def _check_columns(name: str, rows: Iterable[Any], args: EvaluationArguments):
    """Raise `ValueError` if a column that is needed only after scoring contains an invalid value."""
    for row in rows:
        try:
            if args.length_column:
                read_length(row, args.length_column)
            if args.paraphrase_column:
                read_paraphrases(row[args.paraphrase_column])
        except ValueError as error:
            raise ValueError(f"{name}, {row_name(row[POSITION], row)}: {error}") from error


def _check_shares(name: str, args: EvaluationArguments):
    """Raise `ValueError` if a problem is invalid, or if a candidate's value is not between 0 and 1."""
    problems = load_problems(name, args.dataset_test_split, args.dataset_config, args.limit, bad_rows=args.bad_rows)
    for problem in problems:
        if bad := [value for value in problem.worth or () if not 0 <= value <= 1]:
            raise ValueError(
                f"{name}, row {problem.id!r}: `correct` contains {bad[0]:g}, but values must be from 0 to 1 here. "
                "best_of_n.py also accepts scores outside this range."
            )


def score_sets(
    journaled: JournaledScorer,
    fitted: Mapping[Key, FittedRows],
    options: dict[str, Any],
    one: str = "response",
    combine: str = "mean",
) -> dict[Key, RowScores]:
    """
    Score all sets together, so that identical chats are scored once and batches stay full. Returns the scores of each set's rows.

    Error messages use `one` as the noun for a response. `options` are passed to [`Scorer`], and `combine` is one of
    [`~combine_critiques.COMBINATIONS`].
    """
    rows = [row for part in fitted.values() for row in part.rows]
    names = [
        f"{part.name}, row {row.row.get('id', row.index)!r}, {one} {place}"
        for part in fitted.values()
        for row in part.rows
        for place in range(len(row.responses))
    ]
    lengths = [length for row in rows for length in row.lengths]
    scores = iter(score_rows(journaled, rows, names=names, lengths=lengths, **options))
    return {key: [combine_scores(next(scores), combine) for _ in part.rows] for key, part in fitted.items()}


# --------------------------------------------------------------------------------------------- results of a model


@dataclass(frozen=True)
class ModelResults:
    """Results of a model on all sets."""

    evaluations: list[Evaluation]
    pairs: dict[str, PairEvaluation]  # by preference set, for `results` in report.json
    best_of_n: dict[str, dict]  # `BestOfN.summary` by set
    robustness: Robustness = field(default_factory=lambda: Robustness({}))
    # Evaluations with the critiques sampled for self-consistency, by temperature
    sampled: dict[float, list[Evaluation]] = field(default_factory=dict)
    critiques: list[CritiqueResult] = field(default_factory=list)
    # For ensembles and cascades: the rows and scores of all sets except reference critiques, by kind and name of the set
    parts: dict[SetKey, ScoredRows] = field(default_factory=dict, repr=False)
    # Cost of the ordinary rewards, by set, and cost of the sampled critiques, by temperature and set
    costs: dict[SetKey, Cost] = field(default_factory=dict, repr=False)
    sampled_costs: dict[float, dict[SetKey, Cost]] = field(default_factory=dict, repr=False)


def summarize(sets: Sets, parts: Mapping[SetKey, ScoredRows]) -> ModelResults:
    """Compute a model's results from its rows and scores, keyed by kind and name of the set, in the order of [`Sets.fit`]."""
    loaded = {found.name: found for found in sets.benchmarks}
    evaluations, pairs, best_of_n = [], {}, {}
    for (kind, name), (part, scores) in parts.items():
        if kind == "benchmark":
            benchmark, rows = loaded[name].benchmark, [loaded[name].rows[row.index] for row in part.rows]
            figures = benchmark.score(rows, [[score.reward for score in row] for row in scores])
            counts = {"dropped": part.dropped, "shortened": part.shortened, "bad": part.bad, "benchmark": benchmark}
            evaluations.append(Evaluation(name, benchmark.title, figures, rows, scores, **counts))
        elif kind == "pairs":
            short = sets.shown[name]
            pairs[name] = summarize_pairs(part, scores, sets.group_column)
            evaluations.append(evaluation_of_pairs(short, short, part, pairs[name]))
        elif kind == "problems":
            best_of_n[name] = summarize_best_of_n(part, scores).summary()
    kept = {key: part for key, part in parts.items() if key[0] != "critiques"}
    return ModelResults(evaluations, pairs, best_of_n, parts=kept)


def _summarize_combined(sets: Sets, parts: Mapping[SetKey, ScoredRows]) -> ModelResults:
    """Compute the results of a judge, an ensemble or a cascade: [`summarize`] plus uncertainty, without sampled critiques or probes."""
    results = summarize(sets, parts)
    return replace(results, robustness=Robustness(assess_uncertainty(results.evaluations, {})))


def summarize_judge(
    sets: Sets, args: EvaluationArguments, folder: Path
) -> tuple[ModelResults, JudgeReport | RatingReport]:
    """
    Let a judge compare the responses in benchmarks and preference sets or, depending on `args.judge_mode`, rate these responses and the
    best-of-N candidates. Returns the judge's results, except for sampled critiques and probes, and the report on the judge.
    """
    is_pairwise = args.judge_mode == "pairwise"
    kinds = ("benchmark", "pairs") if is_pairwise else ("benchmark", "pairs", "problems")
    fitted = {
        key: _unfitted(key[1], rows, responses_of, args.bad_rows, sets.bad.get(key, 0))
        for key, (rows, responses_of) in sets.rows().items()
        if key[0] in kinds
    }
    if is_pairwise:
        num_chosen = {("benchmark", one.name): max(row.num_chosen for row in one.rows) for one in sets.benchmarks}
        parts = {key: (rows, num_chosen.get(key, 1)) for key, rows in fitted.items()}
        scores, report = judge_rows(parts, args, args.seed, folder, args.judge_price)
    else:
        scores, report = rate_rows(fitted, args, args.seed, folder, args.judge_price)
    return _summarize_combined(sets, {key: (rows, scores[key]) for key, rows in fitted.items()}), report


def summarize_ensemble(ensemble: Ensemble, members: Mapping[str, ModelResults], sets: Sets) -> ModelResults:
    """Compute an ensemble's results, except for sampled critiques and probes, from its members' results, keyed by short name."""
    parts = {
        key: ensemble.combine({name: members[name].parts[key] for name in ensemble.members})
        for key in members[ensemble.members[0]].parts
    }
    return _summarize_combined(sets, parts)


def summarize_cascade(
    cascade: Cascade, members: Mapping[str, ModelResults], sets: Sets
) -> tuple[ModelResults, list[CascadeResult]]:
    """
    Compute a cascade's results from its stages' results, which are keyed by short name. Raises `ValueError` if the cascade cannot be fitted
    to its goal on a set's rows.
    """
    parts, found, costs = {}, [], {}
    for key in members[cascade.stages[0][0]].parts:
        stages = [part for stage in cascade.stages if (part := _stage_part(members, key, *stage))]
        if len(stages) < len(cascade.stages):  # candidates have no sampled critiques
            continue
        rows, scores, result = cascade.combine(key[0], sets.shown.get(key[1], key[1]), stages)
        parts[key] = rows, scores
        found.append(result)
        costs[key] = Cost([[[tokens]] for tokens in result.chosen.tokens], result.seconds[-1] * len(rows.rows))
    return replace(_summarize_combined(sets, parts), costs=costs), found


def _stage_part(members: Mapping[str, ModelResults], key: SetKey, name: str, count: int | None) -> StagePart | None:
    """
    Return a stage's scores and cost on a set. With `count`, these come from the sampled critiques; without it, they are the model's
    ordinary ones. Returns `None` if `count` is set and the set has no sampled critiques.
    """
    results = members[name]
    fitted, scores = results.parts[key]
    if count is None:
        return StagePart(fitted, scores, results.costs[key])
    temperature, costs = next(iter(results.sampled_costs.items()))  # the costs at the first temperature
    if key not in costs:
        return None
    [evaluation] = [one for one, other in zip(results.sampled[temperature], costs, strict=True) if other == key]
    return StagePart(fitted, evaluation.row_scores, costs[key], count)


def sample_critiques(
    journaled: JournaledScorer,
    evaluations: list[Evaluation],
    fitted: dict[SetKey, FittedRows],
    options: dict,
    args: EvaluationArguments,
    critique_format: CritiqueFormat,
) -> tuple[dict[float, list[Evaluation]], dict[float, dict[SetKey, Cost]]]:
    """Sample critiques at each temperature. Returns the evaluations with the sampled critiques' scores, and the cost of sampling."""
    count, sampled, costs = args.self_consistency or 1, {}, {}
    for temperature in args.self_consistency_temperatures:
        title = f"{journaled.title}, {count} critiques at {temperature:g}"
        # For the backend, each chat amounts to `count` sequences
        sampler = replace(journaled, title=title, chunk_size=max(1, journaled.chunk_size // count))
        sampling = {**options, "num_critiques": count, "temperature": temperature}
        scores = score_sets(sampler, fitted, sampling)
        sampled[temperature] = [
            replace(evaluation, row_scores=scores[key]) for evaluation, key in zip(evaluations, fitted, strict=True)
        ]
        costs[temperature] = costs_of(scores, critique_format, options["max_new_tokens"], sampler.seconds)
    return sampled, costs


def card_results(
    evaluations: list[Evaluation], sets: Sets, settings: Mapping[str, Any] | None = None, split: str | None = None
) -> list[EvalResult]:
    """
    Return the headline metric of each set for a model card, unless rows that the metric needs are missing. The dataset name shows whether
    the rows came from local files, and the revision is a hash of the rows. `settings` are the settings that affect the scores; `split` is
    the split of preference sets on the Hub.
    """
    sources = [(found.benchmark.hub_id, bool(found.files)) for found in sets.benchmarks]
    sources += [(name, Path(name).exists()) for name in sets.pairs]
    results = []
    for evaluation, (source, is_local) in zip(evaluations, sources, strict=True):
        if math.isnan(evaluation.scores.value):
            continue
        interval = evaluation.scores.figures[evaluation.scores.headline].ci95
        results.append(
            EvalResult(
                task_type="text-classification",
                task_name="Reward modeling",
                dataset_type=evaluation.name if Path(source).exists() else source,
                dataset_name=f"{evaluation.title} (local files)" if is_local else evaluation.title,
                dataset_split=None if is_local or evaluation.benchmark is not None else split,
                dataset_revision=f"content-{key_of([(row.subset, row.prompt, row.responses) for row in evaluation.rows])}",
                dataset_args={"rows": len(evaluation.rows)},
                metric_type="accuracy",
                metric_args={**(settings or {}), **({"ci95": list(interval)} if interval else {})},
                metric_name=evaluation.scores.headline,
                metric_value=evaluation.scores.value,
            )
        )
    return results
