"""
Compute the study's report from its scores: intervals, findings, tables and plots. This takes seconds, and trains nothing.

python benchmarks/claims/report.py
python benchmarks/claims/report.py --results runs/claims-quick/results
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import plots
import rl_summary
from arms import ARMS, MEMBERS
from findings import FINDINGS, RULE, Comparison, Finding
from scipy import stats as scipy_stats
from scores import Scores

from cloud_hf.evaluation.metrics.calibration import calibrate
from cloud_hf.evaluation.stats import percentile_interval
from cloud_hf.markdown import table


RESULTS = Path(__file__).parents[1] / "results" / "claims"
TITLES = {name: arm.title for name, arm in ARMS.items()} | {
    "ensemble": "ensemble of five classic models",
    "verdict": "verdict word of the critic, no head",
}


# -------------------------------------------------------------------------------------------------------- statistics


def interval_over_seeds(values: list[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval for the mean over seeds, or `None` for a single seed or equal values."""
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval()
    return float(low), float(high)


def hierarchical_interval(by_seed: list[np.ndarray]) -> tuple[float, float] | None:
    """Return the percentile interval for the mean when seeds, and problems within each seed, are resampled."""
    if len(by_seed) < 2:
        return None

    def mean(seeds: np.ndarray, *problems: np.ndarray) -> np.ndarray:
        means = np.stack([values[drawn].mean(1) for values, drawn in zip(by_seed, problems, strict=True)], axis=1)
        return np.take_along_axis(means, seeds, axis=1).mean(1)

    return percentile_interval([len(by_seed), *map(len, by_seed)], mean)


def difference(by_seed: list[np.ndarray]) -> dict[str, Any]:
    """Summarise paired differences between outcomes, given as one value per problem for each seed."""
    means = [float(values.mean()) for values in by_seed]
    return {
        "mean": float(np.mean(means)), "seeds": means, "over_seeds": interval_over_seeds(means),
        "hierarchical": hierarchical_interval(by_seed),
    }  # fmt: skip


def compare(scores: Scores, comparison: Comparison) -> dict[str, Any] | None:
    """Return the difference between two arms on a task, overall and by level, or `None` if no seed has both arms."""
    seeds = scores.seeds(*comparison.cells)
    if not seeds:
        return None
    values = [comparison.values(scores, seed) for seed in seeds]
    levels = [scores.levels(seed)[: len(of_seed)] for seed, of_seed in zip(seeds, values, strict=True)]
    by_level = {
        str(level): difference([of_seed[of == level] for of_seed, of in zip(values, levels, strict=True)])
        for level in np.unique(levels[0])
    }
    return {**difference(values), "by_level": by_level, "num_seeds": len(seeds)}


def judge(found: dict[str, Any] | None) -> str:
    """Apply the rule of `findings.RULE` to one task."""
    if found is None:
        return "not run"
    over_seeds, hierarchical = found["over_seeds"], found["hierarchical"]
    if found["num_seeds"] < 3 or over_seeds is None or hierarchical is None:
        return "inconclusive"
    if over_seeds[0] > 0 and hierarchical[0] > 0:
        return "reproduced"
    return "not reproduced" if over_seeds[1] < 0.02 else "inconclusive"


def overall(verdicts: list[str]) -> str:
    for verdict in ("reproduced", "not reproduced"):
        if verdicts.count(verdict) >= 2 and not (verdict == "reproduced" and "not reproduced" in verdicts):
            return verdict
    return "not run" if set(verdicts) == {"not run"} else "inconclusive"


