"""The shell game: a procedurally generated preference task whose critiques reason step by step.

A ball lies under one of four cups. Two cups at a time are swapped, k times in total, and a response names the cup under which the ball ends
up. Following k swaps in a single forward pass is hard for a small transformer, but writing them out one by one is easy, so a critique
helps.

This module generates rows for the base language model, preference pairs with oracle critiques, best-of-n rows, a tokenizer with one token
per word of the task, and the configuration of a tiny Llama. All rows are determined by a seed.

Problems are split by their sequence of swaps, where "A and B" and "B and A" count as the same swap. Each sequence belongs to exactly one
of `train`, `validation` and `test`, regardless of the seed and the number of rows. A sequence is in the same split for all four starting
cups, so every answer is equally likely in each split. Training rows may repeat, but held-out rows are distinct. Held-out problems with few
swaps are scarce: with one swap, `validation` and `test` have 8 problems each; with two swaps, they have 64 and 112. Once these are used up,
problems with more swaps take their place.
"""

import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, cycle, product
from typing import Any, cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ..configuration_cloud import DEFAULT_CRITIQUE_PROMPT


CUPS = "ABCD"
NUM_SWAPS = (1, 2, 3, 4)
SPLITS = ("train", "validation", "test")
# Chosen so that four of the six single swaps are in `train`, and one in each of the other splits
_SALT = 310
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|reserved_0|>", "<|reserved_1|>")


@dataclass(frozen=True)
class ShellGame:
    """
    One problem: where the ball starts and how the cups are swapped.

    Args:
        start (`str`):
            Cup under which the ball starts.
        swaps (`tuple[tuple[str, str], ...]`):
            Pairs of cups, in the order in which they are swapped.

    Example:

    ```python
    >>> game = ShellGame("D", (("A", "B"), ("D", "B")))
    >>> game.prompt
    'The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?'
    >>> game.answer
    'B'
    >>> game.critique("The answer is C.")
    '1: A and B gives D. 2: D and B gives B. So B right, A wrong, C wrong, D wrong. Response C wrong.'
    ```
    """

    start: str
    swaps: tuple[tuple[str, str], ...]

    @classmethod
    def from_prompt(cls, prompt: str) -> "ShellGame":
        """Parse a problem from its prompt."""
        start = re.search(r"under cup (\w)\.", prompt)
        if start is None:
            raise ValueError(f"Not a shell-game prompt: {prompt!r}")
        return cls(start[1], tuple((a, b) for a, b in re.findall(r"\d: (\w) and (\w)\.", prompt)))

    @property
    def prompt(self) -> str:
        """Prompt that states the problem."""
        steps = " ".join(f"{i}: {a} and {b}." for i, (a, b) in enumerate(self.swaps, start=1))
        return f"The ball starts under cup {self.start}. Swap cups {steps} Where is the ball now?"

    @property
    def positions(self) -> list[str]:
        """Cup that contains the ball after each swap."""
        cup, positions = self.start, []
        for a, b in self.swaps:
            cup = {a: b, b: a}.get(cup, cup)
            positions.append(cup)
        return positions

    @property
    def answer(self) -> str:
        """Cup that contains the ball after the last swap."""
        return self.positions[-1]

    @property
    def difficulty(self) -> int:
        """Number of swaps."""
        return len(self.swaps)

    def critique(self, response: str) -> str:
        """
        Return the oracle's critique of `response`: every step, a verdict on each cup, and a verdict on the cup that the response names.

        Because the critique states a verdict on every cup first, the verdict on the response is only a look-up, which a tiny model learns
        quickly. Learning to compare two cups would take much longer.

        Args:
            response (`str`):
                Any text. A response that does not name a cup in the wording of [`response_text`] counts as wrong.
        """
        steps = " ".join(
            f"{i}: {a} and {b} gives {cup}."
            for i, ((a, b), cup) in enumerate(zip(self.swaps, self.positions, strict=True), start=1)
        )
        wrong = ", ".join(f"{cup} wrong" for cup in CUPS if cup != self.answer)
        named = named_cup(response)
        verdict = "right" if named == self.answer else "wrong"
        return f"{steps} So {self.answer} right, {wrong}. Response {named or 'unclear'} {verdict}."

    def belongs_to(self, split: str) -> bool:
        """Return whether the problem may occur in `split`: `"train"`, `"validation"` or `"test"`."""
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}: expected one of {SPLITS}")
        return split == _split_of(tuple("".join(sorted(swap)) for swap in self.swaps))


