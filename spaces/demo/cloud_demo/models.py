"""The reward models and benchmark rows behind the page. Importing this takes seconds; `backend.py` does it in a thread."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cloud_hf.evaluation.benchmarks import BENCHMARKS, load_benchmarks, preference_pairs
from cloud_hf.evaluation.metrics.best_of_n import expected_best_of
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.loading import load_reward_model
from cloud_hf.serving.server.engine import EngineDeadError, RewardEngine, TransformersEngine

from .arguments import DemoArguments
from .problems import Problem
from .remote_engine import RemoteEngine


@dataclass
class Models:
    """
    What is open.

    Args:
        cloud (`RewardEngine`):
            The model that critiques. (It may be a classic one; then there are no critiques.)
        classic (`RewardEngine`, *optional*):
            The classic model it is compared with.
        rows (`list[BenchmarkRow]`, *optional*):
            Preference pairs.
        rows_problem (`str`, *optional*):
            Why there are no rows, though some were named.
    """

    cloud: RewardEngine
    classic: RewardEngine | None = None
    rows: list[BenchmarkRow] = field(default_factory=list)
    rows_problem: str | None = None


def open_models(args: DemoArguments) -> Models:
    """
    Load what the arguments name.

    Raises:
        `Problem`: If a model cannot be opened; the message says why.
    """
    rows, rows_problem = [], None
    try:
        cloud = _open_engine(args.model, args.server_url, args)
        has_classic = args.classic_model or args.classic_server_url
        classic = _open_engine(args.classic_model, args.classic_server_url, args) if has_classic else None
    except (ValueError, OSError, ImportError) as error:
        raise Problem(f"The model cannot be opened. {error}") from error
    if args.rows is not None:
        try:
            rows = load_pairs(args.rows, args.rows_split)
        except (ValueError, OSError) as error:
            rows_problem = f"The rows cannot be read. {error}"
    return Models(cloud, classic, rows, rows_problem)


def load_pairs(spec: str, split: str) -> list[BenchmarkRow]:
    """
    The rows that `DemoArguments.rows` names.

    Raises:
        `ValueError`: If they are not usable, or a row has more than one right or wrong response.
    """
    if spec.partition("=")[0] in BENCHMARKS:
        [benchmark] = load_benchmarks([spec])
        rows = benchmark.rows
    else:
        rows = preference_pairs.load([spec], split)
    for row in rows:
        if len(row.responses) != 2:
            raise ValueError(f"{spec}: row {row.id} has {len(row.responses)} responses; the demo shows pairs.")
    return rows


def check(engine: RewardEngine, prompt, response: str, max_new_tokens: int):
    """Raise `Problem` unless the engine can judge the response."""
    try:
        engine.check(prompt, response, max_new_tokens)
    except ValueError as error:
        raise Problem(str(error).removeprefix("Row 0: ")) from error


def problem_of(error: Exception) -> Exception:
    """An engine's error as a `Problem`, if it has words for people, or the error itself."""
    if isinstance(error, EngineDeadError):
        return Problem("The model has stopped working. Whoever runs this demo must start it again.")
    return error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, the GPU's or the machine's, did not suffice."""
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)


def expected_highest(rewards: Sequence[float]) -> list[float]:
    """For each n the highest reward that is to be expected among n of the candidates."""
    return [expected_best_of(list(rewards), list(rewards), n) for n in range(1, len(rewards) + 1)]


def _open_engine(model: str | None, server_url: str | None, args: DemoArguments) -> RewardEngine:
    if args.backend == "server":
        engine = RemoteEngine(server_url, os.environ.get(args.api_key_env))
        engine.ask_kind()
        return engine
    if args.backend == "vllm":
        import json

        from cloud_hf.serving.vllm.engine import VLLMEngine

        return VLLMEngine(model, **{"dtype": args.dtype, **json.loads(args.vllm_options or "{}")})
    loaded, tokenizer = load_reward_model(model, dtype=args.dtype)
    if os.environ.get("SPACES_ZERO_GPU") == "true":
        from .zero_gpu import ZeroGPUEngine

        return ZeroGPUEngine(loaded, tokenizer, args.batch_size)
    return TransformersEngine(loaded, tokenizer, args.batch_size)
