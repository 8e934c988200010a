"""
Models and benchmark rows for the page. Models run in this process, on a ZeroGPU Space, or on a reward server.

Importing this module takes seconds, so `backend.py` imports it in a thread. How ZeroGPU lends GPUs:
https://huggingface.co/docs/hub/spaces-zerogpu
"""

import asyncio
import copy
import json
import os
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field

import httpx2

from cloud_hf.evaluation.benchmarks import BENCHMARKS, load_benchmarks, preference_pairs
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.loading import load_reward_model, read_model_config
from cloud_hf.printable import read_key
from cloud_hf.scalar_models import ScalarScorer, is_scalar_model, load_scalar_model, read_label_weights
from cloud_hf.scores import Sampling, Score
from cloud_hf.serving.client import CLoudClient, RewardServerError
from cloud_hf.serving.http_answers import read_body, read_json, read_parts, read_score
from cloud_hf.serving.server.engine import RewardEngine, TransformersEngine

from . import Problem
from .arguments import DemoArguments, on_zero_gpu, public_name
from .rows import Judgement, read_results


_END = object()
# How much a response's reward may vary between batches, by dtype. README.md explains "too close to rank"
_NOISE = {"float32": 0.001, "unknown": 0.05}


@dataclass
class Models:
    """
    The loaded models and rows. `cloud` and `classic` (the comparison model) may each be of any kind. If the rows could not be loaded,
    `rows_problem` says why.

    `made` describes the computation, such as "float32 with transformers on cpu", and `warnings` lists what readers must know about the
    rewards. `results` contains a label that names an evaluation's models and folder, and the evaluation's scores for the rows.
    """

    cloud: RewardEngine
    classic: RewardEngine | None = None
    rows: list[BenchmarkRow] = field(default_factory=list)
    rows_problem: str | None = None
    made: str = ""
    warnings: list[str] = field(default_factory=list)
    results: tuple[str, dict[int, Judgement]] | None = None
    # A smaller difference between rewards may be due to rounding alone, which depends on the other sequences in the batch
    noise: float = _NOISE["float32"]
    # Number of responses to judge concurrently if each result is shown as soon as it is ready
    at_once: int = 16

    @staticmethod
    def kind_of(engine: RewardEngine) -> str:
        """Describe the kind of a model in words."""
        if isinstance(engine, ScalarEngine):
            return "scalar"
        return {True: "CLoud", False: "classic", None: "not answering yet"}[engine.critique]

    @property
    def names(self) -> tuple[str, str]:
        """Names of the models on the page: their kinds, or their own names if both are of the same kind."""
        if self.classic is None:
            return self.kind_of(self.cloud), ""
        kinds = self.kind_of(self.cloud), self.kind_of(self.classic)
        return kinds if kinds[0] != kinds[1] else (public_name(self.cloud.name), public_name(self.classic.name))


def open_models(args: DemoArguments) -> Models:
    """
    Load the models and rows that the arguments name.

    Raises:
        `Problem`: If a model cannot be opened, or `results` contains no scores of these models.
    """
    rows, rows_problem, results = [], None, None
    if args.rows is not None:
        try:
            rows = load_pairs(args.rows, args.rows_split)
        except (ValueError, OSError) as error:
            rows_problem = f"The rows cannot be loaded. {_without_folders(error, args)}"
    if rows and args.results is not None:
        try:
            results = read_results(args.results, rows, [name for name in (args.model, args.classic_model) if name])
        except (ValueError, OSError) as error:
            raise Problem(f"The results cannot be used. {_without_folders(error, args)}") from error
    try:
        loaded = []
        opened = Models(_open_engine(args.model, args.server_url, args, loaded), made=args.backend)
        if args.classic_model or args.classic_server_url:
            opened.classic = _open_engine(args.classic_model, args.classic_server_url, args, loaded)
    except (ValueError, OSError, ImportError) as error:
        raise Problem(f"The model cannot be opened. {_without_folders(error, args)}") from error
    opened.rows, opened.rows_problem = rows, rows_problem
    _describe(opened, loaded, args)
    if results is not None:
        _add_results(opened, *results, public_name(str(args.results)))
    return opened


