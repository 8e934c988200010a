"""The reward server's routes: our own, and those that OpenRLHF and LLaMA-Factory call."""

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from ... import __version__
from ...scores import Score
from .contracts import (
    ErrorResponse,
    HealthResponse,
    LlamaFactoryRequest,
    LlamaFactoryResponse,
    OpenRLHFRequest,
    OpenRLHFResponse,
    RewardRequest,
    RewardResponse,
    RewardResult,
)
from .middleware import HEALTH_ROUTE, RequestRecord
from .service import RewardService


# Documents the errors that the middleware and the service may return
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 413, 422, 429, 503, 504)
}

router = APIRouter()


def service_of(request: Request) -> RewardService:
    """Return the server's [`RewardService`]."""
    return request.app.state.service


def record_of(request: Request) -> RequestRecord:
    """Return the log entry of a request."""
    return request.scope["cloud_record"]


# -------------------------------------------------------------------------------------------------------- our routes


@router.post("/v1/rewards", response_model=RewardResponse, response_model_exclude_none=True, responses=ERRORS)
async def rewards(body: RewardRequest, request: Request) -> RewardResponse | Response:
    """Score responses. Return rewards, their spread, critiques, and the reason each critique ended."""
    service, record = service_of(request), record_of(request)
    try:
        rows = body.rows()
    except ValueError as error:
        raise HTTPException(422, f"{error}.") from error
    sampling = body.sampling(service.limits.max_new_tokens)
    if body.stream:
        pieces = await service.stream(rows[0], sampling, record)
        return EventStream(_events(pieces, body, record))
    scores = await service.score(rows, sampling, record)
    return RewardResponse(model=service.name, results=[RewardResult.of(score, body) for score in scores])


class EventStream(StreamingResponse):
    """
    Server-sent events. sse-starlette would add pings and its own disconnect watcher, which the middleware makes redundant. Unlike
    Starlette's class, this one closes its generator as soon as the response is cancelled; the engine then drops the request.
    """

    def __init__(self, events: AsyncGenerator[str, None]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter for nginx
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self.events = events

    async def __call__(self, scope, receive, send):
        async with aclosing(self.events):
            await self.stream_response(send)


async def _events(
    pieces: AsyncGenerator[str | Score, None], body: RewardRequest, record: RequestRecord
) -> AsyncGenerator[str, None]:
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                if isinstance(piece, Score):
                    yield _event({"result": RewardResult.of(piece, body).model_dump(exclude_none=True)})
                else:
                    yield _event({"critique": piece})
        except HTTPException as error:
            record.status, record.error = error.status_code, str(error.detail)
            yield _event({"error": error.detail})
        yield "data: [DONE]\n\n"


def _event(data: dict) -> str:
    return f"data: {json.dumps(data)}\n\n"


@router.get(HEALTH_ROUTE, responses={503: {"model": ErrorResponse}})
async def health(request: Request) -> HealthResponse:
    """Return 200 and the model's properties when ready, 503 while shutting down or after the engine has stopped."""
    service = service_of(request)
    if service.lifecycle.engine_dead:
        raise HTTPException(503, "The engine has stopped.")
    engine = service.engine
    return HealthResponse(
        model=service.name,
        critique=engine.critique,
        context_length=engine.context_length,
        model_version=service.model_version,
        version=__version__,
    )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return counts and durations for Prometheus."""
    registry = service_of(request).metrics.registry
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


# -------------------------------------------------------------------------------------------------- trainers' routes


@router.post("/get_reward", response_model=OpenRLHFResponse, responses=ERRORS)
async def get_reward(body: OpenRLHFRequest, request: Request) -> OpenRLHFResponse:
    """Act as OpenRLHF's remote reward model."""
    scores = await service_of(request).score_texts(body.query, body.prompts, "query", record_of(request))
    rewards = [score.reward for score in scores]
    extra_logs = {
        "critique_tokens": [float(sum(map(len, score.critique_ids))) for score in scores],
        "critique_truncated": [float("length" in score.finish_reasons) for score in scores],
        "response_changed": [float(score.response_changed) for score in scores],
    }
    return OpenRLHFResponse(rewards=rewards, scores=rewards, extra_logs=extra_logs)


@router.post("/v1/score/evaluation", response_model=LlamaFactoryResponse, responses=ERRORS)
async def score_evaluation(body: LlamaFactoryRequest, request: Request) -> LlamaFactoryResponse:
    """Act as LLaMA-Factory's reward model of type `api`."""
    service = service_of(request)
    scores = await service.score_texts(body.messages, None, "messages", record_of(request))
    rewards = [score.reward for score in scores]
    return LlamaFactoryResponse(id=f"scoreval-{uuid.uuid4().hex}", model=service.name, scores=rewards)
