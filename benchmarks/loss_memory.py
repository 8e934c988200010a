"""
Measure how the time and memory of one joint-loss step depend on the number of chunks in which vocabulary logits are computed
(`lm_loss_chunks`). The workload is a random Llama with hidden size 512, 8 layers and a vocabulary of 128,000, on one pair of
2 x 1,024 tokens, half of them labelled, in fp32. Baselines:

- all_logits: the same decoder and losses, with the logits of all positions computed in one piece.
- limit: the decoder's forward and backward passes and the logits of the labelled positions, without rewards.

Memory is the peak of a separate process minus its memory use with parameters and gradients alone. Seconds are measured in one
process that runs the sides one after another in each round. Writes the numbers, and a plot of seconds against memory.

python benchmarks/loss_memory.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from recording import save
from torch.nn import functional as F
from transformers import LlamaConfig

from cloud_hf import CLoudConfig, CLoudForRewardModeling


VOCABULARY, HIDDEN, LAYERS, TOKENS = 128_000, 512, 8, 1024
CHUNKS = (1, 2, 4, 8, 16, 32)
TIME_LIMIT, MEMORY_LIMIT = 1.15, 0.35

Step = Callable[[], torch.Tensor]


# ----------------------------------------------------------------------------------------------------------- sides


def make_model() -> CLoudForRewardModeling:
    """Create the model, and allocate its gradients."""
    torch.manual_seed(0)
    text_config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model = CLoudForRewardModeling(CLoudConfig(text_config=text_config)).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter).fill_(0)
    return model


def make_batch(tokens: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (2, tokens))
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
        "reward_positions": torch.full((2,), tokens - 1),
    }


def joint(model: CLoudForRewardModeling, batch: dict, chunks: int) -> torch.Tensor:
    output = model(**batch, lm_loss_chunks=chunks, use_cache=False)
    chosen, rejected = output.logits.chunk(2)
    return -F.logsigmoid(chosen - rejected).mean() + 1.25 * output.lm_loss


def all_logits(model: CLoudForRewardModeling, batch: dict) -> torch.Tensor:
    hidden = model.trunk(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, :-1])
    lm_loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    chosen, rejected = model.reward_from_hidden(hidden[:, -1]).chunk(2)
    return -F.logsigmoid(chosen - rejected).mean() + 1.25 * lm_loss


def limit(model: CLoudForRewardModeling, batch: dict) -> torch.Tensor:
    hidden = model.trunk(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).last_hidden_state
    labelled = batch["labels"][:, 1:] != -100
    return F.cross_entropy(model.get_output_embeddings()(hidden[:, :-1][labelled]), batch["labels"][:, 1:][labelled])


def make_side(name: str, model: CLoudForRewardModeling, batch: dict) -> Step:
    """Return a function that computes the loss of a side: `limit`, `all_logits` or `chunks_…`."""
    if name.startswith("chunks_"):
        return lambda: joint(model, batch, int(name.removeprefix("chunks_")))
    return lambda: {"limit": limit, "all_logits": all_logits}[name](model, batch)


# ------------------------------------------------------------------------------------------------------- measuring


def status_megabytes(field: str) -> float:
    """Return this process's `VmRSS` or `VmHWM` in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def print_peak(name: str):
    """Print the peak megabytes of a step minus the megabytes in use before it."""
    model = make_model()
    make_side(name, model, make_batch(16))().backward()  # triggers lazy loading
    before = status_megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    make_side(name, model, make_batch(TOKENS))().backward()
    print(status_megabytes("VmHWM") - before)


