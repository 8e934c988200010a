"""
Measure training steps on one GPU, with a model of the size and shape of Llama 3 8B (random weights, bf16). A batch has 4 pairs, that is, 8
sequences of about 1,250 tokens, a fifth of which are labelled. A step consists of the forward and backward passes, without the optimizer;
it runs with gradient checkpointing (`recompute`) and without.

- joint: the model's joint loss on the flattened batch.
- limit: the decoder on the same batch, and the logits of the labelled positions in one piece. There are no rewards.
- reference: every sequence padded to 2,048 tokens, and the logits of all positions computed.
- unshared, shared: pairs whose prompt is half of each sequence, without and with `shared_prompt`.
- long, short: 16 sequences of 1,250 tokens, and 128 sequences of 156 tokens, without labels.

MFU counts 6 FLOPs for each token and each weight that processes it, plus the FLOPs of attention; recomputed FLOPs are not counted again.
The peak that MFU refers to is the speed of a large matrix product, measured in the same run.

python benchmarks/gpu_training.py          # under 3 minutes on an H100 or H200
python benchmarks/gpu_training.py --tiny   # on any machine, in seconds
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_measuring import (
    DEVICE,
    VOCABULARY,
    against,
    device_limits,
    finish,
    llama_config,
    made_on_device,
    measure,
    parse_arguments,
    peak_ratio,
    ratio,
)
from torch.nn import functional as F

from cloud_hf import CLoudConfig, CLoudForRewardModeling
from cloud_hf.modeling_cloud import labelled
from cloud_hf.packed_attention import packed_arguments
from cloud_hf.training.packing import Packing, TokenSequence


LM_LOSS_WEIGHT = 1.25


@dataclass
class Sizes:
    """Token counts of the parts of a sequence, the padded length and the vocabulary size."""

    prompt: int = 500
    response: int = 500
    critique: int = 250
    padded: int = 2048
    vocabulary: int = VOCABULARY


TINY = Sizes(prompt=40, response=30, critique=15, padded=128, vocabulary=1024)

Batch = dict[str, Any]


# -------------------------------------------------------------------------------------------------------- workload


def make_pairs(
    sizes: Sizes, prompt: int, response: int, critique: int, pairs: int, spread: float
) -> list[TokenSequence]:
    """Return sequences of random tokens, first the chosen ones, then the rejected ones. The lengths of their parts vary by `spread`."""
    rng = np.random.default_rng(0)

    def tokens(mean: int) -> np.ndarray:
        return rng.integers(sizes.vocabulary, size=round(mean * rng.uniform(1 - spread, 1 + spread)))

    prompts = [tokens(prompt) for _ in range(pairs)]
    sequences = []
    for start in prompts * 2:
        middle = tokens(response)
        sequences.append(TokenSequence(np.concatenate([start, middle, tokens(critique)]), len(start) + len(middle)))
    return sequences


def flatten(sequences: list[TokenSequence], shared_prompt: bool = False, labels: bool = True) -> Batch:
    batch = Packing(sequences, shared_prompt).tensors(labels)
    if labels:
        batch["target_positions"] = labelled(batch["labels"][:, 1:])
    return {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def pad(sequences: list[TokenSequence], width: int) -> Batch:
    ids, mask = torch.zeros(2, len(sequences), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, sequence in enumerate(sequences):
        length, start = len(sequence.ids), sequence.prefix_length
        ids[row, :length] = torch.from_numpy(sequence.ids)
        mask[row, :length] = 1
        labels[row, start:length] = ids[row, start:length]
    return {"input_ids": ids.to(DEVICE), "attention_mask": mask.to(DEVICE), "labels": labels.to(DEVICE)}


def make_model(shape: str, sizes: Sizes) -> CLoudForRewardModeling:
    with made_on_device():
        model = CLoudForRewardModeling(CLoudConfig(text_config=llama_config(shape, vocab_size=sizes.vocabulary)))
    model.reward_head.float()
    model.set_attn_implementation("sdpa")
    model.prepare_for_segments(shared_prompt=True)
    return model.train()


# ----------------------------------------------------------------------------------------------------------- sides


def pairwise_loss(rewards_B1: torch.Tensor) -> torch.Tensor:
    chosen, rejected = rewards_B1[:, 0].chunk(2)
    return -F.logsigmoid(chosen - rejected).mean()


def joint(model, batch: Batch) -> torch.Tensor:
    output = model(**batch, use_cache=False)
    lm_loss = 0.0 if output.lm_loss is None else output.lm_loss
    return pairwise_loss(output.logits) + LM_LOSS_WEIGHT * lm_loss


def limit(model, batch: Batch) -> torch.Tensor:
    options = packed_arguments(model.trunk.config, batch["segments"], DEVICE)
    hidden_1NH = model.trunk(
        batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **options
    ).last_hidden_state
    labels_N, places_P = batch["labels"][0, 1:], batch["target_positions"]
    logits_PV = model.get_output_embeddings()(hidden_1NH[0, places_P])
    return F.cross_entropy(logits_PV.float(), labels_N[places_P])


def reference(model, batch: Batch) -> torch.Tensor:
    hidden_BTH = model.trunk(
        batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    last_B = batch["attention_mask"].sum(-1) - 1
    rewards_B1 = model.reward_from_hidden(hidden_BTH[torch.arange(len(last_B), device=DEVICE), last_B])
    return pairwise_loss(rewards_B1) + LM_LOSS_WEIGHT * all_logits_loss(model, hidden_BTH, batch["labels"])


def all_logits_loss(model, hidden_BTH: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model.get_output_embeddings()(hidden_BTH[:, :-1]).float()
    return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten())


def step(model, loss: Callable, batch: Batch, recompute: bool) -> Callable[[], None]:
    def run():
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        loss(model, batch).backward()
        model.zero_grad(set_to_none=True)

    return run


def flops(model, sequences: list[TokenSequence]) -> float:
    """Count the FLOPs that the joint loss needs in one forward and backward pass."""
    config, head = model.config.text_config, model.get_output_embeddings().weight.numel()
    trunk = sum(p.numel() for p in model.trunk.parameters()) - model.get_input_embeddings().weight.numel()
    tokens = sum(len(sequence.ids) for sequence in sequences)
    labelled = sum(len(sequence.ids) - sequence.prefix_length for sequence in sequences)
    attention = sum(len(sequence.ids) ** 2 for sequence in sequences) * config.hidden_size * config.num_hidden_layers
    return 6 * (trunk * tokens + head * labelled + attention)


def loss_sides(model, batch: Batch) -> dict[str, Callable[[], None]]:
    """Create the sides that compute only the critique loss, from given hidden states."""
    with made_on_device():
        hidden_1NH = torch.randn(*batch["input_ids"].shape, model.config.text_config.hidden_size, requires_grad=True)

    def backward(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run():
            loss().backward()
            hidden_1NH.grad = None
            model.zero_grad(set_to_none=True)

        return run

    labels, places_P = batch["labels"], batch["target_positions"]
    return {
        "loss alone": backward(lambda: model._lm_losses(hidden_1NH[:, :-1], labels[:, 1:], places_P, None).mean()),
        "loss alone, all logits": backward(lambda: all_logits_loss(model, hidden_1NH, labels)),
    }


def main():
    args = parse_arguments(__doc__, rounds=3)
    sizes = TINY if args.tiny else Sizes()
    limits = device_limits(args.tiny)
    model = make_model("tiny" if args.tiny else "8B", sizes)
    length = sizes.prompt + sizes.response + sizes.critique
    sequences = make_pairs(sizes, sizes.prompt, sizes.response, sizes.critique, pairs=4, spread=0.4)
    half = make_pairs(sizes, length // 2, length // 4, length // 4, pairs=4, spread=0.0)
    long, short = (
        make_pairs(sizes, part // 2, part - part // 2, 0, pairs, spread=0.0)
        for part, pairs in ((length, 8), (length // 8, 64))
    )
    shared, unshared = flatten(half, shared_prompt=True), flatten(half)
    steps = {
        "joint": (joint, flatten(sequences)), "limit": (limit, flatten(sequences)),
        "reference": (reference, pad(sequences, sizes.padded)), "unshared": (joint, unshared), "shared": (joint, shared),
        "long": (joint, flatten(long, labels=False)), "short": (joint, flatten(short, labels=False)),
    }  # fmt: skip
    sides = {f"{name}, recompute": step(model, *parts, True) for name, parts in steps.items()}
    sides |= {name: step(model, *steps[name], False) for name in ("joint", "limit")}
    sides |= loss_sides(model, flatten(sequences))
    seconds, peaks = measure(sides, args.rounds)
    needed = flops(model, sequences)
    mfu = {
        name: needed / statistics.median(seconds[name]) / limits["flops_per_second"]
        for name in ("joint", "joint, recompute")
        if name in seconds
    }
    saving = shared["input_ids"].numel() / unshared["input_ids"].numel()
    per_token = sum(len(s.ids) for s in short) / sum(len(s.ids) for s in long)
    ratios = {
        "seconds, joint / limit": ratio(seconds, "joint", "limit", at_most=1.05),
        "seconds, joint / limit, recompute": ratio(seconds, "joint, recompute", "limit, recompute", at_most=1.05),
        "seconds, reference / joint, recompute": ratio(seconds, "reference, recompute", "joint, recompute", at_least=3.0),
        "speed-up of sharing / possible speed-up": ratio(
            seconds, "unshared, recompute", "shared, recompute", at_least=0.9, scale=saving
        ),
        "speed per token, short / long": ratio(seconds, "long, recompute", "short, recompute", at_least=0.9, scale=per_token),
        "peak memory of the loss / of all logits": peak_ratio(peaks, "loss alone", "loss alone, all logits", at_most=0.25),
        **{f"MFU, {name}": against(mfu[name], at_least=bar) for name, bar in (("joint", 0.45), ("joint, recompute", 0.40)) if name in mfu},
    }  # fmt: skip
    described = {
        name: {"seconds_median": statistics.median(taken), "peak_gib": peaks[name]} for name, taken in seconds.items()
    }
    finish(
        args,
        "gpu_training",
        {
            "limits": limits,
            "tokens": len(np.concatenate([s.ids for s in sequences])),
            "sides": described,
            "ratios": ratios,
        },
    )


if __name__ == "__main__":
    main()
