"""
The reward server: critiques and rewards over HTTP.

python -m cloud_hf.serving.server runs/quickstart/cloud --port 8000
python -m cloud_hf.serving.server org/my-cloud-rm --backend vllm --vllm_options '{"max_model_len": 4096}'

It listens on this machine only unless `--host` says otherwise; then give it a key (`CLOUD_API_KEY`). `/docs` describes its
routes: our `/v1/rewards`, OpenRLHF's `/get_reward`, LLaMA-Factory's `/v1/score/evaluation`, `/health` and `/metrics`.
"""

import argparse
import asyncio
import json
import logging
import math
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import asdict, replace

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from transformers import AutoTokenizer

from ...scoring import Score
from ..rendered_chats import RenderedChats
from .contracts import (
    ErrorResponse,
    HealthResponse,
    LlamaFactoryRequest,
    LlamaFactoryResponse,
    OpenRLHFRequest,
    OpenRLHFResponse,
    Options,
    RewardRequest,
    RewardResponse,
    RewardResult,
    Row,
    spell_path,
)
from .engine import EngineDeadError, RewardEngine, TransformersEngine
from .middleware import (
    HEALTH_ROUTE,
    Gate,
    JsonFormatter,
    Lifecycle,
    Limits,
    Metrics,
    Refusal,
    RequestRecord,
    record_of,
)


logger = logging.getLogger(__name__)

_ERRORS = {status: {"model": ErrorResponse} for status in (400, 401, 413, 422, 429, 503, 504)}


class Judge:
    """
    Judges the rows of requests with an engine, within limits.

    Args:
        engine ([`RewardEngine`]):
            What computes.
        limits ([`Limits`]):
            Rows, critiques, their length, and time.
        metrics ([`Metrics`]):
            Queue length and critique tokens.
        lifecycle ([`Lifecycle`]):
            Is told when the engine dies.
    """

    def __init__(self, engine: RewardEngine, limits: Limits, metrics: Metrics, lifecycle: Lifecycle):
        self.engine = engine
        self.limits = limits
        self.metrics = metrics
        self.lifecycle = lifecycle
        self.queued = 0
        # Few: each thread keeps memory of its own
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="checking")

    async def in_thread(self, function: Callable, *args):
        """Run what may take long with a large request beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def close(self):
        """Stop the engine."""
        self._threads.shutdown(cancel_futures=True)
        await self.engine.close()

    async def score(self, rows: list[Row], options: Options, record: RequestRecord) -> list[Score]:
        """The scores of all rows, in order. Raises [`Refusal`] before any work if one of them is not usable."""
        options = self._admit(rows, options, record)
        async with self._answering(self._deadline()):
            await self.in_thread(self._check, rows, options.max_new_tokens)
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._score_row(index, row, options)) for index, row in enumerate(rows)]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        scores = [task.result() for task in tasks]
        for score in scores:
            self._count(score, record)
        return scores

    async def stream(self, row: Row, options: Options, record: RequestRecord) -> AsyncIterator[str | Score]:
        """Pieces of one critique, and the score. Raises [`Refusal`] before there is an iterator, or while it runs."""
        options, deadline = self._admit([row], options, record), self._deadline()
        async with self._answering(deadline):
            await self.in_thread(self._check, [row], options.max_new_tokens)
        return self._pieces(row, options, record, deadline)

    async def _pieces(self, row, options, record, deadline) -> AsyncIterator[str | Score]:
        asked = {key: value for key, value in asdict(options).items() if key != "num_critiques"}
        async with aclosing(self.engine.stream(row.prompt, row.response, **asked)) as pieces:
            while True:
                # Not around the loop: what takes the pieces is not to be interrupted
                async with self._answering(deadline):
                    with _naming_row(0):
                        piece = await anext(pieces, None)
                if piece is None:
                    return
                if isinstance(piece, Score):
                    _check_finite(piece)
                    self._count(piece, record)
                yield piece

    def _admit(self, rows: list[Row], options: Options, record: RequestRecord) -> Options:
        """Check what is asked for as a whole, and take places in the queue until the request is over."""
        critiques = sum(options.num_critiques if row.critiques is None else len(row.critiques) for row in rows)
        limits, record.items = self.limits, critiques
        if critiques > limits.max_batch:
            raise Refusal(422, f"The request asks for {critiques} critiques; this server takes {limits.max_batch}.")
        if options.max_new_tokens is None:
            options = replace(options, max_new_tokens=limits.max_new_tokens)
        if options.max_new_tokens > limits.max_new_tokens:
            raise Refusal(
                422, f"`max_new_tokens` is {options.max_new_tokens}; this server's limit is {limits.max_new_tokens}."
            )
        if not self.engine.critique and (options.num_critiques > 1 or any(row.critiques for row in rows)):
            raise Refusal(422, "This is a classic reward model: drop `num_critiques` and `critiques`.")
        if self.lifecycle.engine_dead:
            raise Refusal(503, "The engine has stopped.")
        record.resources.enter_context(self._place(critiques))
        return options

    @contextmanager
    def _place(self, critiques: int):
        if self.queued + critiques > self.limits.max_queue:
            error = f"{self.queued} critiques are waiting already; at most {self.limits.max_queue} may."
            raise Refusal(429, error, {"Retry-After": "1"})
        self.queued += critiques
        self.metrics.queue.set(self.queued)
        try:
            yield
        finally:
            self.queued -= critiques
            self.metrics.queue.set(self.queued)

    def _check(self, rows: list[Row], max_new_tokens: int):
        for index, row in enumerate(rows):
            with _naming_row(index):
                self.engine.check(row.prompt, row.response, max_new_tokens, row.critiques)

    async def _score_row(self, index: int, row: Row, options: Options) -> Score:
        asked = asdict(options) if row.critiques is None else {"critiques": row.critiques}
        with _naming_row(index):
            score = await self.engine.score(row.prompt, row.response, **asked)
        _check_finite(score)
        return score

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.request_timeout

    @asynccontextmanager
    async def _answering(self, deadline: float):
        """A time limit, and what the engine's errors mean to a client."""
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            limit = self.limits.request_timeout
            raise Refusal(504, f"The request took longer than {limit:g} seconds and was given up.") from None
        except EngineDeadError:
            self.lifecycle.engine_dead = True
            raise Refusal(503, "The engine has stopped.") from None

    def _count(self, score: Score, record: RequestRecord):
        tokens = sum(map(len, score.critique_ids))
        record.critique_tokens += tokens
        self.metrics.tokens.inc(tokens)
        self.metrics.truncated.inc(score.finish_reasons.count("length"))


