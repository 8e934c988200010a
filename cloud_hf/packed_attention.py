"""Attention over a batch that is flattened into one row of segments.

On CPUs, a layer makes one SDPA call per segment. On GPUs, it makes a single call, either to FlashAttention's variable-length
kernel or, for shared prompts, soft caps or fp32, to FlexAttention.

Shape suffixes: S segments, N tokens of the flattened batch, h heads, D head size.
"""

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from packaging.version import parse
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.generic import is_flash_attention_requested


logger = logging.getLogger(__name__)

# Name of the attention implementation for flattened batches. On ordinary batches, it behaves like `"sdpa"`
PACKED_SDPA = "packed_sdpa"

# Earlier versions of torch lack this kernel, or its support for sliding windows and grouped queries
_HAS_VARLEN = parse(torch.__version__).release >= (2, 13)

# Head sizes that the GPU kernels support, and the block size of FlexAttention's mask
_LARGEST_VARLEN_HEAD = 256
_VARLEN_HEAD_STEP = 8
_SMALLEST_FLEX_HEAD = 16
_BLOCK = 128

Table = tuple[tuple[int, int], ...]


def packed_arguments(config, segments: torch.Tensor | Sequence[Sequence[int]], device: torch.device) -> dict[str, Any]:
    """
    Build the arguments that tell a decoder's attention where the segments are. `segments`, of shape `(S, 2)`, contains the length and the
    parent of each segment, in token order; a parent is the index of an earlier segment, or -1. A token attends to the ancestors of its
    segment, to the earlier tokens of its segment, and to itself. The host reads `segments`, so it has to wait if that tensor is on
    another device.

    Raises:
        `ValueError`: If the attention implementation of `config` cannot keep segments apart.
    """
    segments_S2 = torch.as_tensor(segments).cpu()
    if is_flash_attention_requested(config):
        if (segments_S2[:, 1] >= 0).any():
            raise ValueError(
                "FlashAttention does not support shared prompts; load the model with `attn_implementation='sdpa'`."
            )
        ends_S, longest = _bounds(tuple(map(tuple, segments_S2.tolist())), device)
        return {
            "attention_mask": None, "cu_seq_lens_q": ends_S, "cu_seq_lens_k": ends_S, "max_length_q": longest,
            "max_length_k": longest,
        }  # fmt: skip
    if config._attn_implementation != PACKED_SDPA:
        raise ValueError(
            f"Flattened batches need the attention implementation {PACKED_SDPA!r} (`model.set_attn_implementation`), "
            f"not {config._attn_implementation!r}, with which their sequences would see each other."
        )
    # The table is passed as the attention mask, because every architecture passes a 4-d mask to its layers unchanged, even
    # under gradient checkpointing. The table stays on the CPU, where the lengths are read.
    return {"attention_mask": segments_S2[None, None]}


def packed_sdpa_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Attend within segments and to their ancestors if `attention_mask` is the `(1, 1, S, 2)` table from [`packed_arguments`].
    Given an ordinary mask (which already respects `sliding_window`), attend as transformers' SDPA attention does. Query, key and value
    have the shape `(1, h, N, D)`, and the output has the shape `(1, N, h, D)`. No `N x N` mask is built.

    Raises:
        `ValueError`: If the GPU kernels do not support the head size or attention dropout.
    """
    if attention_mask is None or attention_mask.is_floating_point() or attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    table: Table = tuple(map(tuple, attention_mask.tolist()[0][0]))
    if query.device.type == "cuda":
        return _attend_on_gpu(query, key, value, table, sliding_window, **kwargs), None
    lengths, parents = zip(*table, strict=True)
    # `split` instead of slices, because the gradient of each slice would be as large as the full tensor
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    seen: list[tuple[int, ...]] = []  # for each segment, its ancestors' indices and its own
    outputs = []
    for index, parent in enumerate(parents):
        seen.append((*(seen[parent] if parent >= 0 else ()), index))
        joined_keys, joined_values = (
            states[index] if parent < 0 else torch.cat([states[other] for other in seen[index]], dim=2)
            for states in (keys, values)
        )
        mask = _lower_right_mask(lengths[index], joined_keys.shape[2], sliding_window, query.device)
        output, _ = sdpa_attention_forward(module, queries[index], joined_keys, joined_values, mask, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _lower_right_mask(
    num_queries: int, num_keys: int, sliding_window: int | None, device: torch.device
) -> torch.Tensor | None:
    """Return a mask of the keys that the last `num_queries` positions see, or `None` if SDPA's own causal mask is the same."""
    if sliding_window is None or num_keys <= sliding_window:  # the window covers all keys
        sliding_window = None
    if num_queries == num_keys and sliding_window is None:
        return None
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)
    if sliding_window is not None:
        seen = seen.triu(num_keys - num_queries - sliding_window + 1)
    return seen[None, None]


# -------------------------------------------------------------------------------------------------- one call per layer


