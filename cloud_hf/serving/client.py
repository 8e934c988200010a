"""Client of the reward server: a scorer over HTTP. Does not import torch."""

import asyncio
import json
import random
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from ..printable import printable
from ..scores import OnScore, Score
from .answers import AnswerTooLarge, describe_redirect, read_body, read_json, read_score


# Seconds before the first retry; the pause then doubles, up to the longest
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
_CONNECT_TIMEOUT = 10.0

# Bytes of an answer without scores, and of a critique's token in JSON, with its logarithm and its text three times (vLLM)
_LONGEST_MESSAGE = 2**20
_BYTES_PER_TOKEN = 1024

_TOO_MANY_REQUESTS = 429
_BAD_INPUT = (400, 413, 422)
_RETRIED = (502, 503, 504)


class RewardServerError(RuntimeError):
    """The server cannot be reached, failed, or refused the request."""


@dataclass(frozen=True)
class ServedModel:
    """
    Properties of a server's model; `context_length` is its longest sequence in tokens, including the critique, or `None` if
    there is no limit.
    """

    name: str
    critique: bool
    context_length: int | None


@dataclass
class _Pool:
    """Connections of one event loop, shared by all calls on it."""

    http: httpx2.AsyncClient
    slots: asyncio.Semaphore
    users: int = 0


@dataclass
class _Row:
    """A request for one response, and its failed attempts so far."""

    index: int
    body: bytes
    num_critiques: int
    max_new_tokens: int
    failures: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def longest_answer(self) -> int:
        """Bytes that an answer may have: given critiques return with it."""
        tokens = self.num_critiques * self.max_new_tokens
        return _LONGEST_MESSAGE + 2 * len(self.body) + tokens * _BYTES_PER_TOKEN


