"""ASGI middleware of the reward server: authentication, limits, disconnects, graceful shutdown, access log, metrics."""

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import re
import time
import traceback
from collections import Counter as Counts
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from .limits import Limits, count_values, refusal


logger = logging.getLogger(__name__)

# The only route that needs no key, because load balancers call it
HEALTH_ROUTE = "/health"

# Seconds allowed for a body to arrive, and for a client to finish sending a body that is too large
_BODY_TIMEOUT = 60.0
_DISCARD_TIMEOUT = 1.0

# Memory for bodies that are still arriving, in multiples of the maximum body size
_LARGEST_BODIES = 8

# Bodies up to this size are read immediately. Larger ones share a rate limit, because the event loop reads and parses them
_FREE_BYTES = 2**14
_BYTES_PER_SECOND = 8 * 2**20

# Quoted text, possibly truncated before its closing quote. A quote after a letter is an apostrophe
_QUOTED = re.compile(r"""(?<!\w)(['"])(?:\\.|(?!\1).)*(?:\1|$)""", re.DOTALL)

# Status recorded in the log and the metrics if the client disconnects before the response, as in nginx
CLIENT_CLOSED_REQUEST = 499


class Metrics:
    """Prometheus metrics for `/metrics`, in a separate registry for each server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter("cloud_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "cloud_request_seconds",
            "Seconds from the start of a request to the end of its response.",
            ["route"],
            buckets=(0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600),
            registry=self.registry,
        )
        self.queue = Gauge("cloud_queue_length", "Waiting and running critiques.", registry=self.registry)
        self.tokens = Counter("cloud_critique_tokens", "Critique tokens in responses.", registry=self.registry)
        self.truncated = Counter(
            "cloud_truncated_critiques", "Critiques truncated at max_new_tokens.", registry=self.registry
        )


@dataclass
class RequestRecord:
    """The log entry of a request, filled in while it is handled; `resources` are released when the request ends."""

    route: str
    started: float = field(default_factory=time.perf_counter)
    status: int | None = None
    answered: bool = False
    items: int = 0
    critique_tokens: int = 0
    error: str | None = None
    resources: ExitStack = field(default_factory=ExitStack)


class Lifecycle:
    """State of a server: whether it accepts requests, the tasks of running requests, and the request bodies that are still arriving."""

    def __init__(self):
        self.draining = False
        self.engine_dead = False
        self.tasks: set[asyncio.Task] = set()
        # Bytes received so far of each body, oldest first. The key is the timeout that drops the body
        self.arriving: dict[asyncio.Timeout, int] = {}

    def abort(self):
        """Cancel the running requests, which get a 503, and drop bodies that are still arriving."""
        for task in self.tasks:
            task.cancel()
        for patience in self.arriving:
            patience.reschedule(0)


class RequestMiddleware:
    """
    ASGI middleware around all routes. Starlette's own middleware is not enough: the body limit must apply before the body is read, and a
    disconnect must cancel JSON routes, which Starlette would run to completion.
    """

    def __init__(
        self,
        app,
        limits: Limits,
        api_key: str | None,
        metrics: Metrics,
        lifecycle: Lifecycle,
        allowed_hosts: Sequence[str] = (),
    ):
        self.app = app
        self.limits = limits
        self.api_key = api_key.encode() if api_key is not None else None
        self.allowed_hosts = {name.lower() for name in allowed_hosts}
        self._next_read = 0.0  # when the rate limit on large bodies allows the next chunk to be read
        self._minute, self._requests = 0, Counts()  # requests in the current minute, by client network
        self.metrics = metrics
        self.lifecycle = lifecycle

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Unknown paths share one label; otherwise, clients could exhaust the memory by creating ever more metrics
        is_known = any(scope["path"] == getattr(route, "path", None) for route in scope["app"].routes)
        record = scope["cloud_record"] = RequestRecord(scope["path"] if is_known else "other")

        async def send_recorded(message):
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if self.lifecycle.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif not message.get("more_body"):
                # Report before the response ends, so that the client's next request sees this one in the metrics
                record.answered = True
                self._report(scope["method"], record)
            await send(message)

        with record.resources:
            try:
                refused = self._refused(scope, Headers(scope=scope))
                unread = [await self._read_body(scope, receive, refused)]
                await self._run(scope, unread, receive, send_recorded, record)
            except ClientDisconnect:
                record.status = CLIENT_CLOSED_REQUEST
            except HTTPException as error:
                await _answer_error(error, scope, receive, send_recorded, record)
        if not record.answered:
            self._report(scope["method"], record)

    # ---------------------------------------------------------------------------------------------------- admission

    def _refused(self, scope, headers: Headers) -> HTTPException | None:
        """Return the error with which to refuse a request before its body is read, or `None`."""
        if self.lifecycle.draining:
            return _shutting_down()
        if self.api_key is None and not self._is_host(headers.get("host", "")):
            return HTTPException(
                403,
                "The request's `Host` may belong to a web page. Name it in `--allowed_hosts`, or set a key (CLOUD_API_KEY).",
            )
        if scope["path"] == HEALTH_ROUTE:
            return None
        given = headers.get("authorization", "").encode("latin-1")
        if self.api_key is not None and not hmac.compare_digest(given, b"Bearer " + self.api_key):
            error = "Send the server's key as `Authorization: Bearer KEY`."
            return HTTPException(401, error, {"WWW-Authenticate": "Bearer"})
        # Uvicorn's `limit_concurrency` would also count idle connections, and answer 503 without `Retry-After`
        if len(self.lifecycle.tasks) >= self.limits.max_queue:
            error = refusal(
                f"{len(self.lifecycle.tasks)} requests are already waiting", "max_queue", self.limits.max_queue
            )
            return HTTPException(429, error, {"Retry-After": "1"})
        if self.limits.max_requests_per_minute == math.inf:
            return None
        return self._too_often(_network((scope.get("client") or ("",))[0]))

    def _is_host(self, host: str) -> bool:
        """Return whether a host name cannot be the domain of a stranger's website: it is an IP address, has no dot, or is allowed."""
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            return "." not in name or name in self.allowed_hosts or bool(ipaddress.ip_address(name))
        return False

    def _too_often(self, address: str) -> HTTPException | None:
        minute, second = divmod(int(time.monotonic()), 60)
        if minute != self._minute:
            self._minute, self._requests = minute, Counts()
        self._requests[address] += 1
        most = self.limits.max_requests_per_minute
        if self._requests[address] <= most:
            return None
        error = refusal(
            f"{address} sent {self._requests[address]} requests in a minute", "max_requests_per_minute", most
        )
        return HTTPException(429, error, {"Retry-After": str(60 - second)})

    async def _read_body(self, scope, receive, refused: HTTPException | None) -> bytes:
        limit, too_large = self._largest_body(scope)
        headers = Headers(scope=scope)
        if int(headers.get("content-length", "0")) > limit:
            refused = refused or too_large
        # A client that sent `Expect: 100-continue` has not sent its body yet and can be refused immediately
        chunks, size, more = [], 0, not (refused and "expect" in headers)
        clock = asyncio.get_running_loop().time
        deadline = clock() + _BODY_TIMEOUT
        is_held = True
        try:
            async with asyncio.timeout_at(deadline) as patience:
                self.lifecycle.arriving[patience] = 0
                try:
                    while more:
                        if refused:
                            # Keep discarding for a moment, because a client that is still sending would not read the response
                            deadline = min(deadline, clock() + _DISCARD_TIMEOUT)  # counted from the refusal
                            patience.reschedule(deadline)
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientDisconnect
                        chunk, more = message.get("body", b""), message.get("more_body", False)
                        size += len(chunk)
                        if size > limit:
                            refused = refused or too_large
                        chunks.append(chunk)
                        if refused:
                            chunks.clear()
                        self._hold(patience, 0 if refused else size)
                        if size > _FREE_BYTES:
                            await self._wait_to_read(len(chunk))
                finally:
                    is_held = self.lifecycle.arriving.pop(patience, None) is not None
        except TimeoutError:
            refused = refused or self._gave_up(is_held)
        if refused:
            refused.headers = {**(refused.headers or {}), **({"Connection": "close"} if more else {})}
            raise refused
        return self._with_few_values(b"".join(chunks))

    def _largest_body(self, scope) -> tuple[int, HTTPException]:
        """Return the maximum size of a request's body in bytes, and the error for larger ones."""
        if scope["method"] in ("GET", "HEAD") or scope["path"] == HEALTH_ROUTE:
            return 0, HTTPException(413, f"`{scope['method']}` accepts no body; this server's limit is 0 bytes.")
        limit = self.limits.max_body_bytes
        return limit, HTTPException(413, refusal(f"The body is larger than {limit} bytes", "max_body_bytes", limit))

    def _gave_up(self, is_held: bool) -> HTTPException:
        if self.lifecycle.draining:
            return _shutting_down()
        if is_held:
            return HTTPException(408, f"The body did not arrive within {_BODY_TIMEOUT:g} seconds.")
        what = "Too many bodies are arriving, and this one was the largest or oldest"
        return HTTPException(429, refusal(what, "max_body_bytes", self.limits.max_body_bytes), {"Retry-After": "1"})

    async def _wait_to_read(self, size: int):
        """Wait until the rate limit on large bodies allows `size` more bytes to be read."""
        now = asyncio.get_running_loop().time()
        self._next_read = max(self._next_read, now) + size / _BYTES_PER_SECOND
        await asyncio.sleep(self._next_read - now)

    def _with_few_values(self, body: bytes) -> bytes:
        most = self.limits.max_values
        if b"\0" in body:  # UTF-16 and UTF-32 would be parsed, but `count_values` cannot count their values
            raise HTTPException(400, "The body is not UTF-8 JSON: it contains null bytes.")
        if (values := count_values(body, most)) > most:
            raise HTTPException(422, refusal(f"The body contains {values} JSON values", "max_values", most))
        return body

    def _hold(self, patience: asyncio.Timeout, size: int):
        """Count an arriving body. If all bodies together are too large, drop the largest; if there are too many, drop the oldest."""
        if patience in self.lifecycle.arriving:
            self.lifecycle.arriving[patience] = size
        given_up = None
        if sum(self.lifecycle.arriving.values()) > _LARGEST_BODIES * self.limits.max_body_bytes:
            given_up = max(self.lifecycle.arriving, key=self.lifecycle.arriving.__getitem__)
        elif len(self.lifecycle.arriving) > self.limits.max_queue:
            given_up = next(iter(self.lifecycle.arriving))
        if given_up is not None:
            del self.lifecycle.arriving[given_up]
            given_up.reschedule(0)

    # ------------------------------------------------------------------------------------------------------ running

    async def _run(self, scope, unread: list[bytes], receive, send, record: RequestRecord):
        """Run the routes; cancel them when the client disconnects or the server aborts."""
        gone = asyncio.Event()

        async def replay():
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.create_task(self.app(scope, replay, send))
        disconnect = asyncio.create_task(_wait_for_disconnect(receive))
        self.lifecycle.tasks.add(work)
        try:
            await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            has_left = not work.done() and not record.answered
            if has_left:
                gone.set()
                work.cancel()
            await asyncio.wait({work})
        finally:
            self.lifecycle.tasks.discard(work)
            work.cancel()
            disconnect.cancel()
        if has_left:
            raise ClientDisconnect
        if work.cancelled():
            raise _shutting_down()
        if error := work.exception():
            # Log neither the error's message nor its values: they may contain text from the request
            stack = "".join(traceback.format_tb(error.__traceback__))
            logger.error("Request failed: %s\n%s", type(error).__name__, stack)
            raise HTTPException(500, f"The server failed on this request ({type(error).__name__}).")

    def _report(self, method: str, record: RequestRecord):
        seconds = time.perf_counter() - record.started
        self.metrics.requests.labels(record.route, record.status).inc()
        self.metrics.seconds.labels(record.route).observe(seconds)
        fields = {
            "route": record.route,
            "method": method,
            "status": record.status,
            "seconds": round(seconds, 4),
            "items": record.items,
            "critique_tokens": record.critique_tokens,
        }
        if record.error is not None:
            fields["error"] = without_contents(record.error)
        logger.info("request", extra={"fields": fields})


