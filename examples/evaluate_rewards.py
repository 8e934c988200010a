"""
Reward models on benchmarks, on preference pairs, and at best-of-N, and how they fail, with 95 % intervals.

The official sets come from the Hub; files of your own may stand in for them:

python examples/evaluate_rewards.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 \
    --benchmarks reward_bench reward_bench_2 'rm_bench=data/rmbench-*.jsonl.gz' llm_bar=data/llmbar \
    --dataset_name pairs.jsonl other/preference-set --best_of_n gsm8k_bon4.jsonl --overlong_policy truncate_prompt

Benchmarks: reward_bench, reward_bench_with_prior_sets, reward_bench_2, rm_bench, judge_bench_gpt, judge_bench_claude,
llm_bar. Datasets have the columns prompt, chosen, rejected; best-of-N sets prompt, responses, correct. A pair counts as
right when the chosen response has the strictly higher reward; ties are wrong and are reported.

How accuracy grows with the critiques that are averaged, and how each model is fooled, on the same rows:

python examples/evaluate_rewards.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 \
    --dataset_name pairs.jsonl --self_consistency 16 --self_consistency_temperatures 0.5 1.0 --probes all

Probes: length, style, special_tokens, forged_critiques, trivial_answers, empty_and_refusals, paraphrases, batch.

Writes report.md with pictures, report.json, RewardBench's own results file for each model, and all scores with their
critiques (one Parquet file per model, one JSON-lines file per model and dataset; what self-consistency and probes scored
in Parquet files of their own). Each score is kept in
journal_MODEL.jsonl: the same command goes on where it was killed, and further benchmarks join those that are done.
"""

import json
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from huggingface_hub import EvalResult
from pyarrow import parquet
from trl import TrlParser

