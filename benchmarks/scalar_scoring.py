"""
Compare `ScalarScorer` with the code that model cards show, on preference files: the largest difference between rewards, and the time.

Both sides score with randomly initialised models on the CPU, in fp32. The card's code renders each conversation with
`apply_chat_template`. When rewards are compared, it runs the model on one conversation at a time; when time is measured, on batches in
file order, padded by the tokenizer. The largest possible speed-up is the number of tokens that the card's code processes, padding included,
divided by the number without padding.

python benchmarks/scalar_scoring.py --data ../shared/data/eval/*.jsonl*          # takes minutes
python benchmarks/scalar_scoring.py --data pairs.jsonl --rows 4
"""

import argparse
import gzip
import json
import statistics
import time
from pathlib import Path

import torch
from recording import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from cloud_hf.scalar_models import ScalarScorer


CHATML = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral")
BATCH_SIZE = 16
RESULTS = Path("benchmarks/results/scalar_scoring.json")


def read_chats(path: str, rows: int | None) -> list[list[dict[str, str]]]:
    """Return the conversations in a preference file whose prompts are text."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf8") as file:
        pairs = [json.loads(line) for line, _ in zip(file, range(rows or 10**9), strict=False)]
    return [
        [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[side]}]
        for pair in pairs
        for side in ("chosen", "rejected")
        if isinstance(pair["prompt"], str) and isinstance(pair.get(side), str)
    ]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer with 4,000 tokens on the conversations."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        padding_side="right",
        chat_template=CHATML,
    )


def make_model(architecture: str, tokenizer: PreTrainedTokenizerFast, size: int, layers: int):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), hidden_size=size, intermediate_size=3 * size, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=size // 4, max_position_embeddings=32768, num_labels=1,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.1,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval()


@torch.inference_mode()
def card_rewards(model, tokenizer: PreTrainedTokenizerFast, chats: list, batch_size: int) -> list[float]:
    """Score conversations in the given order, in padded batches."""
    rewards = []
    for start in range(0, len(chats), batch_size):
        inputs = tokenizer.apply_chat_template(
            chats[start : start + batch_size], padding=True, return_tensors="pt", return_dict=True
        )
        rewards += model(**inputs).logits[:, 0].tolist()
    return rewards


def our_rewards(scorer: ScalarScorer, chats: list) -> list[float]:
    prompts, responses = ([chat[turn]["content"] for chat in chats] for turn in (0, 1))
    return [score.reward for score in scorer.score(prompts, responses)]


def largest_differences(chats: list, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Return, for each architecture, the largest difference from the rewards that the card's code computes without batching."""
    found = {}
    for architecture in ARCHITECTURES:
        model = make_model(architecture, tokenizer, size=64, layers=2)
        expected = card_rewards(model, tokenizer, chats, 1)
        ours = our_rewards(ScalarScorer(model, tokenizer, batch_size=BATCH_SIZE), chats)
        found[architecture] = max(abs(a - b) for a, b in zip(ours, expected, strict=True))
        print(f"{architecture}: {len(chats)} conversations, largest difference {found[architecture]:.1e}", flush=True)
    return found


def measure_seconds(chats: list, tokenizer: PreTrainedTokenizerFast, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each side per round; rounds alternate which side starts."""
    model = make_model("llama", tokenizer, size=256, layers=4)
    scorer = ScalarScorer(model, tokenizer, batch_size=BATCH_SIZE)
    sides = {
        "card": lambda: card_rewards(model, tokenizer, chats, BATCH_SIZE),
        "ours": lambda: our_rewards(scorer, chats),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - start)
            print(f"round {number}: {name} {seconds[name][-1]:.1f} s of CPU time", flush=True)
    return seconds


def padding(chats: list, tokenizer: PreTrainedTokenizerFast) -> float:
    """Return the ratio of tokens in the card's padded batches to tokens in the conversations."""
    lengths = [len(tokenizer.apply_chat_template(chat)["input_ids"]) for chat in chats]
    batches = [lengths[start : start + BATCH_SIZE] for start in range(0, len(lengths), BATCH_SIZE)]
    return sum(max(batch) * len(batch) for batch in batches) / sum(lengths)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, help="preference files in JSON lines format, optionally gzipped"
    )
    parser.add_argument("--rows", type=int, help="number of rows to read from each file (default: all)")
    parser.add_argument("--timed_rows", type=int, default=400, help="number of conversations to time, in file order")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    chats = [chat for path in args.data for chat in read_chats(path, args.rows)]
    tokenizer = make_tokenizer([turn["content"] for chat in chats for turn in chat])
    differences = largest_differences(chats, tokenizer)
    # Take conversations from all files, so that lengths within a batch vary as in a mixed file
    timed = chats[:: max(1, len(chats) // args.timed_rows)][: args.timed_rows]
    seconds = measure_seconds(timed, tokenizer, args.rounds)
    ratios = [card / ours for card, ours in zip(seconds["card"], seconds["ours"], strict=True)]
    result = {
        "conversations": len(chats),
        "files": len(args.data),
        "largest_difference": differences,
        "timed_conversations": len(timed),
        "cpu_seconds_median": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "card / ours": round(statistics.median(ratios), 2),
        "limit without padding": round(padding(timed, tokenizer), 2),
        "batch_size": BATCH_SIZE,
    }
    print(save(args.output, result))


if __name__ == "__main__":
    main()
