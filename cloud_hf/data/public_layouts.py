"""
Layouts of public preference datasets: the columns that identify each layout, and how to read rated responses from its rows.

This module imports nothing from the package, so that the column check in `rows.py` can import it and name the layout of a dataset.
"""

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any


Row = Mapping[str, Any]

# Names of columns that may contain responses
_RESPONSE = re.compile("response|answer|completion|output|winner|loser|accepted|preferred", re.IGNORECASE)
# Marks the turns in the prompts of HelpSteer 2 and 3
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


@dataclass(frozen=True)
class Rated:
    """
    Responses to one prompt with their ratings. A higher rating is better, and `None` means not rated. `given` contains the prompt under the
    key `prompt`, or is empty if the responses are complete chats. `tie` is the reason to report when equally rated responses are left out.
    """

    given: dict[str, Any]
    responses: Sequence[Any]
    ratings: Sequence[float | None]
    tie: str = "tie"


@dataclass(frozen=True)
class Layout:
    """
    Layout of a public dataset. `read` is called with one row or, if `group_by` names a column, with all consecutive rows that have the same
    value in that column.
    """

    title: str
    columns: tuple[str, ...]  # columns that identify the layout
    read: Callable[[Any], Rated]
    replaced: tuple[str, ...] = ()  # columns that the pairs replace; all others are kept
    margin: str = ""  # meaning of the margins; empty if there are no ratings
    direct: bool = False  # whether training can read the rows unchanged
    group_by: str | None = None
    shape: Callable[[Row], bool] | None = None  # test of the first row, if other datasets have the same columns
    auto: bool = True  # whether the layout is selected automatically


# ----------------------------------------------------------------------------------------------- values of a row


def _listed(value: Any, column: str) -> Any:
    """Return a list, decoding it from JSON first if it comes from a CSV file."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{column}` is not JSON: {error}.") from error
    if not isinstance(value, list):
        raise ValueError(f"`{column}` is {value!r:.60}; give a list.")
    return value


def _number(value: Any, column: str) -> float | None:
    """Return a rating, or `None` if it is missing."""
    if value is None or value == "N/A":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"`{column}` is {value!r:.60}; give a number.") from None
    return None if math.isnan(number) else number


def _field(item: Any, name: str, column: str) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise ValueError(f"`{column}` contains {item!r:.60}; each item needs `{name}`.")
    return item[name]


def _winner(first: bool, second: bool) -> list[float | None]:
    return [float(first), float(second)]


# ------------------------------------------------------------------------------------------------- readers of rows


def _pair(row: Row) -> Rated:
    """Read a pair that training can use unchanged."""
    given = {"prompt": row["prompt"]} if "prompt" in row else {}
    return Rated(given, (row["chosen"], row["rejected"]), _winner(True, False))


def _rated(title: str, chosen: str, rejected: str, margin: str = "difference of the ratings") -> Layout:
    """Return a layout of pairs that training can read unchanged, with their ratings in two further columns."""

    def read(row: Row) -> Rated:
        ratings = [_number(row[column], column) for column in (chosen, rejected)]
        if None not in ratings and ratings[0] < ratings[1]:  # type: ignore[operator]
            raise ValueError(
                f"`{chosen}` ({ratings[0]:g}) is below `{rejected}` ({ratings[1]:g}); swap the responses or remove the row."
            )
        return replace(_pair(row), ratings=ratings)

    return Layout(title, (*_SIDES, chosen, rejected), read, margin=margin, direct=True)


def _ultrafeedback(row: Row) -> Rated:
    completions = _listed(row["completions"], "completions")
    ratings = [_mean_rating(completion) for completion in completions]
    # Use `overall_score` only as a last resort, because some completions have a wrong one
    # (https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences)
    if not any(rating is not None for rating in ratings):
        ratings = [_number(completion.get("overall_score"), "overall_score") for completion in completions]
    responses = [_field(completion, "response", "completions") for completion in completions]
    return Rated({"prompt": row["instruction"]}, responses, ratings)


def _mean_rating(completion: Any) -> float | None:
    """Return the mean of a completion's ratings for helpfulness, honesty, instruction following and truthfulness."""
    _field(completion, "response", "completions")
    score = _number(completion.get("fine-grained_score"), "fine-grained_score")
    if score is not None:
        return score
    aspects = (completion.get("annotations") or {}).values()
    ratings = [_number(aspect.get("Rating"), "Rating") for aspect in aspects if isinstance(aspect, dict)]
    known = [rating for rating in ratings if rating is not None]
    return fmean(known) if known else None


