"""
Best-of-N: measure the quality of the candidate with the highest reward, for N = 1 to 16, with several models and any backend.

With candidates of known quality, in the columns prompt, responses and correct (booleans or scores), or prompt and candidates
(a list of entries with response and judge_score):

python examples/best_of_n.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 \
    --dataset_name gsm8k_bon4.jsonl arenabench_v1_bon.jsonl.gz --overlong_policy drop

On ArenaHard, with one server that writes candidates and another that judges the chosen candidates against a baseline's answers:

python examples/best_of_n.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 --overlong_policy drop \
    --arena_hard lmarena-ai/arena-hard-auto-v0.1 --baseline_answers gpt-4-0314.jsonl \
    --gen_base_url http://127.0.0.1:8000/v1 --judge_base_url http://127.0.0.1:8001/v1

The judge receives its instructions as a system message; add --judge_system_role false if its chat template has no system role.

Writes best_of_n.md with plots, best_of_n.json, and for each model selected_MODEL.jsonl, which contains the candidates that the model
chose and its critiques of them. Every score, candidate and verdict is journaled: the same command resumes an interrupted run, and
models, datasets or candidates can be added later. The exit status is 3 if requests failed after all retries.
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.best_of_n")
