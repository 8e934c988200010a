"""Evaluation: preference pairs, best-of-N, intervals, plots."""

from .best_of_n import BestOfN, evaluate_best_of_n
from .pairs import PairEvaluation, evaluate_pairs


__all__ = ["BestOfN", "PairEvaluation", "evaluate_best_of_n", "evaluate_pairs"]
