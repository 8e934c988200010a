"""
Compute the metrics of the real-model run from its scores: accuracies and paired differences with 95 % intervals. This takes seconds.

python benchmarks/claims/real_figures.py                       # from the scores recorded last
python benchmarks/claims/real_figures.py --run runs/smollm2    # first record a finished run of real_model.py
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from run import machine

from cloud_hf.evaluation.stats import json_safe, mean_estimate, share


RESULTS = Path(__file__).resolve().parents[1] / "results" / "smollm2"
ARMS = ("classic", "cloud")
TRAINED = ("critique-sft", "cloud", "classic")
STAGES = ("critique_sft", "self_critiques", "cloud", "classic", "evaluation")
EVALUATION = ("report.md", "report.json", "benchmarks.png", "margins.png", "reliability.png")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def write_json(value: Any, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf8")


# -------------------------------------------------------------------------------------------------------------- figures


def outcome(rewards: list[float]) -> float:
    """Return 1 if the chosen response has the higher reward, otherwise 0. A tie counts as wrong, as in all our evaluations of pairs."""
    return float(rewards[0] > rewards[1])


def figures(results: Path) -> dict[str, Any]:
    """Compute all metrics that the documentation shows, from the scores and logs in `results`."""
    rows, record = read_lines(results / "scores.jsonl"), json.loads((results / "run.json").read_text())
    sets = dict.fromkeys(row["set"] for row in rows)
    by_set = {name: summarize([row for row in rows if row["set"] == name]) for name in sets}
    logs = {name: json.loads((results / "logs" / f"{name}.json").read_text()) for name in TRAINED}
    return json_safe(
        {
            "version": 1, "pooled": summarize(rows), "sets": by_set, "training": {name: ends(log) for name, log in logs.items()},
            **{name: record[name] for name in ("rows", "cpu_s", "wall_s", "self_critiques", "machine")},
        }
    )  # fmt: skip


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracy of each arm and of preferring the longer response, and the paired difference between the arms."""
    outcomes = {arm: [outcome(row[arm]) for row in rows] for arm in ARMS}
    gains = [ours - theirs for ours, theirs in zip(outcomes["cloud"], outcomes["classic"], strict=True)]
    return {
        **{arm: share(found) for arm, found in outcomes.items()},
        "longer": share([row["longer"] for row in rows]),
        "cloud_minus_classic": mean_estimate(gains),
        "cloud_better": sum(gain > 0 for gain in gains),
        "classic_better": sum(gain < 0 for gain in gains),
        "critiques_cut": sum(row["cut"] for row in rows) / (2 * len(rows)),
    }


def ends(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over the first and over the last quarter of the steps in a trainer's log."""
    steps = [entry for entry in log if "loss" in entry]
    part = max(1, len(steps) // 4)
    names = [
        name for name in ("loss", "pairwise_loss", "lm_loss", "accuracy", "mean_token_accuracy") if name in steps[0]
    ]
    means = {
        when: {name: sum(entry[name] for entry in some) / part for name in names}
        for when, some in (("first_quarter", steps[:part]), ("last_quarter", steps[-part:]))
    }
    return {"steps": len(steps), "tokens": int(steps[-1]["num_tokens"]), **means}


# ------------------------------------------------------------------------------------------------------------ recording


def collect(run: Path, results: Path):
    """Copy the outputs of a finished run, except weights, rows and critiques."""
    shutil.rmtree(results, ignore_errors=True)
    counts = json.loads((run / "rows" / "counts.json").read_text())
    records = {path.stem: json.loads(path.read_text()) for path in (run / "stages").glob("*.json")}
    usage = {name: records[name]["usage"] for name in STAGES}
    for name in TRAINED:
        write_json(
            json.loads((run / name / "trainer_state.json").read_text())["log_history"], results / f"logs/{name}.json"
        )
        copy(run / name / "README.md", results / f"cards/{name}.md")
    for name in EVALUATION:
        copy(run / "evaluation" / name, results / "evaluation" / name)
    scores = [row for name in counts if name != "train" for row in scores_of(run, name)]
    (results / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores), encoding="utf8")
    written = json.loads((run / "self-critiques" / "build.json").read_text())
    write_json(
        {
            "rows": counts,
            "self_critiques": written["counts"],
            **{key: {name: round(used[key]) for name, used in usage.items()} for key in ("cpu_s", "wall_s")},
            "machine": {**machine(), "cores": 1, "load_average_at_the_end": round(os.getloadavg()[2], 1)},
        },
        results / "run.json",
    )


def copy(source: Path, target: Path):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def scores_of(run: Path, name: str) -> list[dict[str, Any]]:
    """Return each pair's rewards (chosen first), whether its chosen response is longer, and its number of truncated critiques."""
    rows = {row["id"]: row for row in read_lines(run / "rows" / f"{name}.jsonl")}
    scored = {arm: read_lines(run / "evaluation" / f"scores_{arm}_{name}.jsonl.jsonl") for arm in ARMS}
    found = []
    for pair in zip(*scored.values(), strict=True):
        [key] = {row["id"] for row in pair}
        chosen, rejected = (len(rows[key][side]) for side in ("chosen", "rejected"))
        reasons = [row[f"{side}_finish_reasons"] for row in pair for side in ("chosen", "rejected")]
        found.append(
            {
                "set": name, "id": key,
                **{arm: [row["chosen_reward"], row["rejected_reward"]] for arm, row in zip(ARMS, pair, strict=True)},
                "longer": (1 + (chosen > rejected) - (chosen < rejected)) / 2,
                "cut": sum(reason == "length" for side in reasons for reason in side),
            }
        )  # fmt: skip
    return found


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run to record first")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the committed scores and logs")
    args = parser.parse_args(arguments)
    if args.run:
        collect(args.run, args.results)
    write_json(figures(args.results), args.results / "figures.json")


if __name__ == "__main__":
    main()