def _add_results(
    opened: Models, names: tuple[str, str], scores: dict[int, Judgement], are_compared: bool, folder: str
):
    """Add an evaluation's scores, in the order of the demo's models."""
    if opened.classic is not None and opened.cloud.critique is opened.classic.critique is not None:
        kind = "CLoud models" if opened.cloud.critique else "models without critiques"
        raise Problem(
            f"The results cannot be used. They come from a CLoud model and a model without critiques, but the demo opens two {kind}."
        )
    if opened.cloud.critique is False:
        names, scores = names[::-1], {index: Judgement(row.classic, row.cloud) for index, row in scores.items()}
    source = f"{names[0]} and {names[1]} in {folder}"
    opened.results = source, scores
    if not are_compared:
        opened.warnings.append(
            f"The rows' scores come from {source}; whether these are the demo's models could not be checked."
        )


def _without_folders(error: Exception, args: DemoArguments) -> str:
    """Return an error's message with the folders from the arguments shortened, because visitors see the message."""
    words = str(error)
    for path in filter(None, (args.model, args.classic_model, args.rows, args.results)):
        words = words.replace(path, public_name(path))
    return words


def _describe(opened: Models, loaded: list, args: DemoArguments):
    """Describe what the rewards depend on; `loaded` contains the models in this process if they run on transformers."""
    if not loaded:
        opened.noise = _NOISE["float32" if args.dtype == "float32" else "unknown"]
        return
    dtype, device = str(loaded[0].dtype).removeprefix("torch."), loaded[0].device.type
    opened.made = f"{dtype} with transformers on {device}"
    opened.noise = _NOISE.get(dtype, _NOISE["unknown"])
    opened.at_once = 1 if device == "cpu" else 4
    for model in loaded:
        dense = model.reward_head.dense
        # An all-zero bias means an untrained head: the bias is initialised to zero, and the first training step changes it
        if dense is not None and not dense.bias.any():
            opened.warnings.append(
                f"The reward head of {public_name(model.name_or_path)} has never been trained: its rewards are random."
            )


def load_pairs(spec: str, split: str) -> list[BenchmarkRow]:
    """
    Load the rows that `DemoArguments.rows` names.

    Raises:
        `ValueError`: If the rows are unusable, or a row does not have exactly two responses.
    """
    if spec.partition("=")[0] in BENCHMARKS:
        [benchmark] = load_benchmarks([spec])
        rows = benchmark.rows
    else:
        rows = preference_pairs.load([spec], split)
    for row in rows:
        if len(row.responses) != 2:
            raise ValueError(f"{spec}: {row.id} has {len(row.responses)} responses; the demo shows pairs.")
    return rows


def _open_engine(model: str | None, server_url: str | None, args: DemoArguments, loaded: list) -> RewardEngine:
    if args.backend == "server":
        engine = RemoteEngine(str(server_url), os.environ.get(args.api_key_env) or None)
        engine.ask_kind()
        return engine
    if args.backend == "vllm":
        from cloud_hf.serving.vllm.engine import VLLMEngine

        return VLLMEngine(str(model), **{"dtype": args.dtype, **json.loads(args.vllm_options or "{}")})
    if is_scalar_model(config := read_model_config(str(model))):
        read_label_weights(str(model), config)
        if on_zero_gpu():
            raise ValueError(
                f"{model} is a third-party scalar model, which cannot run on ZeroGPU. Choose other hardware for this Space."
            )
        return ScalarEngine(*load_scalar_model(str(model), dtype=args.dtype), args.batch_size)
    reward_model, tokenizer = load_reward_model(str(model), dtype=args.dtype)
    loaded.append(reward_model)
    engine_class = ZeroGPUEngine if on_zero_gpu() else TransformersEngine
    return engine_class(reward_model, tokenizer, args.batch_size)


