"""Benchmarks by name: load their rows, and compute metrics from rewards."""

import difflib
import glob
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...data.rows import reader_of
from ..formatting import Table
from ..rows import BenchmarkRow
from ..stats import BenchmarkScores
from . import judge_bench, llm_bar, reward_bench, reward_bench_2, rm_bench


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark: its dataset, loader and metrics.

    Args:
        title (`str`):
            The benchmark's name in reports.
        hub_id (`str`):
            The official dataset.
        paper (`str`):
            URL of the paper.
        load (`Callable`):
            `load(names=None)` returns the rows of the given files or datasets, or of the official dataset. Raises `ValueError` if a
            value is bad (the message names the file, row and field), an id is repeated, or a row has the wrong number of responses.
        score (`Callable`):
            `score(rows, rewards)` returns the scores; `rewards` contains, for each row, one reward per response: chosen first, then
            rejected. Raises a `ValueError` that names the row if a reward is missing, NaN or infinite.
        tables (`Callable`, *optional*):
            `tables(scores_by_model)` returns additional tables for the report.
        result_files (`Callable`, *optional*):
            `result_files(scores, model)` returns the files that the leaderboard's tools read: a dictionary that maps file name prefixes
            to JSON values.

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


# To add a benchmark, write a module with `load` and `score`, and list it here: the options, the demo and the reports use this list.
# A preference set whose metric is plain accuracy needs no entry: preference_pairs.py loads and scores it.
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
    """A benchmark with the rows to score and their source files (none for the official dataset)."""

    name: str
    benchmark: Benchmark
    rows: list[BenchmarkRow]
    files: tuple[str, ...] = ()


def load_benchmarks(specs: Sequence[str], limit: int | None = None) -> list[LoadedBenchmark]:
    """
    Load benchmarks named on a command line, and keep the first `limit` rows of each subset.

    A spec is a key of `BENCHMARKS`, or `NAME=FILES` to replace the official dataset with files: paths, folders or patterns,
    separated by commas. Raises a `ValueError` that names an unknown benchmark, missing files, or the first bad row.

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
            raise ValueError(f"There is no benchmark {name!r}. {hint}Known benchmarks: {', '.join(BENCHMARKS)}.")
        if count > 1:
            raise ValueError(
                f"The benchmark {name!r} is listed {count} times. List it once, with commas between its files."
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
            matches = [str(path) for path in Path(pattern).iterdir() if reader_of(path)]
        else:
            matches = glob.glob(pattern)
        if not matches:
            raise ValueError(
                f"{name}={patterns}: {pattern!r} matches no data file. Pass a file, a folder with data files, or a pattern."
            )
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
