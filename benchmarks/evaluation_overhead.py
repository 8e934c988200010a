"""
Measure the overhead of an evaluation compared with scoring the same chats directly on the same backend: `evaluate_rewards.py` also checks
and measures the rows, journals every score, and computes the metrics. The workload is 256 chats of 250 ± 120 tokens (the chats of a pair
share their prompt), with 64 new tokens each, on the random model of `scoring_speed.py`, greedy, in fp32. The model is loaded once.

- direct: one call of the backend's `score` with all chats.
- evaluate: the same chats in `evaluate_rewards.py` with a new journal, until the scores are written.
- report: writing report.md, report.json and the plots afterwards; this cost does not depend on the number of rows.

python benchmarks/evaluation_overhead.py --backend transformers
python benchmarks/evaluation_overhead.py --backend vllm
"""

import argparse
import json
import os
import random
import statistics
import string
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from scoring_speed import save_model

from cloud_hf import CritiqueFormat
from cloud_hf.evaluation.scoring_arguments import open_scorer


sys.path.append(str(Path(__file__).parents[1]))
from recording import machine

from cloud_hf.commands import evaluate_rewards


NUM_PAIRS = 128
MEAN_LENGTH, SPREAD = 250, 120
NEW_TOKENS = 64
LIMIT = 1.05
RESULTS = Path("benchmarks/results/evaluation_overhead.json")


def make_pairs(critique_format: CritiqueFormat) -> list[dict[str, str]]:
    """Generate pairs from random letters, as chats of 250 ± 120 tokens of which half are the prompt."""
    rng = random.Random(0)
    frame = len(critique_format.encode_prefix("x", "x").input_ids) - 2

    def text(length: int) -> str:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(length))

    rows = []
    for _ in range(NUM_PAIRS):
        prompt = text((MEAN_LENGTH - SPREAD - frame) // 2)
        lengths = [rng.randint(MEAN_LENGTH - SPREAD, MEAN_LENGTH + SPREAD) - frame - len(prompt) for _ in range(2)]
        rows.append({"prompt": prompt, "chosen": text(lengths[0]), "rejected": text(lengths[1])})
    return rows


def measure(backend: str, folder: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each part per round after a warm-up round; rounds alternate which side starts."""
    options = {"dtype": "float32", "enable_prefix_caching": False, "max_model_len": 2048, "disable_log_stats": True}
    args = evaluate_rewards.EvaluationArguments(
        models=[f"{folder}/reward"],
        dataset_name=[f"{folder}/pairs.jsonl"],
        output_dir=folder,
        max_new_tokens=NEW_TOKENS,
        backend=backend,
        dtype="float32",
        vllm_options=json.dumps(options) if backend == "vllm" else None,
    )
    seconds: dict[str, list[float]] = {"direct": [], "evaluate": [], "report": []}
    with open_scorer(args.models[0], args, show_progress=False) as opened:
        scorer, critique_format, *_ = opened
        rows = make_pairs(critique_format)
        Path(args.dataset_name[0]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        prompts = [row["prompt"] for row in rows for _ in range(2)]
        responses = [row[side] for row in rows for side in ("chosen", "rejected")]

        def direct() -> dict[str, float]:
            start = time.perf_counter()
            scorer.score(prompts, responses, max_new_tokens=NEW_TOKENS)
            return {"direct": time.perf_counter() - start}

        for number in range(rounds + 1):
            args.output_dir = f"{folder}/round-{number}"
            sides = [direct, lambda: evaluated(args, opened)]
            for side in sides[:: 1 if number % 2 else -1]:
                for name, taken in side().items():
                    print(f"round {number}: {name} {taken:.2f} s", flush=True)
                    if number > 0:
                        seconds[name].append(taken)
    return seconds


def evaluated(args: evaluate_rewards.EvaluationArguments, opened: tuple) -> dict[str, float]:
    """Return the seconds that the script takes when the model is already loaded, and the seconds of its report."""

    @contextmanager
    def loaded(*_, **__):
        yield opened

    report_seconds = []

    def write_report(*arguments):
        start = time.perf_counter()
        real_write_report(*arguments)
        report_seconds.append(time.perf_counter() - start)

    real_write_report = evaluate_rewards.write_report
    with (
        patch.object(evaluate_rewards, "open_scorer", loaded),
        patch.object(evaluate_rewards, "write_report", write_report),
    ):
        start = time.perf_counter()
        evaluate_rewards.main(args)
        whole = time.perf_counter() - start
    return {"evaluate": whole - sum(report_seconds), "report": sum(report_seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--rounds", type=int, default=5, help="number of runs of each side, after a warm-up run")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if args.backend == "vllm":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        # Use all cores; by default, vLLM leaves one free
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        seconds = measure(args.backend, folder, args.rounds)
    by_round = [ours / bare for ours, bare in zip(seconds["evaluate"], seconds["direct"], strict=True)]
    result = {
        "chats": 2 * NUM_PAIRS,
        "new_tokens": NEW_TOKENS,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "seconds_median": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "evaluate / direct": {
            "value": round(statistics.median(by_round), 4),
            "lowest": round(min(by_round), 4),
            "highest": round(max(by_round), 4),
            "limit": LIMIT,
            "reached": statistics.median(by_round) <= LIMIT,
        },
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(results | {args.backend: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