def _helpsteer2(rows: Sequence[Row]) -> Rated:
    ratings = [_number(row["helpfulness"], "helpfulness") for row in rows]
    return Rated({"prompt": _helpsteer_prompt(rows[0]["prompt"])}, [row["response"] for row in rows], ratings)


def _helpsteer_prompt(prompt: Any) -> Any:
    """Convert a prompt with several turns into messages."""
    if not isinstance(prompt, str) or not _HELPSTEER_TURN.search(prompt):
        return prompt
    first, *rest = _HELPSTEER_TURN.split(prompt)
    turns = [("user", first), *((role.lower(), text) for role, text in zip(rest[::2], rest[1::2], strict=True))]
    messages = [{"role": role, "content": text} for role, text in turns]
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def _strength(title: str, prompt: str, first: str, second: str, strength: str) -> Layout:
    """Return a layout with a preference from -3 (the first response is much better) to 3 (the second one is)."""

    def read(row: Row) -> Rated:
        number = _number(row[strength], strength)
        ratings = [None, None] if number is None else [-min(number, 0.0), max(number, 0.0)]
        return Rated({"prompt": _helpsteer_prompt(row[prompt])}, (row[first], row[second]), ratings)

    columns = (prompt, first, second)
    return Layout(title, (*columns, strength), read, columns, margin="strength of the preference")


def _nectar(row: Row) -> Rated:
    answers = _listed(row["answers"], "answers")
    ranks = [_number(_field(answer, "rank", "answers"), "rank") for answer in answers]
    ratings = [None if rank is None else -rank for rank in ranks]
    return Rated({"prompt": row["prompt"]}, [_field(answer, "answer", "answers") for answer in answers], ratings)


def _pku(column: str) -> Callable[[Row], Rated]:
    def read(row: Row) -> Rated:
        if row[column] not in (0, 1):
            raise ValueError(f"`{column}` is {row[column]!r:.60}; it must be 0 or 1.")
        ratings = _winner(row[column] == 0, row[column] == 1)
        return Rated({"prompt": row["prompt"]}, (row["response_0"], row["response_1"]), ratings)

    return read


def _arena(row: Row) -> Rated:
    winner = row["winner"]
    if winner not in ("model_a", "model_b") and not (isinstance(winner, str) and ("tie" in winner or "bad" in winner)):
        raise ValueError(f"`winner` is {winner!r:.60}; it must be model_a, model_b or a tie.")
    # In MT-bench, votes on the first turn come with the complete conversation
    end = 2 * row["turn"] if isinstance(row.get("turn"), int) else None
    chats = [_listed(row[column], column)[:end] for column in ("conversation_a", "conversation_b")]
    return Rated({}, chats, _winner(winner == "model_a", winner == "model_b"), winner)