class ScalarEngine:
    """`RewardEngine` for a third-party scalar model, which writes no critiques. Accepts the arguments of [`ScalarScorer`]."""

    critique = False

    def __init__(self, model, tokenizer, batch_size: int = 16):
        self.name = model.name_or_path
        # Checks run while the worker scores, so they need a separate tokenizer
        self._checker = ScalarScorer(model, copy.deepcopy(tokenizer))
        self._scorer = ScalarScorer(model, tokenizer, batch_size=batch_size)
        self.context_length = self._scorer.context_length
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """See `RewardEngine`."""
        with self._lock:
            self._checker.read_rows([prompt], [response], critiques=None if critiques is None else [critiques])

    async def score(self, prompt, response: str, sampling: Sampling, critiques: list[str] | None = None) -> Score:
        """See `RewardEngine`."""
        loop = asyncio.get_running_loop()
        [score] = await loop.run_in_executor(self._worker, self._scorer.score, [prompt], [response])
        return score

    async def stream(self, prompt, response: str, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """See `RewardEngine`. The stream consists of the score alone, because there is no critique."""
        yield await self.score(prompt, response, sampling)

    async def close(self) -> None:
        """Stop once the running request has finished."""
        self._worker.shutdown()


# ----------------------------------------------------------------------------------------------------- reward server


# Report failures soon, because a visitor is waiting
_MAX_RETRIES = 1
_CONNECT_SECONDS = 5.0
_READ_SECONDS = 300.0
_EVENT = b"data: "
# Maximum bytes of an error response. An event stream may also contain `_BYTES_PER_TOKEN` for each critique token
_LONGEST_MESSAGE = 2**20
_BYTES_PER_TOKEN = 2**12


class RemoteEngine:
    """
    `RewardEngine` that calls a reward server (`python -m cloud_hf.serving.server`). Closing a stream stops the server's work on it.

    `critique` and `context_length` are `None` until the server has responded.
    """

    def __init__(self, url: str, api_key: str | None = None):
        self.name = url
        self.critique: bool | None = None
        self.context_length: int | None = None
        self._client = CLoudClient(url, api_key, timeout=_READ_SECONDS, max_retries=_MAX_RETRIES)
        # Loading the certificates takes longer than a short request, so skip it for plain HTTP
        self._is_secure = url.startswith("https://")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {read_key(api_key, '`api_key`')}"}

    def check(self, prompt, response: str, max_new_tokens: int, critiques: list[str] | None = None) -> None:
        """Ask the server which kind of model it serves, unless this is already known. The server itself checks the request."""
        if self.critique is None:
            self.ask_kind()

    def ask_kind(self):
        """Request the kind of model and its context length. Failures are ignored here, because the next request reports them."""
        with suppress(RewardServerError):
            served = self._client.served_model()
            self.critique, self.context_length = served.critique, served.context_length

    async def score(self, prompt, response: str, sampling: Sampling, critiques: list[str] | None = None) -> Score:
        """See `RewardEngine`."""
        given = None if critiques is None else [critiques]
        try:
            [score] = await self._client.ascore([prompt], [response], critiques=given, **asdict(sampling))
        except ValueError as error:  # the server rejected the request
            raise Problem(f"The reward server rejected this request. {self._reason(error)}") from error
        except RewardServerError as error:
            raise Problem(f"The reward server could not be reached or failed: {self._reason(error)}") from error
        return score

    async def stream(self, prompt, response: str, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """See `RewardEngine`."""
        asked = {key: value for key, value in asdict(sampling).items() if value is not None}
        body = {
            "inputs": [{"prompt": prompt, "response": response}],
            "stream": True,
            "return_critique_ids": True,
            **asked,
        }
        timeout = httpx2.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS)
        try:
            async with (
                httpx2.AsyncClient(timeout=timeout, headers=self._headers, verify=self._is_secure) as http,
                http.stream("POST", self._client.url, json=body) as answer,
                aclosing(_read_lines(answer, _LONGEST_MESSAGE + sampling.max_new_tokens * _BYTES_PER_TOKEN)) as lines,
            ):
                if answer.status_code != 200:
                    await read_body(answer, _LONGEST_MESSAGE)
                    raise Problem(f"The reward server rejected this request. {_error_in(answer)}")
                async for line in lines:
                    if line.startswith(_EVENT) and line != _EVENT + b"[DONE]":
                        yield _read_event(read_json(line.removeprefix(_EVENT)))
        except httpx2.RequestError as error:
            raise Problem(
                "The reward server could not be reached, or its response was cut off. Try again later."
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise Problem("The reward server's response is not a valid judgement.") from error

    async def close(self) -> None:
        """Do nothing, because each call closes its own connection."""

    def _reason(self, error: Exception) -> str:
        """Reduce `Row 0: http://…/v1/rewards: status 422: Row 0: the sentence` to `the sentence`."""
        return re.sub(r"^status 4\d\d: (Row 0: )?", "", str(error).partition(f"{self._client.url}: ")[2])


async def _read_lines(answer: httpx2.Response, limit: int) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for part in read_parts(answer, limit):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line


def _read_event(event: dict) -> str | Score:
    """Return the piece of the critique, or the score, in an event. Raises `Problem` if the event reports an error."""
    if "error" in event:
        raise Problem(f"The reward server rejected this request. {event['error']}")
    return f"{event['critique']}" if "critique" in event else read_score(event["result"])


def _error_in(response: httpx2.Response) -> str:
    try:
        return f"{read_json(response.content)['error']}"
    except (ValueError, KeyError, TypeError):
        return f"Status {response.status_code}."


# ----------------------------------------------------------------------------------------------------------- ZeroGPU


def _borrow_gpu(function: Callable) -> Callable:
    """Run a function in a process that has a GPU, for at most two minutes."""
    if not on_zero_gpu():
        return function
    import spaces  # exists only on Spaces; `app.py` imports it before torch

    return spaces.GPU(duration=120)(function)


# Models cannot be sent to the process that has the GPU, but that process is a fork of this one and inherits this dictionary
_engines: dict[str, TransformersEngine] = {}


@_borrow_gpu
def _write(name: str, prompt, response: str, sampling: Sampling) -> Iterator[str | Score]:
    pieces = _engines[name].stream(prompt, response, sampling)
    with asyncio.Runner() as runner:
        while (piece := runner.run(_next(pieces))) is not _END:
            yield piece


@_borrow_gpu
def _judge(name: str, prompt, response: str, sampling: Sampling, critiques: list[str] | None) -> Score:
    return asyncio.run(_engines[name].score(prompt, response, sampling, critiques))


async def _next(pieces: AsyncGenerator):
    return await anext(pieces, _END)


class ZeroGPUEngine:
    """
    `RewardEngine` that borrows a GPU for each request, in a separate process. Accepts the arguments of [`TransformersEngine`].

    This process only checks requests, because threads started here would not exist in the processes that have the GPU.
    """

    def __init__(self, model, tokenizer, batch_size: int = 16):
        self._engine = engine = TransformersEngine(model, tokenizer, batch_size)
        self.name, self.critique, self.context_length = engine.name, engine.critique, engine.context_length
        self.check, self.close = engine.check, engine.close
        _engines[self.name] = engine

    async def score(self, prompt, response: str, sampling: Sampling, critiques: list[str] | None = None) -> Score:
        """See `RewardEngine`."""
        return await asyncio.to_thread(_judge, self.name, prompt, response, sampling, critiques)

    async def stream(self, prompt, response: str, sampling: Sampling) -> AsyncGenerator[str | Score, None]:
        """See `RewardEngine`."""
        pieces = _write(self.name, prompt, response, sampling)
        while (piece := await asyncio.to_thread(next, pieces, _END)) is not _END:
            yield piece
