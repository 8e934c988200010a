"""
Build preference pairs from prompts: a generator writes several responses to each prompt, and a judge compares the responses. Both models
are behind OpenAI-compatible servers.

Each pair of responses is judged twice, once in each order, with one of five verdicts from [[A>>B]] to [[B>>A]]. A slight preference
gives the preferred response 1 point and a strong preference 2 points; the response with more points is chosen. Ties, identical responses,
responses that remain truncated and pairs without a readable verdict are left out; rejects.jsonl lists them with the judge's outputs. The
output folder's journal records every response and verdict: run the same command again to resume a killed run.

python examples/build_preferences.py --dataset_name prompts.jsonl --output_dir preferences \
    --gen_base_url http://127.0.0.1:8000/v1 --gen_model meta-llama/Meta-Llama-3-8B-Instruct \
    --judge_base_url http://127.0.0.1:8001/v1 --judge_model meta-llama/Llama-3.1-405B-Instruct
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.data.builders.preferences")
