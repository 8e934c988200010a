"""From a request to critiques and rewards, with what is to be seen on the way. All of it stops when it is closed."""

import asyncio
import math
import statistics
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .backend import Backend
from .problems import Problem
from .waiting_line import HEARTBEAT


if TYPE_CHECKING:
    from cloud_hf.scoring import Score
    from cloud_hf.serving.server.engine import RewardEngine


# Seconds between two looks at a critique: often enough to read along, seldom enough for many readers
_REFRESH = 0.04
_MOST_CRITIQUES = 16
# What the page samples several critiques with, unless somebody chooses
SAMPLING_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Options:
    """How responses are judged."""

    num_critiques: int
    temperature: float
    max_new_tokens: int
    seed: int | None = None

    @classmethod
    def read(cls, backend: Backend, num_critiques, temperature, max_new_tokens, seed=None) -> "Options":
        """
        Check what a person or a program chose.

        Raises:
            `Problem`: Naming what is not usable.
        """
        limit = backend.args.max_new_tokens
        if not is_whole(num_critiques) or not 1 <= num_critiques <= _MOST_CRITIQUES:
            raise Problem(f"Choose between 1 and {_MOST_CRITIQUES} critiques.")
        if not is_whole(max_new_tokens) or not 1 <= max_new_tokens <= limit:
            raise Problem(f"Choose between 1 and {limit} tokens for a critique.")
        if not isinstance(temperature, int | float) or not (temperature == 0 or 0.01 <= temperature <= 5):
            raise Problem("Choose a temperature of 0, or between 0.01 and 5.")
        if num_critiques > 1 and temperature == 0:
            raise Problem("Several critiques need a temperature above 0: at 0 they are all the same.")
        if seed is not None and not (is_whole(seed) and -(2**63) <= seed < 2**63):
            raise Problem("The seed must be a whole number that fits into 64 bits.")
        return cls(int(num_critiques), float(temperature), int(max_new_tokens), None if seed is None else int(seed))

    @classmethod
    def of_page(cls, backend: Backend, num_critiques, temperature, max_new_tokens) -> "Options":
        """What stands on the sliders: as `read`, and several critiques at temperature 0 are sampled at 0.7."""
        if temperature == 0 and is_whole(num_critiques) and num_critiques > 1:
            temperature = SAMPLING_TEMPERATURE
        return cls.read(backend, num_critiques, temperature, max_new_tokens)


@dataclass(frozen=True)
class Waiting:
    """Nothing is computed yet, for this reason."""

    words: str


@dataclass(frozen=True)
class Writing:
    """The first critique so far."""

    critique: str


@dataclass(frozen=True)
class Judging:
    """So many responses have been judged."""

    done: int
    of: int


def read_prompt(backend: Backend, prompt: str, system: str = "", turns: Sequence[tuple[str, str]] = ()) -> Any:
    """
    What a response answers, as the models take it.

    Args:
        backend ([`Backend`]):
            Knows the longest text.
        prompt (`str`):
            The user's last message.
        system (`str`, *optional*):
            A system message.
        turns (`Sequence[tuple[str, str]]`, *optional*):
            Earlier messages of the user, each with the assistant's answer. Pairs that are empty are left out.

    Raises:
        `Problem`: Naming the field.
    """
    if not prompt.strip():
        raise Problem("The prompt is empty.")
    check_lengths(backend, {"prompt": prompt, "system message": system})
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for place, (user, assistant) in enumerate(turns, start=1):
        if not user.strip() and not assistant.strip():
            continue
        if not user.strip() or not assistant.strip():
            raise Problem(
                f"Earlier turn {place} needs both the user's message and the assistant's answer, or neither."
            )
        check_lengths(backend, {f"user's message of turn {place}": user, f"answer of turn {place}": assistant})
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [*messages, {"role": "user", "content": prompt}] if messages else prompt


