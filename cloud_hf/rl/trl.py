"""Reward functions that work with any scorer, for TRL's `GRPOTrainer` and `RLOOTrainer`."""

import json
import logging
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..prompts import REASONING_FIELDS, part_text, with_thinking
from ..scores import Sampling, Score, Scorer
from .hidden_text import check_policy, report_hidden_text


logger = logging.getLogger(__name__)

# If the standard deviation of a group's rewards is at most this value, the rewards count as equal. The rewards of identical completions in
# a batch differ by float noise, which dividing by the standard deviation would amplify into a signal
_LEAST_DEVIATION = 1e-4


def cloud_reward(scorer: Scorer, **options) -> Callable[..., list[float | None]]:
    """
    Create a reward function that judges completions with a reward model.

    The function adds the critiques to TRL's completions table (`log_completions=True`), and logs the share of critiques that were
    truncated and the share of completions that could not be judged.

    Args:
        scorer ([`Scorer`]):
            Any backend ([`TransformersScorer`], [`~serving.CLoudVLLM`] or [`~serving.CLoudClient`]), [`ScalarScorer`] for third-party
            scalar models, or [`CascadeScorer`], which requires complete groups of completions without tool calls.
        num_critiques, temperature, max_new_tokens, seed:
            See [`Scorer`]. `max_new_tokens` defaults to 512 here.
        normalize (`str`, *optional*):
            `"group"` normalises the rewards of each prompt's completions to mean 0 and standard deviation 1 (population), or
            to 0 if all of them are equal. Use this option to combine reward functions with different scales, because TRL scales only their
            sum (`scale_rewards`).
        num_generations (`int`, *optional*):
            Size of a group of consecutive completions, in training and in evaluation. By default, a group is all of a batch's completions
            for equal prompts. Set the size if a batch may contain several groups of one prompt, or if a process may receive only part of a
            group. A batch with incomplete groups then raises an error.
        on_response_changed (`str`, *optional*, defaults to `"warn"`):
            What to do with completions in which the reward model's chat template hides or changes text (some templates hide all text
            before a `</think>`). `"warn"` counts them in a warning and a metric, and `"error"` raises an error. To show such text to the
            reward model, load the model with `keep_thinking=True`.
        on_unjudgeable (`str`, *optional*, defaults to `"error"`):
            What to do with completions that cannot be judged, for instance because they do not fit in the reward model's context.
            `"error"` raises an error. `"lowest"` gives such completions the lowest reward seen so far, so that they never pay off.
            `"none"` gives them the reward `None`. TRL ignores a completion if all its rewards are `None`; otherwise it adds up the rewards
            from the other reward functions, so that `None` counts as 0, which a policy may prefer to a negative reward.
            With `"lowest"` and `"none"`, the completions are counted in a warning and a metric. An error is still raised if no completion
            has been judged yet, because then wrong settings are the likely cause.
        judged_part (`Callable`, *optional*):
            Function that returns the part of a completion's text to judge, for instance the text after a thinking block.
        name (`str`, *optional*, defaults to `"cloud_reward"`):
            Name of the function in TRL's logs.

    Returns:
        `Callable`: A function for `reward_funcs`. A prompt can be a string, which is treated as a user message, or a list of chat messages
        that does not end with an assistant message.
        If a completion is a list of messages, the last message is judged, with the earlier ones (tool calls) as context. Thinking that TRL
        parsed into a field such as `reasoning_content` is put back into the text, in `<think>…</think>`.

    Raises:
        `ValueError`: If an option is invalid. The returned function raises `ValueError` if a completion cannot be judged.

    Examples:

    ```python
    >>> model, tokenizer = load_reward_model("org/my-cloud-rm")
    >>> reward = cloud_reward(TransformersScorer(model, tokenizer), on_unjudgeable="lowest")
    >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=reward, train_dataset=prompts)
    ```
    """
    settings = _Settings(**options, compares=getattr(scorer, "compares_responses", False))

    def reward(prompts, completions, log_extra=None, log_metric=None, **columns):
        batch = _Batch(prompts, completions, settings.judged_part)
        settings.check_groups(batch)
        for rows in batch.untried():
            with settings.refusing(batch, rows):
                batch.keep(rows, scorer.score(*batch.inputs(rows), **settings.score_options))
        return settings.rewards(batch, log_extra, log_metric)

    return settings.named(reward)


