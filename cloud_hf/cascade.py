"""
A cascade of scorers: a cheap reward first, and critiques only where that reward leaves doubt. Does not import torch.

Rewards of different models are on different scales. Each stage's rewards are therefore converted to the log-odds that one
response to a prompt is better than another, with weights fitted on dev rows ([`~evaluation.metrics.cascade.fit_cascade`]).
A prompt is decided as soon as the probability that the leader is better reaches the threshold for each of the other
responses. Otherwise the next stage scores the contenders, the responses that may still be the best. A preference pair is the special
case of two candidates.
"""

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from .scores import OnScore, Score, Scorer, report_scores


VERSION = 1


@dataclass(frozen=True)
class StageFit:
    """
    Weights that convert a stage's rewards to log-odds.

    Args:
        slope (`float`):
            Log-odds per unit of the reward difference between two responses.
        prior (`float`, *optional*, defaults to `0.0`):
            Weight of the log-odds from the previous stage.
        one_slope, one_center, one_prior (`float`, *optional*):
            Weights that apply when the stage has scored only one of the two responses. That response's reward is then
            compared with a typical reward, `one_center`.
    """

    slope: float
    prior: float = 0.0
    one_slope: float = 0.0
    one_center: float = 0.0
    one_prior: float = 1.0

    def log_odds(self, rewards_N: np.ndarray, before_NN: np.ndarray) -> np.ndarray:
        """
        Return the log-odds, shape `(N, N)`, that candidate i is better than j.

        `rewards_N` contains the stage's rewards, with NaN for candidates that the stage has not scored. `before_NN` contains the log-odds
        after the previous stage.
        """
        known_N = ~np.isnan(rewards_N)
        filled_N = np.where(known_N, rewards_N, 0.0)
        ahead_N = np.where(known_N, self.one_slope * (filled_N - self.one_center), 0.0)
        # Bradley-Terry: the log-odds are proportional to the difference between the rewards
        both_NN = self.slope * (filled_N[:, None] - filled_N) + self.prior * before_NN
        one_NN = ahead_N[:, None] - ahead_N + self.one_prior * before_NN
        count_NN = known_N[:, None].astype(int) + known_N
        return np.where(count_NN == 2, both_NN, np.where(count_NN == 1, one_NN, before_NN))


