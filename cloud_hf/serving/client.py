"""Client for the reward server: a scorer over HTTP. Does not import torch."""

import asyncio
import json
import random
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from ..printable import printable, read_key
from ..scores import OnScore, Sampling, Score, read_critiques
from .http_answers import AnswerTooLarge, describe_redirect, read_body, read_json, read_score
from .replicas import Replica, Replicas


# Seconds before the first retry; the pause then doubles, up to the maximum
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
_CONNECT_TIMEOUT = 10.0

# Maximum bytes of a response without scores, and of one critique token in JSON (vLLM sends the token's logprob, and its text three times)
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
    Properties of the model that a server serves. `context_length` is the maximum sequence length in tokens, including the critique, or
    `None` if there is no limit. `model_version` is a commit or a hash of the model's files, and `version` is the cloud-hf release that the
    server runs.
    """

    name: str
    critique: bool
    context_length: int | None
    model_version: str | None = None
    version: str | None = None


@dataclass
class _Pool:
    """HTTP connections of one event loop, shared by all calls that run on it."""

    http: httpx2.AsyncClient
    slots: asyncio.Semaphore
    users: int = 0


@dataclass
class _Row:
    """A request to judge one response, and the number of its failed attempts so far."""

    index: int
    body: bytes
    num_critiques: int
    max_new_tokens: int
    is_partial: bool = False
    url: str = ""
    failures: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def longest_answer(self) -> int:
        """Maximum size of the server's response in bytes. It depends on the request's size, because given critiques are sent back."""
        tokens = self.num_critiques * self.max_new_tokens
        return _LONGEST_MESSAGE + 2 * len(self.body) + tokens * _BYTES_PER_TOKEN


class CLoudClient:
    r"""
    [`Scorer`] that uses a reward server (`python -m cloud_hf.serving.server`).

    The client sends one request per response to judge, so a failure costs little. Lost connections, time-outs and the statuses 502, 503 and
    504 are retried after 1, 2, 4, … seconds (at most 30; each pause is randomly shortened by up to half). A full queue (429) does not count
    as a failure: the request is repeated until `timeout` has passed.

    Among several replicas, the one with the fewest running requests from this client gets the next request. If a replica fails, its
    requests are immediately sent to the others, and its health is polled after 1, 2, 4, … seconds (at most 30) until it is back.

    Args:
        base_url (`str` or `Sequence[str]`):
            The server's address, such as `"http://127.0.0.1:8000"`. The addresses of several replicas, which must serve the same model, are
            separated by commas or given as a list.
        api_key (`str`, *optional*):
            The server's key, if the server requires one.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Maximum number of concurrent requests, over all calls on one event loop.
        timeout (`float`, *optional*, defaults to `600.0`):
            Time limit for each attempt, in seconds.
        max_retries (`int`, *optional*, defaults to `5`):
            Retries per request. With 5 retries, the client survives a server outage of about half a minute; with 8, about two minutes.

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
        base_url: str | Sequence[str],
        api_key: str | None = None,
        max_concurrency: int = 64,
        timeout: float = 600.0,
        max_retries: int = 5,
    ):
        self._replicas = Replicas(base_url)
        if max_concurrency < 1 or max_retries < 0 or not timeout > 0:
            raise ValueError("`max_concurrency` must be at least 1, `max_retries` at least 0 and `timeout` above 0.")
        self.max_concurrency = max_concurrency
        self.timeout = timeout
        self.max_retries = max_retries
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {read_key(api_key, '`api_key`')}"
        self._served: tuple[str, ServedModel] | None = None  # a replica's address, and the model that all must serve
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}

    @property
    def url(self) -> str:
        """Return the route to which the next request would go."""
        replicas = self._replicas.all
        return f"{min(replicas, key=lambda replica: (not replica.is_up, replica.in_flight)).url}{self.route}"

    def served_model(self) -> ServedModel:
        """
        Ask the server for its model. Raises [`RewardServerError`] if no address leads to a reward server that is ready, or if the replicas
        serve different models.
        """
        return _run(self._ask_models())

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
        read_every: int | None = None,
        stop_when_stable: float | None = None,
        on_score: OnScore | None = None,
    ) -> list[Score]:
        """
        Judge responses; see [`~cloud_hf.scores.Scorer`].

        Raises:
            `ValueError`: If an argument or a row is invalid, or the server refuses it; the message names the row.
            `RewardServerError`: If the server cannot be reached or fails, after all retries. The first failed row ends the call.
        """
        options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
        options |= {"num_critiques": num_critiques, "read_every": read_every, "stop_when_stable": stop_when_stable}
        Sampling(**options)  # checks the values
        rows = self._make_rows(prompts, responses, critiques, options)
        scores: dict[int, Score] = {}
        waiting = iter(rows)

        async def work(pool: _Pool):
            for row in waiting:
                async with pool.slots:
                    score = scores[row.index] = await self._score_row(pool.http, row)
                if on_score is not None:
                    on_score(row.index, score)

        if self._replicas.several and self._served is None:
            await self._ask_models()
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

    async def _ask_models(self) -> ServedModel:
        """Ask all replicas for their model. Leave out those that cannot be reached; raise an error if no replica can be reached."""
        errors = [error for error in await asyncio.gather(*map(self._ask_replica, self._replicas.all)) if error]
        if self._served is None or len(errors) == len(self._replicas.all):
            raise errors[0]
        return self._served[1]

    async def _ask_replica(self, replica: Replica) -> RewardServerError | None:
        """
        Ask a replica for its model. Start using the replica, or leave it out and return the error. Raises
        [`RewardServerError`] if its model differs from the others'.
        """
        try:
            served = await self._ask_model(replica.url)
        except RewardServerError as error:
            self._replicas.leave_out(replica, str(error), is_asked=True)
            return error
        if not self._replicas.several or self._served is None:
            self._served = replica.url, served
        elif served != self._served[1]:
            raise RewardServerError(
                f"{replica.url} serves {served}, but {self._served[0]} serves {self._served[1]}: start all replicas with the same "
                "model and release, or leave one out."
            )
        self._replicas.welcome(replica)
        return None

    async def _ask_model(self, base_url: str) -> ServedModel:
        url = f"{base_url}/health"
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
            replica = self._replicas.choose()
            if replica is None:
                await self._wait(row, "no replica can be reached", None)
                continue
            row.url = f"{replica.url}{self.route}"
            if not replica.is_up:
                await self._ask_replica(replica)
                continue
            try:
                async with asyncio.timeout(self.timeout):
                    response = await self._post(http, replica, row)
            except (AnswerTooLarge, httpx2.DecodingError) as error:
                raise self._error(row, str(error)) from error
            except (httpx2.TransportError, TimeoutError) as error:
                what = printable(f"{type(error).__name__} {error}")
                self._replicas.leave_out(replica, what)
                await self._wait(row, what, None)
                continue
            if response.status_code == 200:
                self._replicas.add_answer(replica)
                return self._read(row, response)
            message = f"status {response.status_code}: {_error_message(response)}"
            if response.status_code in _BAD_INPUT:
                raise self._error(row, message, ValueError)
            if response.status_code == _TOO_MANY_REQUESTS:
                self._replicas.rest(replica, _retry_after(response) or _FIRST_WAIT)
                await self._wait_for_slot(row, message, response)
            elif response.status_code in _RETRIED:
                self._replicas.leave_out(replica, message)
                await self._wait(row, message, _retry_after(response))
            else:
                raise self._error(row, message)

    async def _post(self, http: httpx2.AsyncClient, replica: Replica, row: _Row) -> httpx2.Response:
        """Send a request to a replica, and return the response with its body."""
        with self._replicas.working(replica):
            async with http.stream("POST", row.url, content=row.body, headers=self._headers) as response:
                await read_body(response, row.longest_answer if response.status_code == 200 else _LONGEST_MESSAGE)
            return response

    async def _wait(self, row: _Row, what: str, at_least: float | None):
        """Sleep before the next attempt, unless another replica is up. Raise the error if this attempt was the last one."""
        if row.failures == self.max_retries:
            seconds = time.monotonic() - row.started
            tries = f"given up after {row.failures + 1} tries in {seconds:.1f} s"
            raise self._error(row, f"{what} ({tries})")
        if not self._replicas.others_are_up:
            seconds = min(_LONGEST_WAIT, _FIRST_WAIT * 2**row.failures) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(seconds, at_least or 0.0))
        row.failures += 1

    async def _wait_for_slot(self, row: _Row, what: str, response: httpx2.Response):
        """Sleep until the queue may have room, unless another replica is up. This does not count as a failure."""
        if self._replicas.others_are_up:
            return
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
        if row.is_partial and not score.partial_rewards:
            raise self._error(row, "the response has no partial rewards")
        return score

    def _body(self, item: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Return the request for one response; `item` has the response and its prompt. Raises `ValueError` if they are invalid."""
        return {"inputs": [item], **options, "return_critique_ids": True}

    def _score_of(self, answer: Any, max_new_tokens: int) -> Score:
        """
        Return the score in a server's response. Raises `LookupError`, `TypeError` or `ValueError` if it is not a
        reward server's response.
        """
        [result] = answer["results"]
        return read_score(result)

    def _error(self, row: _Row, what: str, kind: type[Exception] = RewardServerError) -> Exception:
        return kind(f"Row {row.index}: {row.url}: {what}")

    def _make_rows(
        self, prompts: list, responses: list[str], critiques: list | None, options: dict[str, Any]
    ) -> list[_Row]:
        """Build one request per response to judge. The server checks prompts and responses."""
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
                item["critiques"] = read_critiques(index, critiques[index])
                count *= len(item["critiques"])
            try:
                body = self._body(item, options)
            except ValueError as error:
                raise ValueError(f"Row {index}: {error}") from error
            try:
                body = json.dumps(body, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"Row {index}: cannot be sent as JSON: {error}") from error
            rows.append(_Row(index, body.encode(), count, options["max_new_tokens"], "read_every" in options))
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
            http = httpx2.AsyncClient(
                limits=limits, timeout=timeout, verify=any(r.url.startswith("https://") for r in self._replicas.all)
            )
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
    versions = [answer.get(key) for key in ("model_version", "version")]  # earlier releases do not send these
    return ServedModel(
        printable(name), critique, length, *(None if each is None else printable(str(each)) for each in versions)
    )


def _retry_after(response: httpx2.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), _LONGEST_WAIT) if value.isdecimal() else None


def _error_message(response: httpx2.Response) -> str:
    if response.has_redirect_location:
        return describe_redirect(response)
    try:
        error = read_json(response.content)["error"]
        return printable(str(error["message"] if isinstance(error, dict) else error))  # vLLM sends an object
    except (ValueError, KeyError, TypeError):
        return f"{response.text[:200]!r}"
