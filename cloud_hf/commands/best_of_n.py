"""Choose among candidates with reward models, and measure the quality of the choices for each number of candidates."""

from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..argument_help import check_bounds, documented
from ..configuration_cloud import CLoudConfig
from ..critique_format import CritiqueFormat
from ..evaluation.arena_hard.arguments import Arena, ArenaHardArguments, gather_candidates, load_arena
from ..evaluation.arena_hard.judge import Judged, judge_candidates
from ..evaluation.candidates import ScoredSet, SetResult, SetScores, arena_results, places_to_judge, replay_result
from ..evaluation.compute import token_counts
from ..evaluation.context_fitting import fit_rows
from ..evaluation.ensembles import Ensemble, check_model_names, read_ensembles
from ..evaluation.environment import describe_set, environment, names_without_folders, opening, rename, spell_command
from ..evaluation.formatting import contents, file_name, picture_name
from ..evaluation.halving_results import HalvingResult, compare_halving, read_halvings
from ..evaluation.journaled_scorer import JournaledScorer, open_score_journal
from ..evaluation.metrics.best_of_n import Problem, load_problems
from ..evaluation.report import Section, best_of_n_section, render
from ..evaluation.report.compute import halving_section
from ..evaluation.report.files import BEST_OF_N_VERSION, write_json, write_json_lines
from ..evaluation.report.plots import plot_curves
from ..evaluation.report.style import describe_styles
from ..evaluation.scored_sets import score_sets
from ..evaluation.scoring_arguments import ScoringArguments, load_datasets, open_scorer, short_names
from ..evaluation.stats import json_safe


# Arguments, other than the model, that affect scores; the journal's keys cover the chat and the sampling options
SETTINGS = ("backend", "dtype", "vllm_options")
ARENA_HARD = "ArenaHard"


@documented
@dataclass(kw_only=True)
class BestOfNArguments(ArenaHardArguments, ScoringArguments):
    """
    Candidates and best-of-N curves. Extends [`ScoringArguments`] and [`ArenaHardArguments`].

    Parameters:
        dataset_name (`list[str]`, *optional*):
            Sets of candidates with known quality: Hub ids, JSONL or Parquet files, or `save_to_disk` folders.
        largest_n (`int`, *optional*, defaults to `16`):
            Largest N to measure; must be 1 if `combine` is `vote`. A set's curves end earlier if any of its problems has fewer candidates.
        num_seeds (`int`, *optional*, defaults to `1`):
            Number of seeds to score with, starting at `seed`. Several seeds give a standard error over sampled critiques, and
            need a `temperature` above 0. Classic models score only once.
        halving (`list[str]`, *optional*):
            Also choose by successive halving, which writes further critiques only for the remaining contenders, and compare it
            with scoring all candidates. Each value is a model that writes several critiques, or `CHEAP,MODEL`, where the cheap model
            first drops half of the candidates. Not available on ArenaHard.
    """

    dataset_name: list[str] = field(default_factory=list)
    largest_n: int = 16
    num_seeds: int = 1
    halving: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        if not (self.dataset_name or self.arena_hard):
            raise ValueError("There are no candidates to choose from: set `dataset_name` or `arena_hard`.")
        check_bounds(self, largest_n=1, num_seeds=1)
        if self.num_seeds > 1 and not self.temperature > 0:
            raise ValueError(
                "`num_seeds` needs a `temperature` above 0: greedy critiques are identical for all seeds."
            )
        check_model_names(self.models, [one.name for one in read_ensembles(self.ensembles, self.models)])
        self.check_arena_hard()
        self.check_means("halving")
        if self.combine == "vote" and self.largest_n > 1:
            raise ValueError(
                f"`combine` 'vote' compares each candidate with all others, so it cannot measure choices among only N of them, but `largest_n` "
                f'is {self.largest_n}: set it to 1 and read the column "all", or choose another combination.'
            )
        for one in read_halvings(self.halving, self.models, self.num_critiques):
            [name] = [name for name, short in short_names(self.models).items() if short == one.model]
            config = self.read_config(name)
            if not (isinstance(config, CLoudConfig) and config.critique):
                raise ValueError(f"`halving` needs critiques, but {one.model} writes none: name a CLoud model last.")
        if self.halving and not self.dataset_name:
            raise ValueError("`halving` is measured on candidates of known quality: set `dataset_name`.")


ARGUMENTS = (BestOfNArguments,)