def _split_of(swaps: tuple[str, ...]) -> str:
    """Return the split of a sequence of swaps. The two cups of each swap must be in alphabetical order."""
    bucket = zlib.crc32(f"{_SALT} {' '.join(swaps)}".encode()) % 10  # the same in every process, unlike `hash`
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


@cache
def count_problems(num_swaps: int, split: str) -> int:
    """Count the distinct prompts with this number of swaps in this split."""
    swaps = ["".join(pair) for pair in combinations(CUPS, 2)]
    sequences = sum(_split_of(sequence) == split for sequence in product(swaps, repeat=num_swaps))
    return sequences * 2**num_swaps * len(CUPS)  # both orders of each swap, all starting cups


def response_text(cup: str) -> str:
    """Return the response that names `cup`."""
    return f"The answer is {cup}."


def named_cup(response: str) -> str | None:
    """Return the cup that `response` names, or `None` if it names none."""
    match = re.search(rf"answer is ([{CUPS}])\b", response)
    return match[1] if match else None


def random_game(rng: random.Random, num_swaps: int, split: str = "train") -> ShellGame:
    """Sample a problem uniformly from those with this number of swaps in this split."""
    while True:
        start, swaps = rng.choice(CUPS), tuple(rng.sample(CUPS, 2) for _ in range(num_swaps))
        game = ShellGame(start, tuple((a, b) for a, b in swaps))
        if game.belongs_to(split):
            return game


def wrong_cup(rng: random.Random, game: ShellGame) -> str:
    """Sample a wrong answer uniformly, so that only the swaps distinguish it from the right one."""
    return rng.choice([cup for cup in CUPS if cup != game.answer])


def _rows(
    name: str, num_rows: int, split: str, num_swaps: Sequence[int], seed: int,
    make: Callable[[ShellGame, random.Random], dict[str, Any]], per_problem: int = 1,
) -> list[dict]:  # fmt: skip
    """
    Generate rows of problems, cycling through the numbers of swaps. Held-out rows are distinct, with at most `per_problem` rows per
    problem. Raises `ValueError` if there are fewer than `num_rows` distinct held-out rows.
    """
    rng, held_out = random.Random(f"{seed}/{name}/{split}"), split != "train"
    left = {k: per_problem * count_problems(k, split) for k in num_swaps} if held_out else {}
    if held_out and num_rows > sum(left.values()):
        raise ValueError(
            f"The {split} split has {sum(left.values())} distinct rows with {' or '.join(map(str, left))} swaps, but {num_rows} "
            "were requested. Request fewer rows, or more swaps."
        )
    rows: list[dict] = []
    seen: set[tuple[str, str | None]] = set()
    turns = cycle(num_swaps)
    while len(rows) < num_rows:
        k = next(turns)
        if held_out and left[k] == 0:
            continue
        row = make(random_game(rng, k, split), rng)
        if held_out:
            while (content := (row["prompt"], row.get("rejected"))) in seen:
                row = make(random_game(rng, k, split), rng)
            seen.add(content)
            left[k] -= 1
        rows.append({"id": f"{name}-{split}-{seed}-{len(rows)}", **row, "difficulty": k})
    return rows


def direct_answer_rows(
    num_rows: int, split: str = "train", num_swaps: Sequence[int] = NUM_SWAPS, seed: int = 0
) -> list[dict]:
    """
    Generate rows for the base language model: direct answers without intermediate steps.

    Args:
        num_rows (`int`):
            Number of rows. Held-out rows are distinct; requesting more than exist raises a `ValueError` that states how many exist.
        split (`str`, *optional*, defaults to `"train"`):
            One of `"train"`, `"validation"`, `"test"`.
        num_swaps (`Sequence[int]`, *optional*, defaults to `(1, 2, 3, 4)`):
            Numbers of swaps, used in rotation.
        seed (`int`, *optional*, defaults to `0`):
            Random seed.

    Returns:
        `list[dict]`: Rows with the columns `id`, `prompt`, `response`, `difficulty`.
    """

    def answer(game: ShellGame, rng: random.Random) -> dict[str, Any]:
        return {"prompt": game.prompt, "response": response_text(game.answer)}

    return _rows("answers", num_rows, split, num_swaps, seed, answer)


