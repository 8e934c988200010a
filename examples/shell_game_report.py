"""
Write the report of a quickstart run: a table in the terminal, report.md with plots, and report.json. As a script, print the table of a
finished run.

python examples/shell_game_report.py runs/quickstart
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from cloud_hf.cli import ArgumentParser, run
from cloud_hf.evaluation.formatting import Table, show


def write_report(run: Path, usage: dict[str, dict], stages: dict[str, tuple[str, ...]], seed: int):
    """
    Combine the results of all stages into one report. `usage` contains `wall_s`, `cpu_s` and `peak_gb` for each stage; `stages` lists
    each arm's stages after the shared base model.
    """
    # Imported here, because this imports torch, which takes seconds and is not needed for `--help`
    from cloud_hf.evaluation.report.plots import plot_accuracy_by_group, plot_best_of_n, plot_reward_distributions

    accuracy = by_arm(json.loads((run / "evaluation/report.json").read_text())["results"])
    best_of_n = by_arm(json.loads((run / "evaluation/best_of_n.json").read_text())["results"])
    arms = {}
    for arm, names in stages.items():
        result = accuracy[arm]
        arms[arm] = {
            "accuracy": result["accuracy"],
            "ci95": result["ci95"],
            "n": result["n"],
            "ties": result["ties"],
            "by_difficulty": {k: group["accuracy"] for k, group in result["by_group"].items()},
            "hard": hard_accuracy(result["by_group"]),
            "best_of_n": best_of_n[arm]["rates"],
            "train_flops": sum(stage_flops(run, name) for name in names),
            "train_cpu_s": sum(usage[name]["cpu_s"] for name in names),
            "wall_s": sum(usage[name]["wall_s"] for name in names),
        }
    scores = {arm: read_scores(run, arm) for arm in stages}
    plot_accuracy_by_group({arm: accuracy[arm]["by_group"] for arm in stages}, "swaps", run / "accuracy.png")
    plot_reward_distributions({arm: rewards(rows) for arm, rows in scores.items()}, run / "rewards.png")
    plot_best_of_n({arm: with_int_keys(best_of_n[arm]) for arm in stages}, run / "best_of_n.png")
    report = {"version": 1, "seed": seed, "arms": arms, "stages": usage, "machine": describe_machine()}
    (run / "report.json").write_text(json.dumps(report, indent=2))
    table = results_table(arms)
    critiques = three_critiques(run, scores["cloud"])
    (run / "report.md").write_text(
        PAGE.format(
            table=table,
            critiques=critiques,
            run=run,
            stages=stage_table(usage),
            stage_4=STAGE_4 if "outcome" in arms else "",
        )
    )
    print(f"\n{table}\n\n{critiques}\n\nReport: {run / 'report.md'}")


def describe_machine() -> dict[str, str | int | None]:
    """Return what affects the last digits of the results besides the seed: processor, core and thread counts, and library versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),  # `None`: chosen for each stage, depending on the machine's load
        **{name: version(name) for name in ("torch", "transformers", "trl")},
    }


def by_arm(results: list[dict]) -> dict[str, dict]:
    return {Path(result["model"]).name: result for result in results}


def stage_flops(run: Path, stage: str) -> float:
    """Return the FLOPs of a stage: 6 per weight and token in training (as counted by the trainer), and 2 in generation."""
    if stage == "self_critiques":
        return json.loads((run / "self-critiques" / "generation.json").read_text())["flops"]
    folder = run / stage.replace("_", "-")
    return json.loads((folder / "trainer_state.json").read_text())["total_flos"]


def hard_accuracy(groups: dict[str, dict]) -> float:
    """Return the accuracy on pairs with three or more swaps."""
    hard = [group for swaps, group in groups.items() if int(swaps) >= 3]
    return sum(group["accuracy"] * group["n"] for group in hard) / sum(group["n"] for group in hard)


