"""The files of an evaluation: scores with their critiques, RewardBench's own results, the report and its pictures."""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from ..analysis import mean_label
from ..arguments import file_name
from ..benchmarks import reward_bench_2
from ..benchmarks.reward_bench import OFFICIAL_COUNTS, PRIOR_SETS, leaderboard_results
from ..evaluation_arguments import SETTINGS, EvaluationArguments
from ..metrics.pairs import PairEvaluation
from ..results import ModelResults
from . import report
from .analysis import write_robustness
from .benchmark_plots import plot_benchmarks, plot_margins, plot_reliability
from .critiques import critique_section


PICTURES = """## Pictures

![headline figures with 95 % intervals](benchmarks.png)

![distribution of reward margins](margins.png)

Margins, here and in the reliability diagram below, are over all pairs of a right and a wrong response of the rows above.
"""

SCORED = """## Settings

Critiques per response: {num_critiques}, temperature {temperature}, at most {max_new_tokens} tokens, seed {seed}. Backend:
{backend}, dtype {dtype}. Over-long rows: {overlong_policy}.
"""


def write_results(name: str, results: ModelResults, shown: dict[str, str], output_dir: Path):
    """A model's scores, and RewardBench's own results files."""
    report.write_scores(results.evaluations, output_dir / file_name("scores", shown[name], "parquet"))
    for temperature, evaluations in results.sampled.items():
        file = file_name("self_consistency", f"{shown[name]}_{temperature:g}", "parquet")
        report.write_scores(evaluations, output_dir / file)
    if altered := [row for found in results.robustness.probes for row in found.table()]:
        parquet.write_table(pa.Table.from_pylist(altered), output_dir / file_name("probes", shown[name], "parquet"))
    if compared := [row for found in results.critiques for row in found.table()]:
        parquet.write_table(
            pa.Table.from_pylist(compared), output_dir / file_name("critiques", shown[name], "parquet")
        )
    for dataset_name, result in results.pairs.items():
        write_pairs(result, output_dir / file_name("scores", f"{shown[name]}_{shown[dataset_name]}", "jsonl"))
    for evaluation in results.evaluations:
        write_leaderboard_files(name, shown[name], evaluation, output_dir)


def write_leaderboard_files(name: str, short_name: str, evaluation: report.Evaluation, output_dir: Path):
    """The results files of RewardBench and RewardBench 2; no other set has any."""
    files: dict[str, Collection[str]] = {}
    if evaluation.scores.benchmark == "RewardBench":
        files = {evaluation.name: OFFICIAL_COUNTS, "reward_bench_prior_sets": PRIOR_SETS}
    elif evaluation.scores.benchmark == "RewardBench 2":
        files = {evaluation.name: reward_bench_2.SUBSETS}
    for kind, subsets in files.items():
        if not evaluation.scores.subsets.keys().isdisjoint(subsets):
            official = leaderboard_results(evaluation.scores, name, subsets)
            path = output_dir / file_name(kind, short_name, "json")
            path.write_text(json.dumps(official, indent=2, allow_nan=False) + "\n")


def write_pairs(result: PairEvaluation, path: Path):
    with path.open("w", encoding="utf8") as file:
        for pair in result.pairs:
            row = {"index": pair.index, "id": pair.id, "group": pair.group}
            for side, score in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                row[f"{side}_reward"] = score.reward
                row[f"{side}_rewards"] = score.rewards
                row[f"{side}_critiques"] = score.critiques
                row[f"{side}_finish_reasons"] = score.finish_reasons
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_report(results: dict[str, ModelResults], args: EvaluationArguments, shown: dict[str, str], output_dir: Path):
    """The report of the models that are done."""
    by_model = {shown[name]: found.evaluations for name, found in results.items()}
    differences = report.compare(by_model)
    best_of_n = {
        shown[dataset]: {shown[name]: found.best_of_n[dataset] for name, found in results.items()}
        for dataset in args.best_of_n
    }
    page = {
        "version": report.VERSION,
        "arguments": asdict(args),
        "results": [
            {"model": name, "dataset": dataset, **result.summary()}
            for name, found in results.items()
            for dataset, result in found.pairs.items()
        ],
        "benchmarks": [
            {"model": name, **evaluation.summary()}
            for name, found in results.items()
            for evaluation in found.evaluations
        ],
        "differences": [found.summary() for found in differences],
        "best_of_n": best_of_n,
        "critique_quality": [
            {"model": name, **part.summary()} for name, found in results.items() for part in found.critiques
        ],
    }
    for name, found in results.items():
        for key, parts in found.robustness.summary(name).items():
            page.setdefault(key, []).extend(parts)
    (output_dir / "report.json").write_text(json.dumps(page, indent=2, allow_nan=False) + "\n")
    lines = ["# Reward models evaluated", "", report.markdown(by_model, differences, best_of_n), ""]
    if margins := margins_of(by_model):
        plot_benchmarks(by_model, output_dir / "benchmarks.png")
        plot_margins(margins, output_dir / "margins.png")
        sampled = {
            f"{shown[name]}, {mean_label(args.self_consistency, temperature)}": evaluations
            for name, found in results.items()
            for temperature, evaluations in found.sampled.items()
        }
        plot_reliability(margins | margins_of(sampled), output_dir / "reliability.png")
        robustness = {shown[name]: found.robustness for name, found in results.items()}
        lines += [PICTURES, *write_robustness(robustness, by_model, output_dir)]
    if args.reference_critiques:
        lines += critique_section({shown[name]: found.critiques for name, found in results.items()})
    lines += [SCORED.format(**{name: getattr(args, name) for name in (*SETTINGS, "overlong_policy")})]
    (output_dir / "report.md").write_text("\n".join(lines), encoding="utf8")


def margins_of(evaluations: dict[str, list[report.Evaluation]]) -> dict[str, list[float]]:
    """The margins of all sets, for each model that has any."""
    margins = {name: [margin for part in parts for margin in part.margins()] for name, parts in evaluations.items()}
    return {name: values for name, values in margins.items() if values}
