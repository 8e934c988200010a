"""
Export classic models to `*ForSequenceClassification`, and compare the rewards that this library, transformers and vLLM's pooling runner
compute for real conversations, in fp32 on the CPU. Random weights with a large standard deviation make rewards differ by several units.

The effect of rounding alone is measured as well: the classifier also runs in batches, with eager attention, and in fp64, which serves as a
reference for both sides. A wrong position, template or padding would show up as a large difference.

python benchmarks/classifier_export.py --data ../shared/data/eval/*.jsonl*          # takes minutes
python benchmarks/classifier_export.py --data pairs.jsonl --chats 8 --without_vllm
"""

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import save
from scalar_scoring import BATCH_SIZE, make_tokenizer, read_chats
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from cloud_hf import CLoudForRewardModeling
from cloud_hf.classifier_conversion import plan_export, write_export


ARCHITECTURES = ("llama", "qwen3")
MOST_TOKENS = 2000
RESULTS = Path("benchmarks/results/classifier_export.json")


def save_models(folder: str, architecture: str, tokenizer) -> CLoudForRewardModeling:
    """Write a classic model with a linear head, and export it. Returns the model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(f"{folder}/base")
    model = CLoudForRewardModeling.from_base(f"{folder}/base", tokenizer, critique=False, reward_head="linear").eval()
    torch.nn.init.normal_(model.reward_head.out_proj.weight, std=0.3)
    for part in (model, tokenizer):
        part.save_pretrained(f"{folder}/classic")
    write_export(plan_export(f"{folder}/classic"), f"{folder}/classifier")
    return model


@torch.inference_mode()
def classified(
    folder: str, chats: list, batch_size: int = 1, attention: str = "sdpa", dtype=torch.float32
) -> np.ndarray:
    """Score conversations as the model card describes."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation=attention, dtype=dtype
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rewards = []
    for start in range(0, len(chats), batch_size):
        options = {"padding": True, "return_tensors": "pt", "return_dict": True}
        inputs = tokenizer.apply_chat_template(chats[start : start + batch_size], **options)
        rewards += model(**inputs).logits[:, 0].tolist()
    return np.array(rewards)


def pooled(folder: str, chats: list) -> np.ndarray:
    """Score conversations with vLLM's pooling runner."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import LLM

    llm: Any = LLM(folder, runner="pooling", dtype="float32", max_model_len=MOST_TOKENS, enforce_eager=True)
    texts = [llm.get_tokenizer().apply_chat_template(chat, tokenize=False) for chat in chats]
    with torch.compiler.set_stance("force_eager"):
        rewards = [answer.outputs.probs[0] for answer in llm.classify(texts, use_tqdm=False)]
    llm.llm_engine.engine_core.shutdown()
    return np.array(rewards)


def measure(architecture: str, chats: list, tokenizer, with_vllm: bool) -> dict:
    """Return the largest differences between the rewards that one architecture gets from each implementation."""

    def largest(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one - other).max())

    with tempfile.TemporaryDirectory() as folder:
        model, classifier = save_models(folder, architecture, tokenizer), f"{folder}/classifier"
        prompts, responses = ([chat[turn]["content"] for chat in chats] for turn in (0, 1))
        ours = np.array([score.reward for score in model.score(prompts, responses, tokenizer, batch_size=BATCH_SIZE)])
        theirs = classified(classifier, chats)
        exact = classified(classifier, chats, dtype=torch.float64)
        result = {
            "span of rewards": float(np.ptp(exact)),
            "largest reward": float(np.abs(exact).max()),
            "ours - transformers": largest(ours, theirs),
            "ours - fp64": largest(ours, exact),
            "transformers - fp64": largest(theirs, exact),
            "transformers, batches of 16 - one at a time": largest(classified(classifier, chats, BATCH_SIZE), theirs),
            "transformers, eager - sdpa": largest(classified(classifier, chats, attention="eager"), theirs),
        }
        if with_vllm:
            result["ours - vLLM"] = largest(ours, pooled(classifier, chats))
    print(architecture, json.dumps(result, indent=1), flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, help="preference files in JSON lines format, optionally gzipped"
    )
    parser.add_argument("--chats", type=int, default=500, help="number of conversations, sampled from all files")
    parser.add_argument("--without_vllm", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = [chat for path in args.data for chat in read_chats(path, None)]
    tokenizer: Any = make_tokenizer([turn["content"] for chat in found for turn in chat])
    random.Random(0).shuffle(found)
    lengths = ((chat, len(tokenizer.apply_chat_template(chat)["input_ids"])) for chat in found)
    chats = [chat for chat, length in lengths if length < MOST_TOKENS][: args.chats]
    result = {
        "chats": len(chats),
        "files": len(args.data),
        "models": {name: measure(name, chats, tokenizer, not args.without_vllm) for name in ARCHITECTURES},
    }
    save(args.output, result)


if __name__ == "__main__":
    main()
