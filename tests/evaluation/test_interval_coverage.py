"""The simulation of interval coverage, and whether reports name the intervals that it finds too narrow or too wide."""

import json
from pathlib import Path

import pytest

from cloud_hf.evaluation.probes.length import LENGTH
from cloud_hf.evaluation.report import tables
from cloud_hf.evaluation.stats import BenchmarkScores


ROOT = Path(__file__).parents[2]


@pytest.fixture
def simulation(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import interval_coverage

    monkeypatch.setattr(interval_coverage, "MANY", 1000)
    return interval_coverage


def test_every_type_is_simulated(simulation):
    for case in simulation.CASES:
        found = simulation.measure(case, max(20, case.least), 4)
        assert [part["runs"] + part["without_interval"] for part in found] == [max(2, 4 // case.slow)] * len(
            case.types
        )


def test_reports_name_what_is_too_narrow_or_too_wide():
    """From 100 rows on, a type of interval covers 93 % to 97 %, within the noise of the simulation, or a report says that it does not."""
    few = BenchmarkScores("", "", {}, {}, 0, 0, few=("Chat",))
    said = {
        "RewardBench's Average": ("intervals of means over several subsets", " ".join(few.notes())),
        "log loss": ("a little too narrow", tables.CALIBRATION),
        "area of ": ("a little too narrow", tables.REJECTION),
        "rank correlation": ("a little too narrow", LENGTH.about),
        "self-consistency, over rows": ("too wide", tables.SELF_CONSISTENCY),
        "ArenaHard, official": ("is too narrow", tables.WIN_RATES),
    }
    types = json.loads((ROOT / "benchmarks/results/interval_coverage.json").read_text(encoding="utf8"))["types"]
    for name, by_size in types.items():
        for n, found in by_size.items():
            noise = 2 * (0.95 * 0.05 / found["runs"]) ** 0.5
            if int(n) >= 100 and not 0.93 - noise <= found["coverage"] <= 0.97 + noise:
                [(phrase, text)] = [part for start, part in said.items() if name.startswith(start)]
                assert phrase in " ".join(text.split()), name
