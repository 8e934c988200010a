"""The reward server's ASGI application, and the process that serves it."""

import argparse
import asyncio
import gc
import logging
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager

import h11
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from transformers import AutoTokenizer
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...chat_parsing import RenderedChats
from ...cli import run
from ...loading import check_reward_model, load_reward_model, read_model_config, tokenizer_source
from ...model_identity import identify_model
from . import pages, routes
from .contracts import spell_path
from .engine import EncodingEngine, TransformersEngine
from .limits import Limits
from .middleware import JsonFormatter, Lifecycle, Metrics, RequestMiddleware, error_response
from .service import RewardService


logger = logging.getLogger(__name__)

# To add routes, put them on a router in a new file like routes.py, and list that router here
ROUTERS = [routes.router, pages.router]


def make_app(
    engine: EncodingEngine,
    limits: Limits | None = None,
    api_key: str | None = None,
    chats: RenderedChats | None = None,
    allowed_hosts: Sequence[str] = (),
    model_version: str | None = None,
) -> FastAPI:
    r"""
    Create the server's ASGI application. `app.state.lifecycle` records whether it accepts requests.

    Args:
        engine ([`EncodingEngine`]):
            The backend. It is closed when the application shuts down.
        limits ([`Limits`], *optional*):
            Limits on requests.
        api_key (`str`, *optional*):
            Key that all routes except `/health` require.
        chats ([`RenderedChats`], *optional*):
            Parser for the conversations that OpenRLHF and LLaMA-Factory send, which are rendered with the policy's chat
            template. Without it, the routes for these trainers return 501.
        allowed_hosts (`Sequence[str]`, *optional*):
            Host names with dots that clients without a key may use. Other names with dots are refused, because a web
            page could make them point at this server.
        model_version (`str`, *optional*):
            Version that `/health` shows, so clients can check that replicas serve the same model.
    """
    limits, metrics, lifecycle = limits or Limits(), Metrics(), Lifecycle()
    service = RewardService(engine, limits, metrics, lifecycle, chats, model_version)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        lifecycle.draining = True
        await service.close()

    app = FastAPI(title="CLoud reward server", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.lifecycle = service, lifecycle
    options = {"metrics": metrics, "lifecycle": lifecycle, "allowed_hosts": allowed_hosts}
    app.add_middleware(RequestMiddleware, limits=limits, api_key=api_key, **options)  # pyright: ignore[reportArgumentType]  # Starlette's protocol wants ParamSpec-typed factories
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    for router in ROUTERS:
        app.include_router(router)
    return app


def _answer_invalid(request: Request, error) -> Response:
    """Report the first error in a request body and the number of other errors, without quoting any of the body's values."""
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return _refuse(request, 400, f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}.")
    if isinstance(first["input"], bytes):  # FastAPI parses JSON only if the header announces it
        header = request.headers.get("content-type")
        return _refuse(request, 422, f"The header `Content-Type` is {header!r:.60}; send `application/json`.")
    path = spell_path(tuple(first["loc"][1:]))
    ours = {
        "missing": "it is missing",
        "extra_forbidden": "there is no such field",
        "model_attributes_type": "it is not an object",
    }
    message = ours.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    more = f" ({len(others)} more errors)" if others else ""
    where = f"`{path}`: " if path else "The body: " if first["type"] in ours else ""
    sentence = f"{where}{message if where else message[:1].upper() + message[1:]}"
    return _refuse(request, 422, f"{sentence}.{more}")


def _answer_http(request: Request, error) -> Response:
    detail = str(error.detail)
    if error.status_code == 400:  # from FastAPI, which does not name the reason
        reasons = {
            UnicodeDecodeError: "is not UTF-8",
            RecursionError: "is nested too deeply",
            ValueError: f"contains an integer of more than {sys.get_int_max_str_digits()} digits",
        }
        detail = f"The body {reasons.get(type(error.__cause__), 'cannot be parsed')}."
    return _refuse(request, error.status_code, detail, error.headers)


def _refuse(request: Request, status: int, error: str, headers=None) -> Response:
    """Return an error response, and record the error for the log."""
    request.scope["cloud_record"].error = error
    return error_response(status, error, headers)


# ---------------------------------------------------------------------------------------------------------- running


_TEXT_ROUTES = "/get_reward and /v1/score/evaluation"

# Maximum size of a request's head, and seconds for it to arrive
MAX_HEAD_BYTES = 32 * 2**10
_HEAD_TIMEOUT = 20.0

# Maximum bytes of chunk framing (in addition to an eighth of the body's size), or of requests that arrive before the previous one has been
# answered
_MOST_EXTRA_BYTES = 2**13
_PIECE = 2**13  # number of bytes to parse at a time

# A stopping server exits after this many ticks (tenths of a second) without a running request
_IDLE_TICKS = 3


class RewardServer(uvicorn.Server):
    """
    Uvicorn with a graceful shutdown: on SIGTERM or SIGINT, it answers new requests with 503 and finishes those in progress. After
    `shutdown_grace` seconds, or on a second signal, it cancels the requests that are still in progress. (Uvicorn alone would close its
    socket first, so new clients could not tell a restarting server from a crashed one.)
    """

    def __init__(self, config: uvicorn.Config, shutdown_grace: float = 30.0):
        super().__init__(config)
        assert isinstance(config.app, FastAPI)
        self.lifecycle: Lifecycle = config.app.state.lifecycle
        self.shutdown_grace = shutdown_grace
        self._stopped_at: float | None = None
        self._idle_ticks = 0

    def handle_exit(self, sig, frame):
        """Stop gracefully on the first signal, and immediately on the second."""
        if self._stopped_at is None:
            self.stop()
        else:
            self.shutdown_grace = 0.0

    def stop(self):
        """Refuse new requests, and exit when the running ones have finished."""
        self._stopped_at = time.monotonic()
        self.lifecycle.draining = True
        logger.info("Stopping: %d requests are running.", len(self.lifecycle.tasks))

    async def on_tick(self, counter: int) -> bool:
        """Return whether to exit; called ten times a second."""
        if self._stopped_at is not None:
            if time.monotonic() - self._stopped_at > self.shutdown_grace:
                self.should_exit = True
            # Wait a little, so that a client that has just connected and is about to send its request gets a 503
            self._idle_ticks = 0 if self.lifecycle.tasks else self._idle_ticks + 1
            if self._idle_ticks >= _IDLE_TICKS:
                self.should_exit = True
            if self.should_exit:
                self.lifecycle.abort()
        return await super().on_tick(counter)


class _Protocol(H11Protocol):
    """
    HTTP protocol that, unlike httptools, limits the size of a request's head, the time the head may take to arrive, and the
    number of bytes in chunk framing and pipelined requests, which are expensive to parse.
    """

    _head_timeout: asyncio.TimerHandle | None = None
    _extra_bytes = 0

    def data_received(self, data: bytes):
        # Parse in pieces, because parsing blocks all other connections
        for start in range(0, len(data), _PIECE):
            if self.transport.is_closing():
                return
            self._receive(data[start : start + _PIECE])

    def _receive(self, piece: bytes):
        is_early, is_body = (self.conn.their_state is state for state in (h11.DONE, h11.SEND_BODY))
        waits = self.conn.our_state is h11.SEND_RESPONSE
        held = len(self.cycle.body) if is_body else 0
        super().data_received(piece)
        if self.conn.their_state is h11.IDLE:
            self._extra_bytes = 0
        elif is_early:
            self._extra_bytes += len(piece)
        elif is_body and waits and self.conn.their_state is h11.SEND_BODY:
            content = len(self.cycle.body) - held
            self._extra_bytes = max(0, self._extra_bytes + len(piece) - content - content // 8)
        if self._extra_bytes > _MOST_EXTRA_BYTES and not self.transport.is_closing():
            if self.conn.our_state is h11.SEND_RESPONSE:
                super().send_400_response("Send larger chunks, and wait for the response before the next request.")
            else:
                self.transport.close()

    def connection_made(self, transport):
        super().connection_made(transport)
        self._wait_for_head(self.conn.their_state is h11.IDLE)

    def handle_events(self):
        super().handle_events()
        self._wait_for_head(self.conn.their_state is h11.IDLE)

    def connection_lost(self, exc):
        self._wait_for_head(False)
        super().connection_lost(exc)

    def _wait_for_head(self, waits: bool):
        if waits and self._head_timeout is None:
            self._head_timeout = self.loop.call_later(_HEAD_TIMEOUT, self.transport.close)
        elif not waits and self._head_timeout is not None:
            self._head_timeout = self._head_timeout.cancel()

    def send_400_response(self, msg: str):
        super().send_400_response(f"{msg} The head of a request may have at most {MAX_HEAD_BYTES} bytes.")


def make_server(app: FastAPI, host: str = "127.0.0.1", port: int = 8000, shutdown_grace: float = 30.0) -> RewardServer:
    """Create a [`RewardServer`] for an app from [`make_app`]; its `run()` blocks."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_Protocol,
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=1,
    )
    return RewardServer(config, shutdown_grace)


def load_engine(args: argparse.Namespace) -> EncodingEngine:
    """Load the engine specified on the command line. Raises `ValueError` if the model is not a reward model, or there are too few GPUs."""
    if args.backend == "vllm":
        needed, found = args.tensor_parallel_size * args.data_parallel_size, torch.cuda.device_count()
        if torch.cuda.is_available() and needed > found:
            raise ValueError(
                f"`tensor_parallel_size` times `data_parallel_size` is {needed}, but this machine has {found} GPU(s)."
            )
        from ..vllm.engine import VLLMEngine

        return VLLMEngine(args.model, **{"dtype": args.dtype, **args.vllm_options})
    model, tokenizer = load_reward_model(args.model, dtype=args.dtype)
    return TransformersEngine(model, tokenizer, args.batch_size)


def load_chats(args: argparse.Namespace) -> RenderedChats | None:
    """
    Load the parser for conversations that are rendered with the policy's chat template (by default, the reward model's).
    Return `None` if no policy is named and the reward model's template does not allow parsing.
    """
    if args.policy_tokenizer is not None:
        chats = RenderedChats(AutoTokenizer.from_pretrained(args.policy_tokenizer))
        logger.info("%s parse texts with the chat template of %s.", _TEXT_ROUTES, args.policy_tokenizer)
        return chats
    try:
        chats = RenderedChats(AutoTokenizer.from_pretrained(tokenizer_source(args.model)), is_guess=True)
    except ValueError as error:
        logger.warning("%s are disabled without --policy_tokenizer: %s", _TEXT_ROUTES, error)
        return None
    logger.warning(
        "%s parse texts with the chat template of the reward model, %s, and refuse texts with a system turn. Name the policy "
        "with --policy_tokenizer.",
        _TEXT_ROUTES,
        args.model,
    )
    return chats


def bind(host: str, port: int) -> socket.socket:
    """
    Reserve an address without listening on it yet. Raises `OSError`, with a short message, if this fails, for example because the
    address is taken.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # A restarted server should not have to wait for old connections to leave TIME_WAIT
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another `--port`.") from error
    return listener


def start_line(app: FastAPI, runs_on: str, url: str, has_key: bool) -> str:
    """Describe what is served, and where."""
    found = pages.describe(app)
    context = f"context {found['context_length']} tokens" if found["context_length"] else "context unknown"
    key = "a key is required" if has_key else "no key"
    return f"{found['description']} {runs_on}, {context}, {key}. {url}/docs describes {', '.join(found['routes'])}."


def log_as_json():
    """Log requests and server events as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def load_app(args: argparse.Namespace) -> FastAPI:
    """Load the model specified on the command line, and create the application that serves it."""
    # Scoring reacquires the GIL after each operation. With the default switch interval of 5 ms, it would wait a long time while a request
    # is parsed or encoded
    sys.setswitchinterval(0.0005)
    limits = Limits(**{name: getattr(args, name) for name in vars(Limits())})
    # Report mistakes before the model loads, which may take minutes
    check_reward_model(args.model, read_model_config(args.model))
    chats = load_chats(args)
    engine = load_engine(args)
    version = identify_model(args.model)["model_version"]
    app = make_app(engine, limits, args.api_key, chats, [*args.allowed_hosts, args.host], version)
    # Exempt all objects that the libraries and the model have created from garbage collection: they live as long as the process, and
    # visiting them in each full collection would take seconds
    gc.freeze()
    return app


def serve(args: argparse.Namespace):
    """Load the model specified on the command line, and serve until stopped."""
    log_as_json()
    # Reserve the address before the model loads, because it may already be in use
    with bind(args.host, args.port) as listener:
        app = load_app(args)
        if args.host not in ("127.0.0.1", "::1", "localhost") and args.api_key is None:
            logger.warning("Listening on %s without a key: anyone who can reach it can use it.", args.host)
        url = f"http://{args.host}:{listener.getsockname()[1]}"
        logger.info("%s", start_line(app, app.state.service.engine.runs_on, url, args.api_key is not None))
        make_server(app, args.host, args.port, args.shutdown_grace).run(sockets=[listener])


if __name__ == "__main__":
    run("cloud_hf.serving.server.command", prog="python -m cloud_hf.serving.server")
