"""
Measure the memory and time needed to convert a published checkpoint shard by shard. The baselines are loading and saving the complete
model, and two lower bounds: the size of the largest shard and the time of a plain file copy.

python benchmarks/convert_memory.py --gigabytes 4.5 --shards 4
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import save


MAKE = """
import json, sys, torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast
from cloud_hf import CLoudConfig, CLoudForRewardModeling

folder, gigabytes, shards = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
hidden, vocab = 2048, 32000
per_layer = 4 * hidden * hidden + 3 * hidden * 4 * hidden
layers = max(1, round((gigabytes * 1e9 / 2 - 2 * vocab * hidden) / per_layer))
config = LlamaConfig(
    vocab_size=vocab, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
    num_attention_heads=16, num_key_value_heads=16, dtype="bfloat16",
)
config.save_pretrained(folder + "/base")
vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "<|eot_id|>"])}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<unk>")), bos_token="<s>", eos_token="</s>")
tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
tokenizer.save_pretrained(folder + "/published")
json.dump(
    {"feedback_method": "teacher", "base_model_name_or_path": folder + "/base", "torch_dtype": "bfloat16"},
    open(folder + "/published/config.json", "w"),
)
model = CLoudForRewardModeling.without_weights(CLoudConfig(text_config=config))
shapes = {k.replace("language_model.", "reward_base_model.", 1): v.shape for k, v in model.state_dict().items()}
keys, weight_map = list(shapes), {}
size = sum(shape.numel() for shape in shapes.values()) / shards
parts, filled = [[]], 0
for key in keys:
    if filled > size and len(parts) < shards:
        parts.append([])
        filled = 0
    parts[-1].append(key)
    filled += shapes[key].numel()
for index, part in enumerate(parts):
    name = f"model-{index + 1:05}-of-{len(parts):05}.safetensors"
    save_file({k: torch.randn(shapes[k], dtype=torch.bfloat16) for k in part}, f"{folder}/published/{name}", {"format": "pt"})
    weight_map |= dict.fromkeys(part, name)
json.dump({"metadata": {}, "weight_map": weight_map}, open(f"{folder}/published/model.safetensors.index.json", "w"))
"""

IMPORT = "import cloud_hf.convert"
CONVERT = "import sys; from cloud_hf.convert import plan, write; write(plan(sys.argv[1]), sys.argv[2])"
WHOLE = """
import sys
from transformers import AutoTokenizer
from cloud_hf import CLoudForRewardModeling
CLoudForRewardModeling.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


def measure(code: str, *args: str) -> dict[str, float]:
    """Return the peak resident memory (in GB, mapped files included) and the seconds of a separate Python process."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(
            f"A measured process failed with exit code {process.returncode}: {code.strip().splitlines()[-1]}"
        )
    return {"peak_gb": usage.ru_maxrss * 1024 / 1e9, "seconds": time.perf_counter() - start}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.5)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--output", default="benchmarks/results/convert_memory.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(MAKE, folder, str(args.gigabytes), str(args.shards))
        published = f"{folder}/published"
        sizes = [path.stat().st_size / 1e9 for path in Path(published).glob("*.safetensors")]
        libraries = measure(IMPORT)
        # In this order, each process reads its files from the page cache
        start = time.perf_counter()
        shutil.copytree(published, f"{folder}/copy")
        copied = time.perf_counter() - start
        shards = measure(CONVERT, published, f"{folder}/native")
        whole = measure(WHOLE, published, f"{folder}/whole")
    own_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if own_memory > libraries["peak_gb"]:
        raise SystemExit(
            "This process already uses more memory than the smallest measured peak, so that peak cannot be trusted."
        )
    result = {
        "checkpoint_gb": sum(sizes),
        "largest_shard_gb": max(sizes),
        "shards": len(sizes),
        "libraries_peak_gb": libraries["peak_gb"],
        "convert_above_libraries_gb": shards["peak_gb"] - libraries["peak_gb"],
        "load_and_save_above_libraries_gb": whole["peak_gb"] - libraries["peak_gb"],
        "convert_seconds": shards["seconds"] - libraries["seconds"],
        "load_and_save_seconds": whole["seconds"] - libraries["seconds"],
        "copy_seconds": copied,
    }
    ratio = result["load_and_save_above_libraries_gb"] / result["convert_above_libraries_gb"]
    result = {key: round(value, 3) for key, value in {**result, "memory_ratio": ratio}.items()}
    print(save(args.output, result))
    print(
        f"Memory above the libraries: {result['convert_above_libraries_gb']:.2f} GB shard by shard, "
        f"{result['load_and_save_above_libraries_gb']:.2f} GB for the complete model ({ratio:.1f} x); the largest shard is "
        f"{result['largest_shard_gb']:.2f} GB. Time: {result['convert_seconds']:.1f} s, complete model "
        f"{result['load_and_save_seconds']:.1f} s, a plain copy {result['copy_seconds']:.1f} s."
    )


if __name__ == "__main__":
    main()
