"""
Stage 3: train a CLoud reward model with the Bradley-Terry loss plus λ times the critique LM loss.

Rows have the columns prompt, chosen, rejected, chosen_feedback, rejected_feedback. As in the paper, the stage 1 model writes the critiques
(build_self_critiques.py), and this stage starts from that model.

torchrun --nproc_per_node 8 examples/train_cloud.py --config examples/configs/llama3-8b/cloud.yaml \
    --dataset_name self-critiques --deepspeed ds_configs/zero2.json

ds_configs/README.md has the commands for DDP, FSDP2, several nodes and Slurm, and explains which to use.
`--resume_from_checkpoint true` resumes an interrupted run.

On a CPU, with a small model:

python examples/train_cloud.py --model_name_or_path critic-sft --dataset_name self-critiques \
    --output_dir cloud-rm --use_cpu --bf16 False --max_length 1024 --per_device_train_batch_size 2 --max_steps 20
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.train_cloud")
