"""
Stage 1: teach a language model to write critiques by supervised fine-tuning on oracle critiques.

Rows have the columns prompt, chosen, rejected, chosen_feedback, rejected_feedback; the model learns the critiques of
both responses. The loss covers only critique tokens and the end-of-turn token.

torchrun --nproc_per_node 8 examples/train_critique_sft.py --config examples/configs/llama3-8b/critique_sft.yaml \
    --dataset_name pairs.jsonl --deepspeed ds_configs/zero2.json

ds_configs/README.md has the commands for DDP, FSDP2, several nodes and Slurm, and explains which to use.
`--resume_from_checkpoint true` resumes an interrupted run.

On a CPU, with a small model:

python examples/train_critique_sft.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl \
    --output_dir critic-sft --use_cpu --bf16 False --max_length 1024 --per_device_train_batch_size 2 --max_steps 20
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.train_critique_sft")
