"""
Stage 0 of the quickstart: create the shell game's datasets, and train a tiny base language model that answers its questions directly.

Writes data/pairs (train, test), data/stage3 (train) and data/best-of-n (test) as `save_to_disk` folders.

python examples/make_shell_game.py --config examples/configs/shell-game/base.yaml --data_dir runs/quickstart/data \
    --output_dir runs/quickstart/base --seed 0
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from cloud_hf import CritiqueFormat
from cloud_hf.argument_help import documented
from cloud_hf.cli import run
from cloud_hf.data import shell_game


@documented
@dataclass
class ShellGameArguments:
    """
    Sizes of the datasets.

    Parameters:
        data_dir (`str`):
            Folder for the datasets.
        num_answers (`int`):
            Number of problems with direct answers, to train the base model on.
        num_pairs (`int`):
            Number of preference pairs with oracle critiques, for critique SFT and the classic arm.
        num_stage3_pairs (`int`):
            Number of these pairs that stage 3 uses.
        num_test_pairs (`int`):
            Number of held-out pairs.
        num_best_of_n (`int`):
            Number of held-out problems for best-of-N.
        answer_swaps (`list[int]`, *optional*, defaults to `[1, 2, 3, 4]`):
            Numbers of swaps per problem with a direct answer, used in rotation.
        blank_prompts (`bool`, *optional*, defaults to `False`):
            Control experiment: remove the questions from the pairs, so that no reward model can beat chance.
    """

    data_dir: str
    num_answers: int
    num_pairs: int
    num_stage3_pairs: int
    num_test_pairs: int
    num_best_of_n: int
    answer_swaps: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    blank_prompts: bool = False


ARGUMENTS = (ShellGameArguments, SFTConfig)


def main(args: ShellGameArguments, training_args: SFTConfig):
    data = Path(args.data_dir)
    pairs = pair_dataset(args, training_args.seed)
    pairs.save_to_disk(data / "pairs")
    DatasetDict(train=pairs["train"].select(range(args.num_stage3_pairs))).save_to_disk(data / "stage3")
    problems = shell_game.best_of_n_rows(args.num_best_of_n, seed=training_args.seed)
    DatasetDict(test=Dataset.from_list(problems)).save_to_disk(data / "best-of-n")

    tokenizer = shell_game.build_tokenizer()
    answers = shell_game.direct_answer_rows(args.num_answers, num_swaps=args.answer_swaps, seed=training_args.seed)
    set_seed(training_args.seed)
    model = LlamaForCausalLM(shell_game.build_model_config(tokenizer))
    trainer = SFTTrainer(
        model, training_args, train_dataset=encode_answers(answers, tokenizer), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    output = training_args.output_dir
    print(
        f"Wrote the datasets to {data} and the base model to {output}. Next: python examples/train_classic.py --config "
        f"examples/configs/shell-game/classic.yaml --model_name_or_path {output} --dataset_name {data / 'pairs'} --output_dir classic"
    )


def pair_dataset(args: ShellGameArguments, seed: int) -> DatasetDict:
    rows = {
        "train": shell_game.preference_rows(args.num_pairs, seed=seed),
        "test": shell_game.preference_rows(args.num_test_pairs, "test", seed=seed),
    }
    if args.blank_prompts:
        rows = {split: [{**row, "prompt": "Where is the ball now?"} for row in part] for split, part in rows.items()}
    return DatasetDict({split: Dataset.from_list(part) for split, part in rows.items()})


def encode_answers(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Encode questions with direct answers. Only the answer and its end-of-turn token have labels."""
    # The classic format is used, because its sequences end with the response
    critique_format = CritiqueFormat(tokenizer, critique=False)
    encoded = []
    for row in rows:
        ids = list(critique_format.encode(row["prompt"], row["response"]).input_ids)
        answer = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        start = len(ids) - 1 - len(answer)
        encoded.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return Dataset.from_list(encoded)


if __name__ == "__main__":
    run(__name__)
