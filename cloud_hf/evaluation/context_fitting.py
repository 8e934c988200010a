"""Fit rows to a model's context, and score them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..critique_format import CritiqueFormat
from ..data.bad_rows import BadRows, OverlongRows
from ..data.fit_to_context import Overlong, check_policy, fit_to_context
from ..data.preference_rows import POSITION, Response
from ..data.row_values import judged_chat, prompt_of
from ..scoring import Score, Scorer


@dataclass(frozen=True)
class FittedRow:
    """
    A row whose sequences fit in the model's context. `index` is its position in the dataset, `prompt` may be shortened, and `lengths`
    counts the tokens before each critique.
    """

    index: int
    row: dict[str, Any]
    prompt: Any
    responses: list[Response]
    lengths: list[int]


@dataclass(frozen=True)
class FittedRows:
    """The rows that fit, how many rows were dropped as too long, shortened, or left out as bad, and the set's name in messages."""

    rows: list[FittedRow]
    dropped: int
    shortened: int
    bad: int = 0
    name: str = ""


# The kind and the name of a set of a run; see `Sets.fit`
SetKey = tuple[str, str]
# The scores of each row's responses
RowScores = list[list[Score]]
ScoredRows = tuple[FittedRows, RowScores]


def fit_rows(
    rows: Iterable[Any],
    responses_of: Callable[[dict[str, Any]], list[Response]],
    critique_format: CritiqueFormat,
    context_length: int | None,
    overlong_policy: str,
    max_new_tokens: int,
    bad_rows: str = "error",
    name: str = "",
) -> FittedRows:
    """
    Check all rows, and shorten or drop those that are too long for the model. The responses of a row share one prompt.

    `responses_of` returns the checked responses of a row, and `name` is the prefix of error messages; for the other arguments see
    [`evaluate_pairs`]. Raises `ValueError` if rows are bad (the message counts them by kind), if rows are too long (the message recommends
    limits), or if no row is left.
    """
    check_policy(overlong_policy)
    # Room for the critique and the end of turn, where the reward is read
    reserve = max_new_tokens + 1 if critique_format.critique else 0
    fitted, dropped, shortened = [], 0, 0
    bad, overlong, total = BadRows(name, bad_rows), OverlongRows(name), 0

    def needed(lengths: list[int]) -> int:
        return max(lengths) + reserve

    for place, row in enumerate(tqdm(rows, f"Checking {name}", unit=" rows", disable=None)):
        index = row.get(POSITION, place)
        total += 1
        try:
            responses, prompt = responses_of(row), prompt_of(row)

            def encode(prompt, responses=responses) -> list[int]:
                chats = [judged_chat(prompt, response) for response in responses]
                return [len(critique_format.encode_prefix(*chat).input_ids) for chat in chats]

            limits = (context_length, overlong_policy, critique_format)
            new_prompt, lengths = fit_to_context(prompt, encode, needed, *limits)
        except Overlong as error:
            overlong.add(index, row, str(error), error.needed)
            continue
        except ValueError as error:
            bad.add(index, row, str(error))
            continue
        if lengths is None:
            dropped += 1
        else:
            overlong.lengths.append(needed(lengths))
            fitted.append(FittedRow(index, row, new_prompt, responses, lengths))
            shortened += new_prompt is not prompt
    num_bad = len(bad.settle(total))
    overlong.settle()
    if not fitted:
        critique = f", of which {reserve} are reserved for the critique" if reserve else ""
        start = f"{name}: " if name else ""
        raise ValueError(
            f"{start}None of the {dropped} rows fits in the model's context of {context_length} tokens{critique}."
        )
    return FittedRows(fitted, dropped, shortened, num_bad, name)


def score_rows(scorer: Scorer, rows: Sequence[FittedRow], **options) -> RowScores:
    """Return the scores of each row's responses; `options` are passed to [`Scorer`]."""
    chats = [judged_chat(row.prompt, response) for row in rows for response in row.responses]
    prompts, responses = [prompt for prompt, _ in chats], [response for _, response in chats]
    scores = iter(scorer.score(prompts, responses, **options))
    return [[next(scores) for _ in row.responses] for row in rows]


def score_columns(score: Score) -> dict[str, Any]:
    """Return a score's columns for output files."""
    partial = {"partial_rewards": score.partial_rewards} if score.partial_rewards else {}
    return {name: getattr(score, name) for name in ("reward", "rewards", "critiques", "finish_reasons")} | partial


def share_cut(scores: Sequence[Sequence[Score]]) -> float:
    """Return the share of critiques that were truncated at the token limit."""
    reasons = [reason for row_scores in scores for score in row_scores for reason in score.finish_reasons]
    return reasons.count("length") / len(reasons)
