"""What every HTTP request passes: key, size, number, disconnection, shutdown; and what is logged and counted of it."""

import asyncio
import hmac
import json
import logging
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


logger = logging.getLogger(__name__)

HEALTH_ROUTE = "/health"
ROUTES = ("/v1/rewards", "/get_reward", "/v1/score/evaluation", HEALTH_ROUTE, "/metrics", "/docs", "/openapi.json")

# Seconds that a body may take to arrive, and that is waited for a client to finish sending what is refused
_BODY_TIMEOUT = 60.0
_DISCARD_TIMEOUT = 1.0

# In logs and metrics: the client went away before it was answered
CLIENT_GONE = 499


@dataclass(frozen=True)
class Limits:
    """
    What a server accepts.

    Args:
        max_body_bytes (`int`, *optional*, defaults to 4 MiB):
            Largest request body.
        max_batch (`int`, *optional*, defaults to `256`):
            Most critiques that one request may ask for, all its rows together.
        max_queue (`int`, *optional*, defaults to `1024`):
            Most critiques, and most requests, that wait or run at once. Beyond it the answer is 429.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens that a request may ask for, and what it gets if it does not say.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Seconds after which a request is given up with 504.

    Raises:
        `ValueError`: If a limit is not above 0, or a request of `max_batch` would never fit into the queue.
    """

    max_body_bytes: int = 4 * 2**20
    max_batch: int = 256
    max_queue: int = 1024
    max_new_tokens: int = 1024
    request_timeout: float = 600.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        if self.max_batch > self.max_queue:
            raise ValueError(
                f"`max_batch` is {self.max_batch} but `max_queue` {self.max_queue}: a full batch would never be taken."
            )


