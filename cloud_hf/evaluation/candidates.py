"""Best-of-N on sets of candidates: each model's choices and their quality."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, compress
from typing import Any

import numpy as np

from ..data.journal import key_of
from ..scoring import Score
from .arena_hard.judge import Judged
from .arena_hard.win_rate import Question, Votes, WinRate, win_rate
from .context_fitting import FittedRows, score_columns, share_cut
from .metrics.best_of_n import (
    Curve,
    NothingJudged,
    Problem,
    baselines,
    best_of_n_curve,
    best_of_the_first,
    candidate_counts,
    choice_probabilities,
    expected_best_of,
    sizes_of,
)
from .stats import Estimate, mean_estimate


# Scores of all candidates, indexed by seed, problem and candidate
Scores = list[list[list[Score]]]
# A set's rows that fit in a model's context, and the scores of their candidates
SetScores = tuple[FittedRows, Scores]


@dataclass(frozen=True)
class ScoredSet:
    """A set of problems scored by several models; dictionaries are keyed by model."""

    name: str
    title: str
    problems: list[Problem]  # those that fit in every model's context, so all models choose from the same candidates
    scores: dict[str, Scores]
    left_out: list[str]  # ids of the problems that do not fit in every model's context
    shortened: dict[str, int]  # number of problems whose prompt was shortened
    bad: int = 0  # number of problems left out while loading, because they cannot be used

    @classmethod
    def of(
        cls, name: str, title: str, problems: Sequence[Problem], parts: Mapping[str, SetScores], bad: int = 0
    ) -> "ScoredSet":
        """Keep the problems that fit in every model's context; `parts` is keyed by model. Raises `ValueError` if no problem is left."""
        common = sorted(set.intersection(*({row.index for row in fitted.rows} for fitted, _ in parts.values())))
        if not common:
            raise ValueError(f"{title}: no problem fits in every model's context; compare fewer models at once.")
        # Each model scored only the problems that fit in its context, so the position of a problem's scores differs between models
        kept = {}
        for model, (fitted, scores) in parts.items():
            where = {row.index: number for number, row in enumerate(fitted.rows)}
            kept[model] = [[of_seed[where[place]] for place in common] for of_seed in scores]
        shortened = {model: fitted.shortened for model, (fitted, _) in parts.items()}
        left_out = [problem.id for place, problem in enumerate(problems) if place not in set(common)]
        return cls(name, title, [problems[place] for place in common], kept, left_out, shortened, bad)

    @property
    def is_share(self) -> bool:
        """Whether the values of all candidates are shares from 0 to 1, which reports show in percent."""
        return all(0 <= value <= 1 for problem in self.problems for value in problem.worth or ())

    def rewards(self, model: str) -> list[list[list[float]]]:
        """Return a model's rewards by seed, problem and candidate."""
        return [[[score.reward for score in row] for row in of_seed] for of_seed in self.scores[model]]

    def seeds(self) -> dict[str, int]:
        """Return the number of seeds with which each model scored the candidates."""
        return {model: len(found) for model, found in self.scores.items()}

    def counts(self) -> dict[str, int]:
        """Count problems and candidates."""
        return {**candidate_counts(self.problems), "dropped": len(self.left_out), "bad": self.bad}

    def notes(self, largest_n: int) -> list[str]:
        """
        Return caveats for readers of the results, as sentences. Curves end at `largest_n`, or earlier if a problem has fewer candidates.
        """
        counts = self.counts()
        fewest, more = counts["fewest_candidates"], counts["problems_with_more_than_the_fewest"]
        each = f"{fewest} to {counts['most_candidates']} candidates" if more else f"{fewest} candidates each"
        notes = [f"{counts['problems']} problems with {each}."]
        if more:
            notes.append(
                f'{more} problems have more than {fewest} candidates. The curve ends at {min(largest_n, fewest)}; the column "all" '
                "shows the choice among all candidates of each problem."
            )
        if counts["repeated_candidates"]:
            notes.append(f"Candidates that repeat another one of the same problem: {counts['repeated_candidates']}.")
        if self.left_out:
            notes.append(f"Problems left out because they do not fit every model's context: {len(self.left_out)}.")
        if self.bad:
            notes.append(f"Problems left out because they cannot be used: {self.bad}.")
        for model, number in self.shortened.items():
            if number:
                notes.append(f"{model}: {number} prompts were shortened to fit its context.")
        for model, scores in self.scores.items():
            if cut := share_cut([row for of_seed in scores for row in of_seed]):
                notes.append(f"{model}: {cut:.1%} of the critiques were cut at the token budget.")
        return notes

    def chosen(self, model: str) -> list[list[int]]:
        """Return the index of the highest-reward candidate by seed and problem; the first one wins a tie."""
        return [[row.index(max(row)) for row in of_seed] for of_seed in self.rewards(model)]

    def selected(self, model: str, judged: Judged | None = None) -> Iterator[dict[str, Any]]:
        """Yield, in JSON form, the candidate a model chose for each seed and problem, with its critiques."""
        for seed, places in enumerate(self.chosen(model)):
            for problem, place, scores in zip(self.problems, places, self.scores[model][seed], strict=True):
                response = problem.responses[place]
                votes = None if judged is None else judged.votes.get((problem.id, response), Votes())
                yield {
                    "dataset": self.name,
                    "id": problem.id,
                    "seed": seed,
                    "candidates": len(problem.responses),
                    "chosen": place,
                    "response": response,
                    **score_columns(scores[place]),
                    "worth": None if problem.worth is None else problem.worth[place],
                    "votes": None if votes is None else vars(votes),
                }

    def part(self, title: str, is_in: Callable[[str], bool]) -> "ScoredSet":
        """Return the set restricted to the problems whose ids satisfy `is_in`, under a new title."""
        places = [place for place, problem in enumerate(self.problems) if is_in(problem.id)]
        return replace(
            self,
            title=title,
            problems=[self.problems[place] for place in places],
            scores={
                model: [[rows[place] for place in places] for rows in found] for model, found in self.scores.items()
            },
            left_out=list(filter(is_in, self.left_out)),
        )


