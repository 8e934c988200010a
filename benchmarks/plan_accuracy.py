"""
Compare the memory planner's predictions with the measured peak of real training steps, for models of several sizes, with and without
gradient checkpointing, with LoRA and with shared prompts. CLoudTrainer trains each model in a separate process, on a CPU in fp32. The peak
is that of torch's allocator, from torch.profiler's record of every allocation, plus the parameters.

python benchmarks/plan_accuracy.py --output benchmarks/results/plan_accuracy.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cloud_hf import CLoudConfig
from cloud_hf.training.plan import PlanArguments, make_plan


# hidden, layers, heads, vocabulary
MODELS = {"5M": (128, 4, 4, 16_384), "25M": (256, 8, 8, 32_768), "67M": (512, 8, 8, 32_768)}
MODES = {
    "plain": {"gradient_checkpointing": False},
    "checkpointing": {"gradient_checkpointing": True},
    "lora": {"gradient_checkpointing": True, "lora_r": 8, "lora_target_modules": ["q_proj", "v_proj"]},
    "shared prompt": {"gradient_checkpointing": True, "shared_prompt": True, "prompt_share": 0.375},
}
PAIRS, LENGTH = 2, 512

MEASURE = """
import json, sys
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedTokenizerFast
from cloud_hf import CLoudConfig, CLoudForRewardModeling, CLoudTrainer, CLoudTrainingConfig

options = json.loads(sys.argv[1])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "<pad>": 2}, "<unk>")), eos_token="<end>", pad_token="<pad>"
)
tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
tokenizer.chat_template = "{% for m in messages %}{{ '<unk>' + m['content'] | trim + '<end>' }}{% endfor %}"
config = CLoudConfig.from_pretrained(options["folder"])
model = CLoudForRewardModeling(config)
length, pairs = options["length"], options["pairs"]
prefix = length - int(length * options["labelled_share"])
prompt = int(length * (options["prompt_share"] or 0))

def make_row():
    common, chosen, rejected = (torch.randint(3, 1000, (count,)).tolist() for count in (prompt, length - prompt, length - prompt - 7))
    ids = {"chosen_ids": common + chosen, "rejected_ids": common + rejected}
    return ids | {"chosen_prefix_length": prefix, "rejected_prefix_length": prefix}

lora = None
if options["lora_r"]:
    lora = LoraConfig(r=options["lora_r"], target_modules=options["lora_target_modules"])
trainer = CLoudTrainer(
    model,
    CLoudTrainingConfig(
        options["folder"] + "/out", max_steps=2, per_device_train_batch_size=pairs, bf16=False, use_cpu=True, report_to=[],
        gradient_checkpointing=options["gradient_checkpointing"], save_strategy="no", disable_tqdm=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, max_length=length, optim="adamw_torch_fused",
        shared_prompt=options["shared_prompt"],
    ),
    train_dataset=Dataset.from_list([make_row() for _ in range(pairs * 2)]),
    processing_class=tokenizer,
    peft_config=lora,
)
parameters = sum(p.nbytes for p in trainer.model.parameters())
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
    trainer.train()
live = peak = 0
events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
for event in sorted(events, key=lambda event: event.start_ns()):
    live += event.nbytes()
    peak = max(peak, live)
print(json.dumps({"parameters": parameters, "peak": parameters + peak}))
"""


def make_config(hidden: int, layers: int, heads: int, vocabulary: int) -> CLoudConfig:
    """Return the config of a Llama model with these sizes."""
    text_config = {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 4 * hidden,
        "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocabulary,
    }  # fmt: skip
    return CLoudConfig(text_config=text_config, critique_end_token_id=1)


def compare(config: CLoudConfig, mode: dict, pairs: int = PAIRS, length: int = LENGTH) -> dict[str, float]:
    """Return the planned and the measured peak for one setting, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        options = {"folder": folder, "pairs": pairs, "length": length, "labelled_share": 0.5}
        options |= {"lora_r": None, "shared_prompt": False, "prompt_share": None, **mode}
        done = subprocess.run([sys.executable, "-c", MEASURE, json.dumps(options)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"The measured training failed: {done.stderr[-2000:]}")
        measured = json.loads(done.stdout.splitlines()[-1])
        args = PlanArguments(
            model=folder,
            micro_batch=pairs,
            max_length=length,
            labelled_share=0.5,
            bf16=False,
            optim="adamw_torch_fused",
            **mode,
        )
        plan = make_plan(args)
    return {
        "parameters_mib": round(measured["parameters"] / 2**20, 1),
        "measured_mib": round(measured["peak"] / 2**20, 1),
        "planned_mib": round(plan.total / 2**20, 1),
        "ratio": round(plan.total / measured["peak"], 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="benchmarks/results/plan_accuracy.json")
    args = parser.parse_args()
    rows = []
    for mode, options in MODES.items():
        for name, shape in MODELS.items():
            rows.append({"model": name, "mode": mode, **compare(make_config(*shape), options)})
            print(rows[-1], flush=True)
            setting = {"version": 1, "pairs": PAIRS, "length": LENGTH, "labelled_share": 0.5, "dtype": "float32"}
            Path(args.output).write_text(json.dumps({**setting, "rows": rows}, indent=2) + "\n")
    if any(abs(row["ratio"] - 1) > 0.15 for row in rows):
        raise SystemExit("A planned peak is more than 15 % off the measured one.")


if __name__ == "__main__":
    main()