def _network(address: str) -> str:
    """Return an IPv4 address unchanged, but the /64 network of an IPv6 address, because one client may have many IPv6 addresses."""
    with suppress(ValueError):
        ip = ipaddress.ip_address(address)
        if ip.version == 6:
            return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))
    return address


def _shutting_down() -> HTTPException:
    return HTTPException(503, "The server is shutting down.", {"Retry-After": "5"})


async def _wait_for_disconnect(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


def error_response(status: int, error: str, headers=None) -> Response:
    """Return an error response with the JSON body that all errors share."""
    # Escape as ASCII: the message may repeat a lone surrogate from the request, which UTF-8 cannot encode
    return Response(json.dumps({"error": error}), status, headers, "application/json")


def without_contents(error: str) -> str:
    """
    Redact quoted text from an error message before it is logged. The log must not contain text from requests, but it needs the reason for
    a failure, because the trainers' clients show only the status.

    ```python
    >>> without_contents("`prompt` message 0 is 'Dear…', not a chat message; see the model's card.")
    "`prompt` message 0 is '…', not a chat message; see the model's card."
    ```
    """
    return _QUOTED.sub("'…'", error)


async def _answer_error(error: HTTPException, scope, receive, send, record: RequestRecord):
    record.error = str(error.detail)
    with suppress(OSError):
        if record.status is None:
            await error_response(error.status_code, error.detail, error.headers)(scope, receive, send)
        elif not record.answered:  # in the middle of an event stream
            record.status = error.status_code
            body = b"data: " + json.dumps({"error": error.detail}).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": False})


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}))