from cloud_hf.cards import add_results
from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.data.journal import Journal
from cloud_hf.data.model_identity import identify_model
from cloud_hf.data.schemas import PAIR_COLUMNS, row_name
from cloud_hf.evaluation import PairEvaluation, report
from cloud_hf.evaluation.arguments import ScoringArguments, load_datasets, open_scorer, short_names
from cloud_hf.evaluation.benchmark_plots import plot_benchmarks, plot_margins, plot_reliability
from cloud_hf.evaluation.benchmarks import LoadedBenchmark, load_benchmarks
from cloud_hf.evaluation.best_of_n import PROBLEM_COLUMNS, candidates, summarize_best_of_n
from cloud_hf.evaluation.journaled_scorer import JournaledScorer
from cloud_hf.evaluation.pairs import FittedRows, fit_rows, pair_responses, score_rows, summarize_pairs
from cloud_hf.evaluation.probes import check_probes, read_paraphrases, run_probes
from cloud_hf.evaluation.reward_bench import leaderboard_results
from cloud_hf.evaluation.robustness import (
    Robustness,
    assess_self_consistency,
    assess_uncertainty,
    mean_label,
    probe_rows,
    read_length,
)
from cloud_hf.evaluation.robustness_report import write_robustness
from cloud_hf.loading import read_model_config
from cloud_hf.scoring import Score


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
        self_consistency (`int`, *optional*):
            Sample so many critiques of each response, and report accuracy for 1, 2, … of them. Classic models have none.
        self_consistency_temperatures (`list[float]`, *optional*):
            Temperatures to sample them at, each by itself. Defaults to `temperature`.
        length_column (`str`, *optional*):
            Column of `dataset_name` with a number by which self-consistency is split: how long the reasoning is that a row needs.
            Without, and on benchmarks, it is split by the length of the sampled critiques in tokens.
        probes (`list[str]`, *optional*):
            Probes by name, or `all`.
        probe_rows (`int`, *optional*, defaults to `200`):
            Rows of each set that probes alter at most, drawn with `seed`.
        paraphrase_column (`str`, *optional*):
            Column of `dataset_name` with other wordings of the prompt's last user message: text, a list, or nothing.
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
    self_consistency: int | None = field(default=None, metadata={"help": "Critiques to sample for self-consistency."})
    self_consistency_temperatures: list[float] = field(
        default_factory=list, metadata={"help": "Temperatures of these critiques; by default `temperature`."}
    )
    length_column: str | None = field(default=None, metadata={"help": "Column by which self-consistency is split."})
    probes: list[str] = field(default_factory=list, metadata={"help": "Probes by name, or all."})
    probe_rows: int = field(default=200, metadata={"help": "Rows of each set that probes alter at most."})
    paraphrase_column: str | None = field(default=None, metadata={"help": "Column with other wordings of the prompt."})
    chunk_size: int | None = field(default=None, metadata={"help": "Responses between two writes to the journal."})
    update_card: bool = field(default=False, metadata={"help": "Put the figures into the models' cards."})

    def __post_init__(self):
        super().__post_init__()
        if not (self.dataset_name or self.benchmarks or self.best_of_n):
            raise ValueError("There is nothing to score: give `benchmarks`, `dataset_name` or `best_of_n`.")
        self.probes = check_probes(self.probes)
        self._check_robustness()
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"`chunk_size` is {self.chunk_size}; it must be at least 1.")
        if self.update_card and self.limit is not None:
            raise ValueError("`update_card` is for figures over all rows; leave `limit` out.")
        for name in self.models if self.update_card else ():
            if not (Path(name) / "README.md").is_file():
                raise ValueError(f"{name} is no folder with a README.md, so `update_card` has no card to update.")

    def _check_robustness(self):
        if (self.self_consistency or self.probes) and not (self.dataset_name or self.benchmarks):
            raise ValueError("`self_consistency` and `probes` are for rows with right and wrong responses: give some.")
        if self.probe_rows < 1:
            raise ValueError(f"`probe_rows` is {self.probe_rows}; it must be at least 1.")
        for name, needs in (
            ("length_column", "self_consistency"),
            ("self_consistency_temperatures", "self_consistency"),
        ):
            if getattr(self, name) and getattr(self, needs) is None:
                raise ValueError(f"`{name}` is for `{needs}`: give that too.")
        if self.paraphrase_column and "paraphrases" not in self.probes:
            raise ValueError("`paraphrase_column` is for the probe 'paraphrases': name it in `probes`.")
        for name in ("length_column", "paraphrase_column"):
            if getattr(self, name) and not self.dataset_name:
                raise ValueError(f"`{name}` is a column of `dataset_name`: give that too.")
        if self.self_consistency is None:
            return
        if self.self_consistency < 2:
            raise ValueError(f"`self_consistency` is {self.self_consistency}; it must be at least 2.")
        self.self_consistency_temperatures = self.self_consistency_temperatures or [self.temperature]
        for temperature in self.self_consistency_temperatures:
            if not 0 < temperature < math.inf:
                raise ValueError(
                    f"Self-consistency cannot sample at temperature {temperature}: greedy critiques are all the same. Give "
                    "`self_consistency_temperatures` above 0."
                )
        if not any(read_model_config(name).critique for name in self.models):
            raise ValueError("`self_consistency` is for CLoud models; none of `models` writes critiques.")


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
    robustness: Robustness = field(default_factory=lambda: Robustness({}))
    sampled: dict[float, list[report.Evaluation]] = field(default_factory=dict)


def main(args: EvaluationArguments):
    columns = [name for name in (args.group_column, args.length_column, args.paraphrase_column) if name]
    sets = Sets(
        pairs=load_datasets(args, (*PAIR_COLUMNS, *columns)),
        problems=load_datasets(args, PROBLEM_COLUMNS, args.best_of_n),
        benchmarks=load_benchmarks(args.benchmarks, args.limit),
    )
    check_columns_of_robustness(sets.pairs, args)
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


