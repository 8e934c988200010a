"""Evaluate reward models on benchmarks, preference pairs and best-of-N, and analyse their failures."""

from contextlib import ExitStack
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

from ..card_results import add_results
from ..data.journal import Journal
from ..evaluation.analysis import Robustness, assess_anytime, assess_self_consistency, assess_uncertainty, probe_rows
from ..evaluation.cascade_results import check_rows
from ..evaluation.compute import costs_of
from ..evaluation.ensembles import check_model_names, read_ensembles
from ..evaluation.evaluation_arguments import SETTINGS, EvaluationArguments
from ..evaluation.formatting import file_name
from ..evaluation.journaled_scorer import JournaledScorer, open_score_journal
from ..evaluation.probes import run_probes
from ..evaluation.report import headline_table, write_report, write_results
from ..evaluation.report.comparison import write_comparison
from ..evaluation.scored_sets import (
    ModelResults,
    Sets,
    card_results,
    check_all_scored,
    load_sets,
    sample_critiques,
    score_sets,
    summarize,
    summarize_cascade,
    summarize_ensemble,
    summarize_judge,
)
from ..evaluation.scoring_arguments import open_scorer, short_names
from ..evaluation.set_results import CritiqueResult, losses_of_sets


ARGUMENTS = (EvaluationArguments,)


def main(args: EvaluationArguments):
    if args.compare:
        write_comparison(args.compare, args.output_dir)
        return
    sets = load_sets(args)
    shown = short_names(args.models) | sets.shown
    check_file_names(shown, args)
    described = sets.describe()
    if args.cascade:
        check_rows({part["name"]: part["rows"] for part in described if part["kind"] != "critiques"})
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    results: dict[str, ModelResults] = {}

    def keep(name: str, found: ModelResults):
        shown.setdefault(name, name)
        results[name] = found
        write_results(name, found, shown, output_dir)

    # Judge first, because a judge's errors appear within seconds, whereas loading a model takes minutes
    judge = summarize_judge(sets, args, output_dir / "judgements") if args.judge_base_url else None
    with ExitStack() as stack:
        journals = {
            name: stack.enter_context(open_score_journal("journal", name, shown[name], args, SETTINGS))
            for name in args.models
        }
        for name in args.models:
            keep(name, evaluate(name, args, sets, journals[name], shown))
            write_report(results, args, shown, output_dir, described)
    judged, cascades = None, []
    if judge is not None:
        judge_results, judged = judge
        keep(args.judge_name, judge_results)
    members = {shown[name]: found for name, found in results.items()}
    for ensemble in read_ensembles(args.ensembles, args.models):
        keep(ensemble.name, summarize_ensemble(ensemble, members, sets))
    for cascade in args.read_cascades():
        cascade_results, found = summarize_cascade(cascade, members, sets)
        keep(cascade.name, cascade_results)
        cascades += found
    if args.ensembles or args.cascade or judged:
        write_report(results, args, shown, output_dir, described, judged, cascades)
    if args.update_card:
        update_cards(args, sets, results)
    by_model = {shown[name]: found.evaluations for name, found in results.items()}
    print("", *headline_table(by_model).lines(), "", sep="\n")
    models = " ".join(args.models)
    print(
        f"Wrote report.md and report.json to {output_dir}. Next: cloud-hf best-of-n --models {models} --dataset_name CANDIDATES "
        f"--output_dir {output_dir}"
    )


def update_cards(args: EvaluationArguments, sets: Sets, results: dict[str, ModelResults]):
    """Add the models' headline metrics to their cards, with the settings on which they depend."""
    settings = {key: getattr(args, key) for key in ("num_critiques", "temperature", "max_new_tokens")}
    # Leave these out at their defaults, so that a rerun replaces the results of earlier releases, which did not record them
    others = ("combine", *SETTINGS, "read_every", "stop_when_stable", "overlong_policy", "label_weights")
    defaults = {option.name: option.default for option in fields(args)}
    settings |= {key: value for key in others if (value := getattr(args, key)) != defaults[key]}
    for name in args.models:
        evaluations = results[name].evaluations
        found = card_results(evaluations, sets, settings, args.dataset_test_split)
        add_results(Path(name), found)
        card = Path(name) / "README.md"
        print(f"Wrote {len(found)} of {len(evaluations)} headline metrics to {card}; the other sets had too few rows.")


def check_file_names(shown: dict[str, str], args: EvaluationArguments):
    """
    Raise `ValueError` if a model has the name of the judge, an ensemble or a cascade, or if two combinations of model and preference set
    would write their scores to the same file.
    """
    combined = [args.judge_name] if args.judge_base_url else []
    combined += [one.name for one in (*read_ensembles(args.ensembles, args.models), *args.read_cascades())]
    check_model_names(args.models, combined)
    pairs: dict[str, tuple[str, str]] = {}
    for name, dataset in product([*args.models, *combined], args.dataset_name):
        file = file_name("scores", f"{shown.get(name, name)}_{shown[dataset]}", "jsonl")
        if (other := pairs.setdefault(file, (name, dataset))) != (name, dataset):
            raise ValueError(
                f"The scores of {name} on {dataset} and of {other[0]} on {other[1]} would both be written to {file}. Rename a "
                "model or a dataset."
            )


def evaluate(
    name: str, args: EvaluationArguments, sets: Sets, journal: Journal, shown: dict[str, str]
) -> ModelResults:
    """Score all datasets with one model, then run self-consistency and probes."""
    with open_scorer(name, args, show_progress=False) as (scorer, critique_format, limits, options):
        fitted = sets.fit(critique_format, **limits)
        if args.update_card:
            check_all_scored({key: (part.dropped, part.bad) for key, part in fitted.items()})
        combination = args.combine if critique_format.critique else "mean"
        journaled = JournaledScorer.of(scorer, journal, shown[name], args, args.chunk_size)
        # Computed before scoring, so that a row that is too long with its reference critique fails early
        with_references = {key[1]: part for key, part in fitted.items() if key[0] == "critiques"}
        losses = losses_of_sets(scorer, with_references, args.overlong_policy, args.batch_size)
        row_scores = score_sets(journaled, fitted, options, combine=combination)
        results = summarize(sets, {key: (part, row_scores[key]) for key, part in fitted.items()})
        costs = costs_of(row_scores, critique_format, options["max_new_tokens"], journaled.seconds)
        critiques = [
            CritiqueResult.of(shown[dataset], part, row_scores["critiques", dataset], losses[dataset])
            for dataset, part in with_references.items()
        ]
        # Only these sets have chosen and rejected responses
        with_sides = {key: part for key, part in fitted.items() if key[0] in ("benchmark", "pairs")}
        sampled, sampled_costs = {}, {}
        if args.self_consistency and critique_format.critique:
            evaluations = results.evaluations
            sampled, sampled_costs = sample_critiques(
                journaled, evaluations, with_sides, options, args, critique_format
            )
        anytime = {}
        if critique_format.critique and args.read_every is not None:
            anytime = assess_anytime(results.evaluations, critique_format, args.read_every, combination)
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
                sort_by_length=journaled.sort_by_length,
                combine=combination,
                **options,
            ),
            anytime,
        )
    return replace(
        results, robustness=robustness, sampled=sampled, critiques=critiques, costs=costs, sampled_costs=sampled_costs
    )
