"""
Reward models on benchmarks, on preference pairs, and at best-of-N, with 95 % intervals.

The official sets come from the Hub; files of your own may stand in for them:

python examples/evaluate_rewards.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 \
    --benchmarks reward_bench reward_bench_2 'rm_bench=data/rmbench-*.jsonl.gz' llm_bar=data/llmbar \
    --dataset_name pairs.jsonl other/preference-set --best_of_n gsm8k_bon4.jsonl --overlong_policy truncate_prompt

Benchmarks: reward_bench, reward_bench_with_prior_sets, reward_bench_2, rm_bench, judge_bench_gpt, judge_bench_claude,
llm_bar. Datasets have the columns prompt, chosen, rejected; best-of-N sets prompt, responses, correct. A pair counts as
right when the chosen response has the strictly higher reward; ties are wrong and are reported.

Writes report.md with pictures, report.json, RewardBench's own results file for each model, and all scores with their
critiques (one Parquet file per model, one JSON-lines file per model and dataset). Each score is kept in
journal_MODEL.jsonl: the same command goes on where it was killed, and further benchmarks join those that are done.
"""

import json
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path

from datasets import Dataset
from huggingface_hub import EvalResult
from trl import TrlParser

from cloud_hf.cards import add_results
from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.data.journal import Journal
from cloud_hf.data.model_identity import identify_model
from cloud_hf.data.schemas import PAIR_COLUMNS
from cloud_hf.evaluation import PairEvaluation, report
from cloud_hf.evaluation.arguments import ScoringArguments, load_datasets, open_scorer, short_names
from cloud_hf.evaluation.benchmark_plots import plot_benchmarks, plot_margins, plot_reliability
from cloud_hf.evaluation.benchmarks import LoadedBenchmark, load_benchmarks
from cloud_hf.evaluation.best_of_n import PROBLEM_COLUMNS, candidates, summarize_best_of_n
from cloud_hf.evaluation.journaled_scorer import JournaledScorer
from cloud_hf.evaluation.pairs import FittedRows, fit_rows, pair_responses, score_rows, summarize_pairs
from cloud_hf.evaluation.reward_bench import leaderboard_results


# What scores depend on beside the model; a journal with others is refused
SETTINGS = ("backend", "dtype", "vllm_options", "num_critiques", "temperature", "max_new_tokens", "seed")
# vLLM and servers fill their batches as they go, and run half empty at the end of a chunk
LARGE_CHUNK = 4096
BATCHES_PER_CHUNK = 8


@dataclass(kw_only=True)
class EvaluationArguments(ScoringArguments):
    """
    Arguments of [`ScoringArguments`], of which `dataset_name` may be left out, and

    Parameters:
        benchmarks (`list[str]`, *optional*):
            Benchmarks by name; `NAME=FILES` reads files instead of the official dataset: paths, folders or patterns, with
            commas between them. `limit` takes the first rows of each of their subsets.
        best_of_n (`list[str]`, *optional*):
            Sets with the columns `prompt`, `responses` and `correct`.
        group_column (`str`, *optional*):
            Column of `dataset_name` by whose values accuracy is also reported, such as `subset`.
        chunk_size (`int`, *optional*):
            Responses scored between two writes to the journal: what a killed run loses at most. Defaults to eight batches
            with transformers, else to 4096.
        update_card (`bool`, *optional*, defaults to `False`):
            Put the headline figures into the metadata of the models' cards. Models must be folders, and all rows scored.
    """

    dataset_name: list[str] = field(default_factory=list, metadata={"help": "Preference sets."})
    benchmarks: list[str] = field(default_factory=list, metadata={"help": "Benchmarks: NAME, or NAME=FILES."})
    best_of_n: list[str] = field(default_factory=list, metadata={"help": "Sets with responses and correct."})
    group_column: str | None = field(default=None, metadata={"help": "Column to also report accuracy by."})
    chunk_size: int | None = field(default=None, metadata={"help": "Responses between two writes to the journal."})
    update_card: bool = field(default=False, metadata={"help": "Put the figures into the models' cards."})

    def __post_init__(self):
        super().__post_init__()
        if not (self.dataset_name or self.benchmarks or self.best_of_n):
            raise ValueError("There is nothing to score: give `benchmarks`, `dataset_name` or `best_of_n`.")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"`chunk_size` is {self.chunk_size}; it must be at least 1.")
        if self.update_card and self.limit is not None:
            raise ValueError("`update_card` is for figures over all rows; leave `limit` out.")
        for name in self.models if self.update_card else ():
            if not (Path(name) / "README.md").is_file():
                raise ValueError(f"{name} is no folder with a README.md, so `update_card` has no card to update.")


