"""
Time the search by `cloud-hf plan` for the largest micro-batch, with and without padding, for five models on GPUs with 24, 80 and 139 GB.
Seconds are CPU time. The limit is 5 seconds for each search.

python benchmarks/plan_search.py --output benchmarks/results/plan_search.json     # takes a minute or two
"""

import argparse
import time
from pathlib import Path
from typing import Any

from recording import save

from cloud_hf import CLoudConfig
from cloud_hf.training.plan import PlanArguments, largest_micro_batch, make_plan, what_helps


SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")  # fmt: skip
# Model type, the values of `SIZES`, number of GPUs and ZeRO stage
MODELS = {
    "Llama 3 70B": ("llama", (8192, 80, 28672, 64, 8, 128256), 8, "3"),
    "Llama 3 8B": ("llama", (4096, 32, 14336, 32, 8, 128256), 8, "3"),
    "Qwen 3 4B": ("qwen3", (2560, 36, 9728, 32, 8, 151936), 1, "0"),
    "Llama 3.2 1B": ("llama", (2048, 16, 8192, 32, 8, 128256), 1, "0"),
    "SmolLM2 135M": ("llama", (576, 30, 1536, 9, 3, 49152), 1, "0"),
}
MEMORY_GB = (24, 80, 139)
LENGTH = 4096


def search(name: str, memory_gb: int, padding_free: bool) -> dict[str, Any]:
    """Search once, as the command does, for the largest micro-batch or, if not even one pair fits, for settings that help."""
    kind, sizes, gpus, zero = MODELS[name]
    config = CLoudConfig(text_config={"model_type": kind, **dict(zip(SIZES, sizes, strict=True))})
    args = PlanArguments(
        model="m", gpus=gpus, zero=zero, gpu_memory_gb=memory_gb, max_length=LENGTH, padding_free=padding_free
    )
    started = time.process_time()
    largest = largest_micro_batch(args, config, make_plan(args, config))
    if not largest:
        what_helps(args, config)
    return {"pairs": largest, "cpu_s": round(time.process_time() - started, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name in args.models:
        for padding_free in (True, False):
            kind = "padding-free" if padding_free else "padded"
            for memory_gb in MEMORY_GB:
                one = found.setdefault(name, {}).setdefault(kind, {})[str(memory_gb)] = search(
                    name, memory_gb, padding_free
                )
                print(f"{name}, {kind}, {memory_gb} GB: {one['pairs']} pairs, {one['cpu_s']:.2f} CPU-s", flush=True)
    if args.output:
        save(args.output, {"version": 1, "length": LENGTH, "models": found})


if __name__ == "__main__":
    main()
