"""Files of an evaluation: scores with their critiques, leaderboard results, the report and its pictures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ..analysis import Robustness, mean_label
from ..cascades import CascadeResult
from ..compute import ComputePoint
from ..ensembles import read_ensembles
from ..environment import environment, names_without_folders, opening, rename, spell_command
from ..evaluation_arguments import SETTINGS, EvaluationArguments
from ..fitting import score_columns
from ..formatting import Section, contents, file_name, picture_name, render
from ..judges import JudgeReport, RatingReport
from ..metrics.pairs import PairEvaluation
from ..outcomes import Evaluation, compare
from ..sets import ModelResults
from ..stats import json_safe
from . import plots
from .anytime import anytime_sections, plot_anytime
from .compute import PICTURE, compute_points, compute_sections
from .style import describe_styles
from .tables import (
    critique_section,
    has_measures,
    judge_section,
    probe_picture,
    probe_sections,
    result_sections,
    self_consistency_sections,
    uncertainty_sections,
)


VERSION = 1
BEST_OF_N_VERSION = 2
_SCHEMA = pa.schema(
    {
        "benchmark": pa.string(),
        "row": pa.string(),
        "row_hash": pa.string(),
        "subset": pa.string(),
        "response": pa.int32(),
        "is_chosen": pa.bool_(),
        "reward": pa.float64(),
        "rewards": pa.list_(pa.float64()),
        "critiques": pa.list_(pa.string()),
        "finish_reasons": pa.list_(pa.string()),
    }
)
_PARTIAL = pa.field("partial_rewards", pa.list_(pa.list_(pa.float64())))  # with `read_every` only
_RELIABILITY = "reliability.png"

PICTURES = """\
![headline figures with 95 % intervals](benchmarks.png)

![distribution of reward margins](margins.png)

