"""
Merge a LoRA adapter into its base. The result is an ordinary checkpoint with a tokenizer and a chat template, which AutoModel,
vLLM and all scripts load without PEFT. The adapter may be a reward model (train_cloud.py, train_classic.py) or come from stage 1.

Scoring scripts load adapters directly; merge an adapter to publish it, to fine-tune all weights in the next stage, or to use it in
other tools. An adapter trained on a quantised base (QLoRA) is merged into the unquantised weights.

python examples/merge_adapter.py --model_name_or_path cloud-lora --output_dir cloud-merged
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.merge_adapter")