@contextmanager
def _naming_row(index: int):
    """An engine's `ValueError` says what is wrong with a row."""
    try:
        yield
    except ValueError as error:
        # An engine is given one row, and may count it
        raise Refusal(422, f"Row {index}: {str(error).removeprefix('Row 0: ')}") from error


def _check_finite(score: Score):
    if not all(map(math.isfinite, score.rewards)):
        raise Refusal(500, "The model gave a reward that is not a finite number.")


class EventStream(Response):
    """Server-sent events. Unlike a `StreamingResponse` it closes its generator when it is cancelled."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self.events) as events:
            async for event in events:
                body = f"data: {event}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_app(
    engine: RewardEngine,
    limits: Limits | None = None,
    api_key: str | None = None,
    chats: RenderedChats | None = None,
) -> FastAPI:
    r"""
    The server as an ASGI application. `app.state.lifecycle` says whether it takes requests.

    Args:
        engine ([`RewardEngine`]):
            What computes. It is closed when the application shuts down.
        limits ([`Limits`], *optional*):
            What is accepted.
        api_key (`str`, *optional*):
            Key that every route but `/health` asks for.
        chats ([`RenderedChats`], *optional*):
            Reads the chat template of the policy whose rollouts OpenRLHF or LLaMA-Factory send. Without it their routes
            answer 501.

    Returns:
        `FastAPI`
    """
    limits, metrics, lifecycle = limits or Limits(), Metrics(), Lifecycle()
    judge = Judge(engine, limits, metrics, lifecycle)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        lifecycle.draining = True
        await judge.close()

    app = FastAPI(title="CLoud reward server", lifespan=lifespan, redoc_url=None)
    app.state.lifecycle, app.state.metrics = lifecycle, metrics
    app.add_middleware(Gate, limits=limits, api_key=api_key, metrics=metrics, lifecycle=lifecycle)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Refusal, _answer_refusal)
    _add_own_routes(app, judge)
    _add_trainer_routes(app, judge, chats)
    return app


def _add_own_routes(app: FastAPI, judge: Judge):
    @app.post("/v1/rewards", response_model=RewardResponse, responses=_ERRORS)
    async def rewards(body: RewardRequest, request: Request) -> Response:
        """Judge responses: rewards, critiques, their spread, and why they ended."""
        try:
            rows = body.rows()
        except ValueError as error:
            raise Refusal(422, f"{error}.") from error
        record = record_of(request.scope)
        if body.stream:
            pieces = await judge.stream(rows[0], body.options(), record)
            return EventStream(_events(pieces, body, record))
        scores = await judge.score(rows, body.options(), record)
        results = [RewardResult.of(score, body) for score in scores]
        return _json(RewardResponse(model=judge.engine.name, results=results))

    @app.get(HEALTH_ROUTE, responses={503: {"model": ErrorResponse}})
    async def health() -> HealthResponse:
        """200 when ready, with what the model is; 503 while shutting down or once the engine has stopped."""
        if judge.lifecycle.engine_dead:
            raise Refusal(503, "The engine has stopped.")
        engine = judge.engine
        return HealthResponse(model=engine.name, critique=engine.critique, context_length=engine.context_length)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and durations for Prometheus."""
        return Response(generate_latest(judge.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _events(
    pieces: AsyncIterator[str | Score], body: RewardRequest, record: RequestRecord
) -> AsyncIterator[str]:
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                if isinstance(piece, Score):
                    yield json.dumps({"result": RewardResult.of(piece, body).model_dump(exclude_none=True)})
                else:
                    yield json.dumps({"critique": piece})
        except Refusal as refusal:
            record.status = refusal.status
            yield json.dumps({"error": refusal.error})
        yield "[DONE]"


def _add_trainer_routes(app: FastAPI, judge: Judge, chats: RenderedChats | None):
    async def score(texts: list[str], prompts: list[str] | None, field: str, request: Request) -> list[Score]:
        if chats is None:
            raise Refusal(501, "This server cannot read rendered chats; start it with `--policy_tokenizer`.")
        rows = await judge.in_thread(_read_chats, chats, texts, prompts, field)
        return await judge.score(rows, Options(), record_of(request.scope))

    @app.post("/get_reward", response_model=OpenRLHFResponse, responses=_ERRORS)
    async def get_reward(body: OpenRLHFRequest, request: Request) -> Response:
        """OpenRLHF's remote reward model."""
        scores = await score(body.query, body.prompts, "query", request)
        rewards = [score.reward for score in scores]
        extra_logs = {
            "critique_tokens": [float(sum(map(len, score.critique_ids))) for score in scores],
            "critique_truncated": [float("length" in score.finish_reasons) for score in scores],
        }
        return _json(OpenRLHFResponse(rewards=rewards, scores=rewards, extra_logs=extra_logs))

    @app.post("/v1/score/evaluation", response_model=LlamaFactoryResponse, responses=_ERRORS)
    async def score_evaluation(body: LlamaFactoryRequest, request: Request) -> Response:
        """LLaMA-Factory's reward model of type `api`."""
        scores = await score(body.messages, None, "messages", request)
        rewards = [score.reward for score in scores]
        return _json(LlamaFactoryResponse(id=f"scoreval-{uuid.uuid4().hex}", model=judge.engine.name, scores=rewards))


def _read_chats(chats: RenderedChats, texts: list[str], prompts: list[str] | None, field: str) -> list[Row]:
    rows = []
    for index, text in enumerate(texts):
        try:
            *messages, last = chats.parse(text, None if prompts is None else prompts[index])
            if last["role"] != "assistant":
                raise ValueError(f"It ends on a turn of the {last['role']}, but the assistant's is judged.")
        except ValueError as error:
            raise Refusal(422, f"Row {index}: `{field}` cannot be read as a conversation: {error}") from error
        rows.append(Row(messages, last["content"]))
    return rows


# ---------------------------------------------------------------------------------------------------------- answers


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")


def _answer_invalid(request: Request, error: RequestValidationError) -> Response:
    """The first thing that is wrong, and how many more there are; nothing of the body is repeated."""
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return _error(400, f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}.")
    path = spell_path(tuple(first["loc"][1:]))
    message = first["msg"].removeprefix("Value error, ")
    message = {"missing": "it is missing", "extra_forbidden": "there is no such field"}.get(first["type"], message)
    more = f" ({len(others)} more errors)" if others else ""
    return _error(422, f"`{path}`: {message}.{more}" if path else f"{message[:1].upper()}{message[1:]}.{more}")


def _answer_http(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, str(error.detail), dict(error.headers or {}))


def _answer_refusal(request: Request, refusal: Refusal) -> Response:
    return _error(refusal.status, refusal.error, refusal.headers)


def _error(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    # ASCII: a message may repeat a piece of the request
    return Response(json.dumps({"error": error}), status, headers, "application/json")


# ---------------------------------------------------------------------------------------------------------- running


# Tenths of a second
_IDLE_TICKS = 3


class RewardServer(uvicorn.Server):
    """
    Uvicorn that finishes what runs when it is told to stop (SIGTERM, SIGINT), and meanwhile answers 503 to what comes.
    Told twice, it stops at once.

    Args:
        config ([`~uvicorn.Config`]):
            Made for an app of [`make_app`].
        shutdown_grace (`float`, *optional*, defaults to `30.0`):
            Seconds that running requests have to finish; then they, too, are answered with 503.
    """

    def __init__(self, config: uvicorn.Config, shutdown_grace: float = 30.0):
        super().__init__(config)
        self.lifecycle: Lifecycle = config.app.state.lifecycle
        self.shutdown_grace = shutdown_grace
        self._stopped_at: float | None = None
        self._idle_ticks = 0

    def handle_exit(self, sig, frame):
        """Called on a signal."""
        if self._stopped_at is None:
            self.stop()
        else:
            self.shutdown_grace = 0.0

    def stop(self):
        """Take no more requests, and exit when those that run are finished."""
        self._stopped_at = time.monotonic()
        self.lifecycle.draining = True
        logger.info("Stopping: %d requests are running.", len(self.lifecycle.tasks))

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; says whether to exit."""
        if self._stopped_at is not None:
            if time.monotonic() - self._stopped_at > self.shutdown_grace:
                self.lifecycle.abort()
                self.should_exit = True
            # What has connected already may be about to send its request, and is to be told
            self._idle_ticks = 0 if self.lifecycle.tasks else self._idle_ticks + 1
            if self._idle_ticks >= _IDLE_TICKS:
                self.should_exit = True
        return await super().on_tick(counter)


def make_server(app: FastAPI, host: str = "127.0.0.1", port: int = 8000, shutdown_grace: float = 30.0) -> RewardServer:
    """A [`RewardServer`] for an app of [`make_app`]; its `run()` blocks."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=10,
    )
    return RewardServer(config, shutdown_grace)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    defaults = Limits()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a CLoud or classic model, or of a LoRA adapter.")
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api_key", default=os.environ.get("CLOUD_API_KEY"), help="Better set CLOUD_API_KEY.")
    parser.add_argument("--max_body_bytes", type=int, default=defaults.max_body_bytes, help="Largest request.")
    parser.add_argument("--max_batch", type=int, default=defaults.max_batch, help="Most critiques of a request.")
    parser.add_argument("--max_queue", type=int, default=defaults.max_queue, help="Most critiques that wait or run.")
    parser.add_argument("--max_new_tokens", type=int, default=defaults.max_new_tokens, help="Longest critique.")
    parser.add_argument("--request_timeout", type=float, default=defaults.request_timeout, help="Seconds.")
    parser.add_argument("--shutdown_grace", type=float, default=30.0, help="Seconds to finish what runs.")
    parser.add_argument("--policy_tokenizer", help="Model whose chat template OpenRLHF or LLaMA-Factory send.")
    parser.add_argument("--batch_size", type=int, default=16, help="Sequences computed at once (transformers).")
    parser.add_argument("--dtype", default="auto", help="Data type of the weights.")
    parser.add_argument("--vllm_options", type=json.loads, default={}, help="JSON with options of vLLM's engine.")
    args = parser.parse_args(arguments)
    if args.vllm_options and args.backend != "vllm":
        parser.error("--vllm_options needs --backend vllm")
    if args.api_key == "":
        parser.error("the key is empty")
    return args


def load_engine(args: argparse.Namespace) -> RewardEngine:
    """The engine that the command line names. Raises `ValueError` if the model is not a reward model."""
    if args.backend == "vllm":
        from ..vllm.engine import VLLMEngine

        return VLLMEngine(args.model, **{"dtype": args.dtype, **args.vllm_options})
    from ...loading import load_reward_model

    model, tokenizer = load_reward_model(args.model, dtype=args.dtype)
    return TransformersEngine(model, tokenizer, args.batch_size)


def load_chats(args: argparse.Namespace) -> RenderedChats | None:
    """What reads the policy's chat template; `None` if it was not named and the reward model's cannot be read back."""
    if args.policy_tokenizer is not None:
        return RenderedChats(AutoTokenizer.from_pretrained(args.policy_tokenizer))
    try:
        return RenderedChats(AutoTokenizer.from_pretrained(args.model))
    except ValueError as error:
        logger.warning("/get_reward and /v1/score/evaluation are off, for want of --policy_tokenizer: %s", error)
        return None


def main(arguments: list[str] | None = None):
    """Load the model and serve until told to stop."""
    args = parse_arguments(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    limits = Limits(args.max_body_bytes, args.max_batch, args.max_queue, args.max_new_tokens, args.request_timeout)
    chats = load_chats(args)
    app = make_app(load_engine(args), limits, args.api_key, chats)
    if args.host not in ("127.0.0.1", "::1", "localhost") and args.api_key is None:
        logger.warning("Listening on %s without a key: whoever reaches it can use it.", args.host)
    make_server(app, args.host, args.port, args.shutdown_grace).run()


if __name__ == "__main__":
    main()