def _arena_55k(row: Row) -> Rated:
    votes = [_number(row[column], column) for column in ("winner_model_a", "winner_model_b")]
    prompts, *sides = (_listed(row[column], column) for column in ("prompt", "response_a", "response_b"))
    if {len(side) for side in sides} != {len(prompts)}:
        raise ValueError("`prompt`, `response_a` and `response_b` have different numbers of turns.")
    if not all(isinstance(text, str) for texts in (prompts, *sides) for text in texts):
        raise ValueError("`prompt`, `response_a` and `response_b` must be lists of strings.")
    chats = [
        [
            {"role": role, "content": text}
            for turn in zip(prompts, side, strict=True)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        for side in sides
    ]
    return Rated({}, chats, votes)


def _sharegpt(row: Row) -> Rated:
    turns = _listed(row["conversations"], "conversations")
    return replace(_pair(row), given={"prompt": _with_system(row, turns)})


def _alpaca(row: Row) -> Rated:
    if row.get("history"):
        raise ValueError(
            "`history` contains earlier turns, which this layout does not read; move all turns to a column `conversations`."
        )
    parts = [part for part in (row["instruction"], row.get("input")) if part]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("`instruction` and `input` must be strings.")
    text = "\n".join(parts)
    return replace(_pair(row), given={"prompt": _with_system(row, text)})


def _named(prompt: str, chosen: str = "chosen", rejected: str = "rejected") -> Callable[[Row], Rated]:
    """Return a function that reads pairs from columns with these names, and from the column `system` if there is one."""

    def read(row: Row) -> Rated:
        given = {"prompt": _with_system(row, row[prompt])}
        return Rated(given, (row[chosen], row[rejected]), _winner(True, False))

    return read


def _orca_distilabel(row: Row) -> Rated:
    return replace(_named("input")(row), ratings=_winner(row.get("status") != "tie", False))


def _scored(title: str, prompt: str, responses: Sequence[str], scores: Sequence[str], margin: str = "") -> Layout:
    """Return a layout of two responses, with a column for each response's score. A prompt may be a dict, as in WebGPT."""

    def read(row: Row) -> Rated:
        question = row[prompt]
        text = question if isinstance(question, str) else _field(question, "full_text", prompt)
        ratings = [_number(row[score], score) for score in scores]
        return Rated({"prompt": text}, [row[response] for response in responses], ratings)

    return Layout(title, (prompt, *responses, *scores), read, (prompt, *responses), margin=margin)


def _stack_exchange(row: Row) -> Rated:
    answers = _listed(row["answers"], "answers")
    ratings = [_number(_field(answer, "pm_score", "answers"), "pm_score") for answer in answers]
    return Rated({"prompt": row["question"]}, [_field(answer, "text", "answers") for answer in answers], ratings)


def _ms_swift(row: Row) -> Rated:
    chosen = rejected = _listed(row["messages"], "messages")
    if "rejected_response" in row:
        rejected = [*chosen[:-1], {"role": "assistant", "content": row["rejected_response"]}]
    else:
        rejected = row["rejected_messages"]
    return Rated({}, (chosen, rejected), _winner(True, False))


def _with_system(row: Row, prompt: Any) -> Any:
    """Prepend the column `system` to a prompt that is text, messages or ShareGPT turns."""
    if not row.get("system") or not prompt:
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list):
        raise ValueError(
            f"the prompt is {prompt!r:.60}; with a column `system`, it must be text or a list of messages."
        )
    first = turns[0] if isinstance(turns[0], dict) else {}
    role, text = ("from", "value") if "from" in first else ("role", "content")
    system = {role: "system", text: row["system"]}
    if first.get(role) == "system" and first != system:
        raise ValueError("the column `system` differs from the system message in the prompt; keep only one of them.")
    return turns if first == system else [system, *turns]


# ---------------------------------------------------------------------------------------------------- the layouts

_SIDES = ("chosen", "rejected")
_HELPSTEER_RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_PKU = ("prompt", "response_0", "response_1")
_OPENAI = ("input", "preferred_output", "non_preferred_output")
_PAIRED = ("question", "response_j", "response_k")

