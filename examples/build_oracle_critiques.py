"""
Critiques of both responses of every preference pair, by a strong model behind an OpenAI-compatible server: what stage 1
trains on.

The new dataset has the old columns, and chosen_feedback, rejected_feedback (lists with --num_critiques above 1). A run that
was killed goes on when the same command is given again: every answer is in the output folder's journal.

python examples/build_oracle_critiques.py --dataset_name pairs.jsonl --output_dir oracle-critiques \
    --base_url http://127.0.0.1:8000/v1 --model meta-llama/Llama-3.1-405B-Instruct
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.oracle")
