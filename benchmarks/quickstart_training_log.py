"""
Collect the training log of a quickstart run (the losses, rewards and accuracies of every stage) in one JSON file and a plot. The
numbers come from the trainer_state.json that each stage saves with its model.

python benchmarks/quickstart_training_log.py --run runs/quickstart
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt


STAGES = {
    "base": "Stage 0: worked examples",
    "critique-sft": "Stage 1: critique SFT",
    "cloud": "Stage 3: CLoud",
    "classic": "The classic arm",
}
# Log keys to plot, and their labels
CURVES = {"loss": "loss", "pairwise_loss": "Bradley-Terry", "lm_loss": "critique LM", "accuracy": "accuracy"}


def read_log(run: Path) -> dict[str, dict]:
    """Load the number of steps and the log entries of each stage."""
    stages = {}
    for stage in STAGES:
        state = json.loads((run / stage / "trainer_state.json").read_text())
        entries = [
            {key: round(value, 6) if isinstance(value, float) else value for key, value in entry.items()}
            for entry in state["log_history"]
        ]
        stages[stage] = {"steps": state["global_step"], "log_history": entries}
    return stages


def draw(stages: dict[str, dict], path: Path):
    """Plot one panel per stage."""
    figure, panels = plt.subplots(1, len(stages), figsize=(4 * len(stages), 3.2), layout="constrained")
    for panel, (stage, record) in zip(panels, stages.items(), strict=True):
        for key, label in CURVES.items():
            points = [(entry["step"], entry[key]) for entry in record["log_history"] if key in entry]
            # If a loss consists of parts, plot only the parts
            if points and not (key == "loss" and any("pairwise_loss" in entry for entry in record["log_history"])):
                panel.plot(*zip(*points, strict=True), label=label)
        panel.set(title=STAGES[stage], xlabel="step", ylim=(0, None))
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="Folder of the quickstart run.")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quickstart_training_log.json"))
    args = parser.parse_args()
    stages = read_log(args.run)
    args.output.write_text(json.dumps({"version": 1, "stages": stages}, indent=1) + "\n")
    draw(stages, args.output.with_suffix(".png"))
    for stage, record in stages.items():
        last = {key: value for entry in record["log_history"] for key, value in entry.items() if key in CURVES}
        print(f"{STAGES[stage]}: {record['steps']} steps, last {last}")


if __name__ == "__main__":
    main()
