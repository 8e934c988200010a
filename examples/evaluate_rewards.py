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

How near critiques come to those of reference, and how likely the model finds these: --reference_critiques FILES.

Writes report.md with pictures, report.json, RewardBench's own results files for each model (of its second version and of
the prior sets, too), and all scores with their critiques (one Parquet file per model, one JSON-lines file per model and
dataset; what self-consistency and probes scored in Parquet files of their own). Each score is kept in journal_MODEL.jsonl:
the same command goes on where it was killed, and further benchmarks join those that are done.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from trl import TrlParser

from cloud_hf.cards import add_results
from cloud_hf.data.journal import Journal
from cloud_hf.evaluation.analysis import Robustness, assess_self_consistency, assess_uncertainty, probe_rows
from cloud_hf.evaluation.arguments import open_scorer, short_names
from cloud_hf.evaluation.evaluation_arguments import SETTINGS, EvaluationArguments
from cloud_hf.evaluation.journaled_scorer import (
    JournaledScorer,
    batches_by_length,
    default_chunk_size,
    open_score_journal,
)
from cloud_hf.evaluation.outcomes import CritiqueResult, losses_of_sets
from cloud_hf.evaluation.probes import run_probes
from cloud_hf.evaluation.report import headline_table, write_report, write_results
from cloud_hf.evaluation.results import ModelResults, card_results, sample_critiques, summarize
from cloud_hf.evaluation.sets import Sets, load_sets, score_sets


ARGUMENTS = (EvaluationArguments,)


def main(args: EvaluationArguments):
    sets = load_sets(args)
    names = [*args.dataset_name, *args.best_of_n, *args.reference_critiques]
    shown = short_names(args.models) | short_names(names)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    results = {}
    with ExitStack() as stack:
        journals = {
            name: stack.enter_context(open_score_journal("journal", name, shown[name], args, SETTINGS))
            for name in args.models
        }
        for name in args.models:
            results[name] = evaluate(name, args, sets, journals[name], shown)
            write_results(name, results[name], shown, output_dir)
            write_report(results, args, shown, output_dir)
    for name in args.models if args.update_card else ():
        found, card = card_results(results[name].evaluations, sets), Path(name) / "README.md"
        add_results(Path(name), found)
        print(
            f"{len(found)} of {len(results[name].evaluations)} headline figures are in {card}; the others lack rows."
        )
    by_model = {shown[name]: found.evaluations for name, found in results.items()}
    print("", *headline_table(by_model).lines(), f"\nReport in {output_dir}", sep="\n")


def evaluate(
    name: str, args: EvaluationArguments, sets: Sets, journal: Journal, shown: dict[str, str]
) -> ModelResults:
    """Score everything with one model: all sets in one go, then what self-consistency and probes need."""
    with open_scorer(name, args, show_progress=False) as (scorer, critique_format, options):
        limits = {key: options.pop(key) for key in ("context_length", "overlong_policy")}
        fitted = sets.fit(critique_format, max_new_tokens=options["max_new_tokens"], **limits)
        by_length = batches_by_length(args)
        journaled = JournaledScorer(scorer, journal, args.chunk_size or default_chunk_size(args), shown[name])
        # Before scoring, since a row may not fit with its reference critique
        with_references = {key[1]: part for key, part in fitted.items() if key[0] == "critiques"}
        losses = losses_of_sets(scorer, with_references, args.overlong_policy, args.batch_size)
        row_scores = score_sets(journaled, fitted, {key: key[1] for key in fitted}, by_length, options)
        results = summarize(sets, fitted, row_scores, args.group_column, shown)
        critiques = [
            CritiqueResult.of(shown[dataset], part, row_scores["critiques", dataset], losses[dataset])
            for dataset, part in with_references.items()
        ]
        # The other kinds have no right and wrong responses; they come last
        with_sides = {key: part for key, part in fitted.items() if key[0] in ("benchmark", "pairs")}
        sampled = {}
        if args.self_consistency and critique_format.critique:
            sampled = sample_critiques(journaled, results.evaluations, with_sides, by_length, options, args)
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
                sort_by_length=by_length,
                **options,
            ),
        )
    return replace(results, robustness=robustness, sampled=sampled, critiques=critiques)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
