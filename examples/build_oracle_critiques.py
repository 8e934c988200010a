"""
Build the training data for stage 1: critiques of both responses in every preference pair, written by a strong model behind an
OpenAI-compatible server.

The dataset has the input columns plus chosen_feedback and rejected_feedback (lists with --num_critiques above 1). The output
folder's journal records every critique: run the same command again to resume a killed run.

python examples/build_oracle_critiques.py --dataset_name pairs.jsonl --output_dir oracle-critiques \
    --base_url http://127.0.0.1:8000/v1 --model meta-llama/Llama-3.1-405B-Instruct
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.oracle")
