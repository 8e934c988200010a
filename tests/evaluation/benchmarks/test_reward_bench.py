import json
import math

import pytest
from benchmark_files import pair, write_rows
from shared_data import shared_data

from cloud_hf.evaluation.benchmarks import reward_bench
from cloud_hf.evaluation.benchmarks.reward_bench import (
    OFFICIAL_COUNTS,
    PRIOR_SETS,
    SECTIONS,
    leaderboard_results,
    score_reward_bench,
)


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
    for bad in (math.nan, math.inf, -math.inf, None):
        with pytest.raises(ValueError, match="Row 1: a reward is not a finite number"):
            score_reward_bench(["math-prm"] * 2, [1.0, bad], [0.0, 0.0])


def test_prior_sets_count_half_a_section():
    """Sections 100, 0, 100, 0 and prior sets 100 and 50: their mean 75 weighs half as much as a section."""
    subsets = [
        "alpacaeval-easy",
        "llmbar-natural",
        "donotanswer",
        "hep-go",
        "shp",
        "summarize",
        "summarize",
        "mtbench_human",
    ]
    scores = score_reward_bench(subsets, [1, 0, 1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0, 0, 0])
    assert scores.official["Average"] == 50.0 and scores.prior_sets == 75.0
    assert scores.score == pytest.approx((100 + 0 + 100 + 0 + 0.5 * 75) / 4.5)
    assert scores.ignored == 1 and "shp" not in scores.missing and "hep-cpp" in scores.missing
    without = score_reward_bench(subsets[:4], [1, 0, 1, 0], [0, 1, 0, 0])
    assert without.score == 50.0 and math.isnan(without.prior_sets)
    assert math.isnan(score_reward_bench(["shp"], [1], [0]).score)


def load(tmp_path, rows, name="rows.jsonl"):
    return reward_bench.load([write_rows(tmp_path / name, rows)])


def test_the_benchmark_gives_the_same_numbers(tmp_path):
    rows = load(tmp_path, [pair(name, n) for name in ("math-prm", "hep-go", "new-subset") for n in range(3)])
    rewards = [(1, 0), (1, 0), (0, 1), (2, 2), (1, 0), (0, 1), (1, 0), (1, 0), (1, 0)]
    scores = reward_bench.score(rows, rewards)
    direct = score_reward_bench([row.subset for row in rows], *zip(*rewards, strict=True))
    assert scores.figures["Reasoning"].value == pytest.approx(direct.official["Reasoning"] / 100)
    assert scores.figures["Reasoning, pooled"].value == direct.pooled["Reasoning"] / 100 == 0.5
    assert scores.figures["Reasoning, pooled"].n == 6 and math.isnan(scores.value)
    assert math.isnan(scores.figures["Chat, pooled"].value) and math.isnan(scores.figures["Average, pooled"].value)
    low, high = scores.figures["Reasoning"].ci95
    assert low < scores.figures["Reasoning"].value < high and scores.figures["Reasoning"].n == 6
    assert scores.unknown == {"new-subset": 3} and len(scores.missing) == 21 and scores.ties == 1
    assert "Prior Sets" not in scores.figures and scores.headline == "Average"
    json.dumps(scores.summary(), allow_nan=False)


def test_the_score_with_prior_sets(tmp_path):
    """A file that is named after a prior set holds it, with its own subsets."""
    core = [pair(name, n) for names in SECTIONS.values() for name in names[:1] for n in range(2)]
    path = write_rows(tmp_path / "core.jsonl", core)
    priors = [write_rows(tmp_path / f"{name}.jsonl.gz", [pair("x"), pair("y")]) for name in ("anthropic_hhh", "shp")]
    rows = reward_bench.load([path, *priors])
    scores = reward_bench.score(rows, [(1, 0)] * 8 + [(1, 0), (0, 1)] * 2)
    assert scores.figures["Average"].value == 1.0 and scores.figures["Prior Sets"].value == 0.5
    assert scores.value == scores.figures["Score"].value == pytest.approx((4 + 0.25) / 4.5)
    assert scores.figures["Score"].n == 12 and scores.unknown == {} and "anthropic_hhh" in PRIOR_SETS
    uneven = reward_bench.score(rows, [(1, 0), (0, 1)] * 6)
    direct = score_reward_bench([row.subset for row in rows], [1, 0] * 6, [0, 1] * 6)
    assert uneven.figures["Average, pooled"].value == pytest.approx(direct.pooled["Average"] / 100) == 0.5
    low, high = scores.figures["Score"].ci95
    assert (low, high) == pytest.approx((4 / 4.5, 1.0))


def test_the_leaderboards_file(tmp_path):
    rows = load(tmp_path, [pair("math-prm"), pair("hep-go"), pair("new-subset")])
    results = leaderboard_results(reward_bench.score(rows, [(1, 0), (0, 1), (1, 0)]), "org/model")
    assert results == {
        "math-prm": 1.0, "hep-go": 0.0, "model": "org/model", "model_type": "Custom Classifier", "chat_template": "tokenizer"
    }  # fmt: skip
    priors = load(tmp_path, [pair("math-prm"), pair("shp"), pair("shp", 1)])
    results = leaderboard_results(reward_bench.score(priors, [(1, 0), (0, 1), (1, 0)]), "org/model", PRIOR_SETS)
    assert results["shp"] == 0.5 and "math-prm" not in results
    example = json.loads((shared_data() / "scoring_reference.json").read_text())["rewardbench"]["readme_example"]
    assert set(example) == {*OFFICIAL_COUNTS, "model", "model_type", "chat_template"}


def test_a_revision_with_other_columns_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"RewardBench \(.*\) needs the column\(s\) subset"):
        load(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b", "category": "math-prm"}])
