"""
JudgeBench: pairs of responses with verified correctness, judged in one game or in both orders (arXiv 2410.12784, ScalerLab/JudgeBench).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...data.rows import check_columns
from ..rows import BenchmarkRow, check_pairs, make_row, read_sources, split_rewards, text_of
from ..stats import BenchmarkScores, by_subset, collect_scores, share


HUB_ID = "ScalerLab/JudgeBench"
SPLITS = ("gpt", "claude")
# The paper's categories, keyed by prefixes of the source datasets' names
CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
_LABELS = ("A>B", "B>A")
_OFFICIAL_COLUMNS = ("pair_id", "source", "question", "response_A", "response_B", "label")


def load(names: Sequence[str] | None = None, split: str = "gpt") -> list[BenchmarkRow]:
    """
    Load a split of JudgeBench, `"gpt"` or `"claude"`, by default from `ScalerLab/JudgeBench`. The splits are reported separately.

    Files have the official columns, or `prompt`, `chosen`, `rejected`, `subset` and `gold_position` (`"A"` or `"B"`, the original position
    of the chosen response). A row's `details["label"]` is the official label.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; JudgeBench has {' and '.join(SPLITS)}.")
    sources = read_sources([HUB_ID] if names is None else names, split)
    return check_pairs([_read_row(*item) for item in sources])


def _read_row(source: str, index: int, row: dict) -> BenchmarkRow:
    if "response_A" in row:
        check_columns(list(row), _OFFICIAL_COLUMNS, f"JudgeBench ({source})")
        label = row["label"]
        _check_label(label, "label", _LABELS, source, index)
        chosen, rejected = ("response_A", "response_B") if label == "A>B" else ("response_B", "response_A")
        named = {"id": row["pair_id"]}
        dataset = text_of(source, index, row, "source")
        category = next((name for start, name in CATEGORIES.items() if dataset.startswith(start)), dataset)
        return make_row(source, index, named, category, row[chosen], row[rejected], row["question"], label=label)
    check_columns(list(row), ("prompt", "chosen", "rejected", "subset", "gold_position"), f"JudgeBench ({source})")
    _check_label(row["gold_position"], "gold_position", ("A", "B"), source, index)
    label = "A>B" if row["gold_position"] == "A" else "B>A"
    subset = text_of(source, index, row, "subset").removeprefix("judgebench-")
    return make_row(source, index, row, subset, row["chosen"], row["rejected"], label=label)


def _check_label(value, name: str, known: tuple[str, ...], source: str, index: int):
    if value not in known:
        raise ValueError(f"{source}, row {index}: `{name}` is {value!r}; it must be {' or '.join(known)}.")


@dataclass(frozen=True)
class Games:
    """Verdicts on a pair that was shown in both orders: first A, B and then B, A."""

    label: str  # the right verdict: "A>B" or "B>A"
    first: str  # "A>B", "B>A" or "A=B"; any other string means no verdict
    second: str | None = None  # with the responses named as in the first game

    @property
    def single_game_is_right(self) -> bool:
        """Whether the first verdict equals the label. This rule ignores the second game."""
        return self.first == self.label

    @property
    def points(self) -> int:
        """Games won minus games lost; ties and missing verdicts count as 0."""
        wrong = _LABELS[1 - _LABELS.index(self.label)]
        return sum((verdict == self.label) - (verdict == wrong) for verdict in (self.first, self.second))

    @property
    def is_consistent(self) -> bool:
        """Whether both games have the same verdict."""
        return self.first == self.second


def games_of(label: str, first: tuple[float, float], second: tuple[float, float] | None = None) -> Games:
    """
    Derive verdicts from rewards as the official code does: the response shown first wins if its reward is strictly higher; otherwise, the
    other response wins.

    `first` and `second` are the two games, each with the rewards of the right and the wrong response. The first game shows A first, and the
    second shows B first. By default, both games have the same rewards: a scorer does not see the order, so its rewards differ only if it
    samples critiques.
    """
    first_a, first_b = first if label == "A>B" else first[::-1]
    second_a, second_b = (second or first) if label == "A>B" else (second or first)[::-1]
    return Games(label, "A>B" if first_a > first_b else "B>A", "B>A" if second_b > second_a else "A>B")


def score(
    rows: Sequence[BenchmarkRow],
    rewards: Sequence[Sequence[float]],
    second_game: Sequence[Sequence[float]] | None = None,
) -> BenchmarkScores:
    """
    Score JudgeBench in one game and in both orders. A scorer that samples critiques may provide the rewards of a `second_game`.

    `"both orders"`, the official default, is the share of pairs with more games won than lost. With one reward per response, these are
    the pairs whose right response has a strictly higher reward than the wrong one. `"single game"`, the official rule for judges that
    do not see the order, gives ties to response B. Both metrics are also reported by category.
    """
    first = split_rewards(rows, rewards)
    second = first if second_game is None else split_rewards(rows, second_game)
    games = [
        games_of(row.details["label"], (right[0], wrong[0]), (right_again[0], wrong_again[0]))
        for row, (right, wrong), (right_again, wrong_again) in zip(rows, first, second, strict=True)
    ]
    both = by_subset(rows, [float(game.points > 0) for game in games])
    single = by_subset(rows, [float(game.single_game_is_right) for game in games])
    categories = tuple(CATEGORIES.values())
    rules = {"both orders": both, "single game": single}
    figures = {
        rule: share([value for name in categories for value in found.get(name, [])]) for rule, found in rules.items()
    }
    for name in categories:
        figures |= {f"{name}, {rule}": share(found.get(name, [])) for rule, found in rules.items()}
    details = {
        "games_won_and_lost_alike": sum(game.points == 0 for game in games),
        "inconsistent": sum(not game.is_consistent for game in games),
    }
    scores = {"benchmark": "JudgeBench", "headline": "both orders", "figures": figures, "details": details}
    return collect_scores(rows, first, both, categories, averages_subsets=False, **scores)
