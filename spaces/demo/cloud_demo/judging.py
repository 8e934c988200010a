"""Check requests from visitors and API clients, and score them step by step. Closing a generator stops the model's work."""

import asyncio
import re
import statistics
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cloud_hf.scores import NotFinite, Sample, Sampling, Score

from . import Problem
from .backend import HEARTBEAT, Backend, Visitor
from .rows import Judgement


if TYPE_CHECKING:
    from cloud_hf.serving.server.engine import RewardEngine


# Seconds between updates of a critique: short enough to follow along, long enough to serve many visitors
_REFRESH = 0.04
_MOST_CRITIQUES = 16
_MOST_SENTENCES = 12
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)*_]*(?=\s)|[。！？]|\n")
# The page samples several critiques at this temperature, unless the visitor sets one
SAMPLING_TEMPERATURE = 0.7


# ------------------------------------------------------------------------------------------------------------- input


def read_sampling(backend: Backend, num_critiques, temperature, max_new_tokens, seed=None) -> Sampling:
    """Check the options sent by a visitor or API client. Raises `Problem` if an option is out of range."""
    limit = backend.args.max_new_tokens
    if not is_integer(num_critiques) or not 1 <= num_critiques <= _MOST_CRITIQUES:
        raise Problem(f"Choose between 1 and {_MOST_CRITIQUES} critiques.")
    if not is_integer(max_new_tokens) or not 1 <= max_new_tokens <= limit:
        raise Problem(f"Choose between 1 and {limit} tokens for a critique.")
    if not isinstance(temperature, int | float) or not (temperature == 0 or 0.01 <= temperature <= 5):
        raise Problem("Choose a temperature of 0, or between 0.01 and 5.")
    if num_critiques > 1 and temperature == 0:
        raise Problem("Several critiques need a temperature above 0: at 0, they are identical.")
    if seed is not None and not (is_integer(seed) and -(2**63) <= seed < 2**63):
        raise Problem("The seed must be a whole number that fits in 64 bits.")
    seed = None if seed is None else int(seed)
    return Sampling(int(num_critiques), float(temperature), int(max_new_tokens), seed)


def read_sliders(backend: Backend, num_critiques, temperature, max_new_tokens) -> Sampling:
    """Check the sliders' values as `read_sampling` does, except that several critiques at temperature 0 are sampled at 0.7."""
    if temperature == 0 and is_integer(num_critiques) and num_critiques > 1:
        temperature = SAMPLING_TEMPERATURE
    return read_sampling(backend, num_critiques, temperature, max_new_tokens)


def is_integer(value: Any) -> bool:
    """Return whether a value from a slider or API client is an integer; 3.0 counts as one."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def read_prompt(backend: Backend, prompt: str, system: str = "", turns: Sequence[tuple[str, str]] = ()) -> Any:
    """
    Convert the fields of a chat to a prompt for the models.

    `turns` are earlier turns, as pairs of a user message and an assistant response; empty pairs are skipped. Returns `prompt` itself if
    there is nothing else, otherwise the messages of a chat. Raises `Problem`, which names the field, if a field is unusable.
    """
    check_texts(backend, {"prompt": prompt, "system message": system})
    if not prompt.strip():
        raise Problem("The prompt is empty.")
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for number, (user, assistant) in enumerate(turns, start=1):
        if not user.strip() and not assistant.strip():
            continue
        if not user.strip() or not assistant.strip():
            raise Problem(
                f"Earlier turn {number} needs both the user's message and the assistant's response, or neither."
            )
        check_texts(
            backend, {f"user's message in turn {number}": user, f"assistant's response in turn {number}": assistant}
        )
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [*messages, {"role": "user", "content": prompt}] if messages else prompt


def read_response(backend: Backend, response: str) -> str:
    """Check a response. Raises `Problem` if it is empty or too long."""
    check_texts(backend, {"response": response})
    if not response.strip():
        raise Problem("The response is empty.")
    return response


def read_texts(name: str, value: Any) -> list[str]:
    """Check that an API client sent a list of strings: a single string would be scored letter by letter."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Problem(f"`{name}` must be a list of strings.")
    return value


def read_turns(value: Any) -> list[tuple[str, str]]:
    """Check an API client's earlier turns."""
    if not isinstance(value, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in value
    ):
        raise Problem("`turns` must be a list of pairs of strings: [user, assistant].")
    return [(user, assistant) for user, assistant in value]


