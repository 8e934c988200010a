"""
Stage 4: improve a CLoud model's critiques by rewarding those after which its reward head prefers the chosen response.

The rows are those of stage 3 (prompt, chosen, rejected, chosen_feedback, rejected_feedback), and the model comes from stage 3.
Each step writes `num_generations` new critiques of each response in a pair.

torchrun --nproc_per_node 8 examples/train_cloud_outcome.py --config examples/configs/llama3-8b/outcome.yaml \
    --dataset_name self-critiques --deepspeed ds_configs/zero2.json

`--policy_weight 0` trains the reward on critiques that are rewritten at each step, without a policy gradient; `--num_generations 0` is
equivalent to train_cloud.py. `--resume_from_checkpoint true` resumes an interrupted run.

On a CPU, with a small model:

python examples/train_cloud_outcome.py --model_name_or_path cloud-rm --dataset_name self-critiques \
    --output_dir outcome-rm --use_cpu --bf16 False --per_device_train_batch_size 2 --max_completion_length 128 --max_steps 20
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.train_outcome")