def async_cloud_reward(client, **options) -> Callable:
    """
    Create an asynchronous version of [`cloud_reward`] from an object with an `ascore` method, such as a [`~serving.CLoudClient`] or a
    [`CascadeScorer`] of several clients. TRL runs the function concurrently with other async reward functions. The `options` are the same
    as for [`cloud_reward`].

    Examples:

    ```python
    >>> reward = async_cloud_reward(CLoudClient("http://localhost:8000"), normalize="group")
    >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", reward_funcs=[reward, length_penalty], train_dataset=prompts)
    ```
    """
    settings = _Settings(**options, compares=getattr(client, "compares_responses", False))

    async def reward(prompts, completions, log_extra=None, log_metric=None, **columns):
        batch = _Batch(prompts, completions, settings.judged_part)
        settings.check_groups(batch)
        for rows in batch.untried():
            with settings.refusing(batch, rows):
                batch.keep(rows, await client.ascore(*batch.inputs(rows), **settings.score_options))
        return settings.rewards(batch, log_extra, log_metric)

    return settings.named(reward)


class _Batch:
    """A batch of completions, with their scores and with the errors for completions that cannot be judged."""

    def __init__(self, prompts: list, completions: list, judged_part: Callable[[str], str] | None):
        self.prompts = prompts
        self.completions = completions
        self.judged_part = judged_part
        self.scores: list[Score | None] = [None] * len(completions)
        self.errors: list[ValueError] = []
        self._untried = [range(len(completions))]

    def untried(self) -> Iterator[range]:
        while self._untried:
            yield self._untried.pop()

    def separate(self, groups: list[list[int]]):
        """Queue groups so that no call to the scorer contains two groups of one prompt: a cascade would merge them."""
        starts, seen = [0], set()
        for rows in groups:
            key = json.dumps(self.prompts[rows[0]], sort_keys=True)
            if key in seen:
                starts.append(rows[0])
                seen.clear()
            seen.add(key)
        self._untried = list(map(range, starts, [*starts[1:], len(self.completions)]))

    def inputs(self, rows: range) -> tuple[list, list]:
        """Return the prompts and responses to pass to a scorer."""
        read = [_read_row(row - rows.start, self.prompts[row], self.completions[row]) for row in rows]
        return [prompt for prompt, _ in read], [self._part(response) for _, response in read]

    def _part(self, response: str | dict) -> str | dict:
        """Return the part of a response to judge, as a string if the response is only text."""
        text = response if isinstance(response, str) else response.get("content")
        if self.judged_part is not None and isinstance(text, str):
            text = self.judged_part(text)
        if isinstance(response, dict):
            others = [value for name, value in response.items() if name not in ("role", "content")]
            if text is None or any(others):
                return {**response, "content": text}
        return text or ""

    def keep(self, rows: range, scores: list[Score]):
        for row, score in zip(rows, scores, strict=True):
            self.scores[row] = score

    def refuse(self, rows: range, error: ValueError):
        """
        Queue both halves of `rows` to be tried again, until each bad row is isolated and its error is recorded. This is cheap, because
        scorers check all rows before they compute anything (but for critiques in the authors' format that outgrow the context).
        """
        if len(rows) == 1:
            self.errors.append(error)
            return
        middle = len(rows) // 2
        self._untried += [rows[middle:], rows[:middle]]


