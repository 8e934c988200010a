"""
Measure `CLoudVLLM` on one GPU with a model of the size and shape of Llama 3.2 1B (random weights, bf16, CUDA graphs), on 512 chats of
250 ± 120 tokens with critiques of 128 tokens. Both engines are measured side by side, without prefix caching, because the chats repeat in
every round.

- plain: vLLM alone, with the same language model, for the same number of tokens.
- score: `CLoudVLLM.score`, greedy.

Greedy critiques, and rewards for given critiques, are then compared with those from transformers. As a baseline for their differences, two
transformers runs that differ only in batch size are compared as well. Finally, each of 5,000 requests with budgets of 1 to 16 tokens must
get a reward.

python benchmarks/gpu_vllm.py          # under 3 minutes on an H100 or H200
python benchmarks/gpu_vllm.py --tiny   # on any machine, in three minutes at most
"""

import gc
import math
import os
import statistics
import tempfile

import torch
from gpu_measuring import ON_GPU, against, device_limits, finish, measure, parse_arguments, ratio
from gpu_scoring import least_seconds, make_model, workload
from vllm import LLM, SamplingParams

from cloud_hf import CritiqueFormat
from cloud_hf.serving import CLoudVLLM


BUDGETS = (1, 2, 3, 8, 16)


def engine_options() -> dict:
    """Return the options for both engines, which share the device."""
    memory = {"gpu_memory_utilization": 0.4} if ON_GPU else {"kv_cache_memory_bytes": 2**26}
    return {
        "enforce_eager": not ON_GPU,  # on a CPU, compiling both engines would take minutes
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        **memory,
    }


def critique_and_reward(
    scorer, chats, new_tokens: int, given: list[str] | None = None, **options
) -> tuple[list[str], list[float]]:
    """Return greedy critiques, and the rewards for the `given` critiques or, without these, for the greedy ones."""
    written = [score.critique for score in scorer(*chats, max_new_tokens=new_tokens, **options)]
    scores = scorer(*chats, critiques=written if given is None else given, **options)
    return written, [score.reward for score in scores]


def agreement(small, large, engine) -> dict:
    """Compare vLLM with transformers; the limits come from transformers at another batch size."""

    def compare(other) -> tuple[float, float]:
        same = statistics.mean(a == b for a, b in zip(small[0], other[0], strict=True))
        return same, max(abs(a - b) for a, b in zip(small[1], other[1], strict=True))

    (same_batches, gap_batches), (same_engines, gap_engines) = compare(large), compare(engine)
    return {
        "equal greedy critiques, vLLM and transformers": against(same_engines, at_least=same_batches),
        "largest difference of rewards, vLLM and transformers": against(gap_engines, at_most=gap_batches),
    }


def rewards_of_short_requests(scorer: CLoudVLLM, chats, count: int) -> int:
    """Score sampled critiques that end at their token budgets, and count the finite rewards."""
    scores = []
    for budget in BUDGETS:
        rows = [[part[i % len(part)] for i in range(count // len(BUDGETS))] for part in chats]
        scores += scorer.score(*rows, max_new_tokens=budget, temperature=1.0)
    return sum(math.isfinite(score.reward) for score in scores)


def main():
    args = parse_arguments(__doc__, rounds=3)
    count, new_tokens, compared, requests = (8, 6, 4, 20) if args.tiny else (512, 128, 64, 5000)
    limits = device_limits(args.tiny)
    model, tokenizer = make_model("tiny" if args.tiny else "1B")
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    chats = workload(critique_format, count)
    prompts = [list(critique_format.encode_prefix(*pair).input_ids) for pair in zip(*chats, strict=True)]
    limits["least_seconds"] = least_seconds(model, limits, sum(map(len, prompts)), count, new_tokens)
    few = tuple(part[:compared] for part in chats)

    def transformers(*pairs, **options):
        return model.score(*pairs, tokenizer, **options)

    small = critique_and_reward(transformers, few, new_tokens, batch_size=compared // 4)
    large = critique_and_reward(transformers, few, new_tokens, small[0], batch_size=compared)
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("base", model.language_model), ("reward", model)):
            part.save_pretrained(f"{folder}/{name}")
            tokenizer.save_pretrained(f"{folder}/{name}")
        model = None
        gc.collect()
        torch.cuda.empty_cache()
        scorer = CLoudVLLM(f"{folder}/reward", **engine_options())
        plain = LLM(f"{folder}/base", **engine_options())
        greedy = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        sides = {
            "plain": lambda: plain.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False),
            "score": lambda: scorer.score(*chats, max_new_tokens=new_tokens),
        }
        seconds, _ = measure(sides, args.rounds)
        engine = critique_and_reward(scorer.score, few, new_tokens, small[0])
        ratios = {
            "rewards/s, score / plain": ratio(seconds, "plain", "score", at_least=0.97),
            **agreement(small, large, engine),
            f"rewards of {requests} short requests": against(
                rewards_of_short_requests(scorer, chats, requests), at_least=requests
            ),
        }
        used = scorer.llm.llm_engine.vllm_config
        scorer.close()
        plain.llm_engine.engine_core.shutdown()
    described = {
        name: {
            "seconds_median": statistics.median(taken),
            "rows_per_second": count / statistics.median(taken),
            "share_of_the_limit": limits["least_seconds"] / statistics.median(taken),
        }
        for name, taken in seconds.items()
    }
    engine_state = {
        "v2_model_runner": used.use_v2_model_runner,
        "cuda_graphs": str(used.compilation_config.cudagraph_mode),
        "async_scheduling": used.scheduler_config.async_scheduling,
    }
    finish(
        args,
        "gpu_vllm",
        {
            "limits": limits,
            "engine": engine_state,
            "chats": count,
            "new_tokens": new_tokens,
            "sides": described,
            "ratios": ratios,
        },
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not ON_GPU:
        # Without this, vLLM compiles a part of its sampler in each engine, which takes longer than all requests
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    main()
