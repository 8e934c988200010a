"""Client for OpenAI-compatible servers, with bounded concurrency, retries and actionable errors."""

import asyncio
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAioHttpClient

from ..printable import printable, read_key
from ..serving.http_answers import are_token_ids, describe_redirect, is_unicode, read_body, read_json


# Finish reasons of complete, truncated and filtered answers. A request is retried if the answer has any other reason, or none
FINISH_REASONS = ("stop", "length", "content_filter")
# Seconds before the first retry, doubled for each further retry up to the maximum
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_CONNECT_TIMEOUT = 10.0
# Maximum size of a decompressed answer: 64 bytes for each of 128k tokens
_LONGEST_ANSWER = 2**23
# Upper limit of `Retry-After` in seconds
_LONGEST_RETRY_AFTER = 300.0
_TRANSIENT = (408, 409, 425, 429)
_REFUSED_KEY = (401, 403)
# For fields that a request omits, vLLM would use the values in the model's generation_config.json
NEUTRAL_SAMPLING = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
# Status codes and wording with which servers reject a request that exceeds the model's context
_TOO_LARGE = (400, 413, 422)
_SPEAKS_OF_LENGTH = re.compile(r"context|length|too (long|large)|max\w*_tokens", re.IGNORECASE)


class RequestFailed(Exception):
    """
    A request that failed permanently, although other requests may succeed. `exceeds_context` is true if the server rejected the request
    because it exceeds the model's context.
    """

    def __init__(self, reason: str, exceeds_context: bool = False):
        super().__init__(reason)
        self.exceeds_context = exceeds_context


class ServerUnusable(Exception):
    """No request can succeed: the server is down, rejects the key, or does not serve the model."""


class Stopped(Exception):
    """A request that was not sent, because [`CompletionClient.stop`] was called."""


class _BadAnswer(Exception):
    """An HTTP 200 response without a usable completion. The request is retried."""


@dataclass(frozen=True)
class Answer:
    """
    A completion.

    `finish_reason` is `"stop"` if the text is complete, `"length"` if it was truncated, and `"content_filter"` if the server withheld some
    or all of it. `token_ids` is set if token ids were requested. `model` (the name of the model that answered), `tokens` (prompt and
    completion tokens together) and `completion_tokens` are the values that the server reported.
    """

    text: str
    finish_reason: str
    token_ids: tuple[int, ...] | None = None
    model: str | None = field(default=None, compare=False)
    tokens: int | None = field(default=None, compare=False)
    completion_tokens: int | None = field(default=None, compare=False)


@dataclass
class RequestCounts:
    """Numbers of answered requests and of retries, for one client."""

    answered: int = 0
    retried: int = 0


@dataclass
class _Server:
    """A server, the number of its requests in flight, and the earliest time at which it may be sent another request."""

    url: str
    client: AsyncOpenAI
    in_flight: int = 0
    not_before: float = 0.0

    @property
    def wait(self) -> float:
        return max(0.0, self.not_before - time.monotonic())


