"""Encode datasets of text into token ids, and check every row before training starts."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from ..critique_format import IGNORE_INDEX, CritiqueFormat, EncodedCritique
from ..data.fit_to_context import OVERLONG_POLICIES, TRAINING_POLICIES, check_policy, fit_to_context
from ..data.rows import (
    FEEDBACK_COLUMNS,
    PAIR_COLUMNS,
    check_columns,
    check_equal_critiques,
    critiques_of,
    prompt_of,
    response_of,
    row_name,
)


logger = logging.getLogger(__name__)

SIDES = ("chosen", "rejected")

# A margin that only fits float64 would become infinite in the loss
_LARGEST = torch.finfo(torch.float32).max

ENCODED_COLUMNS = ("chosen_ids", "rejected_ids", "chosen_prefix_length", "rejected_prefix_length")


def encode_pairs(
    rows: Dataset, critique_format: CritiqueFormat, max_length: int | None, overlong_policy: str,
    name: str = "train", num_proc: int | None = None,
) -> Dataset:  # fmt: skip
    """
    Encode preference pairs for [`CLoudTrainer`], and check every row.

    Args:
        rows (`Dataset`):
            Columns `prompt`, `chosen`, `rejected`; for a CLoud model `chosen_feedback` and `rejected_feedback` (text, or
            several), whose `…_ids` take precedence if present; optional `margin`, `tools`, `id`, `chosen_finish_reason` and
            `rejected_finish_reason`. Several critiques train in pairs: the first of chosen with the first of rejected,
            and so on.
        overlong_policy (`str`):
            `"error"`, `"drop"`, `"truncate_prompt"`, or with a [`ReferenceFormat`] `"truncate_end"`, for sequences of more
            than `max_length` tokens.

    Returns:
        `Dataset`: The columns `ENCODED_COLUMNS`, and `margin` if the rows have it, and `cut` (number of critiques of the
        pair that were cut off) if they have finish reasons.

    Raises:
        `ValueError`: Names the first bad row and its field, and the dataset as `name`.
    """
    check_policy(overlong_policy, TRAINING_POLICIES if critique_format.name == "reference" else OVERLONG_POLICIES)
    if len(rows) == 0:
        raise ValueError(f"The {name} dataset has no rows.")
    required = PAIR_COLUMNS + (FEEDBACK_COLUMNS if critique_format.critique else ())
    check_columns(rows.column_names, required, f"The {name} dataset")
    options = {
        "critique_format": critique_format, "max_length": max_length, "overlong_policy": overlong_policy, "name": name,
    }  # fmt: skip
    # In batches, because a row may yield several pairs or none
    encoded = rows.map(
        _encode_batch,
        batched=True,
        batch_size=100,
        with_indices=True,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        fn_kwargs=options,
        desc=f"Encoding {name} dataset",
    )
    _report(encoded, len(rows), name)
    return encoded.remove_columns(["row", "shortened", "changed"])


def encode_critiques(
    rows: Dataset, critique_format: CritiqueFormat, max_length: int | None, overlong_policy: str,
    name: str = "train", num_proc: int | None = None,
) -> Dataset:  # fmt: skip
    """
    Encode the critiques of both responses of each pair for supervised fine-tuning: one row per critique, with the columns
    `input_ids` and `labels` (on the critique alone). Arguments, errors and over-long rows are as in [`encode_pairs`].
    """
    pairs = encode_pairs(rows, critique_format, max_length, overlong_policy, name, num_proc)
    return pairs.map(_split_pairs, batched=True, num_proc=num_proc, remove_columns=pairs.column_names)


def _split_pairs(batch: dict[str, list]) -> dict[str, list]:
    ids = batch["chosen_ids"] + batch["rejected_ids"]
    starts = batch["chosen_prefix_length"] + batch["rejected_prefix_length"]
    labels = [[IGNORE_INDEX] * start + sequence[start:] for sequence, start in zip(ids, starts, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _encode_batch(batch: dict[str, list], indices: list[int], name: str, **kwargs) -> dict[str, list]:
    columns: dict[str, list] = {column: [] for column in (*ENCODED_COLUMNS, "row", "shortened", "changed")}
    if "margin" in batch:
        columns["margin"] = []
    if "chosen_finish_reason" in batch:
        columns["cut"] = []
    for position, index in enumerate(indices):
        row = {column: values[position] for column, values in batch.items()}
        try:
            encoded = _encode_row(row, **kwargs)
        except ValueError as error:
            raise ValueError(f"The {name} dataset, {row_name(index, row)}: {error}") from error
        for pair in encoded:
            for column, value in {**pair, "row": index}.items():
                columns[column].append(value)
    return columns


def _encode_row(
    row: dict[str, Any], critique_format: CritiqueFormat, max_length: int | None, overlong_policy: str
) -> list[dict[str, Any]]:
    """Encode one row into pairs, one per critique; none if the row is over-long and dropped."""
    margin = row.get("margin", 0.0)
    if not isinstance(margin, int | float) or not abs(margin) <= _LARGEST:
        raise ValueError(f"`margin` is {margin!r}; give a number that fits fp32, or omit the column.")
    responses = [response_of(row, side) for side in SIDES]
    critiques: list[Sequence] = [[None], [None]]
    if critique_format.critique:
        critiques = [critiques_of(row, column) for column in FEEDBACK_COLUMNS]
        check_equal_critiques(row, *critiques)
        _check_ids(row, critique_format)

    def complete(prefix, critique) -> EncodedCritique:
        encoded = critique_format.complete_for_training(prefix, critique)
        if overlong_policy == "truncate_end" and max_length is not None:
            reference: Any = critique_format  # `encode_pairs` refuses this policy for other formats
            return reference.truncate_end(encoded, max_length)
        return encoded

    def encode(prompt) -> list[tuple[EncodedCritique, EncodedCritique]]:
        prefixes = [critique_format.encode_prefix(prompt, response) for response in responses]
        return [
            (complete(prefixes[0], chosen), complete(prefixes[1], rejected))
            for chosen, rejected in zip(*critiques, strict=True)
        ]

    def length(pairs) -> int:
        return max(len(side.input_ids) for pair in pairs for side in pair)

    prompt = prompt_of(row)
    fitted, pairs = fit_to_context(prompt, encode, length, max_length, overlong_policy, critique_format)
    if pairs is None:
        return []
    extra = {"margin": float(row["margin"])} if "margin" in row else {}
    cuts = _cut_critiques(row, len(pairs))
    return [
        {
            "chosen_ids": chosen.input_ids,
            "rejected_ids": rejected.input_ids,
            "chosen_prefix_length": chosen.prefix_length,
            "rejected_prefix_length": rejected.prefix_length,
            "shortened": fitted is not prompt,
            "changed": chosen.response_changed + rejected.response_changed,
            **({} if cut is None else {"cut": cut}),
            **extra,
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
            if critique_format.decode(ids) != text.strip():
                raise ValueError(
                    f"`{column}_ids` do not decode to `{column}`: they come from another tokenizer, or the text "
                    "was edited. Drop the `_ids` column to train on the text."
                )


def _cut_critiques(row: dict[str, Any], num_pairs: int) -> list[int | None]:
    """Count the critiques of each pair that were cut off at the token budget; `None` without finish reasons."""
    if "chosen_finish_reason" not in row:
        return [None] * num_pairs
    reasons = [row.get(f"{side}_finish_reason") for side in SIDES]
    reasons = [[reason] if isinstance(reason, str) else reason for reason in reasons]
    if any(reason is None or len(reason) != num_pairs for reason in reasons):
        raise ValueError(
            f"`chosen_finish_reason` and `rejected_finish_reason` are {reasons!r:.80}; give one per critique "
            "in both columns, or neither column."
        )
    return [sum(reason == "length" for reason in pair) for pair in zip(*reasons, strict=True)]


def _report(encoded: Dataset, num_rows: int, name: str):
    """Log rows that were shortened, dropped or changed by the chat template."""
    if len(encoded) == 0:
        raise ValueError(f"The {name} dataset has no rows left: all {num_rows} are over-long.")
    kept = len(set(encoded["row"]))
    if shortened := sum(encoded["shortened"]):
        logger.warning("The %s dataset: training uses a shortened prompt in %d pair(s).", name, shortened)
    if kept < num_rows:
        logger.warning("The %s dataset: dropped %d of %d rows, which are over-long.", name, num_rows - kept, num_rows)
    if changed := sum(encoded["changed"]):
        logger.warning(
            "The %s dataset: the chat template changes %d response(s) (thinking blocks dropped?). "
            "`keep_thinking` shows them in full.", name, changed,
        )  # fmt: skip
