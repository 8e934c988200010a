"""
Measure by simulation how often the 95 % intervals in evaluation reports cover the true value: rows (or problems, or questions) are sampled
from a known distribution, the library computes the interval, and the share of intervals that cover the true value should be 0.95. A
standard error counts as an interval of ± 1.96 standard errors.

python benchmarks/interval_coverage.py                    # about a quarter of an hour on one core
python benchmarks/interval_coverage.py --runs 40 --sizes 20
"""

import argparse
import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.special import expit

from cloud_hf.evaluation.arena_hard.win_rate import Votes, win_rate
from cloud_hf.evaluation.benchmarks import reward_bench, reward_bench_2
from cloud_hf.evaluation.metrics.best_of_n import best_of_n_curve
from cloud_hf.evaluation.metrics.calibration import estimate, log_loss
from cloud_hf.evaluation.metrics.selective_accuracy import selective_accuracy
from cloud_hf.evaluation.metrics.self_consistency import self_consistency
from cloud_hf.evaluation.probes.length import correlation
from cloud_hf.evaluation.probes.probe import ProbedRow, ProbeRow
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.evaluation.stats import Interval, mean_estimate, share, weighted_mean
from cloud_hf.generation import Sample
from cloud_hf.scoring import Score


RESULTS = Path(__file__).parent / "results" / "interval_coverage.json"
Z = 1.96
MANY = 200_000  # number of rows whose metric counts as the true value if there is no formula

# An interval (`None` if the report shows none) and the true value
Found = tuple[Interval | None, float]


@dataclass(frozen=True)
class Case:
    """
    Types of intervals that share simulated data. `draw` simulates n rows and returns one interval of each type; `slow` divides the number
    of runs, twice above 100 rows; and `least` is the smallest n for which the types are defined.
    """

    types: Sequence[str]
    draw: Callable[[np.random.Generator, int], Sequence[Found]]
    slow: int = 1
    least: int = 1


def around(value: float, error: float) -> Interval:
    return value - Z * error, value + Z * error


# ------------------------------------------------------------------------------------------------- shares and means


def wilson_shares(rng: np.random.Generator, n: int):
    return [(share((rng.random(n) < true).astype(float).tolist()).ci95, true) for true in (0.75, 0.95)]


def fractions(rng: np.random.Generator, n: int):
    """Simulate rows of RM-Bench, with three cells per level and a separate difficulty for each row."""
    return [(share((rng.binomial(3, rng.beta(2, 1, n)) / 3).tolist()).ci95, 2 / 3)]


def paired_difference(rng: np.random.Generator, n: int):
    """Simulate two models that are right in 75 % and 70 % of the rows, mostly in the same ones."""
    level = rng.normal(size=(3, n))
    right = [level[0] + level[1] / 2 > -0.6745 * math.sqrt(1.25), level[0] + level[2] / 2 > -0.5244 * math.sqrt(1.25)]
    return [(mean_estimate((right[0].astype(float) - right[1]).tolist()).ci95, 0.05)]


def strata(probabilities: np.ndarray, weights: dict[str, float]):
    true = float(np.dot(probabilities, list(weights.values())) / math.fsum(weights.values()))

    def draw(rng: np.random.Generator, n: int):
        size = round(n / len(weights))
        rows = {
            name: (rng.random(size) < p).astype(float).tolist() for name, p in zip(weights, probabilities, strict=True)
        }
        return [(weighted_mean(rows, weights).ci95, true)]

    return draw


def reward_bench_average() -> dict[str, float]:
    """Return the weight of each of the 23 subsets in the mean of the four sections."""
    return {
        name: reward_bench.OFFICIAL_COUNTS[name] / sum(reward_bench.OFFICIAL_COUNTS[one] for one in members)
        for members in reward_bench.SECTIONS.values()
        for name in members
    }


def mean_change(rng: np.random.Generator, n: int):
    """Simulate changes of reward with a skewed distribution."""
    return [(mean_estimate(rng.gamma(2.0, 1.0, n).tolist()).ci95, 2.0)]


# --------------------------------------------------------------------------------------------------- RewardBench 2


def ties_rewards(rng: np.random.Generator, num_pairs: int) -> np.ndarray:
    """Simulate pairs of prompts: one with one right and three wrong responses, and one with three right and three wrong ones."""
    rewards = rng.normal(size=(num_pairs, 10)) / 2 + rng.normal(size=(num_pairs, 1))
    rewards[:, [0, 4, 5, 6]] += 1.5
    return rewards