@dataclass(frozen=True)
class SetResult:
    """Best-of-N on one set; dictionaries are keyed by model, except for the baselines."""

    scored: ScoredSet
    quality: str  # what the value of a choice measures, for example "correctness"
    is_share: bool  # whether this value is a share from 0 to 1, which is shown in percent
    curves: dict[str, Curve]
    yardsticks: dict[str, Curve]  # see `baselines`
    notes: list[str]
    # ArenaHard only: win rate of each model's choices among all candidates, with the first seed
    win_rates: dict[str, WinRate] = field(default_factory=dict)
    first_candidates: WinRate | None = None  # ArenaHard only: win rate of each question's first candidate
    # For each problem, the value of the choice among all candidates, averaged over seeds; empty for ArenaHard
    choices: dict[str, list[float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The set's name in tables."""
        return self.scored.title

    @cached_property
    def differences(self) -> dict[tuple[str, str], Estimate]:
        """
        For each pair of models, the mean difference over problems (first model minus second) between the values of their choices among all
        candidates.
        """
        return {
            pair: mean_estimate([ours - theirs for ours, theirs in zip(*map(self.choices.get, pair), strict=True)])
            for pair in combinations(self.choices, 2)
        }

    def summaries(self, models: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return one entry for each model, in JSON form. `models` maps curve names to model names on the command line."""
        return [self._summary(name, model) for name, model in models.items()]

    def _summary(self, name: str, model: str) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "model": model,
            "dataset": self.scored.name,
            "title": self.title,
            "quality": self.quality,
        }
        summary |= {**self.scored.counts(), "seeds": self.scored.seeds()[name], **self.curves[name].summary()}
        summary["notes"] = self.notes
        summary["yardsticks"] = [{"name": key, **curve.summary()} for key, curve in self.yardsticks.items()]
        if "perfect" in self.yardsticks:
            summary["oracle"] = self.yardsticks["perfect"].values
        summary["differences"] = [
            {"models": models, **difference.summary()}
            for models, difference in self.differences.items()
            if models[0] == name
        ]
        if name in self.choices:
            # The hash shows which problems several runs have in common
            summary["choices"] = [
                [key_of(problem.prompt, problem.responses, problem.worth), worth]
                for problem, worth in zip(self.scored.problems, self.choices[name], strict=True)
            ]
        if self.first_candidates is not None:
            summary["win_rate"] = self.win_rates[name].summary()
            summary["win_rate_of_first_candidates"] = self.first_candidates.summary()
        return summary


def replay_result(found: ScoredSet, largest_n: int) -> SetResult:
    """
    Return the results on a set whose candidates are already judged. The curves end at `largest_n`, or earlier if a problem has fewer
    candidates.
    """
    worth = [problem.worth or () for problem in found.problems]
    quality, sizes = "correctness" if found.is_share else "recorded score", sizes_of(found.problems, largest_n)
    curves = {model: best_of_n_curve(found.rewards(model), worth, sizes) for model in found.scores}
    choices = {}
    for model in found.scores:
        by_seed = [list(map(expected_best_of, of_seed, worth)) for of_seed in found.rewards(model)]
        choices[model] = np.mean(by_seed, axis=0).tolist()
    compared, notes = baselines(found.problems, sizes), found.notes(largest_n)
    return SetResult(found, quality, found.is_share, curves, compared, notes, choices=choices)


def places_to_judge(found: ScoredSet, largest_n: int, judge_all: bool) -> list[list[int]]:
    """
    Select the candidates to judge for each question. With `judge_all`, these are all candidates. Otherwise, they are each model's choices
    with each seed: among the first N candidates, for every N up to `largest_n`, and among all candidates. The first candidate is always
    included.
    """
    if judge_all:
        return [list(range(len(problem.responses))) for problem in found.problems]
    sizes = sizes_of(found.problems, largest_n)
    places: list[set[int]] = [set() for _ in found.problems]
    for model in found.scores:
        for of_seed, chosen in zip(found.rewards(model), found.chosen(model), strict=True):
            for judged, rewards, place in zip(places, of_seed, chosen, strict=True):
                judged |= {best_of_the_first(rewards, n).index(1.0) for n in sizes} | {place}
    return [sorted(judged) for judged in places]


def arena_results(
    found: ScoredSet, questions: Mapping[str, Question], judged: Judged, largest_n: int, judge_all: bool, notes: Sequence[str]
) -> tuple[list[SetResult], list[str]]:  # fmt: skip
    """
    Compute the win rates on ArenaHard from the judge's votes. `questions` is keyed by question id, and `notes` are added to each result.
    Returns one result per category, and notes on the categories that have no result because the judge gave no verdict on the chosen
    candidates.
    """
    results, unjudged = [], []
    for category in dict.fromkeys(questions[problem.id].category for problem in found.problems):
        title = f"{found.title}, {category}" if category else found.title
        part = found.part(title, lambda name, category=category: questions[name].category == category)
        try:
            results.append(_arena_result(part, judged, largest_n, judge_all, notes))
        except NothingJudged:
            unjudged.append(
                f"{title}: no win rate (questions: {len(part.problems)}), because for some N a model chose only candidates without a "
                "verdict. What the judge wrote is in its folder."
            )
    return results, unjudged


def _arena_result(
    found: ScoredSet, judged: Judged, largest_n: int, judge_all: bool, notes: Sequence[str]
) -> SetResult:
    votes = [
        [judged.votes.get((problem.id, response), Votes()) for response in problem.responses]
        for problem in found.problems
    ]
    # A candidate's weight is its number of votes: three for a strong verdict, none without a verdict
    worth = [[one.points / (one.number or 1) for one in row] for row in votes]
    weights = [[float(one.number) for one in row] for row in votes]
    sizes = sizes_of(found.problems, largest_n)
    if judge_all:
        choose, kind = choice_probabilities, "the mean over all draws of N candidates"
        compared = baselines(found.problems, sizes, worth, weights)
    else:  # a mean over draws would need verdicts on all candidates
        choose, kind = best_of_the_first, "for the first N candidates"
        equal = [[[0.0] * len(row) for row in votes]]
        compared = {"first": best_of_n_curve(equal, worth, sizes, weights, choose)}
    curves = {model: best_of_n_curve(found.rewards(model), worth, sizes, weights, choose) for model in found.scores}
    chosen = {
        model: [row[place] for row, place in zip(votes, found.chosen(model)[0], strict=True)] for model in found.scores
    }
    first = [row[0] for row in votes]
    # Use the same questions for all models, because win rates over different questions are not comparable
    judged_for_all = [
        all(one.number for one in of_question) for of_question in zip(first, *chosen.values(), strict=True)
    ]
    win_rates = {model: win_rate(list(compress(row, judged_for_all))) for model, row in chosen.items()}
    notes = [*found.notes(largest_n), f"The curve is {kind}.", *notes]
    if left_out := judged_for_all.count(False):
        notes.append(
            f"Questions left out of all win rates, because the first candidate or a model's choice has no verdict: {left_out}. The "
            "curves use every verdict."
        )
    first_candidates = win_rate(list(compress(first, judged_for_all)))
    quality = "win rate against the baseline"
    return SetResult(found, quality, True, curves, compared, notes, win_rates, first_candidates)
