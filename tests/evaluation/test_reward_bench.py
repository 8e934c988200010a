import json
import math

import pytest
from shared_data import shared_data

from cloud_hf.evaluation.reward_bench import OFFICIAL_COUNTS, SECTIONS, score_reward_bench


def test_both_ways_of_adding_up():
    subsets = ["math-prm"] * 3 + ["hep-go", "alpacaeval-easy", "llmbar-natural", "donotanswer", "new-subset"]
    chosen = [1.0, 1.0, 0.0, 2.0, 1.0, 0.5, 3.0, 1.0]
    rejected = [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 4.0, 0.0]
    scores = score_reward_bench(subsets, chosen, rejected)
    assert scores.pooled == {"Chat": 100.0, "Chat Hard": 100.0, "Safety": 0.0, "Reasoning": 50.0, "Average": 62.5}
    assert scores.official["Reasoning"] == pytest.approx((984 * 200 / 3 + 164 * 0) / (984 + 164))
    assert scores.subsets["math-prm"] == pytest.approx(200 / 3) and scores.subsets["hep-go"] == 0.0  # a tie
    assert scores.counts == {"Chat": 1, "Chat Hard": 1, "Safety": 1, "Reasoning": 4}
    assert scores.ignored == 1


def test_the_official_example():
    """Subset accuracies of a model on the leaderboard and its section scores, rebuilt row by row."""
    example = json.loads((shared_data() / "scoring_reference.json").read_text())["rewardbench"]
    assert example["EXAMPLE_COUNTS"] == OFFICIAL_COUNTS
    subsets, chosen = [], []
    for subset, count in {**OFFICIAL_COUNTS, "math-prm": 447}.items():
        right = round(example["readme_example"][subset] * count)
        subsets += [subset] * count
        chosen += [1.0] * right + [0.0] * (count - right)
    scores = score_reward_bench(subsets, chosen, [0.5] * len(chosen))
    for section, accuracy in example["readme_example_sections"].items():
        assert scores.official[section] == pytest.approx(100 * accuracy, abs=1e-9)
        assert scores.pooled[section] == pytest.approx(100 * example["pooled_sections_math447"][section], abs=1e-9)
    assert scores.official["Average"] == pytest.approx(100 * example["readme_example_mean_of_sections"], abs=1e-9)


def test_a_section_without_rows_is_not_a_number():
    scores = score_reward_bench(["mt-bench-easy"], [1.0], [0.0]).official
    assert scores["Chat"] == 100.0 and math.isnan(scores["Safety"]) and math.isnan(scores["Average"])


def test_there_are_23_subsets_and_rewards_must_be_numbers():
    assert {subset for subsets in SECTIONS.values() for subset in subsets} == set(OFFICIAL_COUNTS)
    assert len(OFFICIAL_COUNTS) == 23
    with pytest.raises(ValueError, match="1 subsets, 1 chosen and 0 rejected"):
        score_reward_bench(["math-prm"], [1.0], [])
    with pytest.raises(ValueError, match="Row 1: a reward is not a number"):
        score_reward_bench(["math-prm"] * 2, [1.0, math.nan], [0.0, 0.0])
