"""Evaluation output files: scores with their critiques, leaderboard results, and the report with its pictures."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from ..analysis import mean_label
from ..cascade_results import CascadeResult
from ..context_fitting import score_columns
from ..ensembles import read_ensembles
from ..environment import environment, names_without_folders, opening, rename, spell_command
from ..evaluation_arguments import SETTINGS, EvaluationArguments
from ..formatting import Section, contents, file_name, picture_name, render
from ..generative_judges import JudgeReport, RatingReport
from ..metrics.pairs import PairEvaluation
from ..scored_sets import ModelResults
from ..set_results import Evaluation, compare
from ..stats import json_safe
from . import plots
from .accuracy_by_tokens import anytime_sections, plot_anytime
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
_PARTIAL = pa.field("partial_rewards", pa.list_(pa.list_(pa.float64())))  # only with `read_every`
_RELIABILITY = "reliability.png"

PICTURES = """\
![headline metrics with 95 % intervals](benchmarks.png)

![distribution of reward margins](margins.png)

Here and in the reliability diagram below, margins are those of all pairs of a right and a wrong response to the same prompt."""

SCORED = """\
Critiques per response: {num_critiques} (combined by {combine}), temperature {temperature}, at most {max_new_tokens} tokens, seed {seed}. Backend:
{backend}, dtype {dtype}. Over-long rows: {overlong_policy}."""


ENSEMBLES = """\
An ensemble's reward is the mean or the lowest of its models' rewards, each standardised to mean 0 and standard deviation 1 over all responses
of a set. Ensembles are evaluated on the rows that all their models scored, and are not probed."""


def write_results(name: str, results: ModelResults, shown: Mapping[str, str], output_dir: Path):
    """Write a model's scores, and files for leaderboard tools; `shown` maps models and sets to their short names."""

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
    """Write the result files that leaderboard tools expect, if the benchmark has any."""
    if evaluation.benchmark is None or evaluation.benchmark.result_files is None:
        return
    for kind, content in evaluation.benchmark.result_files(evaluation.scores, name).items():
        # Leaderboard tools expect these file names
        write_json(content, output_dir / file_name(kind, short_name, "json"))