def finding(every: list[Scores], of: Finding) -> dict[str, Any]:
    tasks = {scores.task: compare(scores, of.comparison) for scores in every}
    verdicts = {task: judge(found) for task, found in tasks.items()}
    return {
        "claim": of.claim, "source": of.source, "difference": of.comparison.title, "tasks": tasks, "verdicts": verdicts,
        "verdict": overall(list(verdicts.values())),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- tables


def arm_summary(scores: Scores, arm: str) -> dict[str, Any]:
    """Summarise an arm on a task by means over seeds."""
    seeds = scores.seeds(arm)
    outcomes = [scores.outcomes(seed, arm) for seed in seeds]
    means = [float(values.mean()) for values in outcomes]
    levels = [scores.levels(seed) for seed in seeds]
    margins = np.concatenate([scores.margins(seed, arm).ravel() for seed in seeds])
    summary = {
        "seeds": seeds,
        "accuracy": float(np.mean(means)),
        "by_seed": means,
        "over_seeds": interval_over_seeds(means),
        "by_level": {
            str(level): float(
                np.mean([values[of == level].mean() for values, of in zip(outcomes, levels, strict=True)])
            )
            for level in np.unique(levels[0])
        },
        "ties": float((margins == 0).mean()),
        "best_of_n": float(np.mean([scores.best_of_n(seed, arm).mean() for seed in seeds])),
    }
    if arm != "verdict":
        calibration = calibrate(margins)
        summary |= {"log_loss": calibration.log_loss, "ece": calibration.ece}
    if f"seed{seeds[0]}/{arm}/exact" in scores.arrays:
        summary |= about_critiques(scores, arm, seeds)
    return summary | costs(scores, arm, seeds)


def about_critiques(scores: Scores, arm: str, seeds: list[int]) -> dict[str, Any]:
    """Return the share of critiques that equal the oracle's, and the accuracy on pairs with and without two such critiques."""
    exact = np.concatenate([scores.get(seed, arm, "exact") for seed in seeds])
    right = np.concatenate([np.heaviside(scores.margins(seed, arm), 0.5) for seed in seeds])
    both = exact[:, :1] & exact[:, 1:]
    return {
        "exact": float(exact.mean()),
        "exact_by_seed": [float(scores.get(seed, arm, "exact").mean()) for seed in seeds],
        "accuracy_if_exact": float(right[both].mean()) if both.any() else None,
        "accuracy_if_not_exact": float(right[~both].mean()) if (~both).any() else None,
    }


def costs(scores: Scores, arm: str, seeds: list[int]) -> dict[str, float]:
    """Return the mean costs of training after the shared base and of judging one response."""
    found = [cost_of(scores.cells, f"seed{seed}", arm) for seed in seeds]
    return {key: float(np.mean([cost[key] for cost in found])) for key in found[0]}


def cost_of(cells: dict[str, dict[str, Any]], seed: str, arm: str) -> dict[str, float]:
    if arm == "ensemble":
        members = [cost_of(cells, seed, name) for name in ("classic", *(f"classic_{k}" for k in MEMBERS))]
        return {key: sum(member[key] for member in members) for key in members[0]}
    record = cells[f"{seed}/{arm}"]
    result, names = record["result"], [arm]
    start = ARMS[arm].start if arm in ARMS else "critic"
    uses_own = arm in ARMS and ARMS[arm].critiques in ("self", "shuffled")
    names += ["cloud"] if start == "cloud" else []
    names += ["critic"] if start in ("critic", "cloud") else []
    names += ["self_critiques"] if uses_own or start == "cloud" else []
    tokens = result["prefix_tokens"] + result["critique_tokens"]
    return {
        "train_flops": float(sum(cells[f"{seed}/{name}"]["result"]["flops"] for name in names)),
        "train_cpu_s": float(sum(cells[f"{seed}/{name}"]["cpu_s"] for name in names)),
        "inference_flops": 2.0 * result["weights"] * tokens,
    }


def consistency(scores: Scores) -> dict[str, Any]:
    """Return CLoud's accuracy by the number of sampled critiques, their temperature and how they are combined."""
    seeds = [seed for seed in scores.seeds("cloud") if f"seed{seed}/cloud_samples/rewards_0.5" in scores.arrays]
    if not seeds:
        return {}
    curves: dict[str, Any] = {"seeds": seeds}
    for temperature in (0.5, 1.0):
        for how in ("mean", "median", "vote"):
            curves[f"T = {temperature}, {how}"] = {
                str(count): float(
                    np.mean([scores.sampled(seed, "cloud", temperature, count, how).mean() for seed in seeds])
                )
                for count in (1, 2, 4, 8, 16)
            }
    return curves


def events(cells: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return when each task's models were scored on validation and on held-out problems, with the first settings and the final ones."""

    def read(name: str) -> dict[str, dict[str, Any]]:
        return json.loads((RESULTS / name / "cells.json").read_text())["cells"]

    trials = read("dev")
    steps = {
        "validation, first settings": {key: cell for key, cell in trials.items() if not key.startswith("final/")},
        "held-out, first settings": read("first_runs") | {f"/{key}": cell for key, cell in read("first_runs/stage4").items()},
        "validation, final settings": {key: cell for key, cell in trials.items() if key.startswith("final/")},
        "held-out, final settings": cells,
    }  # fmt: skip
    rows = []
    for task in sorted({key.split("/")[0] for key in cells}):
        for step, found in steps.items():
            times = finish_times({key: cell for key, cell in found.items() if task in key.split("/")})
            if times:
                rows.append([task, step, str(len(times)), times[0], times[-1]])
    return rows


def finish_times(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Return when cells with scores were finished, from first to last."""
    return sorted(cell["finished"] for cell in cells.values() if "accuracy" in cell["result"])


# -------------------------------------------------------------------------------------------------------------- output


def make_report(results: Path) -> dict[str, Any]:
    """Compute everything that the report shows."""
    record, every = json.loads((results / "cells.json").read_text()), Scores.read(results)
    report = {
        "version": 1,
        "machine": record["machine"],
        "rule": RULE,
        "events": events(record["cells"]),
        "findings": [finding(every, one) for one in FINDINGS],
        "arms": {scores.task: {arm: arm_summary(scores, arm) for arm in scores.arms} for scores in every},
        "self_consistency": {scores.task: consistency(scores) for scores in every},
        "not_run": {
            scores.task: [TITLES[arm] for arm in (*ARMS, "ensemble", "verdict") if arm not in scores.arms]
            for scores in every
        },
        "rl": rl_summary.summarise(results),
    }
    return rounded(report)


def rounded(value: Any) -> Any:
    """Round numbers to six digits, on which all machines agree, and convert tuples to lists."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def points(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


def findings_table(report: dict[str, Any]) -> str:
    tasks = list(report["arms"])

    def shown(found: dict[str, Any] | None) -> str:
        return "not run" if found is None else f"{100 * found['mean']:+.1f} ({points(found['over_seeds'])})"

    rows = [
        [
            one["claim"],
            one["source"],
            *(f"{shown(one['tasks'][task])}, {one['verdicts'][task]}" for task in tasks),
            one["verdict"],
        ]
        for one in report["findings"]
    ]
    return table(rows, ["claim", "from", *tasks, "overall"])


def spread_of(shares: list[float] | None) -> str:
    """Format the smallest and the largest share among the seeds."""
    return "–" if shares is None else f"{100 * min(shares):.0f} to {100 * max(shares):.0f}%"


def arms_table(summaries: dict[str, dict[str, Any]]) -> str:
    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}%"

    rows = []
    for arm, one in summaries.items():
        spread = one["over_seeds"]
        rows.append([
            TITLES[arm], str(len(one["seeds"])),
            percent(one["accuracy"]) + (f" ({percent(spread[0])} to {percent(spread[1])})" if spread else ""),
            " / ".join(percent(value) for value in one["by_level"].values()), percent(one["best_of_n"]),
            f"{one['log_loss']:.2f}" if "log_loss" in one else "–", spread_of(one.get("exact_by_seed")), percent(one["ties"]),
            f"{one['train_flops']:.1e}", f"{one['train_cpu_s']:.0f} s", f"{one['inference_flops']:.1e}",
        ])  # fmt: skip
    levels = " / ".join(str(level) for level in next(iter(summaries.values()))["by_level"])
    header = [
        "arm", "seeds", "pairs (95% over seeds)", f"level {levels}", "best of all", "log loss", "exact", "ties",
        "train FLOPs", "train CPU", "FLOPs a response",
    ]  # fmt: skip
    return table(rows, header)


def level_table(found: dict[str, Any]) -> str:
    rows = [
        [task, level, f"{100 * part['mean']:+.1f}", points(part["over_seeds"]), points(part["hierarchical"])]
        for task, of_task in found["tasks"].items()
        if of_task is not None
        for level, part in of_task["by_level"].items()
    ]
    return (
        table(rows, ["task", "level", "points", "95% over seeds", "95% over seeds and problems"])
        if rows
        else "Not run."
    )


def consistency_table(curves: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{100 * value:.1f}%" for value in curve.values())]
        for name, curve in curves.items()
        if name != "seeds"
    ]
    return table(rows, ["", "1", "2", "4", "8", "16"])


def write(report: dict[str, Any], output: Path):
    """Write report.md, report.json and the plots."""
    (output / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sections = [
        "# The claims of the CLoud paper, measured on three small tasks", INTRODUCTION,
        "## Findings", RULE, findings_table(report), "![Differences](claims_findings.png)",
        *(
            part
            for of, found in zip(FINDINGS, report["findings"], strict=True)
            if of.by_level
            for part in (f"## By difficulty: {of.claim}", level_table(found))
        ),
        *(part for task, arms in report["arms"].items() for part in (f"## Arms: {task}", arms_table(arms))),
        "![Accuracy by inference compute](claims_compute.png)", NOTES,
    ]  # fmt: skip
    for task, curves in report["self_consistency"].items():
        if curves:
            seeds = ", ".join(map(str, curves["seeds"]))
            sections += [
                f"## Several critiques of CLoud: {task}",
                f"Accuracy by number of critiques; seeds {seeds}.",
                consistency_table(curves),
            ]
    if report["rl"]:
        sections += rl_summary.section(report["rl"])
        plots.rl(report["rl"], output / "claims_rl.png")
    header = ["task", "scored on", "models", "first", "last"]
    sections += ["## Order of events", EVENTS, table(report["events"], header)]
    missing = [f"- {task}: {', '.join(arms)}" for task, arms in report["not_run"].items() if arms]
    sections += ["## Not run", "\n".join(missing) or "Everything ran."]
    sections += ["## Machine", "\n".join(f"- {key}: {value}" for key, value in report["machine"].items())]
    (output / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    plots.findings(report, output / "claims_findings.png")
    plots.compute(report, output / "claims_compute.png")


INTRODUCTION = """Written by `benchmarks/claims/report.py` from the scores in this folder. Accuracies are shares of pairs (the right response and each
wrong one) in the right order; a tie counts half. Intervals are Student's over seeds, which vary data, model and training."""

NOTES = """Costs are those after the base that all arms share: 6 FLOPs per weight and token in training, 2 in generation. Exact: critiques equal to
the oracle's, from the least exact seed to the most. "Best of all" picks among all choices of a problem."""


EVENTS = """Times in UTC; validation problems are those of other seeds. The study ran twice on the same held-out problems, with different models, and
`first_runs/` keeps the scores of the first time. Then, stage 1 took the same number of passes for every seed, and its critics varied from
22% to 99% exact. Stage 4 gained −0.8 points (−3.2 to +1.6) on the clock in half a pass, then +1.3 (−0.1 to +2.8) on the clock and +0.5 (−2.0
to +2.9) with shells in two passes. Since stage 4 is asked to improve critics that are neither at the ceiling nor unable to write, stage
1 now ends once 70% of its critiques of validation problems are exact, and the learning rate of stage 4 was chosen again, on validation
problems; meanwhile, arms that do not depend on it were already scored. All other settings stayed, and no model of the first runs is part
of this report. In their first two cells, the arm without stage 1 had the learning rate of stage 3, with which it could not learn to write;
it has stage 1's."""


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder that contains the scores and receives the report"
    )
    args = parser.parse_args(arguments)
    report = make_report(args.results)
    write(report, args.results)
    for one in report["findings"]:
        print(f"{one['claim']}: {one['verdict']}")


if __name__ == "__main__":
    main()