# To add a layout, add an entry here and, unless one of the functions above fits, a function that reads its rows
LAYOUTS = {
    "ultrafeedback": Layout(
        "UltraFeedback", ("instruction", "completions"), _ultrafeedback, ("instruction", "completions"),
        margin="difference of the mean ratings",
    ),
    "ultrafeedback_binarized": _rated(
        "UltraFeedback binarized", "score_chosen", "score_rejected", margin="difference of the scores"
    ),
    "ultrafeedback_argilla": _rated("Argilla's UltraFeedback binarized", "chosen-rating", "rejected-rating"),
    "dpo_mix": _rated("Argilla's DPO mix", "chosen_rating", "rejected_rating"),
    "capybara": _rated("Argilla's Capybara DPO", "rating_chosen", "rating_rejected"),
    "helpsteer2": Layout(
        "HelpSteer 2", ("prompt", "response", "helpfulness"), _helpsteer2, ("response", *_HELPSTEER_RATINGS),
        margin="difference of helpfulness", group_by="prompt",
    ),
    "helpsteer2_preference": _strength(
        "HelpSteer 2's preferences", "prompt", "response_1", "response_2", "preference_strength"
    ),
    "helpsteer3": _strength("HelpSteer 3", "context", "response1", "response2", "overall_preference"),
    "nectar": Layout("Nectar", ("prompt", "answers"), _nectar, ("answers",)),
    "pku_saferlhf": Layout(
        "PKU-SafeRLHF by better_response_id", (*_PKU, "better_response_id"), _pku("better_response_id"), _PKU[1:]
    ),
    "pku_saferlhf_safer": Layout(
        "PKU-SafeRLHF by safer_response_id", (*_PKU, "safer_response_id"), _pku("safer_response_id"), _PKU[1:], auto=False
    ),
    "arena": Layout(
        "Chatbot Arena", ("conversation_a", "conversation_b", "winner"), _arena, ("conversation_a", "conversation_b")
    ),
    "arena_55k": Layout(
        "Chatbot Arena, 55k", ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"), _arena_55k,
        ("response_a", "response_b"),
    ),
    "sharegpt": Layout(
        "a ShareGPT ranking file", ("conversations", *_SIDES), _sharegpt, ("conversations", "system")
    ),
    "alpaca": Layout(
        "an Alpaca ranking file of LLaMA-Factory", ("instruction", *_SIDES), _alpaca, ("instruction", "input", "system")
    ),
    "orca": Layout("Orca DPO pairs", ("question", *_SIDES), _named("question"), ("question", "system")),
    "orca_distilabel": Layout(
        "Argilla's Orca DPO pairs", ("input", "generations", *_SIDES), _orca_distilabel, ("input", "system")
    ),
    "system": Layout("pairs with a column `system`", ("system", "prompt", *_SIDES), _named("prompt"), ("system",)),
    "openai": Layout("an OpenAI preference file", _OPENAI, _named(*_OPENAI), _OPENAI),
    "ms_swift": Layout(
        "an ms-swift file", ("messages", "rejected_response"), _ms_swift, ("messages", "rejected_response")
    ),
    "ms_swift_messages": Layout(
        "an ms-swift file", ("messages", "rejected_messages"), _ms_swift, ("messages", "rejected_messages")
    ),
    "shp": _scored("SHP", "history", ("human_ref_A", "human_ref_B"), ("score_A", "score_B")),
    "webgpt": _scored(
        "WebGPT comparisons", "question", ("answer_0", "answer_1"), ("score_0", "score_1"), "difference of the scores"
    ),
    "stack_exchange": Layout(
        "Stack Exchange preferences", ("qid", "question", "answers"), _stack_exchange, ("question", "answers"),
        margin="difference of pm_score",
    ),
    "stack_exchange_paired": Layout("Stack Exchange pairs", _PAIRED, _named(*_PAIRED), _PAIRED),
    "hh_rlhf": Layout(
        "HH-RLHF", _SIDES, _pair, direct=True, shape=lambda row: str(row.get("chosen")).lstrip().startswith("Human:")
    ),
    "skywork": Layout("pairs like Skywork-Reward-Preference's", _SIDES, _pair, direct=True),
    "tulu3": Layout("pairs with a prompt, like Tulu 3's", ("prompt", *_SIDES), _pair, direct=True),
    "reward_bench": Layout("RewardBench", ("prompt", *_SIDES, "subset"), _pair, direct=True),
}  # fmt: skip