class CLoudClient:
    r"""
    [`Scorer`] over a reward server (`python -m cloud_hf.serving.server`).

    It sends one request per response, so a failure costs little. Lost connections, time-outs and the statuses 502, 503 and
    504 are retried after 1, 2, 4, … seconds (at most 30, each shortened at random by up to half). A full queue (429) does
    not count as a failure: the request is repeated until `timeout` has passed.

    Args:
        base_url (`str`):
            The server's address, such as `"http://127.0.0.1:8000"`.
        api_key (`str`, *optional*):
            The server's key, if the server requires one.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Maximum number of concurrent requests, over all calls on one event loop.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds per attempt.
        max_retries (`int`, *optional*, defaults to `5`):
            Attempts after the first. 5 retries survive about half a minute without a server, 8 about two minutes.

    Examples:

    ```python
    >>> client = CLoudClient("http://127.0.0.1:8000")
    >>> [score] = client.score(["What is 2+2?"], ["4"])
    >>> score.critique, score.reward
    ```
    """

    route = "/v1/rewards"

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        max_concurrency: int = 64,
        timeout: float = 600.0,
        max_retries: int = 5,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"`base_url` is {base_url!r}; it must start with http:// or https://.")
        if max_concurrency < 1 or max_retries < 0 or not timeout > 0:
            raise ValueError("`max_concurrency` must be at least 1, `max_retries` at least 0 and `timeout` above 0.")
        self.base_url = base_url.rstrip("/")
        self.url = f"{self.base_url}{self.route}"
        self.max_concurrency = max_concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}

    def served_model(self) -> ServedModel:
        """
        Ask the server for its model. Raises [`RewardServerError`] if the server cannot be reached, is not ready, or is not a
        reward server.
        """
        return _run(self._ask_model())

    def score(self, prompts: list, responses: list[str], **options) -> list[Score]:
        """Judge responses; the blocking form of [`CLoudClient.ascore`]."""
        return _run(self.ascore(prompts, responses, **options))

    async def ascore(
        self,
        prompts: list,
        responses: list[str],
        *,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        critiques: list | None = None,
        seed: int | None = None,
        on_score: OnScore | None = None,
    ) -> list[Score]:
        """
        Judge responses; see [`~cloud_hf.scores.Scorer`].

        Raises:
            `ValueError`: If the server refuses an argument or a row; the message names the row.
            `RewardServerError`: If the server cannot be reached or fails, after all retries. The first failed row ends the call.
        """
        options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
        rows = self._make_rows(prompts, responses, critiques, {**options, "num_critiques": num_critiques})
        scores: dict[int, Score] = {}
        waiting = iter(rows)

        async def work(pool: _Pool):
            for row in waiting:
                async with pool.slots:
                    score = scores[row.index] = await self._score_row(pool.http, row)
                if on_score is not None:
                    on_score(row.index, score)

        async with self._pool() as pool:
            workers = [asyncio.create_task(work(pool)) for _ in range(min(self.max_concurrency, len(rows)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return [scores[row.index] for row in rows]

    # -------------------------------------------------------------------------------------------------- one request

    async def _ask_model(self) -> ServedModel:
        url = f"{self.base_url}/health"
        try:
            async with (
                asyncio.timeout(_CONNECT_TIMEOUT),
                httpx2.AsyncClient(verify=url.startswith("https://")) as http,
                http.stream("GET", url, headers=self._headers) as response,
            ):
                await read_body(response, _LONGEST_MESSAGE)
            if response.status_code != 200:
                raise RewardServerError(f"{url}: status {response.status_code}: {_error_message(response)}")
            return _read_model(read_json(response.content))
        except (httpx2.RequestError, httpx2.InvalidURL, TimeoutError) as error:
            raise RewardServerError(f"{url}: {type(error).__name__} {error}. Is the server running there?") from error
        except (ValueError, LookupError, TypeError) as error:
            raise RewardServerError(f"{url}: this is not a reward server's response: {error!r}") from error

    async def _score_row(self, http: httpx2.AsyncClient, row: _Row) -> Score:
        row.started = time.monotonic()
        while True:
            try:
                async with (
                    asyncio.timeout(self.timeout),
                    http.stream("POST", self.url, content=row.body, headers=self._headers) as response,
                ):
                    await read_body(response, row.longest_answer if response.status_code == 200 else _LONGEST_MESSAGE)
            except (AnswerTooLarge, httpx2.DecodingError) as error:
                raise self._error(row, str(error)) from error
            except (httpx2.TransportError, TimeoutError) as error:
                await self._wait(row, printable(f"{type(error).__name__} {error}"), None)
                continue
            if response.status_code == 200:
                return self._read(row, response)
            message = f"status {response.status_code}: {_error_message(response)}"
            if response.status_code in _BAD_INPUT:
                raise self._error(row, message, ValueError)
            if response.status_code == _TOO_MANY_REQUESTS:
                await self._wait_for_slot(row, message, response)
            elif response.status_code in _RETRIED:
                await self._wait(row, message, _retry_after(response))
            else:
                raise self._error(row, message)

    async def _wait(self, row: _Row, what: str, at_least: float | None):
        """Sleep before the next attempt, or raise after the last one."""
        if row.failures == self.max_retries:
            seconds = time.monotonic() - row.started
            tries = f"given up after {row.failures + 1} tries in {seconds:.1f} s"
            raise self._error(row, f"{what} ({tries})")
        await asyncio.sleep(max(_backoff(row.failures), at_least or 0.0))
        row.failures += 1

    async def _wait_for_slot(self, row: _Row, what: str, response: httpx2.Response):
        """Sleep until the queue may have room. This does not count as a failure: the server is working."""
        seconds = (_retry_after(response) or _FIRST_WAIT) * random.uniform(1.0, 1.5)
        if time.monotonic() - row.started + seconds > self.timeout:
            raise self._error(row, f"{what} (for {self.timeout:g} s)")
        await asyncio.sleep(seconds)

    def _read(self, row: _Row, response: httpx2.Response) -> Score:
        try:
            score = self._score_of(read_json(response.content), row.max_new_tokens)
        except ArithmeticError as error:
            raise self._error(row, str(error)) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._error(row, f"this is not a reward server's response: {error!r}") from error
        if len(score.rewards) != row.num_critiques:
            raise self._error(row, f"the response has {len(score.rewards)} rewards for {row.num_critiques} critiques")
        return score

    def _body(self, item: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Return the request for one response: `item` holds it with its prompt."""
        return {"inputs": [item], **options, "return_critique_ids": True}

    def _score_of(self, answer: Any, max_new_tokens: int) -> Score:
        """Read an answer. Raises an error of a look-up or a value if it is not a reward server's."""
        [result] = answer["results"]
        return read_score(result)

    def _error(self, row: _Row, what: str, kind: type[Exception] = RewardServerError) -> Exception:
        return kind(f"Row {row.index}: {self.url}: {what}")

    def _make_rows(
        self, prompts: list, responses: list[str], critiques: list | None, options: dict[str, Any]
    ) -> list[_Row]:
        """Make one request per response. The server checks prompts, responses and options."""
        for name, values in (("prompts", prompts), ("responses", responses), ("critiques", critiques)):
            if values is None:
                continue
            if isinstance(values, str | dict):
                raise ValueError(f"`{name}` is {values!r:.60}; give a list with one entry per response to judge.")
            if len(values) != len(responses):
                raise ValueError(f"{len(values)} {name} but {len(responses)} responses; give one entry per response.")
        options = {key: value for key, value in options.items() if value is not None}
        rows = []
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            item, count = {"prompt": prompt, "response": response}, options["num_critiques"]
            if critiques is not None:
                given = critiques[index]
                item["critiques"] = [given] if isinstance(given, str) else list(given)
                count *= len(item["critiques"])
            try:
                body = json.dumps(self._body(item, options), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"Row {index}: cannot be sent as JSON: {error}") from error
            rows.append(_Row(index, body.encode(), count, options["max_new_tokens"]))
        return rows

    # -------------------------------------------------------------------------------------------------- connections

    @asynccontextmanager
    async def _pool(self):
        """Share connections with the other calls on this event loop; the last call closes them."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            limits = httpx2.Limits(
                max_connections=self.max_concurrency, max_keepalive_connections=self.max_concurrency
            )
            timeout = httpx2.Timeout(self.timeout, connect=min(_CONNECT_TIMEOUT, self.timeout))
            # Loading certificates takes longer than a short request, so skip it for plain HTTP
            http = httpx2.AsyncClient(limits=limits, timeout=timeout, verify=self.url.startswith("https://"))
            self._pools[loop] = _Pool(http, asyncio.Semaphore(self.max_concurrency))
        pool = self._pools[loop]
        pool.users += 1
        try:
            yield pool
        finally:
            pool.users -= 1
            if pool.users == 0:
                del self._pools[loop]
                await pool.http.aclose()


def _run(work: Coroutine) -> Any:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # Inside a running loop, as in a notebook, `asyncio.run` needs another thread
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _read_model(answer: Any) -> ServedModel:
    name, critique, length = (answer[key] for key in ("model", "critique", "context_length"))
    if not isinstance(name, str) or not isinstance(critique, bool) or type(length) not in (int, type(None)):
        raise ValueError(f"model {name!r:.60}, critique {critique!r:.60}, context_length {length!r:.60}")
    return ServedModel(printable(name), critique, length)


def _backoff(failures: int) -> float:
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2**failures) * random.uniform(0.5, 1.0)


def _retry_after(response: httpx2.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), _LONGEST_WAIT) if value.isdecimal() else None


def _error_message(response: httpx2.Response) -> str:
    if response.has_redirect_location:
        return describe_redirect(response)
    try:
        error = read_json(response.content)["error"]
        return printable(str(error["message"] if isinstance(error, dict) else error))  # vLLM's is an object
    except (ValueError, KeyError, TypeError):
        return f"{response.text[:200]!r}"