ARGUMENTS = (EvaluationArguments,)


@dataclass(frozen=True)
class Sets:
    """All that is scored."""

    benchmarks: list[LoadedBenchmark]
    pairs: dict[str, Dataset]
    problems: dict[str, Dataset]


@dataclass(frozen=True)
class ModelResults:
    """What a model reached: on benchmarks and pairs, the older summary of the latter, and at best-of-N."""

    evaluations: list[report.Evaluation]
    pairs: dict[str, PairEvaluation]
    best_of_n: dict[str, dict]


def main(args: EvaluationArguments):
    sets = Sets(
        pairs=load_datasets(args, PAIR_COLUMNS + ((args.group_column,) if args.group_column else ())),
        problems=load_datasets(args, PROBLEM_COLUMNS, args.best_of_n),
        benchmarks=load_benchmarks(args.benchmarks, args.limit),
    )
    shown = short_names(args.models) | short_names([*args.dataset_name, *args.best_of_n])
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    results = {}
    with ExitStack() as stack:
        journals = {name: stack.enter_context(open_journal(name, shown[name], args)) for name in args.models}
        for name in args.models:
            results[name] = evaluate(name, args, sets, journals[name], shown)
            write_results(name, results[name], shown, output_dir)
            write_report(results, args, shown, output_dir)
    for name in args.models if args.update_card else ():
        add_results(Path(name), card_results(results[name].evaluations, sets))
    by_model = {shown[name]: found.evaluations for name, found in results.items()}
    print("", *report.headline_table(by_model), f"\nReport in {output_dir}", sep="\n")


def open_journal(name: str, short_name: str, args: EvaluationArguments) -> Journal:
    """The journal of a model's scores; refused if it is of other settings, or another process writes to it."""
    settings = {
        "model": identify_model(name)["model_version"],
        **{setting: getattr(args, setting) for setting in SETTINGS},
    }
    return Journal(Path(args.output_dir) / file_name("journal", short_name, "jsonl"), settings)


def file_name(kind: str, short_name: str, suffix: str) -> str:
    return f"{kind}_{short_name}.{suffix}".replace("/", "-")


# -------------------------------------------------------------------------------------------------------- scoring


def evaluate(
    name: str, args: EvaluationArguments, sets: Sets, journal: Journal, shown: dict[str, str]
) -> ModelResults:
    """Score everything with one model, in one go."""
    with open_scorer(name, args, show_progress=False) as (scorer, critique_format, options):
        limits = {key: options.pop(key) for key in ("context_length", "overlong_policy")}
        fitted = fit_all(sets, critique_format, max_new_tokens=options["max_new_tokens"], **limits)
        batches_by_length = args.backend == "transformers"
        chunk_size = args.chunk_size or (BATCHES_PER_CHUNK * args.batch_size if batches_by_length else LARGE_CHUNK)
        rows = [row for part in fitted.values() for row in part.rows]
        names = [
            f"{key[1]}, row {row.row.get('id', row.index)!r}, response {place}"
            for key, part in fitted.items()
            for row in part.rows
            for place in range(len(row.responses))
        ]
        lengths = [length for row in rows for length in row.lengths] if batches_by_length else None
        journaled = JournaledScorer(scorer, journal, chunk_size, shown[name])
        scores = iter(score_rows(journaled, rows, names=names, lengths=lengths, **options))
    row_scores = {key: [next(scores) for _ in part.rows] for key, part in fitted.items()}
    return summarize(sets, fitted, row_scores, args.group_column, shown)


def fit_all(sets: Sets, critique_format: CritiqueFormat, **limits) -> dict[tuple[str, str], FittedRows]:
    """The rows of all sets that fit the model's context; an error names the set and the row."""
    parts = [
        (
            ("benchmark", found.name),
            [{"id": row.id, "prompt": row.prompt, "responses": list(row.responses)} for row in found.rows],
            itemgetter("responses"),
        )
        for found in sets.benchmarks
    ]
    parts += [(("pairs", name), rows, pair_responses) for name, rows in sets.pairs.items()]
    parts += [(("problems", name), rows, candidates) for name, rows in sets.problems.items()]
    fitted = {}
    for key, rows, responses_of in parts:
        try:
            fitted[key] = fit_rows(rows, responses_of, critique_format, **limits)
        except ValueError as error:
            raise ValueError(f"{key[1]}: {error}") from error
    return fitted


