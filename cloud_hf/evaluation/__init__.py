"""Evaluation: benchmarks, preference pairs, best-of-N, intervals, plots."""

from .benchmarks import BENCHMARKS, Benchmark
from .metrics.best_of_n import BestOfN, evaluate_best_of_n
from .metrics.pairs import PairEvaluation, evaluate_pairs


__all__ = ["BENCHMARKS", "Benchmark", "BestOfN", "PairEvaluation", "evaluate_best_of_n", "evaluate_pairs"]
