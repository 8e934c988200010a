"""Chunked cross-entropy that keeps neither the full logits nor a separate LM-head gradient for each chunk in memory.

Shape suffixes: P positions, H hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


# Number of LM-head rows whose gradient is computed in one step if it cannot be accumulated in place
_ROWS = 4096


class ChunkedCrossEntropy(torch.autograd.Function):
    """
    Loss at each position, computed chunk by chunk, for an LM head that is a single matrix. The backward pass recomputes each
    chunk's logits. Plain activation checkpointing would keep two gradients of the matrix in memory while autograd adds them
    up; here, every chunk's gradient is added in place to the one that is returned.
    """

    @staticmethod
    def forward(
        ctx,
        hidden_PH: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_P: torch.Tensor,
        chunks: int,
        loss_from_logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """
        Return the losses, shape `(P,)`. `loss_from_logits` computes the losses of a chunk, shape `(p,)`, from its
        logits `(p, V)` and labels `(p,)`. The positions are split into `chunks` chunks, and only one chunk's logits are in memory at
        a time.
        """
        ctx.save_for_backward(hidden_PH, weight_VH, labels_P)
        ctx.chunks, ctx.loss_from_logits = chunks, loss_from_logits
        device = hidden_PH.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        pieces = zip(hidden_PH.tensor_split(chunks), labels_P.tensor_split(chunks), strict=True)
        return torch.cat([loss_from_logits(F.linear(hidden, weight_VH), labels) for hidden, labels in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_P: torch.Tensor):
        """Compute the gradients of the hidden states, and of the LM head unless it is frozen."""
        hidden_PH, weight_VH, labels_P = ctx.saved_tensors
        grad_hidden_PH = torch.empty_like(hidden_PH)
        grad_weight_VH = torch.zeros_like(weight_VH) if ctx.needs_input_grad[1] else None
        pieces = zip(*(t.tensor_split(ctx.chunks) for t in (hidden_PH, labels_P, grad_P, grad_hidden_PH)), strict=True)
        with torch.autocast(**ctx.autocast):
            for hidden, labels, grad, grad_hidden in pieces:
                logits = F.linear(hidden, weight_VH).requires_grad_()
                with torch.enable_grad():
                    loss = ctx.loss_from_logits(logits, labels)
                (grad_logits,) = torch.autograd.grad(loss, logits, grad)
                grad_hidden.copy_(grad_logits @ weight_VH)
                if grad_weight_VH is None:
                    continue
                if grad_logits.dtype == hidden.dtype == weight_VH.dtype:
                    grad_weight_VH.addmm_(grad_logits.T, hidden)
                    continue
                # Under autocast, the dtypes differ, so `addmm_` cannot be used. Add the product, which is as large as the matrix, in
                # slices
                for start in range(0, len(grad_weight_VH), _ROWS):
                    rows = slice(start, start + _ROWS)
                    grad_weight_VH[rows] += grad_logits[:, rows].T @ hidden
        return grad_hidden_PH, grad_weight_VH, None, None, None