def peak_megabytes(name: str) -> float:
    # Make freed blocks return to the system; otherwise they count before the step, but are reused during it
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--peak", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def seconds_by_side(names: list[str], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side per round after a warm-up round; rounds alternate which side starts."""
    model, batch = make_model(), make_batch(TOKENS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            make_side(name, model, batch)().backward()
            taken = time.perf_counter() - start
            if number > 0:
                seconds[name].append(taken)
            print(f"round {number}: {name} {taken:.2f} s", flush=True)
    return seconds


def check_equal(names: list[str]):
    """Check that all sides except the limit compute the same loss."""
    model, batch = make_model(), make_batch(64)
    losses = [make_side(name, model, batch)().item() for name in names if name != "limit"]
    if max(losses) - min(losses) > 1e-4:
        raise ValueError(f"The sides do not compute the same loss: {losses}.")


def summarise(seconds: dict[str, list[float]], megabytes: dict[str, float]) -> dict:
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    sides = {
        name: {
            "seconds_median": medians[name],
            "seconds_min": min(seconds[name]),
            "seconds_max": max(seconds[name]),
            "peak_megabytes": megabytes[name],
            "seconds / limit": medians[name] / medians["limit"],
            "megabytes / all_logits": megabytes[name] / megabytes["all_logits"],
        }
        for name in seconds
    }
    settings = [name for name in seconds if name.startswith("chunks_")]
    fastest = min(settings, key=lambda name: medians[name])
    smallest = min(settings, key=lambda name: megabytes[name])
    time_ratio, memory_ratio = sides[fastest]["seconds / limit"], sides[smallest]["megabytes / all_logits"]
    ratios = {
        "seconds / limit": {
            "value": time_ratio, "setting": fastest, "limit": TIME_LIMIT, "limit_is": "at most",
            "reached": time_ratio <= TIME_LIMIT,
        },
        "megabytes / all_logits": {
            "value": memory_ratio, "setting": smallest, "limit": MEMORY_LIMIT, "limit_is": "at most",
            "reached": memory_ratio <= MEMORY_LIMIT,
        },
    }  # fmt: skip
    return {"sides": sides, "ratios": ratios}


def plot(result: dict, path: Path):
    """Plot seconds against memory, one point per number of chunks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sides = result["sides"]
    settings = {name: side for name, side in sides.items() if name.startswith("chunks_")}
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.plot(
        [side["peak_megabytes"] / 1000 for side in settings.values()],
        [side["seconds_median"] for side in settings.values()],
        marker="o",
        color="#0072B2",
        label="joint loss, labelled positions in chunks",
    )
    whole, floor = sides["all_logits"], sides["limit"]
    small, quick = MEMORY_LIMIT * whole["peak_megabytes"] / 1000, TIME_LIMIT * floor["seconds_median"]
    for name, side in settings.items():
        chunks, x = name.removeprefix("chunks_"), side["peak_megabytes"] / 1000
        left = x < small  # left of the line, the label goes to the left, so as not to cross it
        axes.annotate(
            f"{chunks} chunk" + "s" * (chunks != "1"),
            (x, side["seconds_median"]),
            textcoords="offset points",
            xytext=(-8, -12) if left else (8, 3),
            ha="right" if left else "left",
        )
    axes.plot(
        whole["peak_megabytes"] / 1000, whole["seconds_median"], "s", color="#D55E00", markersize=8,
        label="all logits at once",
    )  # fmt: skip
    axes.axhline(quick, color="#009E73", linestyle="--", label="1.15 × time of the limit")
    axes.axvline(small, color="#CC79A7", linestyle=":", linewidth=2, label="0.35 × memory of all logits")
    axes.set(
        xlabel="peak memory above parameters and gradients (GB)",
        ylabel="time per step (s)",
        title="One joint-loss step at vocabulary 128,000 (2 × 1,024 tokens, half labelled, fp32)",
        xlim=(0, 1.06 * max(side["peak_megabytes"] for side in sides.values()) / 1000),
        ylim=(0, 1.1 * max(side["seconds_median"] for side in sides.values())),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="number of steps of each side, after a warm-up step")
    parser.add_argument(
        "--output", default="benchmarks/results/loss_memory.json", help="the plot is written next to it"
    )
    args = parser.parse_args()
    names = ["limit", "all_logits", *(f"chunks_{chunks}" for chunks in CHUNKS)]
    check_equal(names)
    megabytes = {name: peak_megabytes(name) for name in names}
    print(json.dumps(megabytes))
    result = {
        "workload": {
            "vocabulary": VOCABULARY,
            "hidden_size": HIDDEN,
            "layers": LAYERS,
            "tokens": f"2 x {TOKENS}, half labelled",
            "rounds": args.rounds,
            "cores": os.cpu_count(),
        },
        **summarise(seconds_by_side(names, args.rounds), megabytes),
    }
    save(args.output, result)
    plot(result, Path(args.output).with_suffix(".png"))
    report(result)


def report(result: dict):
    """Print the measurements next to their limits."""
    print()
    for name, side in result["sides"].items():
        print(
            f"{name:12} {side['seconds_median']:6.2f} s ({side['seconds / limit']:.2f} × limit)   "
            f"{side['peak_megabytes']:6.0f} MB ({side['megabytes / all_logits']:.2f} × all logits)"
        )
    for label, ratio in result["ratios"].items():
        print(
            f"{label:24} {ratio['value']:.3f} with {ratio['setting']}, limit at most {ratio['limit']}: "
            f"{'reached' if ratio['reached'] else 'NOT reached'}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2])
    else:
        main()