def is_whole(value: Any) -> bool:
    """Whether a value of a slider or a program is a whole number, as which 3.0 counts too."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def check_lengths(backend: Backend, texts: dict[str, str]):
    """Raise `Problem`, naming the field, if a text is too long or is no text."""
    limit = backend.args.max_characters
    for name, value in texts.items():
        if len(value) > limit:
            raise Problem(f"The {name} has {len(value):,} characters; this demo takes {limit:,}. Shorten it.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Problem(f"The {name} holds half a character (a lone surrogate). Paste it again.") from None


async def write(
    backend: Backend, user: str, prompt, response: str, options: Options
) -> AsyncIterator["Waiting | Writing | Score"]:
    """Judge one response; its first critique is shown as it is written. The last thing that comes is the `Score`."""
    with backend.line.join(user) as ticket:
        async for words in backend.wait_for_turn(ticket):
            yield Waiting(words)
        engine = backend.models.cloud
        await _check(engine, prompt, [response], options)
        written, score = "", None
        budget = {"temperature": options.temperature, "max_new_tokens": options.max_new_tokens}
        async with aclosing(_gathered(engine.stream(prompt, response, **budget))) as batches:
            async for pieces in batches:
                written += "".join(piece for piece in pieces if isinstance(piece, str))
                score = next((piece for piece in pieces if not isinstance(piece, str)), score)
                yield Writing(written)
        if options.num_critiques > 1:
            rest = engine.score(prompt, response, num_critiques=options.num_critiques - 1, **budget)
            async with aclosing(_beating(rest)) as beats:
                async for more in beats:
                    if more is not None:
                        score = _joined(score, more)
                    else:
                        yield Writing(written)
        yield _checked(score)


async def judge(
    backend: Backend, user: str, prompt, responses: Sequence[str], options: Options
) -> AsyncIterator["Waiting | Judging | list[Score]"]:
    """Judge responses to one prompt. The last thing that comes are the `Score`s."""
    with backend.line.join(user) as ticket:
        async for words in backend.wait_for_turn(ticket):
            yield Waiting(words)
        async with aclosing(_judge_all(backend.models.cloud, prompt, responses, options)) as steps:
            async for step in steps:
                yield step


async def judge_pair(
    backend: Backend, user: str, prompt, responses: Sequence[str], options: Options
) -> AsyncIterator["Waiting | Judging | tuple[list[Score], list[Score]]"]:
    """Judge responses with both models. The last thing that comes are the `Score`s of both."""
    with backend.line.join(user) as ticket:
        async for words in backend.wait_for_turn(ticket):
            yield Waiting(words)
        cloud, classic = backend.models.cloud, backend.models.classic
        if classic is None:
            raise Problem("There is no classic model to compare with; start the demo with --classic_model.")
        found = []
        for engine, own in ((cloud, options), (classic, replace(options, num_critiques=1))):
            async with aclosing(_judge_all(engine, prompt, responses, own)) as steps:
                async for step in steps:
                    if isinstance(step, list):
                        found.append(step)
                    else:
                        yield Judging(step.done + len(found) * step.of, 2 * step.of)
        yield tuple(found)


async def _judge_all(engine, prompt, responses, options) -> AsyncIterator["Judging | list[Score]"]:
    await _check(engine, prompt, responses, options)
    asked = vars(options)
    tasks = [asyncio.ensure_future(_speaking(engine.score(prompt, response, **asked))) for response in responses]
    try:
        while True:
            done, waiting = await asyncio.wait(tasks, timeout=HEARTBEAT, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if not waiting:
                break
            yield Judging(len(done), len(tasks))
        yield [_checked(task.result()) for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _check(engine: "RewardEngine", prompt, responses: Sequence[str], options: Options):
    """Beside the event loop: long texts take a while to encode."""
    from .models import check

    for response in responses:
        await asyncio.to_thread(check, engine, prompt, response, options.max_new_tokens)
    if options.num_critiques > 1 and engine.critique is False:
        raise Problem("This is a classic reward model: it writes no critiques. Ask for one judgement.")


async def _speaking(work: Awaitable):
    """Await an engine's work; its errors become those that have words for people."""
    from .models import problem_of

    try:
        return await work
    except Exception as error:
        raise problem_of(error) from error


async def _beating(work: Awaitable) -> AsyncIterator:
    """`None` now and then, and in the end what `work` gave."""
    task = asyncio.ensure_future(_speaking(work))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=HEARTBEAT)
            yield task.result() if task.done() else None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _gathered(pieces: AsyncIterator) -> AsyncIterator[list]:
    """What came since the last look. The first piece comes at once, and something, if only an empty list, now and then."""
    loop, got, end = asyncio.get_running_loop(), [], object()
    step, look = None, loop.time()
    async with aclosing(pieces):
        try:
            while True:
                step = step or asyncio.ensure_future(_speaking(anext(pieces, end)))
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


def _joined(first: "Score", more: "Score") -> "Score":
    rewards = (*first.rewards, *more.rewards)
    finite = all(map(math.isfinite, rewards))
    return replace(
        first,
        reward=statistics.fmean(rewards) if finite else math.nan,
        rewards=rewards,
        critiques=(*first.critiques, *more.critiques),
        reward_std=statistics.pstdev(rewards) if finite else math.nan,
        finish_reasons=(*first.finish_reasons, *more.finish_reasons),
        critique_ids=(*first.critique_ids, *more.critique_ids),
    )


def _checked(score: "Score") -> "Score":
    if not all(map(math.isfinite, score.rewards)):
        raise Problem("The model gave a reward that is not a finite number. Loading it in float32 may help.")
    return score
