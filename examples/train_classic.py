"""
The classic arm: a reward model that scores the response at once. Same model class, same trainer, no critique.

Rows have the columns prompt, chosen, rejected.

torchrun --nproc_per_node 8 examples/train_classic.py --config examples/configs/llama3-8b/classic.yaml \
    --dataset_name pairs.jsonl --deepspeed ds_configs/zero2.json

zero1.json, zero3.json and zero3_offload.json go in its place; without --deepspeed it is DDP, for models that fit on one GPU. FSDP2:

accelerate launch --config_file ds_configs/accelerate_fsdp2.yaml examples/train_classic.py \
    --config examples/configs/llama3-8b/classic.yaml --dataset_name pairs.jsonl

On several nodes, the same line on each (Slurm: after `srun`, in a job with one task per node); HEAD is one's address:

torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HEAD:29500 examples/train_classic.py \
    --config examples/configs/llama3-8b/classic.yaml --dataset_name pairs.jsonl --deepspeed ds_configs/zero3.json

ds_configs/README.md says which to take. `--resume_from_checkpoint true` goes on after a kill.

On a CPU, with a small model:

python examples/train_classic.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl \
    --output_dir classic-rm --use_cpu --bf16 False --max_length 1024 --per_device_train_batch_size 2 --max_steps 20
"""

import sys

import train_cloud
from trl import TrlParser


ARGUMENTS = train_cloud.ARGUMENTS


if __name__ == "__main__":
    # Last, so that it holds, and before the options are checked, so that those of the critique loss are refused
    arguments = [*sys.argv[1:], "--critique", "False"]
    train_cloud.main(*TrlParser(ARGUMENTS).parse_args_and_config(arguments))