def main(args: BestOfNArguments):
    rows = load_datasets(args, ())  # also checks the models
    sets = {
        name: load_problems(name, args.dataset_test_split, args.dataset_config, args.limit, bad_rows=args.bad_rows)
        for name in args.dataset_name
    }
    arena = load_arena(args, args.limit, args.seed) if args.arena_hard else None
    output_dir, counts = Path(args.output_dir), {}
    output_dir.mkdir(parents=True, exist_ok=True)
    if arena is not None:
        folder = output_dir / "arena_hard_candidates"
        sets[ARENA_HARD], counts = gather_candidates(args, arena, args.seed, folder)
    bad = {name: len(rows[name]) - len(sets[name]) for name in args.dataset_name}
    scored, formats = score_all(sets, bad, args)
    halvings = compare_halvings([scored[name] for name in args.dataset_name], formats, args)
    results = [replay_result(scored[name], args.largest_n) for name in args.dataset_name]
    judged, unjudged = None, []
    if arena is not None and arena.judging is not None:
        judged = judge(scored[ARENA_HARD], arena, args, output_dir / "arena_hard_judgements")
        counts |= judged.counts | {"failed": counts["failed"] + judged.counts["failed"]}
        notes = arena_notes(counts, args)
        by_category, unjudged = arena_results(
            scored[ARENA_HARD], arena.questions, judged, args.largest_n, args.judge_all, notes
        )
        results += by_category
    shown = short_names(args.models)
    names = names_without_folders(args, shown | short_names(args.dataset_name))
    for name in (*shown.values(), *(one.name for one in read_ensembles(args.ensembles, args.models))):
        selected = []
        for found in scored.values():
            selected += found.selected(name, judged if found.name == ARENA_HARD else None)
        write_json_lines(rename(selected, names), output_dir / file_name("selected", name, "jsonl"))
    described = [describe_set("problems", name, problems) for name, problems in sets.items()]
    left_out = any(found.left_out or found.bad for found in scored.values())
    write_report(results, unjudged, counts, args, output_dir, described, halvings, left_out)
    if counts.get("failed"):
        print(
            f"The requests for {counts['failed']} question(s) or verdict(s) failed; see rejects.jsonl. "
            "Run the same command again to retry them."
        )
        raise SystemExit(3)


def compare_halvings(
    scored: list[ScoredSet], formats: dict[str, CritiqueFormat], args: BestOfNArguments
) -> list[HalvingResult]:
    """Choose by successive halving on each set, and compare the choices with those from scoring all candidates."""
    results = []
    for halving in read_halvings(args.halving, args.models, args.num_critiques):
        for found in scored:
            tokens = [
                token_counts(of_seed, formats[halving.model], args.max_new_tokens)
                for of_seed in found.scores[halving.model]
            ]
            results.append(compare_halving(halving, found, tokens))
    return results


def score_all(
    sets: dict[str, list[Problem]], bad: dict[str, int], args: BestOfNArguments
) -> tuple[dict[str, ScoredSet], dict[str, CritiqueFormat]]:
    """
    Score all datasets with all models. `bad` counts the problems left out while loading, by dataset. Returns the scored sets by dataset,
    and the models' formats by short name.
    """
    shown, titles = short_names(args.models), short_names(args.dataset_name)
    parts: dict[str, dict[str, SetScores]] = {}
    formats: dict[str, CritiqueFormat] = {}
    for name in args.models:
        short = shown[name]
        parts[short], formats[short] = score_with(name, short, sets, args)
    for ensemble in read_ensembles(args.ensembles, args.models):
        parts[ensemble.name] = ensemble_scores(ensemble, parts)
    found = {}
    for name, problems in sets.items():
        of_set = {model: of_model[name] for model, of_model in parts.items()}
        found[name] = ScoredSet.of(name, titles.get(name, name), problems, of_set, bad.get(name, 0))
    return found, formats


def ensemble_scores(ensemble: Ensemble, parts: dict[str, dict[str, SetScores]]) -> dict[str, SetScores]:
    """Combine the members' scores on all datasets, seed by seed. A model that scored only once contributes the same scores to each seed."""
    combined = {}
    for key in parts[ensemble.members[0]]:
        members = {member: parts[member][key] for member in ensemble.members}
        found = [
            ensemble.combine(
                {member: (rows, scores[seed % len(scores)]) for member, (rows, scores) in members.items()}
            )
            for seed in range(max(len(scores) for _, scores in members.values()))
        ]
        combined[key] = found[0][0], [scores for _, scores in found]  # the rows are the same for all seeds
    return combined


def score_with(
    name: str, shown: str, sets: dict[str, list[Problem]], args: BestOfNArguments
) -> tuple[dict[str, SetScores], CritiqueFormat]:
    """Score all datasets with one model. Returns the rows that fit in its context with their scores, by dataset, and the model's format."""
    with (
        open_score_journal("best_of_n_journal", name, shown, args, SETTINGS) as journal,
        open_scorer(name, args, show_progress=False) as (scorer, critique_format, limits, options),
    ):
        fitted = {
            key: fit_rows(
                [{"id": one.id, "prompt": one.prompt, "responses": list(one.responses)} for one in problems],
                itemgetter("responses"),
                critique_format,
                **limits,
                name=key,
            )
            for key, problems in sets.items()
        }
        journaled = JournaledScorer.of(scorer, journal, shown, args)
        found: dict[str, SetScores] = {key: (rows, []) for key, rows in fitted.items()}
        for number in range(args.num_seeds if critique_format.critique else 1):
            seeded = options | ({"seed": args.seed + number} if critique_format.critique else {})
            how = args.combine if critique_format.critique else "mean"
            for key, scores in score_sets(journaled, fitted, seeded, "candidate", how).items():
                found[key][1].append(scores)
    return found, critique_format


