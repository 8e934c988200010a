"""Attention over a batch that is flattened into one row of segments.

Shape suffixes: S segments, N tokens of the flattened batch, h heads, D head size.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.generic import is_flash_attention_requested


# Attention implementation for flattened batches. On ordinary batches it equals `"sdpa"`
PACKED_SDPA = "packed_sdpa"


def packed_arguments(config, segments_S2: torch.Tensor) -> dict[str, Any]:
    """
    Make the arguments that tell a decoder's attention where the segments are. `segments_S2` holds the length and parent of
    each, in the order of their tokens; the parent is the index of an earlier segment, or -1. A token attends to the
    ancestors of its segment, to earlier tokens of that segment, and to itself.

    Raises:
        `ValueError`: If the attention implementation of `config` cannot keep segments apart.
    """
    if is_flash_attention_requested(config):
        if (segments_S2[:, 1] >= 0).any():
            raise ValueError("FlashAttention cannot share prompts; load the model with `attn_implementation='sdpa'`.")
        lengths_S = segments_S2[:, 0]
        ends_S = torch.nn.functional.pad(lengths_S.cumsum(0), (1, 0)).int()
        longest = int(lengths_S.max())
        return {
            "attention_mask": None, "cu_seq_lens_q": ends_S, "cu_seq_lens_k": ends_S, "max_length_q": longest,
            "max_length_k": longest,
        }  # fmt: skip
    if config._attn_implementation != PACKED_SDPA:
        raise ValueError(
            f"A flattened batch needs the attention implementation {PACKED_SDPA!r} (`model.set_attn_implementation`), "
            f"not {config._attn_implementation!r}, which would let its sequences see each other."
        )
    # The table is passed as the attention mask, because every architecture passes on a 4-d mask unchanged, even under
    # gradient checkpointing. It stays on the CPU, where the lengths are read.
    return {"attention_mask": segments_S2.cpu()[None, None]}


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
    Run transformers' SDPA attention segment by segment, if `attention_mask` is the `(1, 1, S, 2)` table of
    [`packed_arguments`], and as usual for an ordinary mask (which already respects `sliding_window`). Query, key and value
    have the shape `(1, h, N, D)`, the output `(1, N, h, D)`. No `N x N` mask is built.
    """
    if attention_mask is None or attention_mask.is_floating_point() or attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths, parents = zip(*attention_mask.tolist()[0][0], strict=True)
    # `split`, because the gradient of each slice would be as large as the full tensor
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    seen: list[tuple[int, ...]] = []  # the ancestors of each segment, and itself
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
    """Return the mask of the keys that the last `num_queries` positions see; `None` if it equals SDPA's own causal mask."""
    if sliding_window is None or num_keys <= sliding_window:  # the window covers all keys
        sliding_window = None
    if num_queries == num_keys and sliding_window is None:
        return None
    seen = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)
    if sliding_window is not None:
        seen = seen.triu(num_keys - num_queries - sliding_window + 1)
    return seen[None, None]


AttentionInterface.register(PACKED_SDPA, packed_sdpa_attention_forward)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
