"""
The authors' published datasets, made whole again.

They are published without prompts. An id says where a prompt stands: `feedback-12` is row 12 (from 0) of UltraFeedback, and any
other, such as `interact-12`, row 12 of UltraInteract_pair. A prompt is found by its row's number alone, so the sources must be
those that the authors had: their numbers of rows are checked.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from .rows import FEEDBACK_COLUMNS, check_columns


PUBLISHED = "ankner/Llama3-8b-ultra-{}"
ULTRA_FEEDBACK = "openbmb/UltraFeedback"
ULTRA_INTERACT = "openbmb/UltraInteract_pair"
MODES = ("oracle", "self-gen")
MODEL_SIZES = ("8b", "70b")
SPLITS = ("train", "test")

# Numbers of rows, as far as the Hub's pages tell: to three digits
PUBLISHED_ROWS = {"train": "117k", "test": "6.13k"}
SOURCE_ROWS = {"feedback": "64k", "interact": "220k"}

_ID = re.compile(r"([^-]+)-(\d+)")
_ROWS_AT_ONCE = 1000
_EXAMPLES = 3


def published_name(mode: str, model_size: str | None) -> str:
    """
    The Hub id of a published dataset.

    Args:
        mode (`str`):
            `"oracle"`: critiques by a strong model. `"self-gen"`: by the authors' own models of stage 1.
        model_size (`str`, *optional*):
            `"8b"` or `"70b"`: whose self-generated critiques.

    Raises:
        `ValueError`: If there is no such dataset.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` is {mode!r}; use {' or '.join(MODES)}.")
    if mode == "oracle":
        if model_size is not None:
            raise ValueError("`model_size` is for `mode` 'self-gen': oracle critiques are the same for both sizes.")
        return PUBLISHED.format(mode)
    if model_size not in MODEL_SIZES:
        raise ValueError(f"`model_size` is {model_size!r}; use {' or '.join(MODEL_SIZES)}.")
    return PUBLISHED.format(f"{mode}-{model_size}")


def check_number(rows: int, expected: str, name: str):
    """Raise `ValueError` unless a number of rows rounds to the expected one, such as `"6.13k"`."""
    thousands = float(expected.removesuffix("k"))
    half = 0.5 * 10 ** -len(expected.removesuffix("k").partition(".")[2])
    if not thousands - half <= rows / 1000 <= thousands + half:
        raise ValueError(
            f"{name} has {rows} rows, but {expected} are expected: prompts found by row number would be other ones. For a part "
            "of it, or another version, set `check_counts` to False."
        )


@dataclass(frozen=True)
class PromptSources:
    """
    Where prompts stand.

    Args:
        feedback (`Dataset`):
            UltraFeedback: its column `instruction`.
        interact (`Dataset`):
            UltraInteract_pair: the first message of its column `trajectory`.
    """

    feedback: Dataset
    interact: Dataset

    def __post_init__(self):
        check_columns(self.feedback.column_names, ("instruction",), "The source of `feedback` prompts")
        check_columns(self.interact.column_names, ("trajectory",), "The source of `interact` prompts")

    def check_numbers(self):
        """Raise `ValueError` if they have not as many rows as they had for the authors."""
        check_number(len(self.feedback), SOURCE_ROWS["feedback"], "The source of `feedback` prompts")
        check_number(len(self.interact), SOURCE_ROWS["interact"], "The source of `interact` prompts")

    def check_ids(self, splits: Mapping[str, Dataset]) -> dict[str, int]:
        """
        See whether every id has a prompt.

        Args:
            splits (`Mapping[str, Dataset]`):
                Published rows by split.

        Returns:
            `dict[str, int]`: How many rows are from which source.

        Raises:
            `ValueError`: If some have none, or an id comes twice, with how many and which.
        """
        found: Counter = Counter()
        bad: dict[str, list[str]] = {}
        seen: set[str] = set()
        for split, rows in splits.items():
            for index, name in enumerate(rows["id"]):
                source, problem = self._look_up(name)
                problem = "come twice" if name in seen else problem
                seen.add(name)
                found[source] += 1
                if problem:
                    bad.setdefault(problem, []).append(f"{name!r} ({split} row {index})")
        if bad:
            total = sum(map(len, splits.values()))
            what = "; ".join(
                f"{len(names)} of {total} ids {problem}, such as {', '.join(names[:_EXAMPLES])}"
                for problem, names in bad.items()
            )
            raise ValueError(f"Not every prompt can be found: {what}.")
        return {f"rows_from_{name}": found[name] for name in ("feedback", "interact")}

    def prompts(self, ids: list[str]) -> list[str]:
        """The prompts of ids that were checked, in their order."""
        places: dict[str, list[tuple[int, int]]] = {"feedback": [], "interact": []}
        for place, name in enumerate(ids):
            source, number = _read_id(name)
            places[source].append((place, number))
        prompts: list[str] = [""] * len(ids)
        for source, found in places.items():
            for start in range(0, len(found), _ROWS_AT_ONCE):
                some = found[start : start + _ROWS_AT_ONCE]
                for (place, _), prompt in zip(some, self._read(source, [number for _, number in some]), strict=True):
                    prompts[place] = prompt
        return prompts

    def _read(self, source: str, numbers: list[int]) -> list[str]:
        if source == "feedback":
            return self.feedback.select_columns("instruction")[numbers]["instruction"]
        trajectories = self.interact.select_columns("trajectory")[numbers]["trajectory"]
        return [trajectory[0]["value"] for trajectory in trajectories]

    def _look_up(self, name: Any) -> tuple[str | None, str | None]:
        """The source of an id, and what is wrong with it."""
        read = _read_id(name)
        if read is None:
            return None, "have another form than feedback-0 or interact-0"
        source, number = read
        size = len({"feedback": self.feedback, "interact": self.interact}[source])
        return source, None if number < size else f"lie beyond the {size} rows of the source of `{source}` prompts"


def _read_id(name: Any) -> tuple[str, int] | None:
    """Source and row number of an id."""
    match = _ID.fullmatch(name) if isinstance(name, str) else None
    return match and ("feedback" if match[1] == "feedback" else "interact", int(match[2]))


def add_prompts(rows: Dataset, sources: PromptSources) -> Dataset:
    """
    Published rows with their prompts as the column `prompt`.

    Args:
        rows (`Dataset`):
            One split.
        sources ([`PromptSources`]):
            Sources whose ids were checked.
    """
    check_columns(rows.column_names, ("id", "chosen", "rejected", *FEEDBACK_COLUMNS), "A published dataset")
    prompts = sources.prompts(rows["id"])
    if "prompt" in rows.column_names:
        rows = rows.remove_columns("prompt")
    return rows.add_column("prompt", prompts)
