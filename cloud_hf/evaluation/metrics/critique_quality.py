"""
Compare critiques with reference critiques: the language-model loss of a reference critique, and its overlap with the model's own critique.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...critique_format import IGNORE_INDEX, CritiqueFormat, EncodedCritique
from ...data.bad_rows import BadRows, OverlongRows
from ...data.fit_to_context import Overlong
from ...data.preference_rows import POSITION, SIDES, read_preferences, read_prompts
from ...data.row_values import FEEDBACK_COLUMNS, judged_chat, listed, prompt_of, response_of
from ...data.rows import check_columns, load_rows
from ...scoring import context_length
from ..stats import Summarised


@dataclass(frozen=True)
class CritiqueRow:
    """A response with a reference critique; `id` is unique in the set."""

    id: str
    prompt: Any
    response: str
    critique: str


def load(
    names: Sequence[str], split: str = "test", config: str | None = None, bad_rows: str = "error"
) -> list[CritiqueRow]:
    """
    Load rows with reference critiques. Unless `bad_rows` is `"drop"`, raises a `ValueError` that names the file, the bad rows and the
    field.

    The columns are `prompt`, `response` and `critique`; or `prompt`, `chosen`, `rejected`, `chosen_feedback` and `rejected_feedback`. In
    the latter case, each row becomes two. If a response has several critiques, only the first is used.
    """
    if not names:
        raise ValueError("Name at least one file or dataset to load.")
    return [row for name in names for row in read_critique_rows(name, load_rows(name, split, config), bad_rows)]


def read_critique_rows(source: str, rows: Dataset, bad_rows: str = "error") -> list[CritiqueRow]:
    """Convert the rows of a dataset; see [`load`]."""
    is_pair = "chosen_feedback" in rows.column_names
    sides = tuple(zip(SIDES, FEEDBACK_COLUMNS, strict=True)) if is_pair else (("response", "critique"),)
    title = f"Critique quality ({source})"
    check_columns(rows.column_names, tuple(column for side in sides for column in side), title)
    read = read_preferences if is_pair else read_prompts
    rows, found, bad = read(rows, title, bad_rows=bad_rows, numbered=True), [], BadRows(source, bad_rows)
    row: Any
    for row in rows:
        index = row[POSITION]
        try:
            found += [
                CritiqueRow(
                    f"{source}/{index}/{side}",
                    *judged_chat(prompt_of(row), response_of(row, side, allow_empty=True)),
                    _critique_of(row, critique),
                )
                for side, critique in sides
            ]
        except ValueError as error:
            bad.add(index, row, str(error))
    bad.settle(len(rows))
    return found


def _critique_of(row: dict[str, Any], column: str) -> str:
    text = listed(row[column])
    text = text[0] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{column}` is {row[column]!r:.60}; give a critique as text.")
    return text


@dataclass(frozen=True)
class ReferenceLoss:
    """Language-model loss of a reference critique."""

    nats: float  # summed cross-entropy of its tokens, including the end of turn
    tokens: int


@torch.inference_mode()
def reference_losses(
    model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[CritiqueRow],
    batch_size: int = 8,
    overlong_policy: str = "error",
) -> list[ReferenceLoss]:
    """
    Compute the loss of each reference critique, that is, the loss that stage 1 minimises. Requires a CLoud model in this process: servers
    and vLLM do not return losses.

    If a row is longer than the model's context, `overlong_policy="error"` raises `ValueError`; with any other policy, the row's loss covers
    zero tokens. With `format="reference"` the loss includes the fixed critique prompt, as in training with that format. Also raises
    `ValueError` if the model is classic. All errors are raised before any loss is computed.
    """
    if not model.config.critique:
        raise ValueError("This is a classic reward model: it writes no critiques, so it has no critique loss.")
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    limit = context_length(model.config)
    encoded, losses, overlong = [], {}, OverlongRows("")
    for place, row in enumerate(rows):
        prefix = critique_format.encode_prefix(row.prompt, row.response)
        sequence = critique_format.complete_for_training(prefix, row.critique)
        encoded.append(sequence)
        length = len(sequence.input_ids)
        if limit is None or length <= limit:
            overlong.lengths.append(length)
        elif overlong_policy == "error":
            overlong.add(place, {"id": row.id}, str(Overlong(length, limit)), length)
        else:
            losses[place] = ReferenceLoss(0.0, 0)
    overlong.settle()
    # Process the longest rows first: batches of similar lengths need little padding, and running out of memory shows up immediately
    order = sorted(set(range(len(encoded))) - losses.keys(), key=lambda place: -len(encoded[place].input_ids))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = _right_padded([encoded[place] for place in places], model.device)
        sums = model(**batch, use_cache=False, return_dict=True).lm_loss_sums.tolist()
        counts = (batch["labels"] != IGNORE_INDEX).sum(dim=1).tolist()
        losses |= {
            place: ReferenceLoss(*loss) for place, loss in zip(places, zip(sums, counts, strict=True), strict=True)
        }
    return [losses[place] for place in range(len(encoded))]


def _right_padded(rows: Sequence[EncodedCritique], device: torch.device) -> dict[str, torch.Tensor]:
    width = max(len(row.input_ids) for row in rows)
    pads = [width - len(row.input_ids) for row in rows]
    columns = {
        # Any id serves as padding, since it is masked; some tokenizers have no padding token
        "input_ids": [[*row.input_ids, *[row.input_ids[0]] * pad] for row, pad in zip(rows, pads, strict=True)],
        "attention_mask": [[1] * len(row.input_ids) + [0] * pad for row, pad in zip(rows, pads, strict=True)],
        "labels": [row.labels + [IGNORE_INDEX] * pad for row, pad in zip(rows, pads, strict=True)],
        "reward_positions": [row.reward_position for row in rows],
    }
    return {name: torch.tensor(values, device=device) for name, values in columns.items()}


@dataclass(frozen=True)
class CritiqueQuality(Summarised):
    """Written critiques compared with reference critiques."""

    n: int
    words: float  # mean number of words in a written critique
    reference_words: float  # mean number of words in a reference critique
    chrf: float  # chrF2 of the set, 0 to 100: overlap of character n-grams (Popović 2015; sacrebleu)
    bleu: float  # BLEU of the set, 0 to 100 (sacrebleu)
    empty: int  # number of written critiques without text
    loss_per_token: float | None = None  # mean cross-entropy of the reference critiques' tokens, in nats
    loss_tokens: int = 0


def score_critiques(
    written: Sequence[str], references: Sequence[str], losses: Sequence[ReferenceLoss] | None = None
) -> CritiqueQuality:
    """
    Compare written critiques with reference critiques, and average the losses of the reference critiques. Overlap measures wording, not
    correctness: two good critiques can share few words. Raises `ValueError` if there are no critiques, or if the numbers of critiques or
    losses differ.
    """
    import sacrebleu

    if not len(written) == len(references) or not written:
        raise ValueError(
            f"{len(written)} written critiques and {len(references)} reference critiques: pass the same number of "
            "each, at least one."
        )
    if losses is not None and len(losses) != len(references):
        raise ValueError(
            f"{len(losses)} losses for {len(references)} reference critiques: pass the same number of each."
        )
    losses = losses or []
    tokens = sum(loss.tokens for loss in losses)
    return CritiqueQuality(
        n=len(written),
        words=_mean_words(written),
        reference_words=_mean_words(references),
        chrf=sacrebleu.corpus_chrf(list(written), [list(references)]).score,
        bleu=sacrebleu.corpus_bleu(list(written), [list(references)]).score,
        empty=sum(not text.strip() for text in written),
        loss_per_token=math.fsum(loss.nats for loss in losses) / tokens if tokens else None,
        loss_tokens=tokens,
    )


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts)