def check_texts(backend: Backend, texts: dict[str, Any]):
    """Raise `Problem`, naming the field, unless every value is text and short enough."""
    limit = backend.args.max_characters
    for name, value in texts.items():
        if not isinstance(value, str):
            raise Problem(f"Give text, not {type(value).__name__}, for prompts, system messages and responses.")
        if len(value) > limit:
            raise Problem(
                f"The {name} has {len(value):,} characters; this demo accepts at most {limit:,}. Shorten it."
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Problem(f"The {name} contains half a character (a lone surrogate). Paste it again.") from None


# ----------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Progress:
    """A step before the final scores: a status line, the text of a streamed critique so far, and the scores known so far."""

    words: str
    critique: str | None = None
    scores: tuple[Score | None, ...] = ()


@dataclass(frozen=True)
class Effects:
    """Rewards that the head would compute if the critique ended after each of its sentences; `rewards[0]` is for an empty critique."""

    ends: tuple[int, ...]
    rewards: tuple[float, ...]


async def write(
    backend: Backend, user: Visitor, prompt, response: str, sampling: Sampling
) -> AsyncGenerator[Progress | Score | Effects, None]:
    """Score one response. Yields its first critique as it is written, then the `Score`, then the effects of the critique's sentences."""
    with backend.line.join(user) as ticket:
        async for words in backend.wait_for_turn(ticket):
            yield Progress(words)
        engine = backend.models.cloud
        yield Progress("The model is reading the response…")
        await _check(engine, prompt, [response], sampling)
        written, score = "", None
        pieces = engine.stream(prompt, response, replace(sampling, num_critiques=1))
        async with aclosing(_gathered(pieces)) as batches:
            async for batch in batches:
                written += "".join(piece for piece in batch if isinstance(piece, str))
                score = next((piece for piece in batch if not isinstance(piece, str)), score)
                yield Progress(f"The model is writing… ({len(written.split())} words)", written)
        if sampling.num_critiques > 1:
            rest = replace(sampling, num_critiques=sampling.num_critiques - 1)
            async with aclosing(_score_all(engine, prompt, [response], rest)) as steps:
                async for [more] in steps:
                    if more is None:
                        yield Progress(f"The model is writing {sampling.num_critiques} critiques…", written)
                    else:
                        score = _joined(score, more)
        yield score
        ends = sentence_ends(score.critique)
        if engine.critique is not False and len(ends) > 1:
            yield Progress("The reward is known. The model is rereading the critique sentence by sentence…")
            prefixes = ["", *(score.critique[:end] for end in ends)]
            once = replace(sampling, num_critiques=1, temperature=0.0)
            async with aclosing(_score_all(engine, prompt, [response], once, critiques=prefixes)) as steps:
                async for [read] in steps:
                    if read is not None:
                        yield Effects(tuple(ends), read.rewards)


def sentence_ends(text: str) -> list[int]:
    """Return the offsets at which the sentences of a critique end, at most `_MOST_SENTENCES`; the last is the end of the text."""
    ends, start = [], 0
    for mark in _SENTENCE_END.finditer(text):
        # The period after the number of a list item does not end a sentence
        if re.search(r"[^\W\d_]", text[start : mark.end()]):
            ends.append(mark.end())
            start = mark.end()
    if text[start:].strip():
        ends.append(len(text))
    elif ends:
        ends[-1] = len(text)
    every = -(-len(ends) // _MOST_SENTENCES) or 1
    return ends[::-1][::every][::-1]


async def judge(
    backend: Backend, user: Visitor, prompt, responses: Sequence[str], sampling: Sampling, as_they_finish: bool = False
) -> AsyncGenerator[Progress | list[Score], None]:
    """
    Score responses to one prompt; identical responses are scored only once. Each step contains the scores known so far; the last
    item is the list of all scores. With `as_they_finish`, only a few responses are scored concurrently, so that the first scores arrive
    early.
    """
    with backend.line.join(user) as ticket:
        async for words in backend.wait_for_turn(ticket):
            yield Progress(words)
        engine, texts = backend.models.cloud, list(dict.fromkeys(responses))
        await _check(engine, prompt, texts, sampling)
        at_once = backend.models.at_once if as_they_finish else len(texts)
        async with aclosing(_score_all(engine, prompt, texts, sampling, at_once)) as steps:
            async for step in steps:
                scores = [step[texts.index(response)] for response in responses]
                done = len(scores) - scores.count(None)
                yield Progress(f"Judging: {done} of {len(responses)} done…", None, tuple(scores))
        yield scores


async def judge_pair(
    backend: Backend, user: Visitor, prompt, responses: Sequence[str], sampling: Sampling
) -> AsyncGenerator[Progress | Judgement, None]:
    """Score the chosen and the rejected response with both models. The [`Judgement`] comes last."""
    with backend.line.join(user) as ticket:
        async for words in backend.wait_for_turn(ticket):
            yield Progress(words)
        cloud, classic = backend.models.cloud, backend.models.classic
        if classic is None:
            raise Problem("There is no second model to compare with.")
        found = []
        for engine, own in ((cloud, sampling), (classic, replace(sampling, num_critiques=1))):
            await _check(engine, prompt, responses, own)
            async with aclosing(_score_all(engine, prompt, responses, own)) as steps:
                async for step in steps:
                    done = len(step) - step.count(None) + len(found) * len(responses)
                    yield Progress(f"Judging: {done} of {2 * len(responses)} done…")
            found.append((step[0], step[1]))
        yield Judgement(*found)


async def answers(
    steps: AsyncGenerator, describe: Callable[[Any], dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    """Convert steps to responses for an API client: `{"status": …}` for progress, then the scores as `describe` returns them."""
    async with aclosing(steps):
        async for step in steps:
            yield {"status": step.words} if isinstance(step, Progress) else describe(step)


def describe_score(backend: Backend, score: Score, has_distribution: bool = True) -> dict[str, Any]:
    """Convert a score to a response for an API client, without a percentile if the distribution belongs to another model."""
    known = has_distribution and backend.judged.is_usable
    return {
        "reward": score.reward,
        "rewards": list(score.rewards),
        "reward_std": score.reward_std,
        "critiques": list(score.critiques),
        "finish_reasons": list(score.finish_reasons),
        "percentile": backend.judged.percentile(statistics.fmean(score.rewards)) if known else None,
    }


# ----------------------------------------------------------------------------------------------------------- engines


async def _check(engine: "RewardEngine", prompt, responses: Sequence[str], sampling: Sampling):
    """Raise `Problem` unless the engine can score the responses."""
    try:
        for response in responses:
            # Run in a thread, because encoding long texts would block the event loop
            await asyncio.to_thread(engine.check, prompt, response, sampling.max_new_tokens)
    except ValueError as error:
        raise Problem(str(error).removeprefix("Row 0: ")) from error
    if sampling.num_critiques > 1 and engine.critique is False:
        raise Problem("This is a classic reward model: it writes no critiques. Choose 1 critique.")


async def _score_all(
    engine: "RewardEngine",
    prompt,
    responses: Sequence[str],
    sampling: Sampling,
    at_once: int = 64,
    critiques: list[str] | None = None,
) -> AsyncGenerator[list[Score | None], None]:
    """Yield the scores known so far, at every heartbeat and with every new score, until all are known; `at_once` limits concurrency."""
    places = asyncio.Semaphore(at_once)
    given = () if critiques is None else (critiques,)

    async def score(response: str) -> Score:
        async with places:
            return await _alive(engine.score(prompt, response, sampling, *given))

    tasks = [asyncio.ensure_future(score(response)) for response in responses]
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            yield [task.result() if task.done() else None for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gathered(pieces: AsyncGenerator) -> AsyncGenerator[list, None]:
    """
    Batch the pieces of a stream. Yields the first piece immediately and then one batch per `_REFRESH`. If no piece arrives within a
    `HEARTBEAT`, yields an empty batch.
    """
    loop, got, end = asyncio.get_running_loop(), [], object()
    step, look = None, loop.time()
    async with aclosing(pieces):
        try:
            while True:
                step = step or asyncio.ensure_future(_alive(anext(pieces, end)))
                patience = max(look - loop.time(), 0.0) if got else HEARTBEAT
                await asyncio.wait({step}, timeout=patience)
                if step.done():
                    piece, step = step.result(), None
                    if piece is end:
                        break
                    got.append(piece)
                    if loop.time() < look:
                        continue
                yield got
                got, look = [], loop.time() + _REFRESH
            yield got
        finally:
            if step is not None:
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)


async def _alive(work: Awaitable) -> Any:
    """Await an engine's result. Raises `Problem` if the engine has died or a reward is not finite."""
    from cloud_hf.serving.server.engine import EngineDeadError  # takes seconds, but is already loaded here

    try:
        return await work
    except EngineDeadError as error:
        raise Problem("The model has stopped working. The owner of this demo must restart it.") from error
    except NotFinite as error:
        raise Problem(
            "The model returned a reward that is not a finite number. Loading it in float32 may help."
        ) from error


def _joined(first: Score, more: Score) -> Score:
    """Combine two scores of one response. Token ids are dropped, because the demo does not show them."""
    samples = [
        Sample(reward, critique, finish_reason=reason)
        for score in (first, more)
        for reward, critique, reason in zip(score.rewards, score.critiques, score.finish_reasons, strict=True)
    ]
    return Score.of(samples)