def judge(found: ScoredSet, arena: Arena, args: BestOfNArguments, folder: Path) -> Judged:
    """Have the judge compare the chosen candidates with the baseline's answers."""
    assert arena.judging is not None  # checked by the caller
    places = places_to_judge(found, args.largest_n, args.judge_all)
    print(f"Judging {sum(map(len, places))} candidates of {len(places)} questions, each in both orders.")
    return judge_candidates(
        found.problems, places, arena.questions, arena.baselines, args.client("judge"), arena.judging, folder
    )


def arena_notes(counts: dict[str, int], args: BestOfNArguments) -> list[str]:
    """Describe the judge's setup, and count truncated, tied, excluded and failed candidates, in one sentence each."""
    said = {
        "candidates_cut": f"Candidates truncated at {args.gen_max_tokens} tokens",
        "like_the_baseline": "Candidates identical to the baseline, counted as ties",
        "without_verdict": f"Candidates without a readable verdict in both orders after {args.judge_tries} tries, excluded",
        "failed": "Questions and verdicts excluded because requests failed",
    }
    notes = [f"{text}: {counts[name]}." for name, text in said.items() if counts[name]]
    own = "that of this package, not Arena-Hard's, so win rates are not comparable with the leaderboard"
    files = [*args.judge_system_file, *filter(None, [args.judge_prompt_file])]
    has_system = args.judge_system_role and (args.judge_system_file or not args.judge_prompt_file)
    turn = "a system message" if has_system else "the user's turn"
    judge_text = f"Judge prompt: {', '.join(files) or own}. The instructions are in {turn}."
    return [judge_text, f"Candidates judged, all categories: {counts['judged']}.", *notes]


def write_report(
    results: list[SetResult],
    unjudged: list[str],
    counts: dict[str, int],
    args: BestOfNArguments,
    output_dir: Path,
    sets: list[dict[str, Any]],
    halvings: list[HalvingResult],
    left_out: bool,
):
    """
    Write the report with its plots and JSON. `unjudged` are notes on datasets without results, `sets` describe the candidates, and
    `left_out` says whether problems were left out.
    """
    models = {shown: name for name, shown in short_names(args.models).items()}
    models |= {one.name: one.name for one in read_ensembles(args.ensembles, args.models)}
    sections: list[Section] = []
    for number, result in enumerate(results):
        picture = "best_of_n.png" if number == 0 else picture_name("best_of_n", result.title)
        n = len(result.scored.problems)
        plot_curves(
            result.curves, result.yardsticks, result.quality, result.is_share, output_dir / picture, n, list(models)
        )
        sections.append(best_of_n_section(result, picture))
    compared = [halving_section(halvings)] if halvings else []
    sections += compared
    if unjudged:
        sections.append(Section(notes=unjudged))
    elif not results:
        sections.append(Section(text=NOT_JUDGED))
    names = names_without_folders(args, short_names(args.models) | short_names(args.dataset_name))
    run = rename(environment(args) | {"sets": sets}, names)
    sections.append(Section("Settings", SETTINGS_TEXT.format(**asdict(args)).rstrip()))
    text = f"{opening(spell_command('best-of-n', args, names), run, left_out)}\n\n{contents(sections)}"
    sections.insert(0, Section("Best-of-N", text, level=1))
    page = {
        "version": BEST_OF_N_VERSION,
        "arguments": asdict(args),
        "environment": run,
        "styles": describe_styles(list(models)),
        "arena_hard": counts,
        "unjudged": unjudged,
        **({"halving": [one.summary() for one in halvings]} if halvings else {}),
        "results": [summary for result in results for summary in result.summaries(models)],
    }
    write_json(rename(json_safe(page), names), output_dir / "best_of_n.json")
    (output_dir / "best_of_n.md").write_text(render(sections), encoding="utf8")
    for section in [*map(best_of_n_section, results), *compared]:  # without pictures
        print("", render([section]), sep="\n")
    for note in unjudged:
        print(note)
    print(f"Wrote best_of_n.md and best_of_n.json to {output_dir}. Next: cloud-hf serve {args.models[0]}")


NOT_JUDGED = (
    "The candidates that each model chose are in selected_MODEL.jsonl; without a judge their quality is unknown."
)
SETTINGS_TEXT = """\
Critiques per response: {num_critiques} (combined by {combine}), temperature {temperature}, at most {max_new_tokens} tokens, {num_seeds} seed(s) from {seed}.
Backend: {backend}, dtype {dtype}. Over-long rows: {overlong_policy}.
"""