def check_columns_of_robustness(datasets: dict[str, Dataset], args: EvaluationArguments):
    """Read the columns that are needed only after scoring, so that a bad value is found before."""
    for name, rows in datasets.items():
        for index, row in enumerate(rows):
            try:
                if args.length_column:
                    read_length(row, args.length_column)
                if args.paraphrase_column:
                    read_paraphrases(row[args.paraphrase_column])
            except ValueError as error:
                raise ValueError(f"{name}, {row_name(index, row)}: {error}") from error


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
    """Score everything with one model: all sets in one go, then what self-consistency and probes need."""
    with open_scorer(name, args, show_progress=False) as (scorer, critique_format, options):
        limits = {key: options.pop(key) for key in ("context_length", "overlong_policy")}
        fitted = fit_all(sets, critique_format, max_new_tokens=options["max_new_tokens"], **limits)
        batches_by_length = args.backend == "transformers"
        chunk_size = args.chunk_size or (BATCHES_PER_CHUNK * args.batch_size if batches_by_length else LARGE_CHUNK)
        journaled = JournaledScorer(scorer, journal, chunk_size, shown[name])
        row_scores = score_sets(journaled, fitted, batches_by_length, options)
        results = summarize(sets, fitted, row_scores, args.group_column, shown)
        # Best-of-N sets have no right and wrong responses; they come last
        with_sides = {key: part for key, part in fitted.items() if key[0] != "problems"}
        sampled = {}
        if args.self_consistency and critique_format.critique:
            sampled = sample_critiques(journaled, results.evaluations, with_sides, batches_by_length, options, args)
        parts = list(with_sides.values())
        robustness = Robustness(
            assess_uncertainty(results.evaluations, sampled),
            assess_self_consistency(sampled, parts, critique_format, args.length_column, args.seed),
            run_probes(
                args.probes,
                probe_rows(results.evaluations, parts, args.paraphrase_column),
                args.probe_rows,
                replace(journaled, title=f"{shown[name]}, probes"),
                critique_format,
                context_length=limits["context_length"],
                batch_size=args.batch_size,
                draw_seed=args.seed,
                sort_by_length=batches_by_length,
                **options,
            ),
        )
    return replace(results, robustness=robustness, sampled=sampled)


def sample_critiques(
    journaled: JournaledScorer,
    evaluations: list[report.Evaluation],
    fitted: dict[tuple[str, str], FittedRows],
    batches_by_length: bool,
    options: dict,
    args: EvaluationArguments,
) -> dict[float, list[report.Evaluation]]:
    """For each temperature the evaluations with the scores of self-consistency."""
    count, sampled = args.self_consistency, {}
    for temperature in args.self_consistency_temperatures:
        title = f"{journaled.title}, {count} critiques at {temperature:g}"
        sampler = replace(journaled, title=title, chunk_size=max(1, journaled.chunk_size // count))
        sampling = {**options, "num_critiques": count, "temperature": temperature}
        scores = score_sets(sampler, fitted, batches_by_length, sampling)
        sampled[temperature] = [
            replace(evaluation, row_scores=scores[key]) for evaluation, key in zip(evaluations, fitted, strict=True)
        ]
    return sampled


def score_sets(
    journaled: JournaledScorer, fitted: dict[tuple[str, str], FittedRows], batches_by_length: bool, options: dict
) -> dict[tuple[str, str], list[list[Score]]]:
    """For each set the scores of its rows' responses, all sets in one go."""
    rows = [row for part in fitted.values() for row in part.rows]
    names = [
        f"{key[1]}, row {row.row.get('id', row.index)!r}, response {place}"
        for key, part in fitted.items()
        for row in part.rows
        for place in range(len(row.responses))
    ]
    lengths = [length for row in rows for length in row.lengths] if batches_by_length else None
    scores = iter(score_rows(journaled, rows, names=names, lengths=lengths, **options))
    return {key: [next(scores) for _ in part.rows] for key, part in fitted.items()}


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
    for temperature, evaluations in results.sampled.items():
        file = file_name("self_consistency", f"{shown[name]}_{temperature:g}", "parquet")
        report.write_scores(evaluations, output_dir / file)
    if altered := [row for found in results.robustness.probes for row in found.table()]:
        parquet.write_table(pa.Table.from_pylist(altered), output_dir / file_name("probes", shown[name], "parquet"))
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
    lines += [SCORED.format(**{name: getattr(args, name) for name in (*SETTINGS, "overlong_policy")})]
    (output_dir / "report.md").write_text("\n".join(lines), encoding="utf8")


def margins_of(evaluations: dict[str, list[report.Evaluation]]) -> dict[str, list[float]]:
    """The margins of all sets, for each model that has any."""
    margins = {name: [margin for part in parts for margin in part.margins()] for name, parts in evaluations.items()}
    return {name: values for name, values in margins.items() if values}


PICTURES = """## Pictures

![headline figures with 95 % intervals](benchmarks.png)

![distribution of reward margins](margins.png)

Margins, here and in the reliability diagram below, are over all pairs of a right and a wrong response of the rows above.
"""

SCORED = """## Settings

Critiques per response: {num_critiques}, temperature {temperature}, at most {max_new_tokens} tokens, seed {seed}. Backend:
{backend}, dtype {dtype}. Over-long rows: {overlong_policy}.
"""


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
