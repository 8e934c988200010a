"""The benchmarks by name: how each loads, and how its rewards become figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import judge_bench, llm_bar, reward_bench, reward_bench_2, rm_bench
from .benchmark_rows import BenchmarkRow
from .figures import BenchmarkScores


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


_REWARD_BENCH = ("RewardBench", reward_bench.HUB_ID, "https://arxiv.org/abs/2403.13787")
_JUDGE_BENCH = (judge_bench.HUB_ID, "https://arxiv.org/abs/2410.12784")

# Preference sets without arithmetic of their own are read and scored by preference_pairs.py.
BENCHMARKS = {
    "reward_bench": Benchmark(*_REWARD_BENCH, reward_bench.load, reward_bench.score),
    "reward_bench_with_prior_sets": Benchmark(
        *_REWARD_BENCH, partial(reward_bench.load, prior_sets=True), reward_bench.score
    ),
    "reward_bench_2": Benchmark(
        "RewardBench 2",
        reward_bench_2.HUB_ID,
        "https://arxiv.org/abs/2506.01937",
        reward_bench_2.load,
        reward_bench_2.score,
    ),
    "rm_bench": Benchmark(
        "RM-Bench", rm_bench.HUB_ID, "https://arxiv.org/abs/2410.16184", rm_bench.load, rm_bench.score
    ),
    "judge_bench_gpt": Benchmark(
        "JudgeBench (GPT-4o)", *_JUDGE_BENCH, partial(judge_bench.load, split="gpt"), judge_bench.score
    ),
    "judge_bench_claude": Benchmark(
        "JudgeBench (Claude)", *_JUDGE_BENCH, partial(judge_bench.load, split="claude"), judge_bench.score
    ),
    "llm_bar": Benchmark("LLMBar", llm_bar.HUB_ID, "https://arxiv.org/abs/2310.07641", llm_bar.load, llm_bar.score),
}
