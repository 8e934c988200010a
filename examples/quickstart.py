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
from pathlib import Path


EXAMPLES = Path(__file__).parent
RECIPES = EXAMPLES / "configs" / "shell-game"
STAGES = {
    "classic": ("classic",),
    "cloud": ("critique_sft", "self_critiques", "cloud"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/quickstart", help="folder for models, data and the report")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, models and training")
    args = parser.parse_args()
    run = Path(args.output_dir)
    seed = str(args.seed)
    started = time.monotonic()
    usage = {}

    def stage(name: str, title: str, script: str, *options: str):
        print(f"\n━━ {title}  [{clock(time.monotonic() - started)}]", flush=True)
        usage[name] = run_script(script, *options)
        print(f"   done in {usage[name]['wall_s']:.0f} s", flush=True)

    def recipe(name: str, output: str) -> list[str]:
        return ["--config", str(RECIPES / f"{name}.yaml"), "--output_dir", str(run / output), "--seed", seed]

    data = run / "data"
    stage(
        "base",
        "Stage 0: data, and a base model that answers directly",
        "make_shell_game.py",
        *recipe("base", "base"),
        "--data_dir",
        str(data),
    )
    stage(
        "classic",
        "Classic arm: reward at the end of the response",
        "train_classic.py",
        *recipe("classic", "classic"),
        "--model_name_or_path",
        str(run / "base"),
        "--dataset_name",
        str(data / "pairs"),
    )
    stage(
        "critique_sft",
        "Stage 1: critique SFT on oracle critiques",
        "train_critique_sft.py",
        *recipe("critique_sft", "critique-sft"),
        "--model_name_or_path",
        str(run / "base"),
        "--dataset_name",
        str(data / "pairs"),
    )
    stage(
        "self_critiques",
        "Stage 2: the model rewrites the critiques",
        "build_self_critiques.py",
        *recipe("self_critiques", "self-critiques"),
        "--model_name_or_path",
        str(run / "critique-sft"),
        "--dataset_name",
        str(data / "stage3"),
    )
    stage(
        "cloud",
        "Stage 3: CLoud training on its own critiques",
        "train_cloud.py",
        *recipe("cloud", "cloud"),
        "--model_name_or_path",
        str(run / "critique-sft"),
        "--dataset_name",
        str(run / "self-critiques"),
    )
    models = [str(run / "classic"), str(run / "cloud")]
    scoring = ["--config", str(RECIPES / "scoring.yaml"), "--models", *models, "--output_dir", str(run / "evaluation")]
    stage(
        "evaluation",
        "Evaluation on held-out problems",
        "evaluate_rewards.py",
        *scoring,
        "--dataset_name",
        str(data / "pairs"),
        "--group_column",
        "difficulty",
    )
    stage("best_of_n", "Best-of-N", "best_of_n.py", *scoring, "--dataset_name", str(data / "best-of-n"))
    print(f"\n━━ Report  [{clock(time.monotonic() - started)}]", flush=True)
    from shell_game_report import write_report

    write_report(run, usage, STAGES, args.seed)
    print(f"\nFinished in {clock(time.monotonic() - started)}.")


def run_script(script: str, *options: str) -> dict[str, float]:
    """Run one example script; wall and CPU seconds of it."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    done = subprocess.run([sys.executable, str(EXAMPLES / script), *options], env=environment)
    if done.returncode != 0:
        sys.exit(f"{script} failed with exit status {done.returncode}; see its messages above.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": time.monotonic() - start, "cpu_s": cpu, "peak_gb": after.ru_maxrss / 2**20}


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    main()
