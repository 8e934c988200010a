"""
Measure training speed on flattened batches, compared with padding and with the reference implementation's steps. The workload is fixed:
a random Llama with hidden size 512, 8 layers and a vocabulary of 32,000, on real pairs with critiques below 2,048 tokens, in fp32.

- reference: every sequence padded to 2,048 tokens, and the logits of all positions computed.
- padded: `CLoudTrainer`, every batch padded to its longest sequence.
- padding_free, shared_prompt: `CLoudTrainer` with these options.
- limit: the decoder's forward and backward passes on one sequence after another, without any padding, and the logits of
  the labelled positions. There are no rewards, batches or trainer.

padding_free, shared_prompt and limit also run on chats of several turns, whose prompts make up at least half of the tokens.
Useful tokens are all tokens of the sequences, shared or not. The possible speed-up from sharing is the ratio of computed tokens.

All sides run the same forward and backward steps on all cores, one side after another in each round.

python benchmarks/training_speed.py --data ../shared
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from recording import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cloud_hf import CLoudForRewardModeling, CLoudTrainer, CLoudTrainingConfig


ROWS = "data/train/cloud_pairs_arenabench_gpt4.jsonl.gz"
VOCABULARY, HIDDEN, LAYERS = 32_000, 512, 8
MAX_TOKENS = 2048
NUM_PAIRS, NUM_LONG_PAIRS, PAIRS_PER_BATCH = 3, 2, 3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
RATIOS = {
    # minimum ratios of useful tokens per second
    "padding_free / reference": ("padding_free", "reference", 2.5),
    "padding_free / limit": ("padding_free", "limit", 0.85),
}
SHARED_OF_ALLOWED = 0.9

Run = Callable[[], None]


# -------------------------------------------------------------------------------------------------------- workload


def read_rows(data: str) -> list[dict]:
    with gzip.open(Path(data) / ROWS, "rt", encoding="utf8") as file:
        return [json.loads(line) for line in file]


def make_tokenizer(rows: list[dict]) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer on the rows' text, with the model's vocabulary size."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    columns = ("prompt", "chosen", "rejected", "chosen_feedback", "rejected_feedback")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator((row[column] for row in rows for column in columns), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|im_start|>", "<|reserved_0|>"],
        chat_template=CHATML,
    )


def save_base(folder: str, tokenizer: PreTrainedTokenizerFast):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_trainer(folder: str, tokenizer, rows: list[dict], **options) -> CLoudTrainer:
    columns = ("prompt", "chosen", "rejected", "chosen_feedback", "rejected_feedback")
    args = CLoudTrainingConfig(
        f"{folder}/out", use_cpu=True, bf16=False, report_to=[], max_length=MAX_TOKENS - 1, overlong_policy="drop",
        per_device_train_batch_size=PAIRS_PER_BATCH, gradient_checkpointing=False, lm_loss_chunks=1, disable_tqdm=True,
        **options,
    )  # fmt: skip
    dataset = Dataset.from_list([{column: row[column] for column in columns} for row in rows])
    return CLoudTrainer(f"{folder}/base", args, train_dataset=dataset, processing_class=tokenizer)


def with_history(rows: list[dict], num_tokens: Callable[[str], int]) -> list[dict]:
    """
    Build chats of several turns: other rows with their chosen responses precede a row's prompt, until the prompt makes up
    at least half of the longer sequence.
    """
    chats = []
    others = iter(rows[len(rows) // 2 :])
    for row in rows:
        own = max(num_tokens(row[side]) + num_tokens(row[f"{side}_feedback"]) for side in ("chosen", "rejected")) + 60
        turns, length = [{"role": "user", "content": row["prompt"]}], num_tokens(row["prompt"])
        while length < own:
            other = next(others)
            turns = [
                {"role": "user", "content": other["prompt"]},
                {"role": "assistant", "content": other["chosen"]},
                *turns,
            ]
            length += num_tokens(other["prompt"]) + num_tokens(other["chosen"]) + 12
        if length + own < MAX_TOKENS:
            chats.append({**row, "prompt": turns})
        if len(chats) == NUM_LONG_PAIRS:
            return chats
    raise ValueError(f"The file has rows for only {len(chats)} long pairs; this benchmark needs {NUM_LONG_PAIRS}.")


# ----------------------------------------------------------------------------------------------------------- sides
# Each side returns a function that runs the forward and backward passes of all batches once.


def batches(trainer: CLoudTrainer) -> list[list[dict]]:
    rows = list(trainer.train_dataset)
    return [rows[start : start + PAIRS_PER_BATCH] for start in range(0, len(rows), PAIRS_PER_BATCH)]


def sequences(trainer: CLoudTrainer) -> list[tuple[list[int], int]]:
    """Return the token ids and the prefix length of every sequence."""
    return [
        (row[f"{side}_ids"], row[f"{side}_prefix_length"])
        for row in trainer.train_dataset
        for side in ("chosen", "rejected")
    ]


def with_trainer(trainer: CLoudTrainer) -> Run:
    model = trainer.model.train()

    def run():
        model.zero_grad()
        inputs = [trainer.data_collator(batch) for batch in batches(trainer)]
        counts = trainer._get_num_items_in_batch(inputs, torch.device("cpu"))
        for batch in inputs:
            trainer.training_step(model, batch, counts)

    return run


def reference(trainer: CLoudTrainer) -> Run:
    model: CLoudForRewardModeling = trainer.model.train()

    def run():
        model.zero_grad()
        for batch in batches(trainer):
            inputs = trainer.data_collator(batch)
            width = MAX_TOKENS - inputs["input_ids"].shape[1]
            ids, mask = (F.pad(inputs[key], (0, width)) for key in ("input_ids", "attention_mask"))
            labels = F.pad(inputs["labels"], (0, width), value=-100)
            hidden = model.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(hidden)
            lm_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            rewards = model.reward_from_hidden(hidden[torch.arange(len(ids)), mask.sum(-1) - 1])
            chosen, rejected = rewards.chunk(2)
            (-F.logsigmoid(chosen - rejected).mean() + 1.25 * lm_loss).backward()

    return run


def limit(trainer: CLoudTrainer) -> Run:
    model: CLoudForRewardModeling = trainer.model.train()

    def run():
        model.zero_grad()
        for ids, prefix_length in sequences(trainer):
            hidden = model.trunk(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(hidden[0, prefix_length - 1 : -1])
            F.cross_entropy(logits, torch.tensor(ids[prefix_length:])).backward()

    return run


# ------------------------------------------------------------------------------------------------------- measuring


def measure(sides: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side per round; rounds alternate which side starts."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(_seconds(sides[name]))
            print(f"round {number}: {name} {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def tokens(trainer: CLoudTrainer) -> int:
    return sum(len(ids) for ids, _ in sequences(trainer))


def computed_tokens(trainer: CLoudTrainer) -> int:
    return sum(trainer.data_collator.num_tokens(batch) for batch in batches(trainer))


def matmul_limit(trainer: CLoudTrainer) -> float:
    """Return the seconds that the matrix products of `limit`, without attention, would take at the speed of a large matrix product."""
    model = trainer.model
    weights = sum(p.numel() for p in model.trunk.parameters()) - model.get_input_embeddings().weight.numel()
    labelled = sum(len(ids) - prefix_length for ids, prefix_length in sequences(trainer))
    left, right = torch.randn(2048, HIDDEN), torch.randn(HIDDEN, 2048)
    fastest = min(_seconds(lambda: left @ right) for _ in range(30))
    flops = 2 * 2048 * HIDDEN * 2048 / fastest
    return 6 * (weights * tokens(trainer) + VOCABULARY * HIDDEN * labelled) / flops


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def summarise(seconds: dict[str, list[float]], useful: dict[str, int]) -> dict:
    return {
        name: {
            "seconds_median": statistics.median(taken),
            "seconds_min": min(taken),
            "seconds_max": max(taken),
            "useful_tokens_per_second": useful[name] / statistics.median(taken),
        }
        for name, taken in seconds.items()
    }


def ratio(seconds: dict[str, list[float]], side: str, other: str, at_least: float) -> dict:
    """Return the speed-up of one side over another, computed round by round."""
    by_round = [theirs / ours for ours, theirs in zip(seconds[side], seconds[other], strict=True)]
    value = statistics.median(by_round)
    return {
        "value": value, "lowest": min(by_round), "highest": max(by_round), "limit": at_least, "limit_is": "at least",
        "reached": value >= at_least,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared", help="folder with the preference data")
    parser.add_argument("--rounds", type=int, default=3, help="number of runs of each side")
    parser.add_argument("--output", default="benchmarks/results/training_speed.json")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rows = read_rows(args.data)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(rows)
        save_base(f"{folder}/base", tokenizer)
        # Take evenly spaced rows from the complete file, and some extra ones because a few rows are too long
        chosen = rows[:: len(rows) // (2 * NUM_PAIRS)]
        short = list(make_trainer(folder, tokenizer, chosen).train_dataset)[:NUM_PAIRS]
        long = with_history(rows[1:], lambda text: len(tokenizer.encode(text)))

        def trainer(workload, **options) -> CLoudTrainer:
            made = make_trainer(folder, tokenizer, chosen if workload == "short" else long, **options)
            if workload == "short":
                made.train_dataset = made.train_dataset.select(range(len(short)))
            return made

        trainers_ = {
            "reference": trainer("short"),
            "padded": trainer("short"),
            "padding_free": trainer("short", padding_free=True),
            "shared_prompt": trainer("short", shared_prompt=True),
            "limit": trainer("short"),
            "padding_free, several turns": trainer("long", padding_free=True),
            "shared_prompt, several turns": trainer("long", shared_prompt=True),
            "limit, several turns": trainer("long"),
        }
        makers = {"reference": reference, "limit": limit, "limit, several turns": limit}
        sides = {name: makers.get(name, with_trainer)(made) for name, made in trainers_.items()}
        seconds = measure(sides, args.rounds)
        useful = {name: tokens(made) for name, made in trainers_.items()}
        result = {
            "workload": describe(trainers_, args.rounds),
            "sides": summarise(seconds, useful),
            "matmul_limit_seconds": matmul_limit(trainers_["limit"]),
            "ratios": ratios(seconds, trainers_),
        }
    save(args.output, result)
    report(result)


def describe(trainers_: dict[str, CLoudTrainer], rounds: int) -> dict:
    short, long = trainers_["shared_prompt"], trainers_["shared_prompt, several turns"]
    prompts = [prefix_shared(row) for row in long.train_dataset]
    return {
        "pairs": len(short.train_dataset),
        "pairs_of_a_batch": PAIRS_PER_BATCH,
        "tokens": tokens(short),
        "tokens_padded": computed_tokens(trainers_["padded"]),
        "tokens_of_the_reference": 2 * len(short.train_dataset) * MAX_TOKENS,
        "tokens_with_shared_prompts": computed_tokens(short),
        "labelled_tokens": sum(len(ids) - prefix for ids, prefix in sequences(short)),
        "pairs_several_turns": len(long.train_dataset),
        "tokens_several_turns": tokens(long),
        "tokens_with_shared_prompts_several_turns": computed_tokens(long),
        "share_of_the_prompt_several_turns": [min(prompts), max(prompts)],
        "rounds": rounds,
        "cores": os.cpu_count(),
    }


def prefix_shared(row: dict) -> float:
    """Return the share of the longer sequence that is common to both sequences."""
    common = next(i for i, (a, b) in enumerate(zip(row["chosen_ids"], row["rejected_ids"], strict=False)) if a != b)
    return common / max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def ratios(seconds: dict[str, list[float]], trainers_: dict[str, CLoudTrainer]) -> dict:
    result = {label: ratio(seconds, *definition) for label, definition in RATIOS.items()}
    turns = "several turns"
    shared = trainers_[f"shared_prompt, {turns}"]
    allowed = tokens(shared) / computed_tokens(shared)
    result[f"shared_prompt / padding_free, {turns}"] = {
        **ratio(seconds, f"shared_prompt, {turns}", f"padding_free, {turns}", SHARED_OF_ALLOWED * allowed),
        "allowed": allowed,
    }
    return result


def report(result: dict):
    """Print the measurements next to their limits."""
    print()
    for name, side in result["sides"].items():
        print(
            f"{name:30} {side['useful_tokens_per_second']:6.0f} useful tokens/s   median {side['seconds_median']:.2f} s "
            f"({side['seconds_min']:.2f} to {side['seconds_max']:.2f})"
        )
    print(f"Matrix products of the limit, without attention: {result['matmul_limit_seconds']:.2f} s")
    for label, ratio in result["ratios"].items():
        print(
            f"{label:45} {ratio['value']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f}), limit at least "
            f"{ratio['limit']:.3g}: {'reached' if ratio['reached'] else 'NOT reached'}"
        )


if __name__ == "__main__":
    main()
