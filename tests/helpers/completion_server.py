"""
An OpenAI-compatible server on loopback whose answers follow from the request alone, and which fails on demand.

Tests use it next to the real engine: unlike a real server, it fails on request and counts its requests.
"""

import asyncio
import hashlib
import json
import random
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web


FAULTS = ("429", "429 with Retry-After", "500", "503", "stall", "close", "truncated", "empty", "null")


@dataclass
class CompletionServer:
    """
    What it does, and what it saw.

    Args:
        model (`str`): The one model it serves.
        fault_rate (`float`): Share of the requests that fail with one of `FAULTS`.
        latency (`float`): Seconds before an answer.
        key (`str`, *optional*): Key it wants.
        owner (`str`, *optional*): Program that serves, as the list of models says.
        write (`callable`, *optional*): From the request's body to the text, the finish reason, or a `web.Response`.
    """

    model: str = "tiny"
    fault_rate: float = 0.0
    latency: float = 0.0
    key: str | None = None
    write: object = None
    owner: str | None = None
    stall: float = 30.0
    url: str = ""
    requests: Counter = field(default_factory=Counter)  # by body
    answered: Counter = field(default_factory=Counter)  # by body
    faults: Counter = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0

    async def models(self, request: web.Request) -> web.Response:
        if (refused := self._refuse(request)) is not None:
            return refused
        model = {"id": self.model, "object": "model", **({} if self.owner is None else {"owned_by": self.owner})}
        return web.json_response({"object": "list", "data": [model]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._refuse(request)) is not None:
            return refused
        text = await request.text()
        body = json.loads(text)
        self.requests[text] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            generator = random.Random(f"{text}/{self.requests[text]}")
            await asyncio.sleep(self.latency * generator.uniform(0.5, 1.5))
            if generator.random() < self.fault_rate:
                fault = generator.choice(FAULTS)
                # An empty answer at temperature 0 is final
                is_final = fault in ("empty", "null") and body.get("temperature") == 0
                return await self._fail(request, "500" if is_final else fault)
            return self._answer(request, text, body)
        finally:
            self.in_flight -= 1

    @staticmethod
    def default(body: dict) -> tuple[str, str]:
        return default_answer(body)

    def _answer(self, request: web.Request, text: str, body: dict) -> web.Response:
        written = (self.write or self.default)(body)
        if isinstance(written, web.Response):
            return written
        content, reason = written
        self.answered[text] += 1
        return self._completion(request, content, reason)

    def _completion(self, request: web.Request, content, reason: str) -> web.Response:
        said = {"message": {"role": "assistant", "content": content}} if "chat" in request.path else {"text": content}
        choice = {"index": 0, "finish_reason": reason, **said}
        return web.json_response({"id": "x", "object": "completion", "model": self.model, "choices": [choice]})

    def _refuse(self, request: web.Request) -> web.Response | None:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            said = request.headers.get("Authorization", "")
            return web.json_response({"error": {"message": f"Incorrect API key: {said}"}}, status=401)
        return None

    async def _fail(self, request: web.Request, fault: str) -> web.StreamResponse:
        self.faults[fault] += 1
        if fault == "stall":
            await asyncio.sleep(self.stall)
            fault = "close"
        if fault == "close":
            if request.transport is not None:  # the client may have left
                request.transport.abort()
            return web.Response()
        if fault == "truncated":
            return web.Response(text='{"choices": [{"message": {"content": "cut o', content_type="application/json")
        if fault in ("empty", "null"):
            return self._completion(request, "" if fault == "empty" else None, "stop")
        headers = {"Retry-After": "0.05"} if "Retry-After" in fault else {}
        return web.json_response({"error": {"message": "a fault"}}, status=int(fault[:3]), headers=headers)


def default_answer(body: dict) -> tuple[str, str]:
    """Some words that follow from the request, longer for some than for others."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return f"The answer {digest[:8]} is fine." * (1 + int(digest[8], 16) % 4), "stop"


@contextmanager
def serve_completions(**options):
    """A [`CompletionServer`] in its own thread."""
    server = CompletionServer(**options)
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def serve():
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", server.models)
        app.router.add_post("/v1/chat/completions", server.answer)
        app.router.add_post("/v1/completions", server.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
        started.set()
        server.stop = asyncio.Event()
        await server.stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)

    def stop():
        if thread.is_alive():
            loop.call_soon_threadsafe(server.stop.set)
            thread.join()

    server.loop_stop = stop
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        stop()
        loop.close()