def preference_rows(
    num_rows: int, split: str = "train", num_swaps: Sequence[int] = NUM_SWAPS, seed: int = 0
) -> list[dict]:
    """
    Generate preference pairs with oracle critiques. The chosen response is right, and the rejected response names another cup.

    Args:
        num_rows, split, num_swaps, seed:
            As for [`direct_answer_rows`].

    Returns:
        `list[dict]`: Rows with the columns `id`, `prompt`, `chosen`, `rejected`, `chosen_feedback`,
        `rejected_feedback`, `difficulty`.
    """

    def pair(game: ShellGame, rng: random.Random) -> dict[str, Any]:
        chosen, rejected = response_text(game.answer), response_text(wrong_cup(rng, game))
        return {
            "prompt": game.prompt,
            "chosen": chosen,
            "rejected": rejected,
            "chosen_feedback": game.critique(chosen),
            "rejected_feedback": game.critique(rejected),
        }

    return _rows("preferences", num_rows, split, num_swaps, seed, pair, per_problem=len(CUPS) - 1)


def best_of_n_rows(
    num_rows: int, split: str = "test", num_swaps: Sequence[int] = NUM_SWAPS, seed: int = 0
) -> list[dict]:
    """
    Generate problems with one response per cup, in random order. Exactly one response is right.

    Args:
        num_rows, split, num_swaps, seed:
            As for [`direct_answer_rows`], but `split` defaults to `"test"`.

    Returns:
        `list[dict]`: Rows with the columns `id`, `prompt`, `responses`, `correct`, `difficulty`.
    """

    def problem(game: ShellGame, rng: random.Random) -> dict[str, Any]:
        cups = rng.sample(CUPS, len(CUPS))
        return {
            "prompt": game.prompt,
            "responses": [response_text(cup) for cup in cups],
            "correct": [cup == game.answer for cup in cups],
        }

    return _rows("best-of-n", num_rows, split, num_swaps, seed, problem)


def build_tokenizer(critique_prompt: str = DEFAULT_CRITIQUE_PROMPT) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer in which every word of the task is a single token. Its chat template is ChatML.

    Args:
        critique_prompt (`str`, *optional*, defaults to that of the published checkpoints):
            Text that opens the critique turn. Its words also become single tokens.
    """
    game = ShellGame("A", (("A", "B"), ("C", "D")))
    letters_and_digits = [*CUPS, *"0123456789"]
    # Every word, letter and digit of the task in each form that occurs, with and without a leading space
    texts = [
        game.prompt,
        response_text("A"),
        *(game.critique(response) for response in (response_text("A"), response_text("B"), "")),
        critique_prompt,
        *("system", "user", "assistant"),
        *letters_and_digits,
        *(f" {symbol}" for symbol in letters_and_digits),
    ]
    return word_tokenizer(texts, SPECIAL_TOKENS, CHATML_TEMPLATE)


def word_tokenizer(texts: Sequence[str], special_tokens: Sequence[str], chat_template: str) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer in which every word of `texts` is a single token.

    All 256 bytes are in the vocabulary, so any text can be encoded without loss. Merging continues until each word is a single token, so
    ties between merges have no effect: the same texts always produce the same tokenizer.

    Args:
        texts (`Sequence[str]`):
            Texts that contain every word in each form that occurs (with and without a leading space).
        special_tokens (`Sequence[str]`):
            Control tokens: first an end-of-text token and `<|pad|>`, then the tokens that may occur in a chat. These include `<|im_end|>`,
            which ends a turn.
        chat_template (`str`):
            Jinja template, which may use the control tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    # As in GPT-2, a word includes its leading space. Every digit is a separate token
    words = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,  # never reached: merging ends when every word is a single token
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=list(special_tokens[2:]),
        chat_template=chat_template,
        model_max_length=2048,
    )


def build_model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the configuration of a tiny Llama for a tokenizer from [`build_tokenizer`]."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        initializer_range=0.08,  # close to 1 / sqrt(hidden_size); with the default of 0.02, AdamW starts on a long plateau
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # for precise positions within about 100 tokens
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
