"""Read server responses, limiting their size and checking their types. Does not import torch."""

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from ..printable import printable
from ..scores import Sample, Score


_LARGEST_ID = 2**31


class AnswerTooLarge(httpx2.TransportError):
    """A response that exceeds its size limit."""


async def read_parts(response: httpx2.Response, limit: int) -> AsyncIterator[bytes]:
    """
    Yield a response's decompressed body in parts. httpx2 decompresses at most 1 MiB at a time, so a small compressed
    body cannot fill the memory.
    """
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > limit:
            raise AnswerTooLarge(f"the response has more than {limit} bytes, which is the limit for this request")
        yield part


async def read_body(response: httpx2.Response, limit: int):
    """Read the body of a streamed response. Raises [`AnswerTooLarge`] if it has more than `limit` bytes."""
    response._content = b"".join([part async for part in read_parts(response, limit)])


def read_json(content: bytes) -> Any:
    """Parse JSON. Raises `ValueError` if it is invalid or nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def describe_redirect(response: httpx2.Response) -> str:
    """
    Describe where a redirect leads. Clients do not follow it, because prompts and keys are meant only for the server
    that the user named.
    """
    return f"a redirect to {printable(response.headers.get('Location', ''))!r}, which is not followed; use that address instead"


def is_unicode(text: str) -> bool:
    """Return whether text can be encoded as UTF-8, that is, contains no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def are_token_ids(ids: Any) -> bool:
    """Return whether a value is a list of token ids."""
    return isinstance(ids, list) and all(type(token_id) is int and 0 <= token_id < _LARGEST_ID for token_id in ids)


# ------------------------------------------------------------------------------------------------------------ scores


def read_number(value: Any) -> float:
    """Return a JSON number as a float. Raises `ValueError` for anything else, and `OverflowError` if the number is too large."""
    if type(value) not in (int, float):
        raise ValueError(f"{value!r:.60} is not a number")
    return float(value)


def read_sample(reward: Any, critique: Any, critique_ids: Any, finish_reason: Any, partial: Any = None) -> Sample:
    """Return one critique with its reward and partial rewards. Raises `ValueError` if a part has the wrong type."""
    if not isinstance(critique, str) or not is_unicode(critique):
        raise ValueError(f"{critique!r:.60} is not a critique")
    if not are_token_ids(critique_ids):
        raise ValueError(f"{critique_ids!r:.60} are not token ids")
    if finish_reason not in ("stop", "length", "stable"):
        raise ValueError(f"{finish_reason!r:.60} is not a finish reason")
    if partial is not None and (not isinstance(partial, list) or partial[-1:] != [reward]):
        raise ValueError(f"the partial rewards {partial!r:.60} do not end with the reward {reward!r:.60}")
    inner = None if partial is None else tuple(map(read_number, partial[:-1]))
    return Sample(read_number(reward), critique, tuple(critique_ids), finish_reason, inner)


def read_score(result: Any) -> Score:
    """
    Convert a result from a reward server to a [`Score`]. Raises `ValueError`, `TypeError` or `LookupError` if the result is malformed, and
    `ArithmeticError` if a reward is NaN or infinite.
    """
    columns = [result[name] for name in ("rewards", "critiques", "critique_ids", "finish_reasons")]
    if not all(isinstance(column, list) and column for column in columns):
        raise ValueError("rewards, critiques, ids and finish reasons must all be non-empty lists")
    if len(set(map(len, columns))) > 1:
        raise ValueError(
            f"the numbers of rewards, critiques, ids and finish reasons differ: {', '.join(str(len(column)) for column in columns)}"
        )
    # Servers older than version 0.2 do not report whether the response was changed
    changed = result.get("response_changed", False)
    if not isinstance(changed, bool):
        raise ValueError(f"`response_changed` is {changed!r:.60}")
    partial = result.get("partial_rewards") or [None] * len(columns[0])
    score = Score.of([read_sample(*values) for values in zip(*columns, partial, strict=True)], changed)
    if not math.isclose(read_number(result["reward"]), score.reward, rel_tol=1e-6, abs_tol=1e-6):
        raise ValueError(f"the reward {result['reward']!r} is not the mean of the rewards, {score.reward!r}")
    return score
