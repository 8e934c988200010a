"""Code shared by `gpu_training.py`, `gpu_scoring.py` and `gpu_vllm.py`: options, random models, timing, GPU limits, results."""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from recording import rounded, save
from transformers import LlamaConfig


ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
VOCABULARY = 128_256
SHAPES = {  # layers, hidden size, intermediate size, attention heads, key-value heads
    "8B": (32, 4096, 14336, 32, 8),
    "1B": (16, 2048, 8192, 32, 8),
    "tiny": (2, 128, 128, 4, 2),
}

Runs = dict[str, list[float]]


def parse_arguments(description: str, rounds: int) -> argparse.Namespace:
    """Parse `--tiny`, `--rounds` and `--output`; without a GPU, `--tiny` is required."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tiny", action="store_true", help="try the script with a tiny model, which also works on a CPU"
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="number of runs of each side, after a warm-up run")
    parser.add_argument("--output", help="JSON file for the results; if omitted with --tiny, they are only printed")
    args = parser.parse_args()
    if not (ON_GPU or args.tiny):
        parser.error("This benchmark needs a GPU, but torch finds none; use `--tiny` to try the script on a CPU.")
    return args


def llama_config(shape: str, **options) -> LlamaConfig:
    layers, hidden, intermediate, heads, kv_heads = SHAPES[shape]
    options = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192, "bos_token_id": None, **options}
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, **options,
    )  # fmt: skip


@contextmanager
def made_on_device(dtype: torch.dtype = torch.bfloat16):
    """Create models and tensors on the device, with this data type."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            yield
    finally:
        torch.set_default_dtype(before)


# ------------------------------------------------------------------------------------------------------- measuring


def seconds_of(run: Callable[[], Any]) -> float:
    """Return the seconds that a function takes, until the device has finished its work."""
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait():
    if ON_GPU:
        torch.cuda.synchronize()


def measure(sides: dict[str, Callable[[], Any]], rounds: int) -> tuple[Runs, dict[str, float]]:
    """
    Return the seconds of each side per round after a warm-up round, and the peak memory of each side in GiB above the memory in use before
    its run (0 on a CPU). Rounds alternate which side starts. A side that runs out of memory has no entry.
    """
    seconds: Runs = {name: [] for name in sides}
    peaks: dict[str, float] = {}
    for number in range(rounds + 1):
        names = [*seconds]
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            try:
                taken, peaks[name] = _with_peak(sides[name])
            except torch.OutOfMemoryError:
                print(f"{name}: not enough memory on this GPU", flush=True)
                del seconds[name]
                continue
            if number:
                seconds[name].append(taken)
            print(f"round {number}: {name} {taken:.3f} s", flush=True)
    return seconds, {name: peaks[name] for name in seconds}


def _with_peak(run: Callable[[], Any]) -> tuple[float, float]:
    gc.collect()
    if not ON_GPU:
        return seconds_of(run), 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    taken = seconds_of(run)
    return taken, (torch.cuda.max_memory_allocated() - held) / 2**30


def device_limits(tiny: bool) -> dict[str, float]:
    """Measure the device's limits: bf16 FLOPs per second in a large matrix product, and bytes per second in a copy."""
    size = 256 if tiny else 8192
    with made_on_device():
        left, right, product = (torch.randn(size, size) for _ in range(3))
        source = torch.randn(2**16 if tiny else 2**30)
        target = torch.empty_like(source)
    multiplied = statistics.median(seconds_of(lambda: torch.mm(left, right, out=product)) for _ in range(20))
    copied = statistics.median(seconds_of(lambda: target.copy_(source)) for _ in range(10))
    return {"flops_per_second": 2 * size**3 / multiplied, "bytes_per_second": 2 * source.nbytes / copied}


# --------------------------------------------------------------------------------------------------------- results


def ratio(
    seconds: Runs,
    side: str,
    other: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    scale: float = 1.0,
) -> dict:
    """Compare two sides round by round. Returns the median of `scale * seconds of side / seconds of other`, with its limit."""
    if side not in seconds or other not in seconds:
        return {"value": None, "reached": False}
    by_round = [scale * ours / theirs for ours, theirs in zip(seconds[side], seconds[other], strict=True)]
    return {
        "lowest": min(by_round),
        "highest": max(by_round),
        **against(statistics.median(by_round), at_most, at_least),
    }


def peak_ratio(peaks: dict[str, float], side: str, other: str, at_most: float) -> dict:
    """Compare the peak memory of two sides. There is no value on a CPU, or if one side ran out of memory."""
    if not peaks.get(other) or side not in peaks:
        return {"value": None, "reached": False}
    return against(peaks[side] / peaks[other], at_most=at_most)


def against(value: float, at_most: float | None = None, at_least: float | None = None) -> dict:
    """Combine a value with its limit."""
    reached = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    limits = {"at_most": at_most, "at_least": at_least}
    return {"value": value, **{name: limit for name, limit in limits.items() if limit is not None}, "reached": reached}


def finish(args: argparse.Namespace, name: str, result: dict):
    """Print a result's sides and ratios, and write it to `--output` or, unless `--tiny`, to `benchmarks/results/`."""
    result = rounded(result)
    for side, values in result["sides"].items():
        print(f"{side:45} " + "  ".join(f"{key} {value}" for key, value in values.items()))
    for label, values in result["ratios"].items():
        print(f"{label:70} " + "  ".join(f"{key} {value}" for key, value in values.items()))
    path = args.output or (None if args.tiny else f"benchmarks/results/{name}.json")
    if path is not None:
        save(path, result)
