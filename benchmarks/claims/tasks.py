"""
Three preference tasks whose critiques reason step by step: a ball under cups, the hand of a clock, and look-ups in a table.

The right and the wrong responses of a problem have the same length and are drawn alike, so only the prompt tells them apart.
What makes a problem hard (its swaps, moves or table) decides which split it belongs to, whatever the seed.
"""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from transformers import LlamaConfig, PreTrainedTokenizerFast

from cloud_hf.data import shell_game


CRITIQUE_PROMPT = "Check"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|pad|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|reserved_0|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BLANK = "."
NAMES = ("Ball", "Hand", "Map", "Go", "Answer", "right", "wrong")
TRIES = 500  # draws of a held-out problem until its level counts as used up


@dataclass(frozen=True)
class Problem:
    """
    One problem with its solution.

    Example:

    ```python
    >>> problem = Problem("Ball D . AB . DB", "AB D . DB B", "B", "ABCD", 2)
    >>> problem.critique("C")
    'AB D . DB B . A wrong B right C wrong D wrong . C wrong'
    ```
    """

    prompt: str
    steps: str
    answer: str
    choices: str
    difficulty: int

    def critique(self, choice: str) -> str:
        """Return the oracle's critique of the response that names `choice`: the steps, a verdict on every choice, and its verdict."""
        verdicts = " ".join(f"{each} {self.verdict(each)}" for each in self.choices)
        return f"{self.steps} . {verdicts} . {choice} {self.verdict(choice)}"

    def verdict(self, choice: str) -> str:
        return "right" if choice == self.answer else "wrong"

    @property
    def ordered_choices(self) -> list[str]:
        """The answer, then the other choices."""
        return [self.answer, *(choice for choice in self.choices if choice != self.answer)]


def shell(rng: random.Random, level: int, split: str) -> Problem:
    """`level` swaps move a ball under four cups."""
    game = shell_game.random_game(rng, level, split)
    swaps = [f"{a}{b}" for a, b in game.swaps]
    steps = [f"{swap} {cup}" for swap, cup in zip(swaps, game.positions, strict=True)]
    return Problem(" . ".join([f"Ball {game.start}", *swaps]), " . ".join(steps), game.answer, "ABCD", level)


def clock(rng: random.Random, level: int, split: str) -> Problem:
    """`level` moves of 1 to 9 hours turn the hand of a clock with four hours."""
    moves = draw_in(split, lambda: [rng.randint(1, 9) for _ in range(level)])
    hand = start = rng.randrange(4)
    steps = []
    for move in moves:
        hand = (hand + move) % 4
        steps.append(f"{move} {hand}")
    return Problem(" . ".join([f"Hand {start}", *map(str, moves)]), " . ".join(steps), str(hand), "0123", level)


def chain(rng: random.Random, level: int, split: str) -> Problem:
    """`level` look-ups in a table that sends each of five letters to another one, or to itself."""
    letters = "ABCDE"
    targets = draw_in(split, lambda: rng.sample(letters, len(letters)))
    place = start = rng.choice(letters)
    steps = []
    for left in range(level, 0, -1):
        entry = f"{left} {place.lower()}"  # a key and a value are different tokens, as in most tables
        place = targets[letters.index(place)]
        steps.append(f"{entry} {place}")
    table = " ".join(f"{a.lower()} {b}" for a, b in zip(letters, targets, strict=True))
    return Problem(f"Map {table} Go {level} {start.lower()}", " . ".join(steps), place, letters, level)


TASKS: dict[str, Callable[[random.Random, int, str], Problem]] = {"shell": shell, "clock": clock, "chain": chain}


def draw_in(split: str, draw: Callable[[], list]) -> list:
    """Draw until the content belongs to `split`: a fifth of all contents are `test`, a tenth are `validation`."""
    while True:
        content = draw()
        bucket = zlib.crc32(repr(content).encode()) % 10
        if split == ("test" if bucket < 2 else "validation" if bucket == 2 else "train"):
            return content


def problems(task: str, split: str, levels: Sequence[int], count: int, seed: int | str) -> list[Problem]:
    """
    Draw problems, cycling through the levels. Held-out ones are distinct; the other levels make up for one that has too few.

    Raises:
        `ValueError`: If there are fewer distinct problems.
    """
    rng, left = random.Random(f"{task}/{split}/{seed}"), list(levels)
    found: list[Problem] = []
    seen: set[str] = set()
    while len(found) < count:
        if not left:
            raise ValueError(f"{task}: the {split} split has {len(found)} problems of levels {levels}, not {count}.")
        level = left.pop(0)
        drawn = (TASKS[task](rng, level, split) for _ in range(TRIES))
        problem = next((one for one in drawn if split == "train" or one.prompt not in seen), None)
        if problem is not None:
            seen.add(problem.prompt)
            found.append(problem)
            left.append(level)
    return found


def response(choice: str) -> str:
    return f"Answer {choice}"


def pairs(found: Sequence[Problem], seed: int | str) -> list[dict[str, Any]]:
    """Make preference pairs with oracle critiques: the right response, and a wrong one drawn uniformly."""
    rng = random.Random(f"pairs/{seed}")
    rows = []
    for problem in found:
        sides = {"chosen": problem.answer, "rejected": rng.choice(problem.ordered_choices[1:])}
        texts = {side: response(choice) for side, choice in sides.items()}
        critiques = {f"{side}_feedback": problem.critique(choice) for side, choice in sides.items()}
        rows.append({"prompt": problem.prompt, **texts, **critiques})
    return rows


def tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer of all tasks."""
    swaps = [f"{a}{b}" for a, b in permutations("ABCD", 2)]
    words = [*swaps, *"ABCDEabcde0123456789?", BLANK, CRITIQUE_PROMPT, *NAMES]
    return shell_game.word_tokenizer([*words, *(f" {word}" for word in words)], SPECIAL_TOKENS, CHAT_TEMPLATE)


def model_config(words: PreTrainedTokenizerFast, width: int) -> LlamaConfig:
    """Return the configuration of a Llama with two layers."""
    config = shell_game.build_model_config(words)
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = width, 2, 3 * width
    config.head_dim, config.initializer_range = width // 4, width**-0.5
    return config
