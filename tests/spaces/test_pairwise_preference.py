"""The module is loaded from its folder, as users do, without a network."""

import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pandas as pd
import pytest
from benchmark_files import lengths
from shared_data import shared_data

from cloud_hf.evaluation.benchmarks import preference_pairs
from cloud_hf.evaluation.benchmarks.preference_pairs import score_preferences
from cloud_hf.evaluation.benchmarks.reward_bench import score_reward_bench


FOLDER = str(Path(__file__).parents[2] / "spaces" / "pairwise_preference")
CHOSEN, REJECTED = [1.0, 2.0, 0.5, -1.0], [0.0, 3.0, 0.5, -4.0]
SUBSETS = ["math-prm", "hep-go", "math-prm", "donotanswer"]


def load(cache, config=None):
    return evaluate.load(FOLDER, config, cache_dir=str(cache))


def test_the_numbers_are_the_librarys(tmp_path):
    results = load(tmp_path).compute(chosen=CHOSEN, rejected=REJECTED)
    scores = score_preferences(CHOSEN, REJECTED)
    assert results["accuracy"] == scores.accuracy.value == 0.5
    assert (results["n"], results["ties"], results["accuracy_ties_half"]) == (4, 1, 0.625)
    assert results["accuracy_ci95"] == scores.accuracy.ci95
    for name in ("log_loss", "ece", "temperature", "log_loss_at_temperature", "bins"):
        assert results[name] == getattr(scores.calibration, name)
    assert results["margin"] == scores.margin and "subset_accuracies" not in results
    json.dumps(results, allow_nan=False)


def test_on_real_rows(tmp_path):
    rows = preference_pairs.load([str(shared_data() / "eval" / "hep-go.jsonl")])
    chosen, rejected = zip(*lengths(rows), strict=True)
    results = load(tmp_path).compute(chosen=chosen, rejected=rejected)
    assert round(results["accuracy"], 4) == 0.375 and results["n"] == 104  # what length alone reaches


def test_subsets_and_sections(tmp_path):
    results = load(tmp_path).compute(chosen=CHOSEN, rejected=REJECTED, subsets=SUBSETS)
    assert results["subset_accuracies"] == {"math-prm": 0.5, "hep-go": 0.0, "donotanswer": 1.0}
    official = score_reward_bench(SUBSETS, CHOSEN, REJECTED).official
    assert results["section_scores"] == {name: score for name, score in official.items() if not math.isnan(score)}
    assert results["section_scores"] == pytest.approx({"Safety": 100.0, "Reasoning": 984 * 50 / (984 + 164)})
    assert len(results["missing_subsets"]) == 20 and "hep-rust" in results["missing_subsets"]
    for columns in (np.array(SUBSETS), pd.Series(SUBSETS)):
        assert load(tmp_path).compute(chosen=CHOSEN, rejected=REJECTED, subsets=columns) == results
    others = load(tmp_path).compute(chosen=CHOSEN, rejected=REJECTED, subsets=["x", "y", "x", "y"])
    assert others["subset_accuracies"] == {"x": 0.5, "y": 0.5} and "section_scores" not in others


@pytest.mark.parametrize("config", [None, "subsets"])
def test_columns_of_a_filtered_table(tmp_path, config):
    table = pd.DataFrame({"chosen": CHOSEN, "rejected": REJECTED, "subsets": SUBSETS})
    results = load(tmp_path, config).compute(**table[table["chosen"] != 1.0])  # lacks the label 0
    assert results["subset_accuracies"] == {"hep-go": 0.0, "math-prm": 0.0, "donotanswer": 1.0}


def test_batches_and_single_rows_add_up(tmp_path):
    metric = load(tmp_path, "subsets")
    metric.add_batch(chosen=CHOSEN[:2], rejected=REJECTED[:2], subsets=SUBSETS[:2])
    metric.add(chosen=CHOSEN[2], rejected=REJECTED[2], subsets=SUBSETS[2])
    metric.add_batch(chosen=CHOSEN[3:], rejected=REJECTED[3:], subsets=SUBSETS[3:])
    whole = load(tmp_path).compute(chosen=CHOSEN, rejected=REJECTED, subsets=SUBSETS)
    assert metric.compute() == whole
    metric.add_batch(chosen=[1.0], rejected=[0.0], subsets=["x"])  # nothing of the first run is left
    assert metric.compute()["n"] == 1


def test_combined(tmp_path):
    """Two modules together: metrics that both have get the name of their module."""
    both = evaluate.combine({"plain": load(tmp_path), "by_subset": load(tmp_path, "subsets")})
    both.add_batch(chosen=CHOSEN, rejected=REJECTED, subsets=SUBSETS)
    results = both.compute()
    assert results["plain_accuracy"] == results["by_subset_accuracy"] == 0.5
    assert results["subset_accuracies"]["donotanswer"] == 1.0  # a name that one alone has stays as it is


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rewards_must_be_finite(tmp_path, bad):
    with pytest.raises(ValueError, match="Row 1: a reward is not a finite number"):
        load(tmp_path).compute(chosen=[1.0, bad], rejected=[0.0, 0.0])


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="Mismatch in the number of chosen"):
        load(tmp_path).compute(chosen=[1.0, 2.0], rejected=[0.0])
    with pytest.raises(ValueError, match="The configuration is 'section'; use 'subsets'"):
        load(tmp_path, "section")


def test_a_column_that_is_not_given_is_named(tmp_path):
    with pytest.raises(ValueError, match="`rejected` is missing; give a list"):
        load(tmp_path).compute(chosen=[1.0])
    with pytest.raises(ValueError, match="`subsets` is missing; give a list"):
        load(tmp_path, "subsets").compute(chosen=[1.0], rejected=[0.0])


def test_the_front_matter_names_a_metric():
    readme = (Path(FOLDER) / "README.md").read_text(encoding="utf8")
    assert readme.startswith("---\n") and "- evaluate\n- metric\n" in readme.split("---\n")[1]
    assert (Path(FOLDER) / "requirements.txt").read_text().split() == ["cloud-hf[eval]"]
