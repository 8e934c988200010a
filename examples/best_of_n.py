"""
Best-of-N: what the candidate with the highest reward is worth, for N = 1 to 16, with several models and any backend.

With candidates that somebody judged before, columns prompt, responses and correct (booleans or scores) or prompt and candidates (a
list of response and judge_score):

python examples/best_of_n.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 \
    --dataset_name gsm8k_bon4.jsonl arenabench_v1_bon.jsonl.gz --overlong_policy drop

On ArenaHard, with a server that writes the candidates and one that judges what was chosen against a baseline's answers:

python examples/best_of_n.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 --overlong_policy drop \
    --arena_hard lmarena-ai/arena-hard-auto-v0.1 --baseline_answers gpt-4-0314.jsonl \
    --gen_base_url http://127.0.0.1:8000/v1 --judge_base_url http://127.0.0.1:8001/v1

The judge gets its instructions in a system message; add --judge_system_role false if its chat template has none.

Writes best_of_n.md with pictures, best_of_n.json, and selected_MODEL.jsonl with the candidates that each model chose and
its critiques of them. Every score, candidate and verdict is journaled: the same command goes on where it was killed, and further
models, sets or candidates join those that are done. The exit status is 3 if requests failed for good.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from trl import TrlParser

from cloud_hf.critique_format import CritiqueFormat
from cloud_hf.evaluation.arena_hard.arguments import Arena, ArenaHardArguments, gather_candidates, load_arena
from cloud_hf.evaluation.arena_hard.servers import Judged, judge_candidates
from cloud_hf.evaluation.arguments import (
    ScoringArguments,
    file_name,
    load_datasets,
    open_scorer,
    picture_name,
    short_names,
)
from cloud_hf.evaluation.candidates import ScoredSet, Scores, SetResult, arena_results, places_to_judge, replay_result
from cloud_hf.evaluation.fitting import FittedRows
from cloud_hf.evaluation.journaled_scorer import (
    JournaledScorer,
    batches_by_length,
    default_chunk_size,
    open_score_journal,
)
from cloud_hf.evaluation.metrics.problems import Problem, load_problems
from cloud_hf.evaluation.report import Section, best_of_n_section, render
from cloud_hf.evaluation.report.files import write_json
from cloud_hf.evaluation.report.plots import plot_curves
from cloud_hf.evaluation.sets import fit_set, score_sets


VERSION = 2
# Scores depend on these beside the model; the keys of the journal hold the chat and the sampling
SETTINGS = ("backend", "dtype", "vllm_options")
ARENA_HARD = "ArenaHard"


@dataclass(kw_only=True)
class BestOfNArguments(ArenaHardArguments, ScoringArguments):
    """
    Arguments of [`ScoringArguments`], of which `dataset_name` may be left out, of [`ArenaHardArguments`], and

    Parameters:
        largest_n (`int`, *optional*, defaults to `16`):
            Where the curves end, at most: they also end at the fewest candidates of a problem.
        num_seeds (`int`, *optional*, defaults to `1`):
            Score with so many seeds from `seed` on, which gives a standard error over sampled critiques. Needs a `temperature`. Models
            that write no critiques score once.
    """

    dataset_name: list[str] = field(default_factory=list, metadata={"help": "Sets of judged candidates."})
    largest_n: int = field(default=16, metadata={"help": "Where the curves end, at most."})
    num_seeds: int = field(default=1, metadata={"help": "Score with so many seeds from `seed` on."})

    def __post_init__(self):
        super().__post_init__()
        if not (self.dataset_name or self.arena_hard):
            raise ValueError("There is nothing to choose from: give `dataset_name` or `arena_hard`.")
        if min(self.largest_n, self.num_seeds) < 1:
            raise ValueError("`largest_n` and `num_seeds` must be at least 1.")
        if self.num_seeds > 1 and not self.temperature > 0:
            raise ValueError(
                "`num_seeds` needs a `temperature` above 0: greedy critiques are the same with every seed."
            )
        self.check_arena_hard()


ARGUMENTS = (BestOfNArguments,)


def main(args: BestOfNArguments):
    load_datasets(args, (), [])  # checks the models
    sets = {
        name: load_problems(name, args.dataset_test_split, args.dataset_config, args.limit)
        for name in args.dataset_name
    }
    arena = load_arena(args, args.limit, args.seed) if args.arena_hard else None
    output_dir, counts = Path(args.output_dir), {}
    output_dir.mkdir(parents=True, exist_ok=True)
    if arena is not None:
        folder = output_dir / "arena_hard_candidates"
        sets[ARENA_HARD], counts = gather_candidates(args, arena, args.seed, folder)
    scored = score_all(sets, args)
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
    for name in shown.values():
        write_selected(name, scored.values(), judged, output_dir / file_name("selected", name, "jsonl"))
    write_report(results, unjudged, counts, args, output_dir)
    if counts.get("failed"):
        print(
            f"{counts['failed']} question(s) or verdict(s) failed; rejects.jsonl says why. The same command tries again."
        )
        raise SystemExit(3)


# --------------------------------------------------------------------------------------------------------- scoring


def score_all(sets: dict[str, list[Problem]], args: BestOfNArguments) -> dict[str, ScoredSet]:
    """Score all sets with all models."""
    shown, titles = short_names(args.models), short_names(args.dataset_name)
    fitted: dict[str, dict[str, FittedRows]] = {}
    scores: dict[str, dict[str, Scores]] = {}
    for name in args.models:
        fitted[shown[name]], scores[shown[name]] = score_with(name, shown[name], sets, args)
    return {
        name: ScoredSet.of(
            name,
            titles.get(name, name),
            problems,
            {model: parts[name] for model, parts in fitted.items()},
            {model: parts[name] for model, parts in scores.items()},
        )
        for name, problems in sets.items()
    }


def score_with(
    name: str, shown: str, sets: dict[str, list[Problem]], args: BestOfNArguments
) -> tuple[dict[str, FittedRows], dict[str, Scores]]:
    """Score all sets with one model: by set what fits it, and the scores of that."""
    with (
        open_score_journal("best_of_n_journal", name, shown, args, SETTINGS) as journal,
        open_scorer(name, args, show_progress=False) as (scorer, critique_format, options),
    ):
        limits = {key: options.pop(key) for key in ("context_length", "overlong_policy")}
        limits["max_new_tokens"] = options["max_new_tokens"]
        fitted = {key: fit(key, problems, critique_format, limits) for key, problems in sets.items()}
        journaled = JournaledScorer(scorer, journal, default_chunk_size(args), shown)
        titles, by_length = {key: key for key in fitted}, batches_by_length(args)
        scores: dict[str, Scores] = {key: [] for key in sets}
        for number in range(args.num_seeds if critique_format.critique else 1):
            seeded = options | ({"seed": args.seed + number} if critique_format.critique else {})
            for key, found in score_sets(journaled, fitted, titles, by_length, seeded, "candidate").items():
                scores[key].append(found)
    return fitted, scores


def fit(name: str, problems: list[Problem], critique_format: CritiqueFormat, limits: dict[str, Any]) -> FittedRows:
    """The problems that fit the model's context; an error names the set and the row."""
    rows = [{"id": one.id, "prompt": one.prompt, "responses": list(one.responses)} for one in problems]
    return fit_set(name, rows, itemgetter("responses"), critique_format, **limits)