@dataclass
class _Settings:
    """The options of a reward function, and the rewards and metrics that it computes from scores."""

    num_critiques: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 512
    seed: int | None = None
    normalize: str | None = None
    num_generations: int | None = None
    on_response_changed: str = "warn"
    on_unjudgeable: str = "error"
    judged_part: Callable[[str], str] | None = None
    name: str = "cloud_reward"
    compares: bool = False  # whether a reward depends on the other completions in the group, as with a cascade
    has_judged: bool = False
    lowest: float = math.inf

    def __post_init__(self):
        Sampling(**self.score_options)
        if self.normalize not in (None, "group"):
            raise ValueError(f'`normalize` is {self.normalize!r}; it must be None or "group".')
        if self.on_unjudgeable not in ("error", "lowest", "none"):
            raise ValueError(f'`on_unjudgeable` is {self.on_unjudgeable!r}; it must be "error", "lowest" or "none".')
        check_policy("on_response_changed", self.on_response_changed)
        if self.compares and self.on_unjudgeable != "error":
            raise ValueError(
                f'`on_unjudgeable` is {self.on_unjudgeable!r}, but a cascade compares all completions in a group; leave it at "error", '
                "and limit the length of the completions."
            )
        if self.compares and (self.num_critiques, self.temperature) != (1, 0.0):
            raise ValueError(
                "Each stage of a cascade has its own critique options: give `num_critiques` and `temperature` to `CascadeStage`."
            )
        if self.num_generations is not None and self.normalize is None and not self.compares:
            raise ValueError('`num_generations` is the size of a group, so it needs `normalize="group"` or a cascade.')
        if self.num_critiques > 1 and self.temperature == 0:
            raise ValueError("`num_critiques` above 1 needs `temperature` above 0: greedy critiques are identical.")

    @property
    def score_options(self) -> dict:
        names = ("num_critiques", "temperature", "max_new_tokens", "seed")
        return {name: getattr(self, name) for name in names}

    def named(self, function: Callable) -> Callable:
        function.__name__ = function.__qualname__ = self.name
        return function

    def check_groups(self, batch: _Batch):
        """
        Separate groups whose completions are compared with each other. Raises `ValueError` if a group is incomplete or completions have
        tool calls.
        """
        if not self.compares:
            return
        groups = _groups(batch.prompts, self.num_generations)
        for row, completion in enumerate(batch.completions):
            if not isinstance(completion, str) and len(completion) > 1:
                raise ValueError(
                    f"Row {row}: the completion has {len(completion)} messages, but a cascade compares single responses to one prompt. "
                    "Use one of its stages as the scorer."
                )
        batch.separate(groups)

    @contextmanager
    def refusing(self, batch: _Batch, rows: range) -> Iterator[None]:
        """
        Handle rows that the scorer rejects: raise `ValueError` if `on_unjudgeable` is "error"; otherwise, pass the rows to
        [`_Batch.refuse`].
        """
        try:
            yield
        except ValueError as error:
            if self.on_unjudgeable == "error":
                cure = "" if self.compares else ' (`on_unjudgeable="lowest"` continues without them)'
                raise ValueError(f"Completions cannot be judged{cure}: {error}") from error
            batch.refuse(rows, error)

    def rewards(self, batch: _Batch, log_extra: Callable | None, log_metric: Callable | None) -> list[float | None]:
        judged = [score for score in batch.scores if score is not None]
        self.has_judged = self.has_judged or bool(judged)
        self.lowest = min([self.lowest, *(score.reward for score in judged)])
        report_hidden_text(judged, self.on_response_changed)
        if batch.errors:
            if not self.has_judged:
                raise ValueError(f"No completion has been judged so far: {batch.errors[0]}") from batch.errors[0]
            logger.warning(
                "%d of %d completions could not be judged. First error: %s",
                len(batch.errors), len(batch.scores), batch.errors[0],
            )  # fmt: skip
        if log_extra is not None:
            log_extra(f"{self.name}_critique", [score and score.critique for score in batch.scores])
        if log_metric is not None:
            for metric, value in self._metrics(batch, judged).items():
                log_metric(f"{self.name}/{metric}", value)
        missing = self.lowest if self.on_unjudgeable == "lowest" else None
        rewards = [missing if score is None else score.reward for score in batch.scores]
        if self.normalize == "group":
            return normalize_by_group(rewards, batch.prompts, self.num_generations)
        return rewards

    def _metrics(self, batch: _Batch, judged: list[Score]) -> dict[str, float]:
        metrics = {"unjudgeable": len(batch.errors) / len(batch.scores)}
        if judged:
            ends = [reason for score in judged for reason in score.finish_reasons]
            metrics["critiques_cut"] = ends.count("length") / len(ends)
            metrics["response_changed"] = statistics.fmean(score.response_changed for score in judged)
            if self.normalize is not None:
                metrics["before_normalization"] = statistics.fmean(score.reward for score in judged)
            if self.num_critiques > 1:
                metrics["spread_of_critiques"] = statistics.fmean(score.reward_std for score in judged)
        return metrics


