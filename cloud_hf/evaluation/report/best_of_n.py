"""From scored candidates to figures: sets whose candidates are judged already, and ArenaHard."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...scoring import Score
from ..arena_hard.servers import Judged
from ..arena_hard.win_rate import Question, Votes, win_rate
from ..fitting import FittedRows, share_cut
from ..metrics.best_of_n import NothingJudged, baselines, best_of_n_curve, best_of_the_first, choice_probabilities
from ..metrics.problems import Problem, candidate_counts, sizes_of
from .best_of_n_text import SetResult


# For each seed and problem, the scores of its candidates
Scores = list[list[list[Score]]]


@dataclass(frozen=True)
class ScoredSet:
    """
    A set of problems as several models scored it.

    Args:
        name (`str`):
            The set, as the command line names it.
        title (`str`):
            Its name in tables.
        problems (`list[Problem]`):
            Those that fit the context of every model, so that all choose from the same.
        scores (`dict[str, Scores]`):
            By model, for each seed and problem the scores of its candidates.
        left_out (`list[str]`):
            Ids of the problems that do not fit some model.
        shortened (`dict[str, int]`):
            By model, the problems whose prompt was shortened.
    """

    name: str
    title: str
    problems: list[Problem]
    scores: dict[str, Scores]
    left_out: list[str]
    shortened: dict[str, int]

    @classmethod
    def of(
        cls, name: str, title: str, problems: Sequence[Problem], fitted: Mapping[str, FittedRows], scores: dict[str, Scores]
    ) -> "ScoredSet":  # fmt: skip
        """
        Keep what fits every model.

        Args:
            name, title (`str`):
                The set.
            problems (`Sequence[Problem]`):
                All problems.
            fitted (`Mapping[str, FittedRows]`):
                By model those that fit it.
            scores (`dict[str, Scores]`):
                By model the scores of those.

        Raises:
            `ValueError`: If no problem fits all models.
        """
        places = {model: [row.index for row in part.rows] for model, part in fitted.items()}
        common = sorted(set.intersection(*map(set, places.values())))
        if not common:
            raise ValueError(f"{title}: no problem fits the context of every model; compare fewer of them at once.")
        kept = {}
        for model, of_model in scores.items():
            where = {place: number for number, place in enumerate(places[model])}
            kept[model] = [[of_seed[where[place]] for place in common] for of_seed in of_model]
        shortened = {model: part.shortened for model, part in fitted.items()}
        left_out = [problem.id for place, problem in enumerate(problems) if place not in set(common)]
        return cls(name, title, [problems[place] for place in common], kept, left_out, shortened)

    def rewards(self, model: str) -> list[list[list[float]]]:
        """For each seed and problem the rewards of its candidates."""
        return [[[score.reward for score in row] for row in of_seed] for of_seed in self.scores[model]]

    def seeds(self) -> dict[str, int]:
        """By model, how often it scored the candidates."""
        return {model: len(found) for model, found in self.scores.items()}

    def counts(self) -> dict[str, int]:
        """How many problems and candidates there are."""
        return {**candidate_counts(self.problems), "dropped": len(self.left_out)}

    def notes(self, largest_n: int) -> list[str]:
        """What must be known beside the figures, as sentences; curves end at `largest_n`, at most."""
        counts = self.counts()
        fewest, more = counts["fewest_candidates"], counts["problems_with_more_than_the_fewest"]
        each = f"{fewest} to {counts['most_candidates']} candidates" if more else f"{fewest} candidates each"
        notes = [f"{counts['problems']} problems with {each}."]
        if more:
            notes.append(
                f"{more} problems have more than {fewest} candidates. The curve ends at {min(largest_n, fewest)}, where all "
                'problems still have as many; the column "all" chooses among all candidates of each.'
            )
        if counts["repeated_candidates"]:
            notes.append(f"Candidates that repeat another of their problem: {counts['repeated_candidates']}.")
        if self.left_out:
            notes.append(f"Problems left out because they do not fit every model's context: {len(self.left_out)}.")
        for model, number in self.shortened.items():
            if number:
                notes.append(f"{model}: {number} prompts were shortened to fit its context.")
        for model, scores in self.scores.items():
            if cut := share_cut([row for of_seed in scores for row in of_seed]):
                notes.append(f"{model}: {cut:.1%} of the critiques were cut at the token budget.")
        return notes

    def chosen(self, model: str) -> list[list[int]]:
        """For each seed and problem the place of the candidate with the highest reward, the first of equal ones."""
        return [
            [max(range(len(row)), key=row.__getitem__) for row in of_seed] for of_seed in self.rewards(model)
        ]  # fmt: skip

    def selected(self, model: str, judged: Judged | None = None) -> Iterator[dict[str, Any]]:
        """For each problem and seed the candidate that a model chose among all, and its critiques of it, for JSON."""
        for seed, places in enumerate(self.chosen(model)):
            for problem, place, scores in zip(self.problems, places, self.scores[model][seed], strict=True):
                score, votes = scores[place], None
                if judged is not None:
                    votes = judged.votes.get((problem.id, problem.responses[place]), Votes())
                yield {
                    "dataset": self.name,
                    "id": problem.id,
                    "seed": seed,
                    "candidates": len(problem.responses),
                    "chosen": place,
                    "response": problem.responses[place],
                    "reward": score.reward,
                    "rewards": score.rewards,
                    "critiques": score.critiques,
                    "finish_reasons": score.finish_reasons,
                    "worth": None if problem.worth is None else problem.worth[place],
                    "votes": None if votes is None else vars(votes),
                }


def replay_result(found: ScoredSet, largest_n: int) -> SetResult:
    """
    The figures of a set whose candidates are judged already.

    Args:
        found ([`ScoredSet`]):
            The set.
        largest_n (`int`):
            Where the curves end, at most.

    Returns:
        [`SetResult`]
    """
    worth = [problem.worth for problem in found.problems]
    is_share = all(0 <= value <= 1 for values in worth for value in values)
    sizes = sizes_of(found.problems, largest_n)
    return SetResult(
        found.name,
        found.title,
        "correctness" if is_share else "recorded score",
        is_share,
        {model: best_of_n_curve(found.rewards(model), worth, sizes) for model in found.scores},
        baselines(found.problems, sizes),
        found.counts(),
        found.seeds(),
        notes=found.notes(largest_n),
    )


# ------------------------------------------------------------------------------------------------------- ArenaHard


def places_to_judge(found: ScoredSet, largest_n: int, judge_all: bool) -> list[list[int]]:
    """
    The candidates that a judge must see.

    Args:
        found ([`ScoredSet`]):
            The questions.
        largest_n (`int`):
            Where the curves end, at most.
        judge_all (`bool`):
            Take all.

    Returns:
        `list[list[int]]`: For each question the places of the best of the first N candidates for each N, of every model and
        seed, and those chosen among all. The first candidate is among them.
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
    The win rates on ArenaHard.

    Args:
        found ([`ScoredSet`]):
            The questions with their candidates.
        questions (`Mapping[str, Question]`):
            By id.
        judged ([`Judged`]):
            The votes.
        largest_n, judge_all:
            See [`places_to_judge`].
        notes (`Sequence[str]`):
            What else must be known beside the figures.

    Returns:
        `tuple[list[SetResult], list[str]]`: One for each category, and notes on the categories that have none, because the judge
        gave no verdict on what was chosen.
    """
    by_category: dict[str, list[int]] = {}
    for place, problem in enumerate(found.problems):
        by_category.setdefault(questions[problem.id].category, []).append(place)
    results, unjudged = [], []
    for category, places in by_category.items():
        title = f"{found.title}, {category}" if category else found.title
        part = ScoredSet(
            found.name,
            title,
            [found.problems[place] for place in places],
            {model: [[rows[place] for place in places] for rows in scores] for model, scores in found.scores.items()},
            [name for name in found.left_out if questions[name].category == category],
            found.shortened,
        )
        try:
            results.append(_arena_result(part, judged, largest_n, judge_all, notes))
        except NothingJudged:
            unjudged.append(
                f"{title}: no win rate (questions: {len(places)}), because for some N a model chose only candidates without a "
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
    worth = [[one.points / (one.number or 1) for one in row] for row in votes]
    weights = [[float(one.number) for one in row] for row in votes]
    sizes = sizes_of(found.problems, largest_n)
    choose = choice_probabilities if judge_all else best_of_the_first
    curves = {
        model: best_of_n_curve(found.rewards(model), worth, sizes, weights, choose) for model in found.scores
    }  # fmt: skip
    chosen = {
        model: win_rate([row[place] for row, place in zip(votes, found.chosen(model)[0], strict=True)])
        for model in found.scores
    }
    if judge_all:
        measures = baselines(found.problems, sizes, worth, weights)
    else:  # the other candidates are not judged
        none = [[[0.0] * len(row) for row in votes]]
        measures = {"first": best_of_n_curve(none, worth, sizes, weights, choose)}
    kind = "the mean over all draws of N candidates" if judge_all else "of the first N candidates"
    return SetResult(
        found.name,
        found.title,
        "win rate against the baseline",
        True,
        curves,
        measures,
        found.counts(),
        found.seeds(),
        chosen,
        win_rate([row[0] for row in votes]),
        [*found.notes(largest_n), f"The curve is {kind}.", *notes],
    )
