"""
Measure the cost of computing the reward at every 16th critique token (`read_every=16`), with transformers and with vLLM: the CPU seconds
of scoring with this option relative to scoring without it, on the model and chats of `scoring_speed.py`.

Both sides run in one process, one after the other in each round; rounds alternate which side starts. The ratio is the median over rounds.

python benchmarks/partial_rewards.py                                      # takes minutes
python benchmarks/partial_rewards.py --backends transformers --chats 4 --rounds 1
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from recording import save
from scoring_speed import BATCH_SIZE, NEW_TOKENS, chats, load, save_model, vllm_options

from cloud_hf import TransformersScorer


READ_EVERY = 16
LIMIT = 1.03
RESULTS = Path("benchmarks/results/partial_rewards.json")


def make_scorer(backend: str, folder: str):
    """Return a scorer that works in this process, so that its CPU time can be measured, and its critique format."""
    if backend == "transformers":
        model, tokenizer, critique_format, _ = load(folder)
        return TransformersScorer(model, tokenizer, BATCH_SIZE), critique_format
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from cloud_hf.serving import CLoudVLLM

    # The chats repeat in every round, so prefixes must not be cached
    scorer = CLoudVLLM(f"{folder}/reward", enable_prefix_caching=False, enforce_eager=True, **vllm_options())
    return scorer, scorer.critique_format


def measure(backend: str, folder: str, num_chats: int, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each side per round, after a warm-up round."""
    scorer, critique_format = make_scorer(backend, folder)
    prompts, responses = (part[:num_chats] for part in chats(critique_format))
    sides: dict[str, dict] = {"plain": {}, "read_every": {"read_every": READ_EVERY}}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            scores = scorer.score(prompts, responses, max_new_tokens=NEW_TOKENS, **sides[name])
            seconds[name].append(time.process_time() - start)
            readings = {len(rewards) for score in scores for rewards in score.partial_rewards}
            assert readings == ({NEW_TOKENS // READ_EVERY + 1} if sides[name] else set())
            print(f"{backend}, round {number}: {name} {seconds[name][-1]:.2f} s of CPU time", flush=True)
    return {name: values[1:] for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["transformers", "vllm"], choices=["transformers", "vllm"])
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    result: dict = {
        "read_every": READ_EVERY,
        "new_tokens": NEW_TOKENS,
        "chats": args.chats,
        "rounds": args.rounds,
        "backends": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        for backend in args.backends:
            seconds = measure(backend, folder, args.chats, args.rounds)
            ratios = [read / plain for read, plain in zip(seconds["read_every"], seconds["plain"], strict=True)]
            result["backends"][backend] = {
                "cpu_seconds_median": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
                "ratio": round(statistics.median(ratios), 4),
                "ratios": [round(ratio, 4) for ratio in ratios],
                "limit": LIMIT,
            }
            print(f"{backend}: {statistics.median(ratios):.4f} × the CPU time (limit {LIMIT})", flush=True)
    save(args.output, result)


if __name__ == "__main__":
    main()
