"""Evaluation: benchmarks, preference pairs, best-of-N, probes, intervals, reports."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .benchmarks import BENCHMARKS, Benchmark
    from .metrics.best_of_n import BestOfN, evaluate_best_of_n
    from .metrics.pairs import PairEvaluation, evaluate_pairs


__all__ = ["BENCHMARKS", "Benchmark", "BestOfN", "PairEvaluation", "evaluate_best_of_n", "evaluate_pairs"]


def __getattr__(name: str):
    # Imported on first use, so that lightweight modules like `evaluation.stats` load neither torch nor datasets
    if name in __all__:
        from . import benchmarks
        from .metrics import best_of_n, pairs

        return next(getattr(module, name) for module in (benchmarks, best_of_n, pairs) if hasattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