@dataclass(frozen=True)
class CascadeFit:
    """
    Weights and thresholds of a cascade, fitted on dev rows.

    Args:
        stages (`tuple[StageFit, ...]`):
            Weights of each stage.
        thresholds (`tuple[float, ...]`):
            For each stage but the first, the probability at which a prompt is decided without that stage. At 0.5, the stage
            scores nothing; at 1, it scores everything.

    Raises:
        `ValueError`: If a threshold is out of range, or the number of thresholds is not one less than the number of stages.
    """

    stages: tuple[StageFit, ...]
    thresholds: tuple[float, ...]

    def __post_init__(self):
        if len(self.thresholds) != len(self.stages) - 1:
            raise ValueError(
                f"`thresholds` has {len(self.thresholds)} values for {len(self.stages)} stages; give one for each stage but the first."
            )
        if bad := [one for one in self.thresholds if not 0.5 <= one <= 1]:
            raise ValueError(f"`thresholds` contains {bad[0]}; a threshold is a probability from 0.5 to 1.")

    def save(self, path: str | Path):
        """Write the fit as JSON."""
        Path(path).write_text(json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "CascadeFit":
        """Load a file written by [`CascadeFit.save`]. Raises `ValueError` if the file does not exist or does not contain a fit."""
        if not Path(path).is_file():
            raise ValueError(f"There is no cascade fit at {path}; an evaluation with `--cascade` writes one.")
        try:
            page = json.loads(Path(path).read_text())
            if page["version"] != VERSION:
                raise ValueError(f"version {page['version']!r}")
            return cls(tuple(StageFit(**stage) for stage in page["stages"]), tuple(page["thresholds"]))
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is not a cascade fit: {error}") from error


# ------------------------------------------------------------------------------------------------------- candidates


@dataclass
class Candidates:
    """
    The state of a cascade for the responses to one prompt. If there is only one response, it is compared with a typical response, which
    is never scored.
    """

    count: int
    # For each stage so far, the indices of the responses that it scored, in the order of scoring
    asked: list[list[int]] = field(default_factory=list)

    def __post_init__(self):
        size = max(2, self.count)
        self.odds_NN = self._before_NN = np.zeros((size, size))
        self._rewards_N = np.full(size, np.nan)

    @property
    def rewards(self) -> list[float]:
        """Mean log-odds of each response against the others: higher is better, and comparable only within a prompt."""
        size = len(self.odds_NN)
        return (self.odds_NN.sum(1) / (size - 1))[: self.count].tolist()

    @property
    def leader(self) -> int:
        """Index of the response with the highest reward; the first one wins a tie."""
        return int(np.argmax(self.rewards))

    @property
    def confidence(self) -> float:
        """Probability that the leader is better than its strongest rival."""
        odds = abs(self.odds_NN[0, 1]) if self.count == 1 else np.delete(self.odds_NN[self.leader], self.leader).min()
        return float(1 / (1 + np.exp(-odds)))

    def enter_stage(self):
        """Start the next stage: keep the log-odds so far, and clear the rewards."""
        self.asked.append([])
        self._before_NN = self.odds_NN
        self._rewards_N = np.full(len(self.odds_NN), np.nan)

    def wanted(self, threshold: float, one_at_a_time: bool) -> list[int]:
        """Return the indices of the responses to score next: none once the threshold is reached or all contenders are scored."""
        if self.count == 1:
            open_places = [0] if self.confidence < threshold else []
        else:
            limit = math.inf if threshold == 1 else math.log(threshold / (1 - threshold))
            odds_N = self.odds_NN[self.leader]
            rivals = [place for place in range(self.count) if place != self.leader and odds_N[place] < limit]
            # The leader is compared with every rival, so score it first
            open_places = [self.leader, *sorted(rivals, key=lambda place: odds_N[place])] if rivals else []
        waiting = [place for place in open_places if np.isnan(self._rewards_N[place])]
        return waiting[:1] if one_at_a_time else sorted(waiting)

    def add(self, rewards: dict[int, float], fit: StageFit):
        """Record the current stage's rewards, keyed by response index, and update the log-odds."""
        for place, reward in rewards.items():
            self.asked[-1].append(place)
            self._rewards_N[place] = reward
        self.odds_NN = fit.log_odds(self._rewards_N, self._before_NN)


# Called with a stage's index and the (prompt, response) indices of the responses to score; returns the rewards
Ask = Callable[[int, list[tuple[int, int]]], Sequence[float]]
AsyncAsk = Callable[[int, list[tuple[int, int]]], Awaitable[Sequence[float]]]


async def arun_cascade(
    fit: CascadeFit, one_at_a_time: Sequence[bool], counts: Sequence[int], ask: AsyncAsk
) -> list[Candidates]:
    """
    Decide prompts stage by stage.

    Args:
        fit ([`CascadeFit`]):
            Weights and thresholds.
        one_at_a_time (`Sequence[bool]`):
            For each stage, whether it scores one contender of a prompt at a time and checks the threshold after each.
        counts (`Sequence[int]`):
            Number of responses to each prompt.
        ask (`Callable`):
            Function that returns a stage's rewards. Each call covers all prompts that still need rewards from the stage.
    """
    prompts = [Candidates(count) for count in counts]
    for stage, (threshold, single, weights) in enumerate(
        zip((1.0, *fit.thresholds), one_at_a_time, fit.stages, strict=True)
    ):
        for prompt in prompts:
            prompt.enter_stage()
        while wanted := {
            number: places for number, one in enumerate(prompts) if (places := one.wanted(threshold, single))
        }:
            picks = [(number, place) for number, places in wanted.items() for place in places]
            found = dict(zip(picks, await ask(stage, picks), strict=True))
            for number, places in wanted.items():
                prompts[number].add({place: found[number, place] for place in places}, weights)
    return prompts


def run_cascade(fit: CascadeFit, one_at_a_time: Sequence[bool], counts: Sequence[int], ask: Ask) -> list[Candidates]:
    """Run [`arun_cascade`] with a synchronous `ask`. This also works inside a running event loop."""

    async def answer(stage: int, picks: list[tuple[int, int]]) -> Sequence[float]:
        return ask(stage, picks)

    # Step the coroutine by hand: `asyncio.run` refuses to start in a thread with a running event loop, as in notebooks
    try:
        arun_cascade(fit, one_at_a_time, counts, answer).send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("A coroutine that never suspends finishes in its first step.")


# ------------------------------------------------------------------------------------------------------------ scorer


@dataclass(frozen=True)
class CascadeStage:
    """
    One stage of a [`CascadeScorer`].

    Args:
        scorer ([`Scorer`]):
            Any backend.
        num_critiques, temperature:
            See [`Scorer`].
        one_at_a_time (`bool`, *optional*, defaults to `False`):
            Whether to score one contender of a prompt at a time and to stop as soon as the threshold is reached. A single favourable
            critique can then decide a pair, but the stage may need as many calls as a prompt has contenders.
    """

    scorer: Scorer
    num_critiques: int = 1
    temperature: float = 0.0
    one_at_a_time: bool = False


@dataclass
class Spent:
    """Cost of a stage: the number of responses scored and the number of critique tokens, not counting end tokens."""

    responses: int = 0
    tokens: int = 0

    def add(self, scores: Sequence[Score]):
        """Add the cost of these scores."""
        self.responses += len(scores)
        self.tokens += sum(len(ids) for score in scores for ids in score.critique_ids)


class CascadeScorer:
    """
    [`Scorer`] that writes critiques only where a cheaper reward leaves doubt.

    Rewards are log-odds against the other responses to the same prompt, so they are comparable only within a prompt. That suits best-of-N,
    pairs, and reinforcement learning with several completions per prompt. Identical prompts in one call form one group. If a prompt has
    only one response, that response is compared with a typical response from the dev rows.

    Args:
        stages (`Sequence[CascadeStage or Scorer]`):
            Stages, the cheapest first: for example a classic or scalar model, then one critique, then several critiques.
        fit ([`CascadeFit`]):
            From [`~evaluation.metrics.cascade.fit_cascade`], or from a file that an evaluation with `--cascade` wrote.

    Attributes:
        spent (`list[Spent]`):
            Cost of each stage so far.

    Examples:

    ```python
    >>> scorer = CascadeScorer([classic, cloud, CascadeStage(cloud, 8, 0.7)], CascadeFit.load("results/cascade.json"))
    >>> scores = scorer.score(prompts, responses, max_new_tokens=512)
    ```
    """

    def __init__(self, stages: Sequence[CascadeStage | Scorer], fit: CascadeFit):
        self.stages = [stage if isinstance(stage, CascadeStage) else CascadeStage(stage) for stage in stages]
        if len(self.stages) != len(fit.stages):
            raise ValueError(f"`stages` has {len(self.stages)} scorers, but the fit has {len(fit.stages)} stages.")
        self.fit = fit
        self.spent = [Spent() for _ in self.stages]

    # A reward depends on the other responses in the call, so a reward function must not split or mix groups
    compares_responses = True

    def score(self, prompts: list, responses: list, **options) -> list[Score]:
        """
        Judge responses. See [`Scorer`]. The stages set `num_critiques` and `temperature`; setting these here, or
        passing `critiques`, raises `ValueError`. A score contains the critiques from the last stage that scored the response.
        """
        call = _Call(self.stages, self.spent, prompts, responses, **options)

        def ask(number: int, picks: list[tuple[int, int]]) -> list[float]:
            rows = call.rows_of(picks)
            return call.take(number, rows, self.stages[number].scorer.score(*call.chats(rows), **call.options(number)))

        return call.finish(run_cascade(self.fit, call.one_at_a_time, call.counts, ask))

    async def ascore(self, prompts: list, responses: list, **options) -> list[Score]:
        """Judge responses with scorers that have an `ascore` method, such as [`~serving.CLoudClient`]. See [`CascadeScorer.score`]."""
        call = _Call(self.stages, self.spent, prompts, responses, **options)

        async def ask(number: int, picks: list[tuple[int, int]]) -> list[float]:
            rows, scorer = call.rows_of(picks), cast(Any, self.stages[number].scorer)
            return call.take(number, rows, await scorer.ascore(*call.chats(rows), **call.options(number)))

        return call.finish(await arun_cascade(self.fit, call.one_at_a_time, call.counts, ask))


class _Call:
    """The rows of one call to a [`CascadeScorer`], and each row's latest score."""

    def __init__(
        self,
        stages: list[CascadeStage],
        spent: list[Spent],
        prompts: list,
        responses: list,
        *,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        critiques: list | None = None,
        seed: int | None = None,
        on_score: OnScore | None = None,
    ):
        if num_critiques != 1 or temperature != 0 or critiques is not None:
            raise ValueError(
                "Each stage of a cascade has its own critique options: give `num_critiques` and `temperature` to `CascadeStage`."
            )
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses; give one prompt per response.")
        self.stages, self.spent, self.prompts, self.responses = stages, spent, prompts, responses
        self.max_new_tokens, self.seed, self.on_score = max_new_tokens, seed, on_score
        self.one_at_a_time = [stage.one_at_a_time for stage in stages]
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(json.dumps(prompt, sort_keys=True), []).append(row)
        self.groups = list(groups.values())
        self.counts = list(map(len, self.groups))
        self.last: dict[int, Score] = {}

    def rows_of(self, picks: list[tuple[int, int]]) -> list[int]:
        return [self.groups[group][place] for group, place in picks]

    def chats(self, rows: list[int]) -> tuple[list, list]:
        return [self.prompts[row] for row in rows], [self.responses[row] for row in rows]

    def options(self, number: int) -> dict[str, Any]:
        stage = self.stages[number]
        sampling = {"num_critiques": stage.num_critiques, "temperature": stage.temperature, "seed": self.seed}
        return {"max_new_tokens": self.max_new_tokens, **sampling}

    def take(self, number: int, rows: list[int], scores: list[Score]) -> list[float]:
        """Record a stage's scores, and return their rewards."""
        self.last.update(zip(rows, scores, strict=True))
        self.spent[number].add(scores)
        return [score.reward for score in scores]

    def finish(self, judged: list[Candidates]) -> list[Score]:
        """Return each row's latest score, with its reward replaced by the cascade's."""
        rewards = {
            row: reward
            for rows, one in zip(self.groups, judged, strict=True)
            for row, reward in zip(rows, one.rewards, strict=True)
        }
        scores = [_with_reward(self.last[row], rewards[row]) for row in range(len(self.responses))]
        return report_scores(scores, self.on_score)


def _with_reward(score: Score, reward: float) -> Score:
    """Shift the rewards of all critiques so that their mean is the cascade's reward."""
    rewards = tuple(reward + one - score.reward for one in score.rewards)
    return replace(score, reward=reward, rewards=rewards, partial_rewards=(), log_likelihoods=())
