"""Results of one model on all sets, and the figures in its card."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import EvalResult

from ..scoring import Score
from .analysis import Robustness
from .evaluation_arguments import EvaluationArguments
from .fitting import FittedRows
from .journaled_scorer import JournaledScorer
from .metrics.best_of_n import summarize_best_of_n
from .metrics.pairs import PairEvaluation, summarize_pairs
from .outcomes import CritiqueResult, Evaluation, evaluation_of_pairs
from .sets import Sets, score_sets


@dataclass(frozen=True)
class ModelResults:
    """Results of a model on all sets."""

    evaluations: list[Evaluation]
    pairs: dict[str, PairEvaluation]  # by preference set, for `results` in report.json
    best_of_n: dict[str, dict]  # by set, `BestOfN.summary`
    robustness: Robustness = field(default_factory=lambda: Robustness({}))
    # By temperature, with the scores of self-consistency
    sampled: dict[float, list[Evaluation]] = field(default_factory=dict)
    critiques: list[CritiqueResult] = field(default_factory=list)


def summarize(
    sets: Sets,
    fitted: Mapping[tuple[str, str], FittedRows],
    row_scores: Mapping[tuple[str, str], list[list[Score]]],
    group_column: str | None,
    shown: Mapping[str, str],
) -> ModelResults:
    """
    Compute the results of a model from the scores of all sets. `fitted` and `row_scores` are by kind and name of the set;
    `shown` are short names.
    """
    evaluations = []
    for found in sets.benchmarks:
        part, scores = fitted["benchmark", found.name], row_scores["benchmark", found.name]
        rows = [found.rows[row.index] for row in part.rows]
        figures = found.benchmark.score(rows, [[score.reward for score in row] for row in scores])
        counts = {"dropped": part.dropped, "shortened": part.shortened, "benchmark": found.benchmark}
        evaluations.append(Evaluation(found.name, found.benchmark.title, figures, rows, scores, **counts))
    pairs = {}
    for name in sets.pairs:
        part = fitted["pairs", name]
        pairs[name] = summarize_pairs(part, row_scores["pairs", name], group_column)
        evaluations.append(evaluation_of_pairs(shown[name], shown[name], part, pairs[name]))
    best_of_n = {
        name: summarize_best_of_n(fitted["problems", name], row_scores["problems", name]).summary()
        for name in sets.problems
    }
    return ModelResults(evaluations, pairs, best_of_n)


def sample_critiques(
    journaled: JournaledScorer,
    evaluations: list[Evaluation],
    fitted: dict[tuple[str, str], FittedRows],
    by_length: bool,
    options: dict,
    args: EvaluationArguments,
) -> dict[float, list[Evaluation]]:
    """Sample critiques at each temperature, and return the evaluations with their scores."""
    count, sampled, titles = args.self_consistency or 1, {}, {key: key[1] for key in fitted}
    for temperature in args.self_consistency_temperatures:
        title = f"{journaled.title}, {count} critiques at {temperature:g}"
        # Each chat is `count` sequences for the backend
        sampler = replace(journaled, title=title, chunk_size=max(1, journaled.chunk_size // count))
        sampling = {**options, "num_critiques": count, "temperature": temperature}
        scores = score_sets(sampler, fitted, titles, by_length, sampling)
        sampled[temperature] = [
            replace(evaluation, row_scores=scores[key]) for evaluation, key in zip(evaluations, fitted, strict=True)
        ]
    return sampled


def card_results(evaluations: list[Evaluation], sets: Sets) -> list[EvalResult]:
    """Return the headline figures for a model card, where rows suffice for one. The dataset's name tells local files."""
    sources = [(found.benchmark.hub_id, bool(found.files)) for found in sets.benchmarks]
    sources += [(name, Path(name).exists()) for name in sets.pairs]
    results = []
    for evaluation, (source, is_local) in zip(evaluations, sources, strict=True):
        if math.isnan(evaluation.scores.value):
            continue
        results.append(
            EvalResult(
                task_type="text-classification",
                task_name="Reward modeling",
                dataset_type=evaluation.name if Path(source).exists() else source,
                dataset_name=f"{evaluation.title} (local files)" if is_local else evaluation.title,
                dataset_args={"rows": len(evaluation.rows)},
                metric_type="accuracy",
                metric_name=evaluation.scores.headline,
                metric_value=evaluation.scores.value,
            )
        )
    return results