def write_json_lines(rows: Iterable[dict[str, Any]], path: Path):
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(page: Mapping[str, Any], path: Path):
    """Write machine-readable JSON, with `null` for NaN."""
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
    Write report.json, report.md and its pictures for the finished models. `shown` maps models and sets to their short names, `sets`
    comes from [`~scored_sets.Sets.describe`], and `judged` is the report on a judge. Absolute paths are shortened to names.
    """
    # The report is rewritten after each model, so that an interrupted run leaves a report on the finished models
    report = _Report(results, args, shown, output_dir, judged, cascades)
    names = names_without_folders(args, shown)
    run = rename(environment(args) | {"sets": list(sets)}, names)
    write_json(rename(json_safe(report.page(run)), names), output_dir / "report.json")
    sections = report.sections()
    text = f"{opening(spell_command('evaluate', args, names), run, report.left_out)}\n\n{contents(sections)}"
    text = render([Section("Reward models evaluated", text, level=1), *sections])
    (output_dir / "report.md").write_text(text, encoding="utf8")


@dataclass
class _Report:
    """The finished models of a run; the fields are the arguments of [`write_report`]."""

    results: Mapping[str, ModelResults]
    args: EvaluationArguments
    shown: Mapping[str, str]
    output_dir: Path
    judged: JudgeReport | RatingReport | None
    cascades: Sequence[CascadeResult]

    def __post_init__(self):
        args, shown = self.args, self.shown
        self.by_model = {shown[name]: found for name, found in self.results.items()}
        self.evaluations = {model: found.evaluations for model, found in self.by_model.items()}
        self.robustness = {model: found.robustness for model, found in self.by_model.items()}
        self.differences = compare(self.evaluations)
        self.best_of_n = {
            shown[name]: {
                model: found.best_of_n[name] for model, found in self.by_model.items() if name in found.best_of_n
            }
            for name in args.best_of_n
        }
        ensembles = read_ensembles(args.ensembles, args.models)
        finished = [one for one in ensembles if one.name in self.results]
        self.points = compute_points(self.results, shown, finished, self.cascades, self.judged)
        # All models of the run, including unfinished ones, so that a model keeps its style in all versions of the report
        judges = [args.judge_name] if args.judge_base_url else []
        combined = [one.name for one in (*ensembles, *args.read_cascades())]
        self.models = [*(shown[name] for name in args.models), *judges, *combined]

    def page(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of report.json; `run` is the [`~environment.environment`]."""

        def entries(summaries_of: Callable[[ModelResults], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
            return [{"model": name, **entry} for name, found in self.results.items() for entry in summaries_of(found)]

        page = {
            "version": VERSION,
            "arguments": asdict(self.args),
            "environment": run,
            "styles": describe_styles(self.models),
            "results": entries(
                lambda found: ({"dataset": name, **result.summary()} for name, result in found.pairs.items())
            ),
            "benchmarks": entries(lambda found: (evaluation.summary() for evaluation in found.evaluations)),
            "differences": self.differences,
            "best_of_n": self.best_of_n,
            **({} if self.judged is None else {"judge": self.judged.summary()}),
            **({"cascades": [found.summary() for found in self.cascades]} if self.cascades else {}),
            "compute": [point.summary() for point in self.points],
            "critique_quality": entries(lambda found: (part.summary() for part in found.critiques)),
        }
        for name, found in self.results.items():
            for key, parts in found.robustness.summary(name).items():
                page.setdefault(key, []).extend(parts)
        return page

    @property
    def left_out(self) -> bool:
        """Whether a finished model left out rows."""
        parts = [part for found in self.by_model.values() for part in (*found.evaluations, *found.critiques)]
        problems = [part for by_model in self.best_of_n.values() for part in by_model.values()]
        return any(part.dropped or part.bad for part in parts) or any(
            part["dropped"] or part["bad"] for part in problems
        )

    # ------------------------------------------------------------------------------------------ report.md and its plots

    def sections(self) -> list[Section]:
        """Draw all plots, and return the sections of report.md."""
        sections = [*result_sections(self.evaluations, self.differences, self.best_of_n), *self._analysis()]
        if any(point.tokens for point in self.points):
            sections += compute_sections(self.points, self.cascades)
            self._write_compute()
        if self.judged is not None:
            sections.append(judge_section(self.judged))
        if self.args.reference_critiques:
            sections.append(critique_section({model: found.critiques for model, found in self.by_model.items()}))
        values = {name: getattr(self.args, name) for name in (*SETTINGS, "combine", "overlong_policy")}
        settings = SCORED.format(**values) + (f"\n\n{ENSEMBLES}" if self.args.ensembles else "")
        return [*sections, Section("Settings", settings)]

    def _write_compute(self):
        """Plot accuracy against compute, write `compute.json` (including the seconds), and write each cascade's fit to a file."""
        plots.plot_compute(self.points, self.output_dir / PICTURE, self.models)
        measured = [{**point.summary(), "seconds_per_row": point.seconds} for point in self.points]
        write_json({"version": VERSION, "points": measured}, self.output_dir / "compute.json")
        for found in self.cascades:
            found.fit.save(self.output_dir / file_name(found.name, found.dataset, "json"))

    def _analysis(self) -> list[Section]:
        """Return the sections about rows with right and wrong responses, or no sections if there are no such rows."""
        margins = margins_of(self.evaluations)
        if not margins:
            return []
        plots.plot_benchmarks(self.evaluations, self.output_dir / "benchmarks.png", self.models)
        plots.plot_margins(margins, self.output_dir / "margins.png", self.models)
        sampled = {
            f"{model}, {mean_label(self.args.self_consistency or 1, temperature)}": evaluations
            for model, found in self.by_model.items()
            for temperature, evaluations in found.sampled.items()
        }
        plots.plot_reliability(margins_of(self.evaluations | sampled), self.output_dir / _RELIABILITY, self.models)
        names = [evaluation.name for evaluation in next(iter(self.evaluations.values()))]
        sections = [*self._self_consistency(names), *self._anytime(names), *self._uncertainty(names), *self._probes()]
        return [Section("Plots", PICTURES), *sections]

    def _self_consistency(self, names: Sequence[str]) -> list[Section]:
        curves = {}
        for place, name in enumerate(names):
            parts = {
                f"{model}, T = {part.temperature:g}": part
                for model, found in self.robustness.items()
                for part in found.self_consistency.get(name, [])
            }
            if parts:
                curves[name] = parts
                as_scored = {model: found[place].row_accuracy().value for model, found in self.evaluations.items()}
                picture = self.output_dir / picture_name("self_consistency", name)
                plots.plot_self_consistency(parts, as_scored, picture, self.models)
        return self_consistency_sections(curves) if curves else []

    def _anytime(self, names: Sequence[str]) -> list[Section]:
        results = {}
        for name in names:
            parts = {model: part.anytime[name] for model, part in self.robustness.items() if name in part.anytime}
            if parts:
                results[name] = parts
                plot_anytime(parts, self.output_dir / picture_name("anytime", name), self.models)
        return anytime_sections(results) if results else []

    def _uncertainty(self, names: Sequence[str]) -> list[Section]:
        pictures = {}
        for name in names:
            # With several temperatures, plot the mean over the critiques sampled at the last temperature
            last = {model: found.uncertainty[name][-1:] for model, found in self.robustness.items()}
            if parts := {f"{model}, {part.critiques}": part for model, parts in last.items() for part in parts}:
                pictures[name] = picture_name("rejection", name)
                plots.plot_rejection(parts, self.output_dir / pictures[name], self.models)
        found = {name: {model: part.uncertainty[name] for model, part in self.robustness.items()} for name in names}
        return uncertainty_sections(found, pictures, _RELIABILITY)

    def _probes(self) -> list[Section]:
        # Judges, ensembles and cascades are not probed
        probed = {model: found.probes for model, found in self.robustness.items() if found.probes}
        probes = [dict(zip(probed, found, strict=True)) for found in zip(*probed.values(), strict=True)]
        for by_model in probes:
            if has_measures(by_model):
                plots.plot_probe(by_model, self.output_dir / probe_picture(by_model), self.models)
        return probe_sections(probes) if probes else []


def margins_of(evaluations: Mapping[str, Iterable[Evaluation]]) -> dict[str, dict[str, list[float]]]:
    """Return margins by set and model, leaving out models that have none."""
    margins: dict[str, dict[str, list[float]]] = {}
    for name, parts in evaluations.items():
        for part in parts:
            if values := part.margins():
                margins.setdefault(part.name, {})[name] = values
    return margins
