import math

import pytest

from cloud_hf.evaluation.reward_bench import SECTIONS, pooled_scores


def test_sections_are_pooled_by_row_and_averaged_by_section():
    subsets = ["math-prm"] * 3 + ["hep-go", "alpacaeval-easy", "llmbar-natural", "donotanswer", "new-subset"]
    chosen = [1.0, 1.0, 0.0, 2.0, 1.0, 0.5, 3.0, 1.0]
    rejected = [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 4.0, 0.0]
    pooled = pooled_scores(subsets, chosen, rejected)
    assert pooled.scores == {"Chat": 100.0, "Chat Hard": 100.0, "Safety": 0.0, "Reasoning": 50.0, "Average": 62.5}
    assert pooled.counts == {"Chat": 1, "Chat Hard": 1, "Safety": 1, "Reasoning": 4}
    assert pooled.ignored == 1


def test_a_section_without_rows_is_not_a_number():
    scores = pooled_scores(["mt-bench-easy"], [1.0], [0.0]).scores
    assert scores["Chat"] == 100.0 and math.isnan(scores["Safety"]) and math.isnan(scores["Average"])


def test_there_are_23_subsets_and_lengths_must_agree():
    assert len({subset for subsets in SECTIONS.values() for subset in subsets}) == 23
    with pytest.raises(ValueError):
        pooled_scores(["math-prm"], [1.0], [])