def read_scores(run: Path, arm: str) -> list[dict]:
    [path] = (run / "evaluation").glob(f"scores_*{arm}_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def rewards(rows: list[dict]) -> tuple[list[float], list[float]]:
    return [row["chosen_reward"] for row in rows], [row["rejected_reward"] for row in rows]


def with_int_keys(result: dict) -> dict:
    return {
        key: {int(n): x for n, x in value.items()} if isinstance(value, dict) else value
        for key, value in result.items()
    }


def results_table(arms: dict[str, dict]) -> str:
    """Return the results as a Markdown table with one column per arm."""
    swaps = sorted({k for arm in arms.values() for k in arm["by_difficulty"]})
    sizes = sorted(next(iter(arms.values()))["best_of_n"], key=int)
    cells = {
        "held-out pairs, accuracy (95% interval)": lambda arm: show(arm["accuracy"], ci95=arm["ci95"]),
        **{f"– {k} swaps": lambda arm, k=k: show(arm["by_difficulty"][k]) for k in swaps},
        "pairs, ties": lambda arm: f"{arm['n']}, {arm['ties']}",
        **{f"best of {n}": lambda arm, n=n: show(arm["best_of_n"][n]) for n in sizes},
        "training FLOPs ¹": lambda arm: f"{arm['train_flops']:.2e}",
        "training CPU time ²": lambda arm: f"{arm['train_cpu_s']:.0f} s",
    }
    table = Table(["", *arms], [[name, *map(cell, arms.values())] for name, cell in cells.items()]).markdown()
    return f"{table}\n\n{NOTES}"


def stage_table(usage: dict[str, dict]) -> str:
    rows = [
        [name, f"{used['wall_s']:.0f} s", f"{used['cpu_s']:.0f} s", f"{used['peak_gb']:.1f} GB"]
        for name, used in usage.items()
    ]
    return Table(["stage", "wall", "CPU", "peak memory so far"], rows).markdown()


def three_critiques(run: Path, scores: list[dict]) -> str:
    """Format critiques of right and wrong answers to the held-out problems with the most swaps, each with its reward."""
    from datasets import load_from_disk

    pairs = load_from_disk(str(run / "data" / "pairs"))["test"]
    hardest = [row for row in scores if str(row["group"]) == max(str(row["group"]) for row in scores)]
    shown = [(hardest[0], "chosen"), (hardest[0], "rejected"), (hardest[1], "rejected")]
    blocks = []
    for row, side in shown:
        pair = pairs[row["index"]]
        blocks.append(
            f"> {pair['prompt']}  \n> **{pair[side]}**\n\n{row[f'{side}_critiques'][0]}\n\n"
            f"reward **{row[f'{side}_reward']:+.2f}**"
        )
    return "\n\n---\n\n".join(blocks)


NOTES = """¹ FLOPs of the arm's stages after the shared base model: 6 per weight and token in training, 2 in generation
and for a reference model.
² CPU seconds of the commands that ran these stages, including imports, loading and encoding."""

STAGE_4 = """ The arm "outcome" is the CLoud model after
stage 4, which rewards critiques after which the reward head prefers the chosen response; it has more training FLOPs."""

PAGE = """# The shell game: classic and CLoud reward models

A ball lies under one of four cups, k swaps move it, and a response says where it ends up. All arms start from the same
base model, which has learned to answer directly. The classic model scores a response directly; the CLoud model first
writes a critique that follows the swaps. The classic arm had at least as many training FLOPs as the CLoud arm.{stage_4} No sequence
of swaps in this test occurs in any training set, and no pair or problem occurs twice.

{table}

![accuracy by number of swaps](accuracy.png)
Error bars are 95% Wilson intervals.

![rewards of chosen and rejected responses](rewards.png)

![best-of-N](best_of_n.png)
Error bars are one standard error over problems.

## Three critiques

{critiques}

## Time and memory

{stages}

## What to try next

First `source .venv/bin/activate`.

- Score a response: `python -c "from cloud_hf.loading import load_reward_model as load; model, tok = load('{run}/cloud'); print(model.score(['The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?'], ['The answer is B.'], tok)[0])"`
- Change λ: `lm_loss_weight` in `examples/configs/shell-game/cloud.yaml`.
- Several critiques per response: `python examples/evaluate_rewards.py --config examples/configs/shell-game/scoring.yaml --models {run}/cloud --dataset_name {run}/data/pairs --output_dir {run}/sampled --num_critiques 4 --temperature 1.0`
- Your own data: see "Train your own" in the README.
"""


def main(arguments: list[str]):
    parser = ArgumentParser(description="Print the table of a finished quickstart run.")
    parser.add_argument("run", type=Path, help="folder of the run")
    print(results_table(json.loads((parser.parse_args(arguments).run / "report.json").read_text())["arms"]))


if __name__ == "__main__":
    run(__name__)
