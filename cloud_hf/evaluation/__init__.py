"""Evaluation: benchmarks, preference pairs, best-of-N, intervals, plots."""

from .benchmarks import BENCHMARKS, Benchmark
from .best_of_n import BestOfN, evaluate_best_of_n
from .pairs import PairEvaluation, evaluate_pairs


__all__ = ["BENCHMARKS", "Benchmark", "BestOfN", "PairEvaluation", "evaluate_best_of_n", "evaluate_pairs"]