class Refusal(Exception):
    """A request that is answered with an error: its status, and a sentence that says why."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None):
        super().__init__(error)
        self.status = status
        self.error = error
        self.headers = headers or {}


class Metrics:
    """What `/metrics` shows. Each server has its own registry."""

    def __init__(self):
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self.requests = Counter("cloud_requests", "Requests answered.", ["route", "status"], **options)
        self.seconds = Histogram(
            "cloud_request_seconds",
            "Seconds from a request's start to its answer's end.",
            ["route"],
            buckets=(0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600),
            **options,
        )
        self.queue = Gauge("cloud_queue_length", "Critiques that wait or run.", **options)
        self.tokens = Counter("cloud_critique_tokens", "Tokens of critiques in answers.", **options)
        self.truncated = Counter("cloud_truncated_critiques", "Critiques cut at max_new_tokens.", **options)


@dataclass
class RequestRecord:
    """What is logged of a request, filled in on its way; `resources` are given back when it is over."""

    route: str
    started: float = field(default_factory=time.perf_counter)
    status: int | None = None
    answered: bool = False
    items: int = 0
    critique_tokens: int = 0
    resources: ExitStack = field(default_factory=ExitStack)


def record_of(scope) -> RequestRecord:
    """The record of the request of an ASGI scope."""
    return scope["cloud_record"]


class Gate:
    """
    ASGI middleware around the routes.

    Args:
        app:
            The ASGI application.
        limits ([`Limits`]):
            Body size and number of requests.
        api_key (`str` or `None`):
            Key that `Authorization: Bearer` must give, on every route but `/health`.
        metrics ([`Metrics`]):
            Counts and durations.
        lifecycle ([`Lifecycle`]):
            Whether the server is shutting down, and which requests run.
    """

    def __init__(self, app, limits: Limits, api_key: str | None, metrics: Metrics, lifecycle: "Lifecycle"):
        self.app = app
        self.limits = limits
        self.api_key = api_key.encode() if api_key is not None else None
        self.metrics = metrics
        self.lifecycle = lifecycle

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(scope["path"] if scope["path"] in ROUTES else "other")
        scope["cloud_record"] = record

        async def sending(message):
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if self.lifecycle.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif not message.get("more_body"):
                record.answered = True
            await send(message)

        with record.resources:
            try:
                self._admit(scope)
                body = await self._read_body(scope, receive)
                await self._run(scope, body, receive, sending, record)
            except _ClientGoneError:
                record.status = CLIENT_GONE
            except Refusal as refusal:
                await _answer(sending, record, refusal)
        self._report(scope, record)

    # ---------------------------------------------------------------------------------------------------- admission

    def _admit(self, scope):
        if self.lifecycle.draining:
            raise Refusal(503, "The server is shutting down.", {"Retry-After": "5"})
        if scope["path"] == HEALTH_ROUTE:
            return
        self._check_key(scope)
        if len(self.lifecycle.tasks) >= self.limits.max_queue:
            raise Refusal(429, f"{self.limits.max_queue} requests are waiting already.", {"Retry-After": "1"})

    def _check_key(self, scope):
        if self.api_key is None:
            return
        given = _header(scope, b"authorization") or b""
        if not hmac.compare_digest(given, b"Bearer " + self.api_key):
            raise Refusal(401, "Send the server's key as `Authorization: Bearer KEY`.", {"WWW-Authenticate": "Bearer"})

    async def _read_body(self, scope, receive) -> bytes:
        limit = self.limits.max_body_bytes
        declared = _header(scope, b"content-length") or b"0"
        too_large = int(declared) > limit
        chunks, size, more = [], 0, not (too_large and _header(scope, b"expect"))
        try:
            async with asyncio.timeout(_BODY_TIMEOUT) as patience:
                while more:
                    if too_large:
                        # A client that is still sending would not read the answer
                        discarding = asyncio.get_running_loop().time() + _DISCARD_TIMEOUT
                        patience.reschedule(min(patience.when(), discarding))
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    size += len(message.get("body", b""))
                    too_large = too_large or size > limit
                    if too_large:
                        chunks.clear()
                    else:
                        chunks.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            if not too_large:
                raise Refusal(408, "The body did not arrive in time.", {"Connection": "close"}) from None
        if too_large:
            raise Refusal(413, f"The body is larger than {limit} bytes; send fewer rows.", {"Connection": "close"})
        return b"".join(chunks)

    # ------------------------------------------------------------------------------------------------------ running

    async def _run(self, scope, body: bytes, receive, send, record: RequestRecord):
        """Run the routes; stop them when the client goes away or the server must stop."""
        gone = asyncio.Event()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay():
            if unread:
                return unread.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.create_task(self.app(scope, replay, send))
        departure = asyncio.create_task(_departure(receive))
        self.lifecycle.tasks.add(work)
        try:
            await asyncio.wait({work, departure}, return_when=asyncio.FIRST_COMPLETED)
            left = not work.done() and not record.answered
            if left:
                gone.set()
                work.cancel()
            await asyncio.wait({work})
        finally:
            self.lifecycle.tasks.discard(work)
            work.cancel()
            departure.cancel()
        if left:
            raise _ClientGoneError
        if work.cancelled():
            raise Refusal(503, "The server is shutting down.", {"Retry-After": "5"})
        if error := work.exception():
            # Neither the message nor the values of an error are logged: they may hold text of the request
            stack = "".join(traceback.format_tb(error.__traceback__))
            logger.error("Request failed: %s\n%s", type(error).__name__, stack)
            raise Refusal(500, f"The server failed on this request ({type(error).__name__}).")

    def _report(self, scope, record: RequestRecord):
        seconds = time.perf_counter() - record.started
        self.metrics.requests.labels(record.route, record.status).inc()
        self.metrics.seconds.labels(record.route).observe(seconds)
        fields = {
            "route": record.route,
            "method": scope["method"],
            "status": record.status,
            "seconds": round(seconds, 4),
            "items": record.items,
            "critique_tokens": record.critique_tokens,
        }
        logger.info("request", extra={"fields": fields})


class Lifecycle:
    """Whether a server takes requests, and those that run."""

    def __init__(self):
        self.draining = False
        self.engine_dead = False
        self.tasks: set[asyncio.Task] = set()

    def abort(self):
        """Stop the requests that run; they are answered with 503."""
        for task in self.tasks:
            task.cancel()


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}))


class _ClientGoneError(Exception):
    """The client closed its connection."""


async def _departure(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send, record: RequestRecord, refusal: Refusal):
    body = json.dumps({"error": refusal.error}).encode()
    if record.status is None:
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    elif not record.answered:  # a stream that has begun
        body = b"data: " + body + b"\n\n"
        record.status = refusal.status
    else:
        return
    with suppress(OSError):
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _header(scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