def matching(columns: Sequence[str], first: Row | None = None) -> list[str]:
    """
    Return the most specific layouts that fit the columns and, if given, the first row. Several layouts are returned if the columns and the
    row are ambiguous.
    """
    found = [
        (name, layout)
        for name, layout in LAYOUTS.items()
        if layout.auto and {*layout.columns} <= {*columns} and (not layout.shape or (first and layout.shape(first)))
    ]
    return [name for name, layout in found if not any(_beats(other, layout) for _, other in found)]


def _beats(other: Layout, layout: Layout) -> bool:
    if layout.read is _pair and other.direct and other.read is not _pair:
        return True
    mine, others = {*layout.columns}, {*other.columns}
    return mine < others or (mine == others and bool(other.shape) and not layout.shape)


def find_layout(name: str, columns: Sequence[str], first: Row, source: tuple[str, str, str | None]) -> str:
    """
    Return the layout of a dataset: `name` or, if `name` is `"auto"`, the layout that the columns and the first row fit. `source` is the
    dataset's name, split and configuration.

    Raises `ValueError` if the columns do not fit the named layout, or if no layout or several layouts fit.
    """
    found = matching(columns, first)
    fits = " and ".join(f"`{each}` ({LAYOUTS[each].title})" for each in found) or "no layout"
    missing = [] if name == "auto" else [column for column in LAYOUTS[name].columns if column not in columns]
    hint = "" if found else conversion_hint(columns, *source)
    if missing:
        problem = f"lacks {', '.join(missing)} for `layout` {name}; it fits {fits}"
    elif name != "auto" or len(found) == 1:
        return found[0] if name == "auto" else name
    elif found:
        problem = f"fits {fits}; choose one with `layout`"
    else:
        problem = f"fits none of the layouts {', '.join(LAYOUTS)}; rename its columns, for example to prompt, chosen and rejected"
    raise ValueError(f"{source[0]} {problem}. The dataset has: {', '.join(columns)}.{hint}")


# ------------------------------------------------------------------------------------------------ hints for errors


def to_convert(columns: Sequence[str]) -> list[str]:
    """Return the layouts that fit the columns, except those that training can read unchanged."""
    return [name for name in matching(columns) if not LAYOUTS[name].direct]


def conversion_hint(columns: Sequence[str], name: str, split: str, config: str | None) -> str:
    """Return a hint with the command that converts a dataset with these columns into pairs, or an empty string."""
    options = ["--dataset_name", name, *(["--dataset_config", config] if config else [])]
    source = shlex.join(options + (["--dataset_split", split] if split != "train" else []))
    stem = re.sub(r"[^\w-]+", "-", Path(name).resolve().name.split(".")[0]).strip("-") or "dataset"
    output = f"--output_dir {stem}"
    if layouts := to_convert(columns):
        looks = " or ".join(LAYOUTS[layout].title for layout in layouts)
        return f" It looks like {looks}. Convert it: cloud-hf prepare --layout {layouts[0]} {source} {output}-pairs"
    maybe = ", ".join(column for column in columns if column not in _SIDES and _RESPONSE.search(column))
    renamed = (
        f" If the responses are in {maybe}, name the better one chosen and the worse one rejected." if maybe else ""
    )
    if set(_SIDES) & set(columns):
        return renamed
    if chats := [column for column in ("messages", "conversations", "conversation") if column in columns]:
        return (
            f" It has chats, but no pairs. Extract their prompts: cloud-hf build-prompts {source} --prompt_column {chats[0]} "
            f"--drop_last_answer True {output}-prompts, then build pairs from them with cloud-hf build-preferences."
        )
    if "prompt" in columns:
        make = (
            f"{renamed} Otherwise, build pairs from its prompts"
            if renamed
            else " It has prompts, but no pairs. Build them"
        )
        return f"{make}: cloud-hf build-preferences {source} {output}-pairs --gen_base_url URL --judge_base_url URL"
    return renamed
