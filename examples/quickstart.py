"""
The whole method on the shell game, with the scripts that train Llama-3-8B and a tiny model made on the spot.

    stage 0   a base language model that answers directly, shared by both arms     make_shell_game.py
    classic   Bradley-Terry on its answers, with at least the compute of all CLoud stages     train_classic.py
    stage 1   critique SFT on oracle critiques     train_critique_sft.py
    stage 2   the model rewrites all critiques itself     build_self_critiques.py
    stage 3   Bradley-Terry plus λ times the critique LM loss on those     train_cloud.py
    then      held-out pairs and best-of-N for both arms     evaluate_rewards.py, best_of_n.py

python examples/quickstart.py --output_dir runs/quickstart --seed 0
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


EXAMPLES = Path(__file__).parent
RECIPES = EXAMPLES / "configs" / "shell-game"
# What each arm trained with, after the base they share
ARMS = {"classic": ("classic",), "cloud": ("critique_sft", "self_critiques", "cloud")}


@dataclass(frozen=True)
class Stage:
    """One run of an example script."""

    name: str
    title: str
    script: str
    recipe: str
    options: tuple[str, ...]

    def command(self) -> list[str]:
        return [sys.executable, str(EXAMPLES / self.script), "--config", str(RECIPES / self.recipe), *self.options]


def stages(run: Path, seed: int) -> list[Stage]:
    """The commands of the whole method; `run` is the folder for everything."""
    base, classic, sft, self_critiques, cloud, data = (
        str(run / name) for name in ("base", "classic", "critique-sft", "self-critiques", "cloud", "data")
    )

    def options(model: str | None, dataset: str | None, output: str) -> tuple[str, ...]:
        named = {"--model_name_or_path": model, "--dataset_name": dataset, "--output_dir": output, "--seed": str(seed)}
        return tuple(word for name, value in named.items() if value is not None for word in (name, value))

    scoring = ("--models", classic, cloud, "--output_dir", str(run / "evaluation"), "--seed", str(seed))
    return [
        Stage(
            "base", "Stage 0: data, and a base model that answers directly", "make_shell_game.py", "base.yaml",
            ("--data_dir", data, *options(None, None, base)),
        ),
        Stage(
            "classic", "Classic arm: reward at the end of the response", "train_classic.py", "classic.yaml",
            options(base, f"{data}/pairs", classic),
        ),
        Stage(
            "critique_sft", "Stage 1: critique SFT on oracle critiques", "train_critique_sft.py", "critique_sft.yaml",
            options(base, f"{data}/pairs", sft),
        ),
        Stage(
            "self_critiques", "Stage 2: the model rewrites the critiques", "build_self_critiques.py",
            "self_critiques.yaml", options(sft, f"{data}/stage3", self_critiques),
        ),
        Stage(
            "cloud", "Stage 3: CLoud training on its own critiques", "train_cloud.py", "cloud.yaml",
            options(sft, self_critiques, cloud),
        ),
        Stage(
            "evaluation", "Held-out pairs", "evaluate_rewards.py", "scoring.yaml",
            (*scoring, "--dataset_name", f"{data}/pairs", "--group_column", "difficulty"),
        ),
        Stage(
            "best_of_n", "Best-of-N", "best_of_n.py", "scoring.yaml",
            (*scoring, "--dataset_name", f"{data}/best-of-n"),
        ),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/quickstart", help="folder for models, data and the report")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, models and training")
    args = parser.parse_args()
    run, started, usage = Path(args.output_dir), time.monotonic(), {}
    # What an earlier run journaled is not this run's work
    (run / "self-critiques" / "journal.jsonl").unlink(missing_ok=True)
    for stage in stages(run, args.seed):
        heading(stage.title, started)
        usage[stage.name] = execute(stage)
        print(f"   done in {usage[stage.name]['wall_s']:.0f} s", flush=True)
    heading("Report", started)
    from shell_game_report import write_report  # loads torch, which only this process's end needs

    write_report(run, usage, ARMS, args.seed)
    heading("Finished", started)


def execute(stage: Stage) -> dict[str, float]:
    """Run a stage; its wall and CPU seconds, and the largest memory of any stage so far."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(stage.command(), env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"})
    if done.returncode != 0:
        sys.exit(f"{stage.script} failed with exit status {done.returncode}; see its messages above.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": time.monotonic() - start, "cpu_s": cpu, "peak_gb": after.ru_maxrss / 2**20}


def heading(title: str, started: float):
    seconds = int(time.monotonic() - started)
    print(f"\n━━ {title}  [{seconds // 60}:{seconds % 60:02d}]", flush=True)


if __name__ == "__main__":
    main()
