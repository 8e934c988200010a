"""Pairwise preference: an `evaluate` module for rewards of chosen and rejected responses."""

import math

import datasets
import evaluate

from cloud_hf.evaluation.benchmarks.preference_pairs import score_preferences
from cloud_hf.evaluation.benchmarks.reward_bench import OFFICIAL_COUNTS, score_reward_bench


_DESCRIPTION = """
How often a reward model prefers the chosen response of a pair, by how much, and how well its rewards are calibrated as
Bradley-Terry log-odds.
"""

_KWARGS_DESCRIPTION = """
Args:
    chosen (`list[float]`): Rewards of the chosen responses.
    rejected (`list[float]`): Rewards of the rejected responses, in the same order.
    subsets (`list[str]`, *optional*): The subset of each pair. To pass subsets to `add` and `add_batch` as well, load the module
        with the configuration "subsets".
    num_bins (`int`, *optional*, defaults to 10): Number of bins for the calibration error.
Returns:
    accuracy (`float`): Share of pairs whose chosen response has a strictly higher reward; a tie counts as wrong.
    accuracy_ci95 (`tuple[float, float]`): 95 % Wilson interval of the accuracy.
    accuracy_ties_half (`float`): The accuracy when each tie counts half.
    n (`int`): Number of pairs.
    ties (`int`): Number of pairs with equal rewards.
    margin, margin_median, margin_std (`float`): Mean, median and population standard deviation of chosen - rejected.
    log_loss (`float`): Bradley-Terry log loss in nats; random guessing costs ln 2 = 0.693.
    ece (`float`): Expected calibration error over confidences from 0.5 to 1.
    temperature (`float` or `None`): The divisor of the margins that minimizes the log loss; `None` if no divisor does.
    log_loss_at_temperature (`float` or `None`): The log loss at that temperature.
    bins (`list`): Mean confidence, accuracy and number of pairs of each nonempty bin.
    subset_accuracies (`dict[str, float]`): Accuracy of each subset, if subsets are given.
    section_scores (`dict[str, float]`): RewardBench's official section scores in percent and their average, if
        RewardBench subsets are given. Only sections with rows get a score, which covers only the subsets with rows.
    missing_subsets (`list[str]`): RewardBench subsets without rows, if there are section scores.
Examples:
    >>> import evaluate
    >>> preference = evaluate.load("spaces/pairwise_preference")
    >>> results = preference.compute(chosen=[1.0, 2.0, 0.5], rejected=[0.0, 3.0, 0.5])
    >>> results["ties"], round(results["accuracy"], 2), results["accuracy_ties_half"]
    (1, 0.33, 0.5)
"""

_CITATION = """
@article{ankner2024cloud,
  title={Critique-out-Loud Reward Models},
  author={Ankner, Zachary and Paul, Mansheej and Cui, Brandon and Chang, Jonathan D. and Ammanabrolu, Prithviraj},
  journal={arXiv preprint arXiv:2408.11791},
  year={2024}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PairwisePreference(evaluate.Metric):
    """Accuracy, margins and calibration of rewards on preference pairs."""

    def _info(self):
        features = {"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")}
        if self.config_name not in ("default", "subsets"):
            raise ValueError(f"The configuration is {self.config_name!r}; use 'subsets', or leave it out.")
        if self.config_name == "subsets":
            features["subsets"] = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/2408.11791", "https://arxiv.org/abs/2403.13787"],
        )

    def add_batch(self, **columns):
        """Add pairs: `chosen`, `rejected` and, with the configuration "subsets", `subsets`."""
        if missing := [name for name in self._feature_names() if columns.get(name) is None]:
            raise ValueError(f"`{missing[0]}` is missing; give a list with one entry for each pair.")
        # `evaluate` reads `column[0]`, which a filtered pandas column may lack
        super().add_batch(**columns | {name: list(columns[name]) for name in self._feature_names()})

    def _compute(self, chosen, rejected, subsets=None, num_bins=10):
        scores = score_preferences(chosen, rejected, subsets, num_bins)
        results = {
            "accuracy": scores.accuracy.value,
            "accuracy_ci95": scores.accuracy.ci95,
            "n": scores.accuracy.n,
            "ties": scores.ties,
            **scores.details(),
        }
        if subsets is not None:
            results["subset_accuracies"] = {name: figure.value for name, figure in scores.subsets.items()}
        if not set(OFFICIAL_COUNTS).isdisjoint(() if subsets is None else subsets):
            scored = score_reward_bench(subsets, chosen, rejected)
            results["section_scores"] = {
                name: score for name, score in scored.official.items() if not math.isnan(score)
            }
            results["missing_subsets"] = list(scored.missing)
        return results