def summarize(sets: Sets, fitted, row_scores, group_column: str | None, shown: dict[str, str]) -> ModelResults:
    evaluations = []
    for found in sets.benchmarks:
        part, scores = fitted["benchmark", found.name], row_scores["benchmark", found.name]
        rows = [found.rows[row.index] for row in part.rows]
        figures = found.benchmark.score(rows, [[score.reward for score in row] for row in scores])
        title = found.benchmark.title
        evaluations.append(report.Evaluation(found.name, title, figures, rows, scores, part.dropped, part.shortened))
    pairs = {}
    for name in sets.pairs:
        part = fitted["pairs", name]
        pairs[name] = summarize_pairs(part, row_scores["pairs", name], group_column)
        evaluations.append(report.evaluation_of_pairs(shown[name], shown[name], part, pairs[name]))
    best_of_n = {
        name: summarize_best_of_n(fitted["problems", name], row_scores["problems", name]).summary()
        for name in sets.problems
    }
    return ModelResults(evaluations, pairs, best_of_n)


# -------------------------------------------------------------------------------------------------------- writing


def write_results(name: str, results: ModelResults, shown: dict[str, str], output_dir: Path):
    """A model's scores, and RewardBench's own results file."""
    report.write_scores(results.evaluations, output_dir / file_name("scores", shown[name], "parquet"))
    for dataset_name, result in results.pairs.items():
        write_pairs(result, output_dir / file_name("scores", f"{shown[name]}_{shown[dataset_name]}", "jsonl"))
    for evaluation in results.evaluations:
        if evaluation.name.startswith("reward_bench") and evaluation.name != "reward_bench_2":
            official = leaderboard_results(evaluation.scores, name)
            path = output_dir / file_name(evaluation.name, shown[name], "json")
            path.write_text(json.dumps(official, indent=2) + "\n")


def card_results(evaluations: list[report.Evaluation], sets: Sets) -> list[EvalResult]:
    """The headline figures that are given. Those over files say so by the name of their dataset."""
    sources = {found.name: found for found in sets.benchmarks}
    results = []
    for evaluation in evaluations:
        found, headline = sources.get(evaluation.name), evaluation.scores.headline
        if math.isnan(evaluation.scores.value):
            continue
        is_official = found is not None and not found.files
        title = evaluation.title if is_official else f"{evaluation.title} (local files)"
        results.append(
            EvalResult(
                task_type="text-classification",
                task_name="Reward modeling",
                dataset_type=found.benchmark.hub_id if found else evaluation.name,
                dataset_name=title,
                dataset_args={"rows": len(evaluation.rows)},
                metric_type="accuracy",
                metric_name=headline,
                metric_value=evaluation.scores.value,
            )
        )
    return results


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
    }
    (output_dir / "report.json").write_text(json.dumps(page, indent=2, allow_nan=False) + "\n")
    lines = ["# Reward models evaluated", "", report.markdown(by_model, differences, best_of_n), ""]
    if any(by_model.values()):
        margins = {
            name: [margin for evaluation in evaluations for margin in evaluation.margins()]
            for name, evaluations in by_model.items()
        }
        plot_benchmarks(by_model, output_dir / "benchmarks.png")
        plot_margins(margins, output_dir / "margins.png")
        plot_reliability(margins, output_dir / "reliability.png")
        lines += [PICTURES]
    lines += [SCORED.format(**{name: getattr(args, name) for name in (*SETTINGS, "overlong_policy")})]
    (output_dir / "report.md").write_text("\n".join(lines), encoding="utf8")


PICTURES = """## Pictures

![headline figures with 95 % intervals](benchmarks.png)

![distribution of reward margins](margins.png)

![reliability of the rewards as probabilities](reliability.png)

Margins and reliability are over all pairs of a right and a wrong response of the rows above.
"""

SCORED = """## Settings

Critiques per response: {num_critiques}, temperature {temperature}, at most {max_new_tokens} tokens, seed {seed}. Backend:
{backend}, dtype {dtype}. Over-long rows: {overlong_policy}.
"""


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