class CompletionClient:
    """
    Client for one model on one or more OpenAI-compatible servers.

    A request is retried after a timeout, a lost connection, a status of 408, 409, 425, 429 or 5xx, or an unusable answer. Retries go to the
    least busy server, after 0.5, 1, 2, … seconds (at most 60, each shortened at random by up to half) or after the time in `Retry-After`
    (at most five minutes). Any other error status makes the request fail immediately. So does an answer without content at temperature 0,
    because a retry would return the same answer.

    Args:
        base_urls (`Sequence[str]`):
            Addresses of servers that serve the same model, for example `"http://127.0.0.1:8000/v1"`.
        model (`str`, *optional*):
            Name of the model on the servers. Optional if they serve only one model.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that contains the API key. The key never appears in messages, journals or cards.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Maximum number of requests in flight across all servers.
        max_retries (`int`, *optional*, defaults to `8`):
            Retries per request; 8 retries wait about 1.5 minutes in total.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Timeout per attempt, in seconds.

    Examples:

    ```python
    >>> async with CompletionClient(["http://127.0.0.1:8000/v1"], "my-model") as client:
    ...     answer = await client.chat([{"role": "user", "content": "What is 2+2?"}], max_tokens=16)
    ```
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str | None = None,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 64,
        max_retries: int = 8,
        request_timeout: float = 600.0,
    ):
        if isinstance(base_urls, str) or not base_urls:
            raise ValueError(f"`base_urls` is {base_urls!r}; give a list of addresses.")
        for url in base_urls:
            if "@" in url:
                raise ValueError(
                    "A `base_url` contains a user name or a password, which messages would show. Use an API key instead."
                )
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"`base_url` {url!r} must start with http:// or https://.")
        if max_concurrency < 1 or max_retries < 0 or not request_timeout > 0:
            raise ValueError(
                "`max_concurrency` must be at least 1, `max_retries` at least 0, `request_timeout` above 0."
            )
        self.model = model
        self.max_concurrency = max_concurrency
        self.max_retries = max_retries
        self.counts = RequestCounts()
        # Values of the sampling fields that a chat request does not set; determined by `check`
        self.sampling_defaults: dict[str, Any] = {}
        self.on_answer: Callable[[], None] = lambda: None
        key = os.environ.get(api_key_env, "").strip()
        self._key = read_key(key, f"The environment variable {api_key_env}") if key else None
        self._key_name = api_key_env
        self._urls = list(base_urls)
        self._timeout = httpx2.Timeout(request_timeout, connect=min(_CONNECT_TIMEOUT, request_timeout))
        self._request_timeout = request_timeout

    async def __aenter__(self) -> "CompletionClient":
        limits = httpx2.Limits(max_connections=self.max_concurrency, max_keepalive_connections=self.max_concurrency)
        self._places = asyncio.Semaphore(self.max_concurrency)
        self._stopping = asyncio.Event()
        self._servers = [
            _Server(
                url,
                AsyncOpenAI(
                    base_url=url,
                    api_key=self._key or "none",
                    # The openai client's retries stay on one server, ignore a `Retry-After` above 60 s, and give up on a
                    # busy server (429) even while it answers other requests
                    max_retries=0,
                    timeout=self._timeout,
                    http_client=DefaultAioHttpClient(
                        limits=limits,
                        timeout=self._timeout,
                        follow_redirects=False,
                        event_hooks={"response": [partial(read_body, limit=_LONGEST_ANSWER)]},
                    ),
                ),
            )
            for url in self._urls
        ]
        return self

    async def __aexit__(self, *_):
        for server in self._servers:
            await server.client.close()

    def stop(self):
        """Stop sending requests. Requests in flight still finish; all others raise `Stopped`."""
        self._stopping.set()

    # ------------------------------------------------------------------------------------------------------ requests

    async def chat(self, messages: list[dict[str, str]], **sampling) -> Answer:
        """
        Request a chat completion.

        Args:
            messages (`list[dict[str, str]]`):
                Chat messages.
            **sampling:
                Fields of the request, such as `max_tokens`, `temperature` and `seed`.

        Returns:
            [`Answer`]: The completion. Its text is empty only if it was truncated or filtered before its first token.

        Raises:
            `RequestFailed`: If the request is rejected, or fails after all retries.
            `ServerUnusable`: If no request can succeed.
        """
        return await self._ask("/chat/completions", {"messages": messages, **self.sampling_defaults, **sampling})

    async def complete(self, prompt_ids: Sequence[int], **sampling) -> Answer:
        """
        Request a completion of a prompt that is given as token ids.

        Args:
            prompt_ids (`Sequence[int]`):
                Token ids of the prompt. They must include the begin-of-sequence token if the model has one, because the server adds none.
            **sampling:
                Fields of the request. With `return_token_ids=True`, vLLM also returns the completion's token ids.

        Returns:
            [`Answer`]: The completion. Its text is empty if the model stopped immediately.

        Raises:
            `RequestFailed`, `ServerUnusable`: As for [`CompletionClient.chat`].
        """
        return await self._ask("/completions", {"prompt": list(prompt_ids), **sampling})

    async def check(self):
        """
        Check every server before the first request, and set `model` if it was not given. If all servers run vLLM, chat requests will set
        every sampling field, because vLLM would otherwise use defaults from the model's `generation_config.json`.

        Raises:
            `ServerUnusable`: If a server does not answer, rejects the key, or does not serve the model.
        """
        owners = []
        for server in self._servers:
            names = await self._models(server)
            if names is None:
                print(f"{server.url} does not list its models, so it may not serve {self.model!r}.")
                if self.model is None:
                    raise ServerUnusable(f"{server.url} does not list its models; set `model`.")
                owners.append(None)
                continue
            if self.model is None and len(names) == 1:
                [self.model] = names
            if self.model not in names:
                wanted = "Set `model` to one of them" if self.model is None else f"It does not serve {self.model!r}"
                served = self._show(", ".join(sorted(names)) or "no model")
                raise ServerUnusable(f"{server.url} serves {served}. {wanted}.")
            owners.append(names[self.model])
        self.sampling_defaults = NEUTRAL_SAMPLING if set(owners) == {"vllm"} else {}

    async def _models(self, server: _Server) -> dict[str, Any] | None:
        """Map the names of the server's models to the owners that it reports; return `None` if it does not list its models."""
        try:
            async with asyncio.timeout(self._request_timeout):
                response = await server.client.get("/models", cast_to=httpx2.Response)
            owners = {model["id"]: model.get("owned_by") for model in read_json(response.content)["data"]}
            if not all(isinstance(name, str) and name.isprintable() for name in owners):
                raise ValueError("names that are not printable text")
            return owners
        except APIStatusError as error:
            if error.status_code in _REFUSED_KEY:
                raise self._key_refused(server, error) from None
            if error.status_code in (404, 405, 501):
                return None
            raise ServerUnusable(f"{server.url} returned {self._describe(error)}.") from None
        except (APIConnectionError, TimeoutError) as error:
            raise ServerUnusable(
                f"{server.url} does not answer ({self._show(_cause(error))}). Is it running?"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServerUnusable(f"{server.url} does not respond like an OpenAI-compatible server.") from None

    # --------------------------------------------------------------------------------------------------- one request

    async def _ask(self, path: str, body: dict[str, Any]) -> Answer:
        body = {"model": self.model, **body}
        failures, answered = 0, self.counts.answered
        async with self._places:
            while failures <= self.max_retries:
                server = await self._free_server()
                if self._stopping.is_set():
                    raise Stopped
                server.in_flight += 1
                try:
                    answer = await self._post(server, path, body)
                    self.counts.answered += 1
                    self.on_answer()
                    return answer
                except (APIConnectionError, APIStatusError, TimeoutError, _BadAnswer) as error:
                    reason = self._stop_if_final(server, error)
                    # A 429 does not count as a failure while the server answers other requests
                    busy = getattr(error, "status_code", None) == 429
                    failures = 0 if busy and self.counts.answered > answered else failures + 1
                    answered = self.counts.answered
                    if failures <= self.max_retries:
                        self.counts.retried += 1
                        await self._back_off(server, error, failures)
                finally:
                    server.in_flight -= 1
        await self._stop_if_all_are_down()
        raise RequestFailed(f"{reason} (given up after {self.max_retries + 1} tries)")

    async def _free_server(self) -> _Server:
        """Return the least busy server that accepts requests, waiting until one does."""
        while (server := min(self._servers, key=lambda server: (server.wait > 0, server.in_flight))).wait > 0:
            await self._pause(min(server.wait for server in self._servers))
        return server

    async def _post(self, server: _Server, path: str, body: dict[str, Any]) -> Answer:
        # The HTTP client's timeouts never expire while a server sends an occasional byte, so limit the total time as well
        async with asyncio.timeout(self._request_timeout):
            response = await server.client.post(path, cast_to=httpx2.Response, body=body)
        try:
            answer = read_json(response.content)
            if message := _error_message(answer):
                raise _BadAnswer(f"an error: {self._show(message)}")
            # Servers may list choices in any order
            choice = min(answer["choices"], key=lambda choice: choice.get("index") or 0)
            text = choice["message"]["content"] if path == "/chat/completions" else choice["text"]
            reason = choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _BadAnswer(f"an answer that is not a completion ({type(error).__name__}: {error})") from error
        if isinstance(text, str) and not is_unicode(text):
            raise _BadAnswer("an answer with a lone surrogate, which is not valid text")
        if reason not in FINISH_REASONS:
            raise _BadAnswer(f"an answer whose finish_reason is {reason!r:.60}")
        # A reasoning model truncated while thinking has no content yet
        text = "" if text is None and reason != "stop" else text
        if not isinstance(text, str) or (path == "/chat/completions" and reason == "stop" and not text.strip()):
            nothing = f"an answer without content (finish_reason {reason!r:.60})"
            if body.get("temperature") == 0:  # the same request would get the same answer
                raise RequestFailed(f"{nothing} at temperature 0; a retry would return the same answer")
            raise _BadAnswer(nothing)
        model = answer.get("model")
        model = model if isinstance(model, str) and model.isprintable() else None
        ids = choice.get("token_ids")
        if body.get("return_token_ids"):
            self._check_ids(server, ids, text)
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        tokens, completion = (
            count if type(count := usage.get(name)) is int and count >= 0 else None
            for name in ("total_tokens", "completion_tokens")
        )
        return Answer(text, reason, None if ids is None else tuple(ids), model, tokens, completion)

    def _check_ids(self, server: _Server, ids: Any, text: str):
        if ids is None and text:
            raise ServerUnusable(
                f"{server.url} does not return token ids (`return_token_ids`), which this request needs. Use a vLLM server."
            )
        if not are_token_ids(ids):
            raise _BadAnswer(f"an answer whose token ids are {ids!r:.60}")

    def _stop_if_final(self, server: _Server, error: Any) -> str:
        """Raise an exception if a retry cannot help; otherwise return a description of the error."""
        if isinstance(error, APIStatusError):
            what = self._describe(error)
            if error.status_code in _REFUSED_KEY:
                raise self._key_refused(server, error)
            if error.status_code == 404:
                raise ServerUnusable(f"{server.url} returned {what}. Check `model`, which is {self.model!r}.")
            if error.response.has_redirect_location:
                raise ServerUnusable(f"{server.url} returned {what}.")
            if error.status_code not in _TRANSIENT and error.status_code < 500:
                too_large = error.status_code in _TOO_LARGE and _SPEAKS_OF_LENGTH.search(what) is not None
                raise RequestFailed(what, exceeds_context=too_large)
            return what
        if isinstance(error, TimeoutError | APITimeoutError):
            return f"no answer within {self._request_timeout:g} s"
        return self._show(_cause(error) if isinstance(error, APIConnectionError) else str(error))

    async def _back_off(self, server: _Server, error: Any, failures: int):
        seconds = min(_FIRST_WAIT * 2 ** max(failures - 1, 0), _LONGEST_WAIT) * random.uniform(0.5, 1.0)
        if isinstance(error, APIStatusError) and (asked := _retry_after(error.response)) is not None:
            # The pause applies to all requests to this server. A short random wait afterwards keeps their retries from arriving together
            if asked > _LONGEST_WAIT:
                print(f"{server.url} requested a pause of {asked:.0f} s.", flush=True)
            server.not_before = max(server.not_before, time.monotonic() + asked)
            seconds = random.uniform(0.0, 0.1)
        elif isinstance(error, APIConnectionError) and len(self._servers) > 1:
            server.not_before = time.monotonic() + seconds
            seconds = 0.0
        await self._pause(seconds)

    async def _pause(self, seconds: float):
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
            raise Stopped

    async def _stop_if_all_are_down(self):
        """Raise `ServerUnusable` if no server works. If one does, only the failed request is affected."""
        problems = []
        for server in self._servers:
            try:
                await self._models(server)
                return
            except ServerUnusable as error:
                problems.append(str(error))
        raise ServerUnusable(" ".join(problems))

    # ------------------------------------------------------------------------------------------------------ messages

    def _key_refused(self, server: _Server, error: APIStatusError) -> ServerUnusable:
        key = "is not set" if self._key is None else "contains a key that the server rejects"
        return ServerUnusable(
            f"{server.url} returned {self._describe(error)}. The environment variable {self._key_name} {key}."
        )

    def _describe(self, error: APIStatusError) -> str:
        if error.response.has_redirect_location:
            return f"status {error.status_code}: {describe_redirect(error.response)}"
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        return f"status {error.status_code}: {self._show(str(message or body or 'no reason given'))}"

    def _show(self, text: str) -> str:
        """Make a server's message safe to print, and remove the API key."""
        return printable(text.replace(self._key, "[key]") if self._key else text)


def _error_message(answer: Any) -> str | None:
    """Return the message of an error object, or `None`. Some servers and proxies send error objects with status 200."""
    if not isinstance(answer, dict) or answer.get("choices"):
        return None
    error = answer.get("error") or answer
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else None


def _cause(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}".strip(": ")


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds to wait, at most `_LONGEST_RETRY_AFTER`, or `None` if `Retry-After` is neither a number nor a date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        is_number = re.fullmatch(r"\s*\d+(\.\d+)?\s*", value)
        seconds = float(value) if is_number else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)