def ties(rng: np.random.Generator, n: int):
    rows, rewards = [], []
    for pair, found in enumerate(ties_rewards(rng, n // 2).tolist()):
        for kind, first, last, right in (("ref", 0, 4, 1), ("tied", 4, 10, 3)):
            texts = tuple(map(str, range(last - first)))
            rows.append(BenchmarkRow(f"{kind}:{pair}", "Ties", "?", texts, right, {"kind": kind, "pair": pair}))
            rewards.append(found[first:last])
    return [(reward_bench_2.score(rows, rewards).figures["Ties"].ci95, true_ties())]


@cache
def true_ties() -> float:
    rewards = ties_rewards(np.random.default_rng(1), MANY)
    ref = rewards[:, 0] - rewards[:, 1:4].max(1)
    tied, spread = rewards[:, 4:7].min(1) - rewards[:, 7:].max(1), np.ptp(rewards[:, 4:7], axis=1)
    smaller = np.minimum(ref, tied)
    terms = [ref > 0, tied > 0, tied > spread, smaller > spread, np.tanh(smaller / spread - 1)]
    return float(np.dot([0.3, 0.3, 0.2, 0.2, 0.01], np.mean(terms, axis=1)))


# --------------------------------------------------------------------------- uncertainty, self-consistency, best-of-N


def margins_of(rng: np.random.Generator, n: int) -> np.ndarray:
    """Simulate margins of a calibrated model, which ranks a pair with margin m right with probability sigmoid(m)."""
    size = np.abs(rng.normal(0, 2, n))
    return np.where(rng.random(n) < expit(size), size, -size)


def loss(rng: np.random.Generator, n: int):
    return [(estimate(log_loss, margins_of(rng, n), np.arange(n)).ci95, true_loss())]


@cache
def true_loss() -> float:
    return float(np.logaddexp(0, -margins_of(np.random.default_rng(1), 10 * MANY)).mean())


def areas(rng: np.random.Generator, n: int):
    """Simulate areas of selective accuracy. With a share p of right pairs, the oracle's area is p - p ln p."""
    margins = margins_of(rng, n)
    found = selective_accuracy(margins > 0, {"margin": abs(margins)}, np.arange(n))
    margin, share_right = true_areas()
    return [
        (found.curves["margin"].area.ci95, margin),
        (found.oracle.area.ci95, share_right * (1 - math.log(share_right))),
    ]


@cache
def true_areas() -> tuple[float, float]:
    """Return the area for the margins, and the share of right pairs."""
    margins = margins_of(np.random.default_rng(1), 10 * MANY)
    right = (margins > 0)[np.argsort(-abs(margins))]
    return float((right.cumsum() / np.arange(1, len(right) + 1)).mean()), float(right.mean())


def consistency(rng: np.random.Generator, n: int):
    """Simulate four critiques each of a right and a wrong response. Intervals are over rows, and over other critiques of the same rows."""
    levels = rng.normal(size=(n, 2, 1)) + np.array([[0.7], [0.0]])
    rewards = levels + rng.normal(size=(n, 2, 4))
    found = self_consistency(rewards.tolist(), [1] * n, [0.0] * n, temperature=1.0, length_of="").everything
    of_rows = [float(normal((levels[:, 0] - levels[:, 1]) / math.sqrt(2 / k)).mean()) for k in (1, 4)]
    ends = [around(found.accuracy[k - 1], found.standard_errors[k - 1]) for k in (1, 4)]
    return [(found.intervals[0], float(normal(0.7 / 2))), *zip(ends, of_rows, strict=True)]


def normal(values):
    return np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2)))(values)


def best_of_four(rng: np.random.Generator, n: int):
    """Simulate rewards that equal correctness plus noise, and return the value for N = 4 of 8 candidates."""
    correct, rewards = candidates_of(rng, n, 8)
    curve = best_of_n_curve([rewards.tolist()], correct.tolist(), [4])
    return [(around(curve.values[4], curve.standard_errors[4]), true_best_of_four())]