Here and in the reliability diagram below, margins are those of all pairs of a right and a wrong response to the same prompt."""

SCORED = """\
Critiques per response: {num_critiques} (combined by {combine}), temperature {temperature}, at most {max_new_tokens} tokens, seed {seed}. Backend:
{backend}, dtype {dtype}. Over-long rows: {overlong_policy}."""


ENSEMBLES = """\
Ensembles take the mean or the lowest of their models' rewards, each standardised to mean 0 and deviation 1 over all responses of a set;
they have the rows that all their models scored, and are not probed."""


def write_results(name: str, results: ModelResults, shown: Mapping[str, str], output_dir: Path):
    """Write the scores of a model, and files for leaderboard tools; `shown` are short names of models and sets."""

    def path(kind: str, suffix: str, part: str = "") -> Path:
        return output_dir / file_name(kind, f"{shown[name]}_{part}" if part else shown[name], suffix)

    write_scores(results.evaluations, path("scores", "parquet"))
    for temperature, evaluations in results.sampled.items():
        write_scores(evaluations, path("self_consistency", "parquet", f"{temperature:g}"))
    for kind, parts in (("probes", results.robustness.probes), ("critiques", results.critiques)):
        if rows := [row for found in parts for row in found.table()]:
            parquet.write_table(pa.Table.from_pylist(rows), path(kind, "parquet"))
    for dataset_name, result in results.pairs.items():
        write_pairs(result, path("scores", "jsonl", shown[dataset_name]))
    for evaluation in results.evaluations:
        write_leaderboard_files(shown[name] if Path(name).is_absolute() else name, shown[name], evaluation, output_dir)


def write_scores(evaluations: Sequence[Evaluation], path: Path):
    """Write the scores of all responses, with their critiques, as Parquet."""
    tables = [list(evaluation.table()) for evaluation in evaluations]
    has_partial = any("partial_rewards" in row for table in tables for row in table)
    schema = _SCHEMA.append(_PARTIAL) if has_partial else _SCHEMA
    with parquet.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(pa.Table.from_pylist(table, schema=schema))


def write_pairs(result: PairEvaluation, path: Path):
    """Write the scores of a preference set as JSON lines, one for each pair."""
    rows = []
    for pair in result.pairs:
        row = {"index": pair.index, "id": pair.id, "group": pair.group}
        for side, score in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            row |= {f"{side}_{name}": value for name, value in score_columns(score).items()}
        rows.append(row)
    write_json_lines(rows, path)


def write_leaderboard_files(name: str, short_name: str, evaluation: Evaluation, output_dir: Path):
    """Write the result files of a benchmark that has a format for them."""
    if evaluation.benchmark is None or evaluation.benchmark.result_files is None:
        return
    for kind, content in evaluation.benchmark.result_files(evaluation.scores, name).items():
        # Leaderboards read the files by these names
        write_json(content, output_dir / file_name(kind, short_name, "json"))


def write_json_lines(rows: Iterable[dict[str, Any]], path: Path):
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(page: Mapping[str, Any], path: Path):
    """Write JSON for programs, with `null` for NaN."""
    path.write_text(json.dumps(json_safe(page), indent=2, allow_nan=False) + "\n")


def write_report(
    results: Mapping[str, ModelResults],
    args: EvaluationArguments,
    shown: Mapping[str, str],
    output_dir: Path,
    sets: Sequence[Mapping[str, Any]] = (),
    judged: JudgeReport | RatingReport | None = None,
    cascades: Sequence[CascadeResult] = (),
):
    """
    Write report.json, report.md and its pictures for the finished models; `shown` are short names of models and sets, `sets` come from
    [`~sets.Sets.describe`], `judged` holds the counts of a judge, and `cascades` the results of cascades. Absolute paths are shortened to
    names.
    """
    # Rewritten after each model, so that an interrupted run leaves a report on the finished models
    by_model = {shown[name]: found.evaluations for name, found in results.items()}
    differences = compare(by_model)
    best_of_n = {
        shown[dataset]: {
            shown[name]: found.best_of_n[dataset] for name, found in results.items() if dataset in found.best_of_n
        }
        for dataset in args.best_of_n
    }

    def entries(summaries_of) -> list[dict[str, Any]]:
        return [{"model": name, **entry} for name, found in results.items() for entry in summaries_of(found)]

    ensembles = [one for one in read_ensembles(args.ensembles, args.models) if one.name in results]
    points = compute_points(results, shown, ensembles, cascades, judged)
    names = names_without_folders(args, shown)
    run = rename(environment(args) | {"sets": list(sets)}, names)
    page = {
        "version": VERSION,
        "arguments": asdict(args),
        "environment": run,
        "styles": describe_styles(all_models(args, shown)),
        "results": entries(
            lambda found: ({"dataset": name, **result.summary()} for name, result in found.pairs.items())
        ),
        "benchmarks": entries(lambda found: (evaluation.summary() for evaluation in found.evaluations)),
        "differences": differences,
        "best_of_n": best_of_n,
        **({} if judged is None else {"judge": judged.summary()}),
        **({"cascades": [found.summary() for found in cascades]} if cascades else {}),
        "compute": [point.summary() for point in points],
        "critique_quality": entries(lambda found: (part.summary() for part in found.critiques)),
    }
    for name, found in results.items():
        for key, parts in found.robustness.summary(name).items():
            page.setdefault(key, []).extend(parts)
    write_json(rename(json_safe(page), names), output_dir / "report.json")
    sections = [
        *result_sections(by_model, differences, best_of_n),
        *_picture_sections(results, args, shown, output_dir),
    ]
    if any(point.tokens for point in points):
        sections += compute_sections(points, cascades)
        write_compute(points, cascades, output_dir, all_models(args, shown))
    if judged is not None:
        sections.append(judge_section(judged))
    if args.reference_critiques:
        sections.append(critique_section({shown[name]: found.critiques for name, found in results.items()}))
    settings = SCORED.format(**{name: getattr(args, name) for name in (*SETTINGS, "combine", "overlong_policy")})
    if args.ensembles:
        settings += f"\n\n{ENSEMBLES}"
    sections.append(Section("Settings", settings))
    text = f"{opening(spell_command('evaluate', args, names), run)}\n\n{contents(sections)}"
    text = render([Section("Reward models evaluated", text, level=1), *sections])
    (output_dir / "report.md").write_text(text, encoding="utf8")


def write_compute(
    points: Sequence[ComputePoint], cascades: Sequence[CascadeResult], output_dir: Path, models: Sequence[str]
):
    """Draw accuracy against compute, and write `compute.json` with the seconds, and the fits of cascades."""
    plots.plot_compute(points, output_dir / PICTURE, models)
    measured = [{**point.summary(), "seconds_per_row": point.seconds} for point in points]
    write_json({"version": VERSION, "points": measured}, output_dir / "compute.json")
    for found in cascades:
        found.fit.save(output_dir / file_name(found.name, found.dataset, "json"))


def _picture_sections(
    results: Mapping[str, ModelResults], args: EvaluationArguments, shown: Mapping[str, str], output_dir: Path
) -> list[Section]:
    """Draw the plots of rows with right and wrong responses, if any, and make their sections."""
    by_model = {shown[name]: found.evaluations for name, found in results.items()}
    margins = margins_of(by_model)
    if not margins:
        return []
    models = all_models(args, shown)
    plots.plot_benchmarks(by_model, output_dir / "benchmarks.png", models)
    plots.plot_margins(margins, output_dir / "margins.png", models)
    sampled = {
        f"{shown[name]}, {mean_label(args.self_consistency or 1, temperature)}": evaluations
        for name, found in results.items()
        for temperature, evaluations in found.sampled.items()
    }
    plots.plot_reliability(margins_of(by_model | sampled), output_dir / _RELIABILITY, models)
    robustness = {shown[name]: found.robustness for name, found in results.items()}
    return [Section("Plots", PICTURES), *robustness_sections(robustness, by_model, output_dir, models)]


def all_models(args: EvaluationArguments, shown: Mapping[str, str]) -> list[str]:
    """Return the short names of all models of a run, including unfinished ones, a judge and ensembles."""
    ensembles = [one.name for one in read_ensembles(args.ensembles, args.models)]
    judges = [args.judge_name] if args.judge_base_url else []
    cascades = [one.name for one in args.read_cascades()]
    return [*(shown[name] for name in args.models), *judges, *ensembles, *cascades]


def margins_of(evaluations: Mapping[str, Iterable[Evaluation]]) -> dict[str, dict[str, list[float]]]:
    """Return the margins of each model that has any, by set."""
    margins: dict[str, dict[str, list[float]]] = {}
    for name, parts in evaluations.items():
        for part in parts:
            if values := part.margins():
                margins.setdefault(part.name, {})[name] = values
    return margins


def robustness_sections(
    results: Mapping[str, Robustness],
    evaluations: Mapping[str, list[Evaluation]],
    output_dir: Path,
    models: Sequence[str],
) -> list[Section]:
    """Draw the plots of self-consistency, selective accuracy and probes, and make their sections."""
    names = [evaluation.name for evaluation in next(iter(evaluations.values()))]
    curves, rejections = {}, {}
    for place, name in enumerate(names):
        parts = {
            f"{model}, T = {part.temperature:g}": part
            for model, found in results.items()
            for part in found.self_consistency.get(name, [])
        }
        if parts:
            curves[name] = parts
            as_scored = {model: found[place].row_accuracy().value for model, found in evaluations.items()}
            plots.plot_self_consistency(parts, as_scored, output_dir / picture_name("self_consistency", name), models)
        # With several temperatures, use the mean over critiques at the last one
        last = {model: found.uncertainty[name][-1:] for model, found in results.items()}
        if shown := {f"{model}, {part.critiques}": part for model, parts in last.items() for part in parts}:
            rejections[name] = picture_name("rejection", name)
            plots.plot_rejection(shown, output_dir / rejections[name], models)
    certainties = {name: {model: found.uncertainty[name] for model, found in results.items()} for name in names}
    sections = self_consistency_sections(curves) if curves else []
    sections += _anytime_sections(results, names, output_dir, models)
    sections += uncertainty_sections(certainties, rejections, _RELIABILITY)
    # Ensembles are not probed
    probed = {model: found.probes for model, found in results.items() if found.probes}
    probes = [dict(zip(probed, found, strict=True)) for found in zip(*probed.values(), strict=True)]
    for by_model in probes:
        if has_measures(by_model):
            plots.plot_probe(by_model, output_dir / probe_picture(by_model), models)
    return [*sections, *(probe_sections(probes) if probes else [])]


def _anytime_sections(
    results: Mapping[str, Robustness], names: Sequence[str], output_dir: Path, models: Sequence[str]
) -> list[Section]:
    """Draw the plots of accuracy against tokens read, and make their sections."""
    found = {
        name: {model: part.anytime[name] for model, part in results.items() if name in part.anytime} for name in names
    }
    found = {name: by_model for name, by_model in found.items() if by_model}
    for name, by_model in found.items():
        plot_anytime(by_model, output_dir / picture_name("anytime", name), models)
    return anytime_sections(found) if found else []
