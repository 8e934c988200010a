"""
Run the complete method on the shell game, with a tiny model created on the fly and the same scripts that train Llama-3-8B.

    stage 0   a base language model that answers directly, shared by both arms     make_shell_game.py
    classic   Bradley-Terry on the responses, with at least the compute of all CLoud stages     train_classic.py
    stage 1   critique SFT on oracle critiques     train_critique_sft.py
    stage 2   the stage 1 model rewrites all critiques     build_self_critiques.py
    stage 3   Bradley-Terry plus λ times the LM loss on the rewritten critiques     train_cloud.py
    stage 4   with --stage4: critiques are improved by rewarding good outcomes     train_cloud_outcome.py
    then      held-out pairs and best-of-N for all arms     evaluate_rewards.py, best_of_n.py

python examples/quickstart.py --output_dir runs/quickstart --seed 0

A second run in the same folder keeps finished stages (see quickstart_stages.py): it resumes a killed run and, after a recipe
change, runs only the stages that depend on the recipe.
"""

import argparse
import time
from pathlib import Path

from quickstart_stages import Stage, claim, lock, run_stages

from cloud_hf.cli import ArgumentParser, run


# Each arm's training stages after the shared base model
ARMS = {"classic": ("classic",), "cloud": ("critique_sft", "self_critiques", "cloud")}
STAGE_4 = {"outcome": (*ARMS["cloud"], "outcome")}


def stages(seed: int, arms: dict[str, tuple[str, ...]] = ARMS) -> list[Stage]:
    """Return the stages of the given arms, in the order in which they run."""

    def options(model: str | None, dataset: str | None, output: str) -> tuple[str, ...]:
        named = {"--model_name_or_path": model, "--dataset_name": dataset, "--output_dir": output}
        paths = [word for name, path in named.items() if path is not None for word in (name, f"{{run}}/{path}")]
        return (*paths, "--seed", str(seed))

    models = ("--models", *(f"{{run}}/{arm}" for arm in arms))
    all_stages = [
        Stage(
            "base", "Stage 0: data, and a base model that answers directly", "make_shell_game.py", "shell-game/base.yaml",
            ("--data_dir", "{run}/data", *options(None, None, "base")), ("data", "base"),
        ),
        Stage(
            "classic", "Classic arm: reward at the end of the response", "train_classic.py", "shell-game/classic.yaml",
            options("base", "data/pairs", "classic"), ("classic",), ("base",),
        ),
        Stage(
            "critique_sft", "Stage 1: critique SFT on oracle critiques", "train_critique_sft.py", "shell-game/critique_sft.yaml",
            options("base", "data/pairs", "critique-sft"), ("critique-sft",), ("base",),
        ),
        Stage(
            "self_critiques", "Stage 2: the model rewrites the critiques", "build_self_critiques.py",
            "shell-game/self_critiques.yaml", options("critique-sft", "data/stage3", "self-critiques"), ("self-critiques",),
            ("base", "critique_sft"),
        ),
        Stage(
            "cloud", "Stage 3: CLoud training on its own critiques", "train_cloud.py", "shell-game/cloud.yaml",
            options("critique-sft", "self-critiques", "cloud"), ("cloud",), ("critique_sft", "self_critiques"),
        ),
        Stage(
            "outcome", "Stage 4: critiques improved by their outcome", "train_cloud_outcome.py", "shell-game/outcome.yaml",
            options("cloud", "self-critiques", "outcome"), ("outcome",), ("self_critiques", "cloud"),
        ),
        Stage(
            "evaluation", "Held-out pairs", "evaluate_rewards.py", "shell-game/scoring.yaml",
            (*models, *options(None, "data/pairs", "evaluation"), "--group_column", "difficulty"), ("evaluation",),
            ("base", *arms),
        ),
        Stage(
            "best_of_n", "Best-of-N", "best_of_n.py", "shell-game/scoring.yaml",
            (*models, *options(None, "data/best-of-n", "evaluation")), ("evaluation",), ("base", *arms),
        ),
    ]  # fmt: skip
    return [stage for stage in all_stages if stage.name != "outcome" or "outcome" in arms]


def main(arguments: list[str]):
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir",
        help="folder for models, data and the report; defaults to runs/quickstart, with -seedN appended for seeds other than 0",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for the data, the models and the training")
    parser.add_argument("--stage4", action="store_true", help="add stage 4, critiques improved by their outcome")
    args = parser.parse_args(arguments)
    arms = ARMS | (STAGE_4 if args.stage4 else {})
    folder = Path(args.output_dir or f"runs/quickstart{f'-seed{args.seed}' if args.seed else ''}")
    started = time.monotonic()

    def heading(title: str):
        seconds = int(time.monotonic() - started)
        print(f"\n━━ {title}  [{seconds // 60}:{seconds % 60:02d}]", flush=True)

    with lock(folder) as held:
        try:
            claim(folder, stages(args.seed, arms), args.seed)
        except ValueError as error:
            parser.error(str(error))
        for name in ("report.json", "report.md"):  # reports from an earlier run would not describe this one
            (folder / name).unlink(missing_ok=True)
        usage = run_stages(folder, stages(args.seed, arms), held, heading)
        heading("Report")
        from shell_game_report import write_report  # loads torch, so it is imported only when needed

        write_report(folder, usage, arms, args.seed)
    heading("Finished")
    print(f"Wrote data, models and report.md to {folder}. Next: cloud-hf demo --model {folder / list(arms)[-1]}")


if __name__ == "__main__":
    run(__name__)
