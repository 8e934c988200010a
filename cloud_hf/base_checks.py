"""Check on a few tokens that a base can become a reward model: its attention, its logits, and flattened batches."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.generic import is_flash_attention_requested

from .packed_attention import packed_arguments


@contextmanager
def runnable(model: Any) -> Iterator[None]:
    """
    Let the model run before training has placed it. FlashAttention, whose kernels need a GPU and 16-bit weights, is replaced. What
    ZeRO-3 has partitioned is gathered: the weights of a decoder layer while the layer runs, and all others until the end.
    """
    config = model.trunk.config
    with ExitStack() as stack:
        if is_flash_attention_requested(config):
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = "eager"
        if is_deepspeed_zero3_enabled():
            # Not imported by a statement, because transformers would require DeepSpeed wherever a saved model runs its own code
            gather = import_module("deepspeed").zero.GatheredParameters
            lists = [child for child in model.trunk.get_decoder().children() if isinstance(child, nn.ModuleList)]
            layers = dict.fromkeys(layer for layers in lists for layer in layers)
            of_layers = {weight for layer in layers for weight in layer.parameters()}
            stack.enter_context(gather([weight for weight in model.parameters() if weight not in of_layers]))
            for buffer in model.buffers():  # DeepSpeed has moved only the weights to the GPU so far
                buffer.data = buffer.data.to(model.device)
            for layer in layers:

                def forward(*args, layer=layer, run=layer.forward, **kwargs):
                    with gather(layer.parameters()):
                        return run(*args, **kwargs)

                layer.forward = forward
                stack.callback(delattr, layer, "forward")
        yield


@torch.no_grad()
def check_logits(model: Any):
    """
    Raise `ValueError` if attention is not causal, or if the language model changes its logits in a way that `scale_logits` does not
    reproduce: the critique loss would then be wrong.
    """
    ids = torch.tensor([[0, 1, 2]], device=model.device)
    theirs = model.language_model(ids, use_cache=False).logits.float()
    hidden_BTH = model.trunk(ids, use_cache=False).last_hidden_state
    first_B1H = model.trunk(ids[:, :1], use_cache=False).last_hidden_state
    if (hidden_BTH[:, :1] - first_B1H).abs().max() > _rounding(first_B1H):
        raise ValueError(
            f"{type(model.language_model).__name__} is not causal: its tokens attend to later tokens, so it cannot write critiques. "
            "Start from a causal language model."
        )
    ours = model.scale_logits(model.language_model.get_output_embeddings()(hidden_BTH).float())
    if (ours.to(theirs.device) - theirs).abs().max() > _rounding(theirs):
        raise ValueError(
            f"{type(model.language_model).__name__} changes its logits after the LM head in an unsupported way, "
            "which would make the critique loss wrong. It cannot become a CLoud model yet."
        )


@torch.no_grad()
def check_segments(model: Any, shared_prompt: bool):
    """Raise `ValueError` unless random sequences get the same hidden states in a flattened batch as alone."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.text_config.vocab_size, (65,), generator=generator)
    prefix, *ends = ids.split([40, 8, 12, 5])
    sequences = [torch.cat([prefix, end]) for end in ends]
    tree = [(prefix, 0, -1), *((end, len(prefix), 0) for end in ends)]  # tokens, first position, parent
    pieces = tree if shared_prompt else [(sequence, 0, -1) for sequence in sequences]
    segments = torch.tensor([(len(tokens), parent) for tokens, _, parent in pieces])
    positions = torch.cat([torch.arange(start, start + len(tokens)) for tokens, start, _ in pieces])
    row = torch.cat([tokens for tokens, _, _ in pieces])[None].to(model.device)
    last_tokens = segments[:, 0].cumsum(0)[-len(ends) :] - 1

    def last_states(ids_BT: torch.Tensor, at: torch.Tensor | int, **options) -> torch.Tensor:
        return model.trunk(input_ids=ids_BT, use_cache=False, **options).last_hidden_state[0, at].float()

    was_training = model.training
    model.eval()
    options = {"position_ids": positions[None].to(model.device)}
    packed = last_states(row, last_tokens, **options, **packed_arguments(model.trunk.config, segments, model.device))
    alone = torch.stack([last_states(sequence[None].to(model.device), -1) for sequence in sequences])
    limit = _rounding(alone)
    if model.dtype != torch.float32:
        # Over many layers, rounding errors can add up to more than the limit, but seeing other sequences changes the
        # hidden states far more
        mixed = last_states(row, last_tokens, **options, attention_mask=torch.ones_like(row))
        limit = torch.maximum(limit, 0.5 * (mixed - alone).abs().max())
    if (packed - alone).abs().max() > limit:
        raise ValueError(
            f"`padding_free` and `shared_prompt` cannot be used with {type(model.language_model).__name__}: the "
            "sequences of a flattened batch would see each other."
        )
    model.train(was_training)


def _rounding(values: torch.Tensor) -> torch.Tensor:
    """Return the largest difference from `values` that rounding can explain, even in bf16, which has 8 bits of precision."""
    return 0.02 * values.abs().max() + 1e-4
