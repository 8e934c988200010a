"""Scores, the options that produce them, and the interface that every backend shares. Does not import torch."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """One critique and its reward."""

    reward: float
    critique: str = ""
    critique_ids: tuple[int, ...] = ()
    finish_reason: str = "stop"
    # Rewards read while the critique was written; `None` unless the caller requests them
    inner_rewards: tuple[float, ...] | None = None
    log_likelihood: float | None = None  # mean over the critique tokens, in nats; only for sampled critiques


class NotFinite(ArithmeticError):
    """A reward, weight, loss or gradient is NaN or infinite."""


def read_critiques(row: int, given) -> list[str]:
    """Return a response's given critiques as a list. Raises a `ValueError` that names the row if they are not text."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"Row {row}: `critiques` is {texts!r:.60}; give a string or a non-empty list of strings.")
    return list(texts)


@dataclass(frozen=True)
class Score:
    """
    The rewards and critiques of one response. Raises [`NotFinite`] if a reward is NaN or infinite.

    Args:
        reward (`float`):
            Mean of `rewards`, unless [`~combine_critiques.combine_scores`] combined them in another way.
        critique (`str`):
            The first critique; `""` for a classic model.
        rewards (`tuple[float, ...]`):
            One reward per critique.
        critiques (`tuple[str, ...]`):
            The critiques' texts.
        reward_std (`float`):
            Population standard deviation of `rewards`; 0.0 for one critique.
        finish_reasons (`tuple[str, ...]`):
            Per critique: `"stop"` if the model ended it, `"length"` if it was truncated at `max_new_tokens`, or `"stable"` if it was
            stopped because its reward was stable (`stop_when_stable`).
        critique_ids (`tuple[tuple[int, ...], ...]`):
            The critiques' token ids without the end token. Encoding their texts does not always give the same ids.
        response_changed (`bool`):
            Whether the chat template hides or changes part of the response, so that the model did not judge all of it. Some
            templates, for example, hide everything before a `</think>`.
        partial_rewards (`tuple[tuple[float, ...], ...]`):
            With `read_every` k, per critique: the rewards read at its tokens k, 2k, …, followed by its final reward.
        log_likelihoods (`tuple[float, ...]`):
            Per critique, the mean log-probability of its tokens in nats, before temperature scaling and without the end token.
            Recorded by transformers and vLLM if critiques are sampled; otherwise empty.
        critique_tokens (`tuple[int, ...]`):
            Per critique, the number of its tokens without the end token; empty if it is unknown. Journals keep this number but not the ids.
    """

    reward: float
    critique: str
    rewards: tuple[float, ...]
    critiques: tuple[str, ...]
    reward_std: float
    finish_reasons: tuple[str, ...]
    critique_ids: tuple[tuple[int, ...], ...] = ()
    response_changed: bool = False
    partial_rewards: tuple[tuple[float, ...], ...] = ()
    log_likelihoods: tuple[float, ...] = ()
    critique_tokens: tuple[int, ...] = ()

    def __post_init__(self):
        _check_finite(self.reward, *self.rewards, *(reward for rewards in self.partial_rewards for reward in rewards))

    @classmethod
    def of(cls, samples: Sequence[Sample], response_changed: bool = False) -> "Score":
        """Build the score of one response from its samples."""
        rewards = tuple(sample.reward for sample in samples)
        _check_finite(*rewards)
        has_ids = all(sample.critique_ids or not sample.critique for sample in samples)
        likelihoods = tuple(sample.log_likelihood for sample in samples if sample.log_likelihood is not None)
        return cls(
            reward=statistics.fmean(rewards),
            critique=samples[0].critique,
            rewards=rewards,
            critiques=tuple(sample.critique for sample in samples),
            reward_std=statistics.pstdev(rewards),
            finish_reasons=tuple(sample.finish_reason for sample in samples),
            critique_ids=tuple(sample.critique_ids for sample in samples),
            response_changed=response_changed,
            partial_rewards=tuple(
                (*sample.inner_rewards, sample.reward) for sample in samples if sample.inner_rewards is not None
            ),
            log_likelihoods=likelihoods if len(likelihoods) == len(samples) else (),
            critique_tokens=tuple(len(sample.critique_ids) for sample in samples) if has_ids else (),
        )


def _check_finite(*rewards: float):
    if not all(map(math.isfinite, rewards)):
        raise NotFinite(
            f"A response has rewards that are NaN or infinite; its rewards are {', '.join(map(str, rewards))}. Check the model's "
            "weights, the `reward_std` in its config, and its data type (fp16 overflows where bf16 does not)."
        )


OnScore = Callable[[int, Score], None]


def report_scores(scores: list[Score], on_score: OnScore | None) -> list[Score]:
    """Pass each score to `on_score`, and return the scores."""
    if on_score is not None:
        for index, score in enumerate(scores):
            on_score(index, score)
    return scores


# Number of consecutive partial rewards that must agree before `stop_when_stable` ends a critique
STABLE_READS = 3


@dataclass(frozen=True)
class Sampling:
    """The options for writing critiques; see [`Scorer`]. Raises `ValueError` if a value is out of range."""

    num_critiques: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 1024
    seed: int | None = None
    read_every: int | None = None
    stop_when_stable: float | None = None

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("num_critiques", "max_new_tokens", "read_every")}
        if self.read_every is None:
            del counts["read_every"]
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}; it must be an integer of at least 1.")
        if not isinstance(self.temperature, int | float) or not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` is {self.temperature!r}; it must be a finite number of at least 0.")
        if self.stop_when_stable is None:
            return
        if not isinstance(self.stop_when_stable, int | float) or not 0 < self.stop_when_stable < math.inf:
            raise ValueError(f"`stop_when_stable` is {self.stop_when_stable!r}; it must be a finite number above 0.")
        if self.read_every is None:
            raise ValueError("`stop_when_stable` compares partial rewards, so it needs `read_every`.")


class Scorer(Protocol):
    """
    Interface of all backends: evaluation, best-of-N, RL and the demo can score with any backend.

    Args:
        prompts (`list`):
            Strings, lists of chat messages, or `{"messages": [...], "tools": [...]}`.
        responses (`list`):
            One response per prompt: text, or an assistant message with tool calls or reasoning.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response; their rewards are averaged. More than one needs `temperature > 0`.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Maximum length of a critique in tokens, not counting its end token. A longer critique is truncated there and scored.
        critiques (`list[str]` or `list[list[str]]`, *optional*):
            Critiques to score instead of writing new ones: for each response, one critique or a list of several.
        seed (`int`, *optional*):
            Makes sampling reproducible; in fp32, also across different batch sizes.
        read_every (`int`, *optional*):
            Also read the reward at every `read_every`-th token of a critique, in the same pass. The results are in
            `Score.partial_rewards`.
        stop_when_stable (`float`, *optional*):
            End a critique once the last three partial rewards differ by less than this. Needs `read_every`.
        on_score (`Callable[[int, Score], None]`, *optional*):
            Called with each response's index and score as soon as the score is known, so that a later failure does not
            lose it. Servers and vLLM report scores one at a time; transformers reports all of them at the end.

    Returns:
        `list[Score]`: In input order.
    """

    def score(
        self,
        prompts: list,
        responses: list,
        *,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        critiques: list | None = None,
        seed: int | None = None,
        read_every: int | None = None,
        stop_when_stable: float | None = None,
        on_score: OnScore | None = None,
    ) -> list[Score]: ...