def candidates_of(rng: np.random.Generator, n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    correct = (rng.random((n, count)) < rng.beta(1, 1, (n, 1))).astype(float)
    return correct, correct + rng.normal(size=correct.shape)


@cache
def true_best_of_four() -> float:
    correct, rewards = candidates_of(np.random.default_rng(1), 10 * MANY, 4)
    return float(correct[np.arange(len(correct)), rewards.argmax(1)].mean())


# ------------------------------------------------------------------------------------------- ArenaHard, correlation

VERDICTS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


def arena(rng: np.random.Generator, n: int):
    found = win_rate([Votes.of(*verdicts) for verdicts in verdicts_of(rng, n)])
    return [
        (ends, true_win_rate())
        for ends in (found.ci95, found.ci95_by_question, around(found.value, found.standard_error))
    ]


def verdicts_of(rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """Simulate verdicts of two games given the response's quality. In the first, A is the baseline; in the second, A is the response."""
    steps = np.clip(np.rint(rng.normal(0.3, 1, (n, 1)) + rng.normal(0, 0.5, (n, 2))), -2, 2).astype(int)
    return [(VERDICTS[2 + first], VERDICTS[2 - other]) for first, other in steps.tolist()]


@cache
def true_win_rate() -> float:
    votes = [Votes.of(*verdicts) for verdicts in verdicts_of(np.random.default_rng(1), 10 * MANY)]
    return sum(one.points for one in votes) / sum(one.number for one in votes)


def length_correlation(rng: np.random.Generator, n: int):
    """Simulate rewards and log lengths that are bivariate normal within and between rows, with a correlation of 0.4."""
    level = rng.normal(size=(n, 1, 2)) + rng.normal(size=(n, 2, 2))
    rewards = 0.4 * level[..., 0] + math.sqrt(1 - 0.4**2) * level[..., 1]
    lengths = np.rint(400 * np.exp(level[..., 0] / 2)).astype(int)
    rows = [
        ProbedRow(ProbeRow("", BenchmarkRow("", "", "", tuple("x" * size for size in of_row)), [Score.of([Sample(r)]) for r in found]), {})
        for of_row, found in zip(lengths.tolist(), rewards.tolist(), strict=True)
    ]  # fmt: skip
    # A Pearson correlation of 0.4, converted to Spearman's
    return [(correlation(rows).ci95, 6 / math.pi * math.asin(0.4 / 2))]


CASES = (
    Case(["share of right rows, 75 % (Wilson)", "share of right rows, 95 % (Wilson)"], wilson_shares),
    Case(["share, rows with fractions (bootstrap)"], fractions),
    Case(
        ["mean over 5 subsets of equal size, such as LLMBar's Average (bootstrap within subsets)"],
        strata(np.linspace(0.55, 0.95, 5), dict.fromkeys("abcde", 1.0)),
    ),
    Case(
        ["RewardBench's Average, 23 subsets of equal size (bootstrap within subsets)"],
        strata(np.linspace(0.55, 0.98, 23), reward_bench_average()),
        least=46,
    ),
    Case(["RewardBench 2, Ties (bootstrap over prompts)"], ties, slow=2),
    Case(["difference of two models on the same rows (paired bootstrap)"], paired_difference),
    Case(["mean change of a reward (bootstrap)"], mean_change),
    Case(["log loss (bootstrap)"], loss),
    Case(["area of selective accuracy (bootstrap)", "area of the oracle (bootstrap)"], areas, slow=2),
    Case(["rank correlation with the length (bootstrap)"], length_correlation, slow=2),
    Case(
        [
            "self-consistency, over rows, k = 1 (Wilson)",
            "self-consistency, over critiques, k = 1 (± 1.96 standard errors)",
            "self-consistency, over critiques, k = K = 4 (± 1.96 standard errors)",
        ],
        consistency,
        slow=3,
    ),
    Case(["best-of-N (± 1.96 standard errors over problems)"], best_of_four),
    Case(
        [
            "ArenaHard, official (bootstrap over votes)",
            "ArenaHard, by question (bootstrap over questions)",
            "ArenaHard (± 1.96 standard errors over questions)",
        ],
        arena,
        slow=2,
    ),
)


def measure(case: Case, n: int, runs: int) -> list[dict[str, float]]:
    """Return, for each type, the share of intervals that cover the true value, and the number of runs with and without an interval."""
    rng = np.random.default_rng([n, zlib.crc32(case.types[0].encode())])
    found = [case.draw(rng, n) for _ in range(max(2, runs // (case.slow if n <= 100 else case.slow**2)))]
    return [coverage(of_type) for of_type in zip(*found, strict=True)]


def coverage(found: Sequence[Found]) -> dict[str, float]:
    holds = [interval[0] <= true <= interval[1] for interval, true in found if interval is not None]
    return {
        "coverage": round(float(np.mean(holds)), 4),
        "runs": len(holds),
        "without_interval": len(found) - len(holds),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 100, 1000], help="numbers of rows to simulate")
    parser.add_argument("--runs", type=int, default=3000, help="number of simulated evaluations; slow types use fewer")
    parser.add_argument(
        "--only", default="", help="measure only groups of types with this text in a name; keep the other results"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    result = json.loads(args.output.read_text(encoding="utf-8"))["types"] if args.only else {}
    for case in CASES:
        if args.only not in " ".join(case.types):
            continue
        for n in args.sizes:
            if n >= case.least:
                for name, found in zip(case.types, measure(case, n, args.runs), strict=True):
                    result.setdefault(name, {})[str(n)] = found
        for name in case.types:
            print(
                f"{name:90}",
                *(f"{n}: {found['coverage']:.3f}" for n, found in result.get(name, {}).items()),
                flush=True,
            )
    args.output.write_text(json.dumps({"types": result}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
