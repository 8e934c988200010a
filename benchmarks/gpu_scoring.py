"""
Measure scoring with transformers on one GPU, with a model of the size and shape of Llama 3.2 1B (random weights, bf16). The workload is
one batch of 256 chats of 250 ± 120 tokens each, with critiques of 128 tokens.

- generate, generate at 0.7: `generate` of the language model alone, greedy and at temperature 0.7.
- score, score at 0.7: `CLoudForRewardModeling.score`, greedy and at temperature 0.7.
- reference: `generate`, decoding to text, tokenising again, and a second forward pass with all hidden states.

The limit is the time of the prefill FLOPs at the speed of a large matrix product, plus, for each decoding step, the time to read the
weights and the KV cache once at the speed of a copy. Both speeds are measured in the same run.

python benchmarks/gpu_scoring.py          # under 3 minutes on an H100 or H200
python benchmarks/gpu_scoring.py --tiny   # on any machine, in seconds
"""

import random
import statistics
import tempfile
from collections.abc import Callable

import torch
from gpu_measuring import DEVICE, device_limits, finish, llama_config, made_on_device, measure, parse_arguments, ratio
from scoring_speed import CRITIQUE_PROMPT, MEAN_LENGTH, SPREAD, allow_only_letters, make_chats, make_tokenizer

from cloud_hf import CLoudForRewardModeling, CritiqueFormat


TEMPERATURE = 0.7


def make_model(shape: str):
    """Create a reward model that writes letters until the token budget ends the critique, and its tokenizer."""
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        llama_config(shape, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(
            folder
        )
        config = CLoudForRewardModeling.config_from_base(folder, tokenizer, critique_prompt=CRITIQUE_PROMPT)
    with made_on_device():
        model = CLoudForRewardModeling(config)
    model.reward_head.float()
    allow_only_letters(model.language_model, tokenizer)
    return model.eval(), tokenizer


def workload(critique_format: CritiqueFormat, count: int) -> tuple[list[str], list[str]]:
    rng = random.Random(0)
    return make_chats(
        critique_format, [rng.randint(MEAN_LENGTH - SPREAD, MEAN_LENGTH + SPREAD) for _ in range(count)], seed=1
    )


def padded(sequences: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
    width = max(map(len, sequences))
    ids = [[0] * (width - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return {"input_ids": torch.tensor(ids, device=DEVICE), "attention_mask": torch.tensor(mask, device=DEVICE)}


def make_sides(model, tokenizer, critique_format: CritiqueFormat, chats, new_tokens: int) -> dict[str, Callable]:
    prefixes = [critique_format.encode_prefix(*pair) for pair in zip(*chats, strict=True)]
    inputs = padded([prefix.input_ids for prefix in prefixes])
    fixed = {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}

    @torch.inference_mode()
    def generate(**options) -> torch.Tensor:
        return model.language_model.generate(**inputs, **fixed, **{"do_sample": False, **options})

    def score(temperature: float = 0.0):
        options = {"max_new_tokens": new_tokens, "batch_size": len(prefixes), "temperature": temperature, "seed": 0}
        scores = model.score(*chats, tokenizer, **options)
        assert {len(score.critique_ids[0]) for score in scores} == {new_tokens}

    @torch.inference_mode()
    def reference():
        critiques = tokenizer.batch_decode(generate()[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        texts = [f"{prefix.text} {critique}<|im_end|>" for prefix, critique in zip(prefixes, critiques, strict=True)]
        encoded = padded(tokenizer(texts, add_special_tokens=False)["input_ids"])
        # The logits of all positions do not fit in memory for the complete batch
        rows = len(prefixes) // 4
        for start in range(0, len(prefixes), rows):
            part = {key: tensor[start : start + rows] for key, tensor in encoded.items()}
            states = model.language_model(**part, output_hidden_states=True, use_cache=False).hidden_states
            model.reward_from_hidden(states[-1][:, -1]).tolist()

    return {
        "generate": generate,
        "generate at 0.7": lambda: generate(do_sample=True, temperature=TEMPERATURE, top_k=0),
        "score": score,
        "score at 0.7": lambda: score(TEMPERATURE),
        "reference": reference,
    }


def least_seconds(model, limits: dict[str, float], prompt_tokens: int, chats: int, new_tokens: int) -> float:
    """Return the minimum seconds for prefill and decoding."""
    config = model.config.text_config
    weights = sum(p.numel() for p in model.language_model.parameters()) - model.get_input_embeddings().weight.numel()
    kv_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # per token, in bf16
    read = new_tokens * (2 * weights + kv_bytes * (prompt_tokens + chats * new_tokens / 2))
    return 2 * weights * prompt_tokens / limits["flops_per_second"] + read / limits["bytes_per_second"]


def main():
    args = parse_arguments(__doc__, rounds=3)
    count, new_tokens = (4, 6) if args.tiny else (256, 128)
    limits = device_limits(args.tiny)
    model, tokenizer = make_model("tiny" if args.tiny else "1B")
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    chats = workload(critique_format, count)
    seconds, peaks = measure(make_sides(model, tokenizer, critique_format, chats, new_tokens), args.rounds)
    prompt_tokens = sum(len(critique_format.encode_prefix(*pair).input_ids) for pair in zip(*chats, strict=True))
    limits["least_seconds"] = least_seconds(model, limits, prompt_tokens, count, new_tokens)
    ratios = {
        "rewards/s, score / generate": ratio(seconds, "generate", "score", at_least=0.97),
        "rewards/s, score at 0.7 / score": ratio(seconds, "score", "score at 0.7", at_least=0.9),
        "rewards/s, score at 0.7 / generate at 0.7": ratio(seconds, "generate at 0.7", "score at 0.7"),
        "rewards/s, score / reference": ratio(seconds, "reference", "score", at_least=1.0),
    }
    sides = {
        name: {
            "seconds_median": statistics.median(taken),
            "rewards_per_second": count / statistics.median(taken),
            "share_of_the_limit": limits["least_seconds"] / statistics.median(taken),
            "peak_gib": peaks[name],
        }
        for name, taken in seconds.items()
    }
    finish(
        args,
        "gpu_scoring",
        {"limits": limits, "chats": count, "new_tokens": new_tokens, "sides": sides, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
