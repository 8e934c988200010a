"""
Train the same base model on the same pairs with TRL's `RewardTrainer` and with `CLoudTrainer` (classic arm), the latter padded,
padding-free, and with shared prompts. All sides compute the same loss in fp32, on batches of the same pairs in the same order. Each round
trains every side for one epoch, one after another, and rounds alternate which side starts. On CPUs, seconds are CPU time.

python benchmarks/against_trl.py --base HuggingFaceTB/SmolLM2-135M-Instruct --data ../shared/data/train/pairs_hh_harmless.jsonl.gz
python benchmarks/against_trl.py --tiny   # a random model and synthetic pairs, in seconds
"""

import argparse
import gc
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from recording import save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from cloud_hf import CLoudTrainer, CLoudTrainingConfig


MAX_TOKENS = 1024
OURS = {"padded": {}, "padding_free": {"padding_free": True}, "shared_prompt": {"shared_prompt": True}}
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


def read_pairs(path: str, count: int) -> list[dict]:
    """Return `count` evenly spaced pairs from a file, with the prompt and both responses as lists of messages."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf8") as file:
        rows = [json.loads(line) for line in file]
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} rows; give at most that many `--pairs`.")
    return [as_messages(row) for row in rows[:: len(rows) // count][:count]]


def as_messages(row: dict) -> dict:
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": messages, **sides}


def save_tiny(folder: str) -> list[dict]:
    """Save a random model and its tokenizer, and return pairs for it."""
    words = {"<|im_end|>": 0, "<pad>": 1, "<unk>": 2}
    backend = Tokenizer(models.WordLevel(words | {f"w{i}": 3 + i for i in range(40)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>", chat_template=CHATML
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=1,
        bos_token_id=None, eos_token_id=0, max_position_embeddings=MAX_TOKENS,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def text(count: int, seed: int) -> str:
        return " ".join(f"w{(seed * 7 + i * 3) % 40}" for i in range(count))

    return [
        as_messages({"prompt": text(60, i), "chosen": text(5 + 3 * i, i + 1), "rejected": text(4, i + 2)})
        for i in range(4)
    ]


def make_trainer(side: str, base: str, pairs: list[dict], batch_size: int, folder: str) -> RewardTrainer:
    """Return the trainer for a side, which is `"trl"` or a key of `OURS`."""
    common = {
        "per_device_train_batch_size": batch_size, "num_train_epochs": 1, "use_cpu": not torch.cuda.is_available(),
        "bf16": False, "report_to": [], "max_length": MAX_TOKENS, "gradient_checkpointing": False, "save_strategy": "no",
        "disable_tqdm": True, "logging_strategy": "epoch", "learning_rate": 1e-5, "optim": "adamw_torch", "seed": 0,
    }  # fmt: skip
    options = {"train_dataset": Dataset.from_list(pairs), "processing_class": AutoTokenizer.from_pretrained(base)}
    args = CLoudTrainingConfig(f"{folder}/{side}", critique=False, **common, **OURS.get(side, {}))
    trainer: RewardTrainer = CLoudTrainer(base, args, **options)
    if side == "trl":
        # Train on the same tokens: TRL's own encoding would add whatever a chat template writes after the last end-of-turn token
        dataset: Any = trainer.train_dataset
        options["train_dataset"] = dataset.select_columns(["chosen_ids", "rejected_ids"])
        args = RewardConfig(f"{folder}/trl", model_init_kwargs={"dtype": "float32"}, **common)
        trainer = RewardTrainer(base, args, **options)
    return trainer


def measure(
    make: Callable[[str], RewardTrainer], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float], list]:
    """Return the seconds and the mean loss of each side's epochs, and the encoded pairs. Only one trainer is in memory at a time."""
    seconds: dict[str, list[float]] = {name: [] for name in ("trl", *OURS)}
    losses, rows, names = {}, [], list(seconds)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            trainer = make(name)
            start = clock()
            trainer.train()
            seconds[name].append(clock() - start)
            losses[name] = mean_loss(trainer)
            rows = list(trainer.train_dataset)
            del trainer
            gc.collect()
            print(f"round {number}: {name} {seconds[name][-1]:.1f} s", flush=True)
    return seconds, losses, rows


def clock() -> float:
    """Return the current time or, on CPUs, this process's CPU time, which depends less on other work on the machine."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder or Hub id of a language model with a chat template")
    parser.add_argument(
        "--data",
        default="../shared/data/train/pairs_hh_harmless.jsonl.gz",
        help="preference pairs in JSON lines format",
    )
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=8, help="pairs per batch")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="use a random model and synthetic pairs")
    parser.add_argument("--output", default="benchmarks/results/against_trl.json")
    args = parser.parse_args()
    if bool(args.base) == args.tiny:
        parser.error("Give either --base or --tiny.")
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.base, args.batch_size = f"{folder}/base", 2
            pairs = save_tiny(args.base)
        else:
            pairs = read_pairs(args.data, args.pairs)
        seconds, losses, rows = measure(
            lambda side: make_trainer(side, args.base, pairs, args.batch_size, folder), args.rounds
        )
    result = {
        "base": "random" if args.tiny else Path(args.base).name,
        "data": "invented" if args.tiny else Path(args.data).name,
        "pairs": len(rows),
        "batch_size": args.batch_size,
        "tokens": sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows),
        "seconds": {name: [round(each, 2) for each in taken] for name, taken in seconds.items()},
        "times_as_fast_as_trl": {
            name: round(statistics.median(t / o for t, o in zip(seconds["trl"], seconds[name], strict=True)), 2)
            for name in OURS
        },
        "mean_loss": losses,
    }
    save(args.output, result)
    for name, ratio in result["times_as_fast_as_trl"].items():
        print(
            f"{name}: {ratio:.2f} x as fast as TRL's RewardTrainer (loss {losses[name]:.3f}; TRL {losses['trl']:.3f})"
        )


def mean_loss(trainer: RewardTrainer) -> float:
    """Return the mean training loss of the epoch."""
    return round(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), 4)


if __name__ == "__main__":
    main()
