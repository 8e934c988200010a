"""
Three preference tasks whose critiques reason step by step: tracking a ball under cups, moving a clock hand, and looking up table entries.

The right and the wrong responses to a problem have the same length and the same distribution, so only the prompt tells them apart.
The part that makes a problem hard (its swaps, moves or table) determines the problem's split, regardless of the seed.
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
TRIES = 500  # attempts to sample a new held-out problem before its level counts as exhausted


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
        """Return the oracle's critique of the response `choice`: the steps, a verdict on every choice, and the verdict on this one."""
        verdicts = " ".join(f"{each} {self.verdict(each)}" for each in self.choices)
        return f"{self.steps} . {verdicts} . {choice} {self.verdict(choice)}"

    def verdict(self, choice: str) -> str:
        return "right" if choice == self.answer else "wrong"

    @property
    def ordered_choices(self) -> list[str]:
        """The right answer, followed by the other choices."""
        return [self.answer, *(choice for choice in self.choices if choice != self.answer)]


def shell(rng: random.Random, level: int, split: str) -> Problem:
    """Sample a problem in which `level` swaps move a ball under four cups."""
    game = shell_game.random_game(rng, level, split)
    swaps = [f"{a}{b}" for a, b in game.swaps]
    steps = [f"{swap} {cup}" for swap, cup in zip(swaps, game.positions, strict=True)]
    return Problem(" . ".join([f"Ball {game.start}", *swaps]), " . ".join(steps), game.answer, "ABCD", level)


def clock(rng: random.Random, level: int, split: str) -> Problem:
    """Sample a problem in which `level` moves of 1 to 9 hours turn the hand of a clock with four hours."""
    moves = draw_in(split, lambda: [rng.randint(1, 9) for _ in range(level)])
    hand = start = rng.randrange(4)
    steps = []
    for move in moves:
        hand = (hand + move) % 4
        steps.append(f"{move} {hand}")
    return Problem(" . ".join([f"Hand {start}", *map(str, moves)]), " . ".join(steps), str(hand), "0123", level)


def chain(rng: random.Random, level: int, split: str) -> Problem:
    """Sample a problem with `level` look-ups in a table that maps each of five letters to a letter, possibly the same one."""
    letters = "ABCDE"
    targets = draw_in(split, lambda: rng.sample(letters, len(letters)))
    place = start = rng.choice(letters)
    steps = []
    for left in range(level, 0, -1):
        entry = f"{left} {place.lower()}"  # keys and values are different tokens, as in most tables
        place = targets[letters.index(place)]
        steps.append(f"{entry} {place}")
    table = " ".join(f"{a.lower()} {b}" for a, b in zip(letters, targets, strict=True))
    return Problem(f"Map {table} Go {level} {start.lower()}", " . ".join(steps), place, letters, level)


TASKS: dict[str, Callable[[random.Random, int, str], Problem]] = {"shell": shell, "clock": clock, "chain": chain}


def draw_in(split: str, draw: Callable[[], list]) -> list:
    """Sample until the content belongs to `split`. A fifth of all contents belong to `test`, and a tenth to `validation`."""
    while True:
        content = draw()
        bucket = zlib.crc32(repr(content).encode()) % 10
        if split == ("test" if bucket < 2 else "validation" if bucket == 2 else "train"):
            return content


def problems(task: str, split: str, levels: Sequence[int], count: int, seed: int | str) -> list[Problem]:
    """
    Sample problems, cycling through the levels. Held-out problems are distinct; if a level has too few, the other levels make up for it.

    Raises:
        `ValueError`: If there are fewer than `count` distinct problems.
    """
    rng, left = random.Random(f"{task}/{split}/{seed}"), list(levels)
    found: list[Problem] = []
    seen: set[str] = set()
    while len(found) < count:
        if not left:
            raise ValueError(
                f"{task}: the {split} split has only {len(found)} problems at levels {levels}, but {count} are needed."
            )
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
    """Create preference pairs with oracle critiques, from the right response and a wrong one sampled uniformly."""
    rng = random.Random(f"pairs/{seed}")
    rows = []
    for problem in found:
        sides = {"chosen": problem.answer, "rejected": rng.choice(problem.ordered_choices[1:])}
        texts = {side: response(choice) for side, choice in sides.items()}
        critiques = {f"{side}_feedback": problem.critique(choice) for side, choice in sides.items()}
        rows.append({"prompt": problem.prompt, **texts, **critiques})
    return rows


def tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer shared by all tasks."""
    swaps = [f"{a}{b}" for a, b in permutations("ABCD", 2)]
    words = [*swaps, *"ABCDEabcde0123456789?", BLANK, CRITIQUE_PROMPT, *NAMES]
    return shell_game.word_tokenizer([*words, *(f" {word}" for word in words)], SPECIAL_TOKENS, CHAT_TEMPLATE)


def model_config(words: PreTrainedTokenizerFast, width: int) -> LlamaConfig:
    """Return the configuration of a two-layer Llama model."""
    config = shell_game.build_model_config(words)
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = width, 2, 3 * width
    config.head_dim, config.initializer_range = width // 4, width**-0.5
    return config
