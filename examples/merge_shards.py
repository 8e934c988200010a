r"""
Merge the outputs of a builder that ran with --shard 0/n, 1/n, … on several machines. The result has the same rows as a
single run, in the same order.

python examples/merge_shards.py --shards out-0 out-1 out-2 out-3 --output_dir merged

A Slurm array with one shard per task; a killed task resumes when it is submitted again:

    #!/bin/bash
    #SBATCH --array=0-15 --gpus=1 --time=24:00:00 --requeue
    python examples/build_self_critiques.py --model_name_or_path critic-sft --dataset_name pairs.jsonl --backend vllm \
        --shard $SLURM_ARRAY_TASK_ID/16 --output_dir out-$SLURM_ARRAY_TASK_ID

    sbatch --dependency=afterok:JOB --wrap "python examples/merge_shards.py --shards out-* --output_dir merged"
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.shards")
