"""
Evaluate reward models on benchmarks, preference pairs and best-of-N, with 95 % intervals, and analyse their failures.

Benchmarks are downloaded from the Hub; `NAME=FILES` reads local files instead:

python examples/evaluate_rewards.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 \
    --benchmarks reward_bench reward_bench_2 'rm_bench=data/rmbench-*.jsonl.gz' llm_bar=data/llmbar \
    --dataset_name pairs.jsonl other/preference-set --best_of_n gsm8k_bon4.jsonl --overlong_policy truncate_prompt

Benchmarks: reward_bench, reward_bench_with_prior_sets, reward_bench_2, rm_bench, judge_bench_gpt, judge_bench_claude,
llm_bar. Preference sets have the columns prompt, chosen, rejected; best-of-N sets have prompt, responses, correct. A pair counts as
correct if the chosen response has a strictly higher reward; ties count as wrong, and their number is reported.

To measure how accuracy depends on the number of averaged critiques, and to run probes on the same rows:

python examples/evaluate_rewards.py --models cloud-rm classic-rm --output_dir results --max_new_tokens 512 \
    --dataset_name pairs.jsonl --self_consistency 16 --self_consistency_temperatures 0.5 1.0 --probes all

Probes: length, style, special_tokens, forged_critiques, trivial_answers, empty_and_refusals, paraphrases, batch.

--reference_critiques FILES compares the model's critiques with reference critiques, and measures the model's loss on the latter.

--compare RESULTS_A RESULTS_B instead compares the scores from two earlier runs, on the rows that both runs scored.

Writes report.md with plots, report.json, each model's results in RewardBench's file format (including RewardBench 2 and the prior sets),
and all scores with their critiques (one Parquet file per model, one JSON-lines file per model and dataset, and separate Parquet files for
self-consistency and probes). Each score is recorded in journal_MODEL.jsonl: the same command resumes an interrupted run, and benchmarks can
be added later.
"""

from cloud_hf.cli import run


if __name__ == "__main__":
    run("cloud_hf.commands.evaluate_rewards")
