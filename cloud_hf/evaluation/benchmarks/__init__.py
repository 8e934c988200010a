"""
Benchmarks by name: loading their rows, and turning rewards into figures.

To add one, write a module with `load` and `score` like those here, and add an entry to `BENCHMARKS`.
"""

import difflib
import glob
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...data.rows import READERS
from ..rows import BenchmarkRow
from ..stats import BenchmarkScores
from ..tables import Table
from . import judge_bench, llm_bar, reward_bench, reward_bench_2, rm_bench


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark.

    Args:
        title (`str`):
            Its name in reports.
        hub_id (`str`):
            Its official dataset.
        paper (`str`):
            Where it is described.
        load (`Callable`):
            `load(names=None)` gives its rows: from files or datasets, or by default from the official dataset.
        score (`Callable`):
            `score(rows, rewards)` gives its figures; `rewards` holds, for each row, one reward per response.
        tables (`Callable`, *optional*):
            `tables(scores_by_model)` gives tables of its own for the report.
        result_files (`Callable`, *optional*):
            `result_files(scores, model)` gives the files that its leaderboard's tools read: their contents as JSON, by the
            first part of their names.

    Examples:

    ```python
    >>> benchmark = BENCHMARKS["rm_bench"]
    >>> rows = benchmark.load()
    >>> lengths = [[len(response) for response in row.responses] for row in rows]
    >>> benchmark.score(rows, lengths).figures["hard"].value
    ```
    """

    title: str
    hub_id: str
    paper: str
    load: Callable[..., list[BenchmarkRow]]
    score: Callable[[Sequence[BenchmarkRow], Sequence[Sequence[float]]], BenchmarkScores]
    tables: Callable[[Mapping[str, BenchmarkScores]], list[Table]] | None = None
    result_files: Callable[[BenchmarkScores, str], dict[str, dict[str, Any]]] | None = None


_REWARD_BENCH = ("RewardBench", reward_bench.HUB_ID, "https://arxiv.org/abs/2403.13787")
_JUDGE_BENCH = (judge_bench.HUB_ID, "https://arxiv.org/abs/2410.12784")


def _reward_bench_files(name: str) -> Callable[..., dict[str, dict[str, Any]]]:
    parts = {name: reward_bench.OFFICIAL_COUNTS, "reward_bench_prior_sets": reward_bench.PRIOR_SETS}
    return partial(reward_bench.result_files, parts=parts)


# Preference sets without figures of their own are read and scored by preference_pairs.py
BENCHMARKS = {
    "reward_bench": Benchmark(
        *_REWARD_BENCH, reward_bench.load, reward_bench.score, result_files=_reward_bench_files("reward_bench")
    ),
    "reward_bench_with_prior_sets": Benchmark(
        *_REWARD_BENCH,
        partial(reward_bench.load, prior_sets=True),
        reward_bench.score,
        result_files=_reward_bench_files("reward_bench_with_prior_sets"),
    ),
    "reward_bench_2": Benchmark(
        "RewardBench 2",
        reward_bench_2.HUB_ID,
        "https://arxiv.org/abs/2506.01937",
        reward_bench_2.load,
        reward_bench_2.score,
        result_files=partial(reward_bench.result_files, parts={"reward_bench_2": reward_bench_2.SUBSETS}),
    ),
    "rm_bench": Benchmark(
        "RM-Bench",
        rm_bench.HUB_ID,
        "https://arxiv.org/abs/2410.16184",
        rm_bench.load,
        rm_bench.score,
        tables=rm_bench.tables,
    ),
    "judge_bench_gpt": Benchmark(
        "JudgeBench (GPT-4o)", *_JUDGE_BENCH, partial(judge_bench.load, split="gpt"), judge_bench.score
    ),
    "judge_bench_claude": Benchmark(
        "JudgeBench (Claude)", *_JUDGE_BENCH, partial(judge_bench.load, split="claude"), judge_bench.score
    ),
    "llm_bar": Benchmark("LLMBar", llm_bar.HUB_ID, "https://arxiv.org/abs/2310.07641", llm_bar.load, llm_bar.score),
}


@dataclass(frozen=True)
class LoadedBenchmark:
    """
    A benchmark with the rows that are to be scored.

    Args:
        name (`str`):
            Its key in `BENCHMARKS`.
        benchmark ([`Benchmark`]):
            The benchmark.
        rows (`list[BenchmarkRow]`):
            Its rows.
        files (`tuple[str, ...]`):
            The files they come from; none if it is the official dataset.
    """

    name: str
    benchmark: Benchmark
    rows: list[BenchmarkRow]
    files: tuple[str, ...] = ()


def load_benchmarks(specs: Sequence[str], limit: int | None = None) -> list[LoadedBenchmark]:
    """
    Load benchmarks as a command line names them.

    Args:
        specs (`Sequence[str]`):
            For each benchmark its key in `BENCHMARKS`; or `NAME=FILES`, where files stand in for its official dataset:
            paths, folders or patterns, with commas between them.
        limit (`int`, *optional*):
            Take the first rows of each subset only.

    Returns:
        `list[LoadedBenchmark]`

    Raises:
        `ValueError`: Naming the benchmark or the files that do not exist, or the row that is not usable.

    Examples:

    ```python
    >>> load_benchmarks(["reward_bench", "rm_bench=data/rmbench-*.jsonl.gz", "llm_bar=data/llmbar"])
    ```
    """
    parts = [spec.partition("=") for spec in specs]
    names = [name for name, _, _ in parts]
    for name, count in Counter(names).items():
        if name not in BENCHMARKS:
            close = difflib.get_close_matches(name, BENCHMARKS, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"There is no benchmark {name!r}. {hint}Known are {', '.join(BENCHMARKS)}.")
        if count > 1:
            raise ValueError(
                f"The benchmark {name!r} is named {count} times. Give all its files at once, with commas."
            )
    files = [tuple(_find_files(name, pattern)) if equals else () for name, equals, pattern in parts]
    loaded = []
    for name, paths in zip(names, files, strict=True):
        try:
            rows = BENCHMARKS[name].load(paths) if paths else BENCHMARKS[name].load()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        loaded.append(LoadedBenchmark(name, BENCHMARKS[name], _first_of_subsets(rows, limit), paths))
    return loaded


def _find_files(name: str, patterns: str) -> list[str]:
    found = []
    for pattern in patterns.split(","):
        if Path(pattern).is_dir():
            matches = [str(path) for path in Path(pattern).iterdir() if READERS.keys() & set(path.suffixes[-2:])]
        else:
            matches = glob.glob(pattern)
        if not matches:
            raise ValueError(f"{name}={patterns}: {pattern!r} is no file, and no folder or pattern with files.")
        found += sorted(matches)
    return found


def _first_of_subsets(rows: list[BenchmarkRow], limit: int | None) -> list[BenchmarkRow]:
    taken: Counter[str] = Counter()
    kept = []
    for row in rows:
        taken[row.subset] += 1
        if limit is None or taken[row.subset] <= limit:
            kept.append(row)
    return kept