def normalize_by_group(
    rewards: list[float | None], prompts: list, num_generations: int | None = None
) -> list[float | None]:
    """
    Normalise rewards to mean 0 and standard deviation 1 (population) in every group.

    Args:
        rewards (`list[float | None]`):
            One reward per completion. `None` stays `None` and does not count.
        prompts (`list`):
            Prompt of each completion.
        num_generations (`int`, *optional*):
            Size of a group of consecutive completions. By default, a group is all completions for equal prompts.

    Returns:
        `list[float | None]`: The normalised rewards in input order. They are 0 in a group of one completion (a warning is logged if no
        group has more), and in a group whose rewards are equal up to float noise (a standard deviation of at most 1e-4).

    Raises:
        `ValueError`: If the batch does not consist of complete groups of `num_generations` equal prompts.
    """
    normalized: list[float | None] = [None] * len(rewards)
    groups = _groups(prompts, num_generations)
    if len(groups) == len(prompts) > 0:
        logger.warning(
            "All normalised rewards are 0, because each prompt has only one completion in this batch. Give each process complete groups."
        )
    for rows in groups:
        values = {row: reward for row in rows if (reward := rewards[row]) is not None}
        mean = statistics.fmean(values.values()) if values else 0.0
        deviation = statistics.pstdev(values.values()) if values else 0.0
        for row, reward in values.items():
            normalized[row] = (reward - mean) / deviation if deviation > _LEAST_DEVIATION else 0.0
    return normalized


def _groups(prompts: list, num_generations: int | None) -> list[list[int]]:
    """Return the rows of each group. Raises `ValueError` if a group is incomplete."""
    if num_generations is None:
        equal: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            equal.setdefault(prompts.index(prompt), []).append(row)
        return list(equal.values())
    starts = range(0, len(prompts), num_generations)
    groups = [list(range(start, min(start + num_generations, len(prompts)))) for start in starts]
    for rows in groups:
        if len(rows) < num_generations or any(prompts[row] != prompts[rows[0]] for row in rows):
            raise ValueError(
                f"Completions {rows[0]} to {rows[-1]} are not a group of {num_generations} completions for one prompt. Make the batch "
                "size of each process a multiple of `num_generations`. If it is one, set the trainer's `num_generations` and "
                f"`num_generations_eval` to {num_generations}, or leave out the reward function's `num_generations`."
            )
    return groups


# ------------------------------------------------------------------------------------------------- reading rows


def _read_row(row: int, prompt, completion) -> tuple[str | list[dict], str | dict]:
    """Convert TRL's prompt and completion to the prompt and response that a scorer expects."""
    if isinstance(completion, str):
        return prompt, completion
    if not completion:
        raise ValueError(
            f"Row {row}: the completion has no messages; give text, or messages that end with the assistant's."
        )
    *context, last = (_with_text(row, message) for message in completion)
    if last["role"] != "assistant":
        raise ValueError(f"Row {row}: the completion ends with {last!r:.80}, which is not an assistant message.")
    messages = [*prompt, *context]
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"Row {row}: the response follows an assistant message. Some of TRL's trainers continue such a message, and others (GRPO, RLOO) "
            "start a new turn, so it is unclear what to judge. End the prompt with a user's or a tool's message."
        )
    return messages, last


def _with_text(row: int, message: dict) -> dict:
    """
    Return a message in which an assistant's content is text that includes its thinking. TRL parses thinking into a field if the policy's
    tokenizer has a response template. Few chat templates show that field, and `judged_part` gets only the content.
    """
    if message["role"] != "assistant":
        return message
    content = message.get("content")
    if isinstance(content, list):
        name = f"Row {row}: an assistant message"
        content = "\n".join(part_text(part, name) for part in content)
    fields = [name for name in REASONING_FIELDS if isinstance(message.get(name), str) and message[name]]
    if fields:  # servers may write the same thinking to two fields
        content = with_thinking(message[fields[0]], content or "")
        message = {name: value for name, value in message.items() if name not in fields}
    return message if content is None else {**message, "content": content}
