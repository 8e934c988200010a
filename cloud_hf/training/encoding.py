"""Encode text datasets as token ids, and check every row before training starts."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, Features, List, Value

from ..critique_format import IGNORE_INDEX, CritiqueFormat, EncodedCritique
from ..data.bad_rows import BadRows, OverlongRows, check_bad_rows
from ..data.fit_to_context import OVERLONG_POLICIES, TRAINING_POLICIES, Overlong, check_policy, fit_to_context
from ..data.preference_rows import PAIR_COLUMNS, SIDES, read_preferences
from ..data.row_values import (
    FEEDBACK_COLUMNS,
    check_equal_critiques,
    critiques_of,
    judged_chat,
    prompt_of,
    response_of,
)


logger = logging.getLogger(__name__)

# A margin that fits only in float64 would become infinite in the loss
_LARGEST = torch.finfo(torch.float32).max

ENCODED_COLUMNS = ("chosen_ids", "rejected_ids", "chosen_prefix_length", "rejected_prefix_length")


def encode_pairs(
    rows: Dataset, critique_format: CritiqueFormat, max_length: int | None, overlong_policy: str,
    name: str = "train", num_proc: int | None = None, bad_rows: str = "error",
) -> Dataset:  # fmt: skip
    """
    Encode preference pairs for [`CLoudTrainer`], and check every row.

    Args:
        rows (`Dataset`):
            Rows with the columns `prompt`, `chosen` and `rejected`, in any form that
            [`~data.preference_rows.read_preferences`] accepts. A CLoud model also needs `chosen_feedback` and
            `rejected_feedback` (one critique or a list); their `…_ids` columns, if present, take precedence over the
            text. `margin`, `tools`, `id`, `chosen_finish_reason` and `rejected_finish_reason` are optional. If there
            are several critiques, the first chosen critique is paired with the first rejected one, and so on.
        overlong_policy (`str`):
            What to do with sequences of more than `max_length` tokens: `"error"`, `"drop"`, `"truncate_prompt"` or, with a
            [`ReferenceFormat`], `"truncate_end"`.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            What to do with rows that cannot be used: `"error"` or `"drop"`.

    Returns:
        `Dataset`: Rows with the columns `ENCODED_COLUMNS`, `margin` if the input has it, and `cut` (how many of the pair's critiques
            were truncated during generation) if the input has finish reasons.

    Raises:
        `ValueError`: If rows cannot be used. The message names the dataset (`name`), counts the bad rows by kind and
            lists the first three of each.
    """
    check_policy(overlong_policy, TRAINING_POLICIES if critique_format.name == "reference" else OVERLONG_POLICIES)
    check_bad_rows(bad_rows)
    title = f"The {name} dataset"
    if len(rows) == 0:
        raise ValueError(f"{title} has no rows.")
    required = FEEDBACK_COLUMNS if critique_format.critique else ()
    # Drop columns that contain only nulls, such as a `margin` that no row has
    rows = rows.select_columns(
        [name for name, kind in rows.features.items() if name in PAIR_COLUMNS or kind != Value("null")]
    )
    rows = read_preferences(
        rows, title, required=required, bad_rows=bad_rows, check=_check_critiques if required else _check_margin
    )
    options = {"critique_format": critique_format, "max_length": max_length, "overlong_policy": overlong_policy}
    # Batched, because only then does `map` let a row yield several pairs or none
    encoded = rows.map(
        _encode_batch,
        batched=True,
        batch_size=100,
        with_indices=True,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        features=_encoded_features(rows.column_names),
        fn_kwargs=options,
        desc=f"Encoding {name} dataset",
    )
    encoded, num_bad = _without_bad_rows(encoded, rows, title, bad_rows)
    _report(encoded, len(rows) - num_bad, name)
    return encoded.remove_columns(["row", "shortened", "changed", "length", "problem"])


def encode_critiques(
    rows: Dataset, critique_format: CritiqueFormat, max_length: int | None, overlong_policy: str,
    name: str = "train", num_proc: int | None = None, bad_rows: str = "error",
) -> Dataset:  # fmt: skip
    """
    Encode the critiques of both responses of each pair for supervised fine-tuning: one row per critique, with the columns `input_ids` and
    `labels`. Only critique tokens have labels. Arguments, errors and the treatment of over-long rows are the same as for [`encode_pairs`].
    """
    pairs = encode_pairs(rows, critique_format, max_length, overlong_policy, name, num_proc, bad_rows)
    return pairs.map(_split_pairs, batched=True, num_proc=num_proc, remove_columns=pairs.column_names)


def _split_pairs(batch: dict[str, list]) -> dict[str, list]:
    ids = batch["chosen_ids"] + batch["rejected_ids"]
    starts = batch["chosen_prefix_length"] + batch["rejected_prefix_length"]
    labels = [[IGNORE_INDEX] * start + sequence[start:] for sequence, start in zip(ids, starts, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _encoded_features(columns: list[str]) -> Features:
    # Declared instead of inferred, because the first batch may contain only bad rows
    number, ids = Value("int64"), List(Value("int64"))
    features: dict[str, Any] = {column: ids if column.endswith("_ids") else number for column in ENCODED_COLUMNS}
    features |= {
        "row": number,
        "shortened": Value("bool"),
        "changed": number,
        "length": number,
        "problem": Value("string"),
    }
    if "margin" in columns:
        features["margin"] = Value("float64")
    if "chosen_finish_reason" in columns:
        features["cut"] = number
    return Features(features)


def _encode_batch(batch: dict[str, list], indices: list[int], **kwargs) -> dict[str, list]:
    """
    Encode rows. A row that cannot be used becomes an empty pair whose `problem` says why. The column `length` contains the length of the
    row's longest sequence. `margin` is left out if the dataset has no margins, and `cut` if it has no finish reasons.
    """
    columns: dict[str, list] = {column: [] for column in _encoded_features(list(batch))}
    nothing = dict.fromkeys(columns, 0) | {"chosen_ids": [], "rejected_ids": [], "shortened": False, "margin": 0.0}
    for position, index in enumerate(indices):
        row = {column: values[position] for column, values in batch.items()}
        try:
            encoded = _encode_row(row, **kwargs)
        except ValueError as error:
            length = error.needed if isinstance(error, Overlong) else 0
            encoded = [{**nothing, "length": length, "problem": str(error)}]
        for pair in encoded:
            for column, values in columns.items():
                values.append(index if column == "row" else pair[column])
    return columns


def _without_bad_rows(encoded: Dataset, rows: Dataset, title: str, bad_rows: str) -> tuple[Dataset, int]:
    """
    Apply `bad_rows` to rows that could not be encoded. Raise `ValueError` if a row is over-long and `overlong_policy` is `"error"`. Return
    the pairs of the other rows, and the number of bad rows.
    """
    problems, places, lengths = encoded["problem"], encoded["row"], encoded["length"]
    if not any(problems):
        return encoded, 0
    bad, overlong = BadRows(title, bad_rows), OverlongRows(title)
    # Count each row once, although it may have several pairs
    for place, (length, problem) in dict(zip(places, zip(lengths, problems, strict=True), strict=True)).items():
        if problem and length:
            overlong.add(place, rows[place], problem, length)
        elif problem:
            bad.add(place, rows[place], problem)
        else:
            overlong.lengths.append(length)
    num_bad = len(bad.settle(len(rows)))
    overlong.settle()
    return encoded.select([place for place, problem in enumerate(problems) if not problem]), num_bad


def _check_margin(row: dict[str, Any]):
    margin = row.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= _LARGEST:
        raise ValueError(f"`margin` is {margin!r}; give a number that fits in fp32, or omit the column.")


def _check_critiques(row: dict[str, Any]):
    """Check a row as far as possible without a tokenizer."""
    _check_margin(row)
    critiques = [critiques_of(row, column) for column in FEEDBACK_COLUMNS]
    check_equal_critiques(row, *critiques)
    _cut_critiques(row, len(critiques[0]))


def _encode_row(
    row: dict[str, Any], critique_format: CritiqueFormat, max_length: int | None, overlong_policy: str
) -> list[dict[str, Any]]:
    """Encode one row as pairs, one per critique. Return an empty list if the row is over-long and is to be dropped."""
    responses = [response_of(row, side) for side in SIDES]
    critiques: list[Sequence] = [[None], [None]]
    if critique_format.critique:
        critiques = [critiques_of(row, column) for column in FEEDBACK_COLUMNS]
        _check_ids(row, critique_format)

    def encode(prompt) -> list[list[EncodedCritique]]:
        prefixes = [critique_format.encode_prefix(*judged_chat(prompt, response)) for response in responses]
        pairs = [
            [critique_format.complete_for_training(prefix, each) for prefix, each in zip(prefixes, pair, strict=True)]
            for pair in zip(*critiques, strict=True)
        ]
        if overlong_policy == "truncate_end" and max_length is not None:
            reference: Any = critique_format  # `encode_pairs` rejects this policy for other formats
            return [[reference.truncate_end(side, max_length) for side in pair] for pair in pairs]
        return pairs

    def length(pairs) -> int:
        return max(len(side.input_ids) for pair in pairs for side in pair)

    prompt = prompt_of(row)
    fitted, pairs = fit_to_context(prompt, encode, length, max_length, overlong_policy, critique_format)
    if pairs is None:
        return []
    needed = length(pairs)
    cuts = _cut_critiques(row, len(pairs))
    return [
        {
            "chosen_ids": chosen.input_ids,
            "rejected_ids": rejected.input_ids,
            "chosen_prefix_length": chosen.prefix_length,
            "rejected_prefix_length": rejected.prefix_length,
            "shortened": fitted is not prompt,
            "changed": chosen.response_changed + rejected.response_changed,
            "length": needed,
            "problem": "",
            "cut": cut,
            "margin": float(row.get("margin", 0.0)),
        }
        for (chosen, rejected), cut in zip(pairs, cuts, strict=True)
    ]


def _check_ids(row: dict[str, Any], critique_format: CritiqueFormat):
    """Check that generated ids come from this tokenizer."""
    for column in FEEDBACK_COLUMNS:
        if row.get(f"{column}_ids") is None:
            continue
        texts = [row[column]] if isinstance(row[column], str) else row[column]
        generated: Any = critiques_of(row, column)  # token ids, since the row has them
        for ids, text in zip(generated, texts, strict=True):
            if min(ids, default=0) < 0:
                raise ValueError(
                    f"`{column}_ids` contain {min(ids)}, which no tokenizer writes. Drop the `_ids` column."
                )
            if critique_format.decode(ids) != text.strip():
                raise ValueError(
                    f"`{column}_ids` do not decode to `{column}`: they come from another tokenizer, or the text "
                    "was edited. Drop the `_ids` column to train on the text."
                )


def _cut_critiques(row: dict[str, Any], num_pairs: int) -> list[int | None]:
    """For each pair, count the critiques that were truncated during generation. Without finish reasons, the counts are `None`."""
    if "chosen_finish_reason" not in row:
        return [None] * num_pairs
    reasons = [row.get(f"{side}_finish_reason") for side in SIDES]
    reasons = [[reason] if isinstance(reason, str) else reason for reason in reasons]
    if any(reason is None or len(reason) != num_pairs for reason in reasons):
        raise ValueError(
            f"`chosen_finish_reason` and `rejected_finish_reason` are {reasons!r:.80}; give one per critique "
            "in both columns, or omit both columns."
        )
    return [sum(reason == "length" for reason in pair) for pair in zip(*reasons, strict=True)]


def _report(encoded: Dataset, num_rows: int, name: str):
    """Log how many rows were shortened, how many were dropped, and how many responses the chat template changes."""
    if len(encoded) == 0:
        raise ValueError(f"The {name} dataset has no rows left: all {num_rows} are over-long.")
    kept = len(set(encoded["row"]))
    if shortened := sum(encoded["shortened"]):
        logger.warning("The %s dataset: the prompt was shortened in %d pair(s).", name, shortened)
    if kept < num_rows:
        logger.warning(
            "The %s dataset: dropped %d of %d rows because they are over-long.", name, num_rows - kept, num_rows
        )
    if changed := sum(encoded["changed"]):
        logger.warning(
            "The %s dataset: the chat template changes %d response(s), perhaps by dropping thinking blocks. "
            "To show these to the model, set `keep_thinking`.", name, changed,
        )  # fmt: skip