# ------------------------------------------------------------------------------------------------------- ArenaHard


def judge(found: ScoredSet, arena: Arena, args: BestOfNArguments, folder: Path) -> Judged:
    """Compare what was chosen with the baseline's answers."""
    places = places_to_judge(found, args.largest_n, args.judge_all)
    print(f"Judging {sum(map(len, places))} candidates of {len(places)} questions, each in both orders.")
    return judge_candidates(
        found.problems, places, arena.questions, arena.baselines, args.client("judge"), arena.judging, folder
    )


def arena_notes(counts: dict[str, int], args: BestOfNArguments) -> list[str]:
    """How the judge was asked, and what became of requests, as sentences."""
    said = {
        "candidates_cut": f"Candidates cut at {args.gen_max_tokens} tokens",
        "like_the_baseline": "Candidates that are the baseline's text, counted as ties",
        "without_verdict": f"Candidates without a readable verdict in both orders after {args.judge_tries} tries, left out",
        "failed": "Questions and verdicts left out because requests failed",
    }
    notes = [f"{text}: {counts[name]}." for name, text in said.items() if counts[name]]
    own = "this package's own, not Arena-Hard's: win rates are not comparable with the leaderboard's"
    files = [*args.judge_system_file, *filter(None, [args.judge_prompt_file])]
    has_system = args.judge_system_role and (args.judge_system_file or not args.judge_prompt_file)
    turn = "a system message" if has_system else "the user's turn"
    judge_text = f"The judge's text: {', '.join(files) or own}. Its instructions are in {turn}."
    return [judge_text, f"Candidates judged, all categories: {counts['judged']}.", *notes]


# --------------------------------------------------------------------------------------------------------- writing


def write_selected(model: str, sets: Iterable[ScoredSet], judged: Judged | None, path: Path):
    """The candidates that a model chose."""
    with path.open("w", encoding="utf8") as file:
        for found in sets:
            for row in found.selected(model, judged if found.name == ARENA_HARD else None):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_report(
    results: list[SetResult], unjudged: list[str], counts: dict[str, int], args: BestOfNArguments, output_dir: Path
):
    """Tables and pictures for people, JSON for programs; `unjudged` are notes on what has no result."""
    models = {shown: name for name, shown in short_names(args.models).items()}
    sections = [Section("Best-of-N", level=1)]
    for number, result in enumerate(results):
        picture = "best_of_n.png" if number == 0 else picture_name("best_of_n", result.title)
        plot_curves(result.curves, result.yardsticks, result.quality, result.is_share, output_dir / picture)
        sections.append(best_of_n_section(result, picture))
    if unjudged:
        sections.append(Section(notes=unjudged))
    elif not results:
        sections.append(Section(text=NOT_JUDGED))
    sections.append(Section("Settings", SETTINGS_TEXT.format(**asdict(args))))
    page = {
        "version": VERSION,
        "arguments": asdict(args),
        "arena_hard": counts,
        "unjudged": unjudged,
        "results": [summary for result in results for summary in result.summaries(models)],
    }
    write_json(page, output_dir / "best_of_n.json")
    (output_dir / "best_of_n.md").write_text(render(sections), encoding="utf8")
    for result in results:
        print("", render([best_of_n_section(result)]), sep="\n")
    for note in unjudged:
        print(note)
    print(f"Report in {output_dir / 'best_of_n.md'}")


NOT_JUDGED = (
    "The candidates that each model chose are in selected_MODEL.jsonl; without a judge nobody says how good they are."
)
SETTINGS_TEXT = """\
Critiques per response: {num_critiques}, temperature {temperature}, at most {max_new_tokens} tokens, {num_seeds} seed(s) from {seed}.
Backend: {backend}, dtype {dtype}. Over-long rows: {overlong_policy}.
"""


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