def _attend_on_gpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, table: Table, sliding_window: int | None, scaling: float | None = None,
    dropout: float = 0.0, softcap: float | None = None, **kwargs,
) -> torch.Tensor:  # fmt: skip
    """Attend with the fastest suitable kernel. The shapes are those of [`packed_sdpa_attention_forward`]."""
    if dropout:
        raise ValueError("Flattened batches do not support attention dropout on GPUs; train with `disable_dropout`.")
    if torch.is_autocast_enabled(kind := query.device.type):
        # Autocast does not cast the inputs of the variable-length kernel, so with fp32 weights, queries and keys would be in fp32
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    size, shares = query.shape[-1], any(parent >= 0 for _, parent in table)
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    fits_varlen = size == value.shape[-1] <= _LARGEST_VARLEN_HEAD and size % _VARLEN_HEAD_STEP == 0
    if _HAS_VARLEN and is_half and fits_varlen and not shares and softcap is None:
        _tell("the variable-length kernel")
        return _attend_varlen(query, key, value, table, sliding_window, scaling)
    if (smallest := min(size, value.shape[-1])) < _SMALLEST_FLEX_HEAD:
        raise ValueError(
            f"FlexAttention needs a head size of at least {_SMALLEST_FLEX_HEAD}, but this model's is {smallest}: train it "
            "without `padding_free` and `shared_prompt`, or on a CPU."
        )
    _tell("FlexAttention")
    return _attend_flex(query, key, value, table, sliding_window, scaling, softcap, _compiled())


@cache
def _compiled():
    return torch.compile(flex_attention)


@cache
def _tell(kernel: str):
    logger.info("Flattened batches use %s, with one call per layer.", kernel)


def _attend_varlen(query, key, value, table: Table, sliding_window: int | None, scaling: float | None) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = _bounds(table, query.device)
    # Number of earlier tokens that a query sees; -1 for all
    left = -1 if sliding_window is None else sliding_window - 1
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    options = {"scale": scaling, "window_size": (left, 0), "enable_gqa": query.shape[1] != key.shape[1]}
    output = varlen_attn(query, key, value, ends, ends, longest, longest, **options)
    assert isinstance(output, torch.Tensor)  # no other outputs were requested
    return output[None]


# All layers share these tensors within a step, so each tensor is copied to the GPU only once per batch
@lru_cache(maxsize=2)
def _bounds(table: Table, device: torch.device) -> tuple[torch.Tensor, int]:
    """Return the boundaries of the sequences, of shape `(S + 1,)`, and the length of the longest sequence."""
    lengths = [length for length, _ in table]
    return _on(device, np.cumsum([0, *lengths], dtype=np.int32)), max(lengths)


def _on(device: torch.device, array: np.ndarray) -> torch.Tensor:
    """Copy an array to a device; for GPUs, from pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _attend_flex(query, key, value, table: Table, sliding_window, scaling, softcap, attend) -> torch.Tensor:
    def cap(score, *_):
        return softcap * torch.tanh(score / softcap)

    output = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap,
        block_mask=make_block_mask(table, sliding_window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous()


@lru_cache(maxsize=4)
def make_block_mask(table: Table, sliding_window: int | None, device: torch.device) -> BlockMask:
    """
    Build FlexAttention's block mask for the tree of segments in `table`, without building an `N x N` mask.

    Raises:
        `ValueError`: If a segment's descendants do not follow it directly.
    """
    last_N, position_N = _spans(table)
    num_tokens, blocks = len(last_N), -(-len(last_N) // _BLOCK)
    starts = np.arange(blocks) * _BLOCK

    def reduced(function, values) -> np.ndarray:
        return function.reduceat(values, starts)

    first_query, query_end = starts[:, None], np.minimum(starts + _BLOCK, num_tokens)[:, None]
    before = np.tri(blocks, k=-1, dtype=bool)
    some = np.eye(blocks, dtype=bool) | (before & (reduced(np.maximum, last_N) > first_query))
    # The kernel treats a block that reaches beyond the row as partial
    every = before & (reduced(np.minimum, last_N) >= query_end) & (query_end - first_query == _BLOCK)
    if sliding_window is not None:
        low, high = reduced(np.minimum, position_N), reduced(np.maximum, position_N)
        some &= low[:, None] - high < sliding_window
        every &= high[:, None] - low < sliding_window
    last, position = (_on(device, each) for each in (last_N, position_N))

    def sees(batch, head, query, key):
        seen = (key <= query) & (query < last[key])
        return seen if sliding_window is None else seen & (position[query] - position[key] < sliding_window)

    partly, fully = _block_lists(some & ~every, device), _block_lists(every, device)
    return BlockMask.from_kv_blocks(
        *partly, *fully, BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(num_tokens, num_tokens)
    )


def _spans(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """
    Return two `(N,)` arrays: for each token, the end of the range of tokens that may see it, and its position in its sequence. The range
    consists of the later tokens of the token's segment and all tokens of that segment's descendants.
    """
    lengths = np.array([length for length, _ in table])
    stops = np.cumsum(lengths)
    last, first_position = stops.copy(), np.zeros_like(stops)
    for index, (_, parent) in enumerate(table):
        if parent >= 0:
            first_position[index] = first_position[parent] + lengths[parent]
    # Iterate backwards: a segment's descendants come after it, so their values are final when the loop reaches the segment
    for index in range(len(table) - 1, -1, -1):
        parent = table[index][1]
        if parent >= 0:
            last[parent] = max(last[parent], last[index])
    for index, (_, parent) in enumerate(table):
        # Only other descendants of the parent may lie between a segment and its parent
        if parent >= 0 and any(table[other][1] < parent for other in range(parent + 1, index)):
            raise ValueError("A segment's descendants must follow it directly, before any other segment.")
    return np.repeat(last, lengths), np.arange(stops[-1]) - np.repeat(stops - lengths - first_position, lengths)


def _block_lists(marked: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of marked blocks in each row, and all block indices with the marked ones first."""
    order = np.argsort(~marked, axis=1, kind="stable")
    counts, indices = (_on(device, each.astype(np.int32))[None, None] for each in (marked.sum(1), order))
    return counts, indices


AttentionInterface.register(PACKED_SDPA, packed_sdpa_attention_forward)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
