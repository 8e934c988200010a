"""
Train a classic and a CLoud model from SmolLM2-135M on real pairs with critiques, and evaluate both on real preference datasets. This runs
the project's commands one after another, with the recipes in examples/configs/smollm2-135m. Finished stages are kept, and the same command
resumes a killed run. It takes an hour or two on one CPU core.

python benchmarks/claims/real_model.py --base HuggingFaceTB/SmolLM2-135M-Instruct --data ../shared/data --output_dir runs/smollm2
python benchmarks/claims/real_figures.py      # recompute every number from the recorded scores
"""

import argparse
import sys
import time
from pathlib import Path

import yaml


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "examples"))

from quickstart_stages import Stage, claim, lock, run_stages  # noqa: E402


ROWS = HERE / "real_rows.yaml"


def stages(base: str, data: str, rows: Path, recipes: str, seed: int) -> list[Stage]:
    """Return the commands of all stages, in order."""

    def recipe(name: str) -> str:
        return f"{recipes}/{name}.yaml"

    def options(model: str, dataset: str, output: str) -> tuple[str, ...]:
        paths = ("--model_name_or_path", model, "--dataset_name", dataset, "--output_dir", f"{{run}}/{output}")
        return (*paths, "--seed", str(seed))

    sets = [f"{{run}}/rows/{name}.jsonl" for name in yaml.safe_load(rows.read_text(encoding="utf8"))["evaluation"]]
    pairs, critic = "{run}/rows/train.jsonl", "{run}/critique-sft"
    return [
        Stage(
            "rows", "Rows that fit", "../benchmarks/claims/real_rows.py", str(rows),
            ("--base", base, "--data", data, "--output_dir", "{run}/rows", "--seed", str(seed)), ("rows",),
        ),
        Stage(
            "critique_sft", "Stage 1: critique SFT on the critiques of the dataset", "train_critique_sft.py",
            recipe("critique_sft"), options(base, pairs, "critique-sft"), ("critique-sft",), ("rows",),
        ),
        Stage(
            "self_critiques", "Stage 2: the model rewrites the critiques", "build_self_critiques.py",
            recipe("self_critiques"), options(critic, pairs, "self-critiques"), ("self-critiques",),
            ("rows", "critique_sft"),
        ),
        Stage(
            "cloud", "Stage 3: CLoud training on its own critiques", "train_cloud.py", recipe("cloud"),
            options(critic, "{run}/self-critiques", "cloud"), ("cloud",), ("critique_sft", "self_critiques"),
        ),
        Stage(
            "classic", "Classic arm: one pass over the same pairs", "train_classic.py", recipe("classic"),
            options(base, pairs, "classic"), ("classic",), ("rows",),
        ),
        Stage(
            "evaluation", "Held-out pairs", "evaluate_rewards.py", recipe("scoring"),
            ("--models", "{run}/classic", "{run}/cloud", "--dataset_name", *sets, "--output_dir", "{run}/evaluation",
             "--update_card", "True", "--seed", str(seed)), ("evaluation",), ("rows", "classic", "cloud"),
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="Hub id or folder of the language model to start from")
    parser.add_argument("--data", default="../shared/data", help="folder with the files that --rows names")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for rows, models and the evaluation")
    parser.add_argument(
        "--rows", type=Path, default=ROWS, help="YAML file that lists the data files and the numbers of rows"
    )
    parser.add_argument(
        "--recipes", default="smollm2-135m", help="folder of the recipes, relative to examples/configs"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for the rows, the new weights and the training")
    args = parser.parse_args(arguments)
    base = str(Path(args.base).resolve()) if Path(args.base).is_dir() else args.base
    data = str(Path(args.data).resolve())
    planned = stages(base, data, args.rows.resolve(), args.recipes, args.seed)
    started = time.monotonic()

    def heading(title: str):
        seconds = int(time.monotonic() - started)
        print(f"\n━━ {title}  [{seconds // 60}:{seconds % 60:02d}]", flush=True)

    with lock(args.output_dir) as held:
        try:
            claim(args.output_dir, planned, args.seed)
        except ValueError as error:
            parser.error(str(error))
        run_stages(args.output_dir, planned, held, heading)
    heading("Finished")
    print(f"To record this run: python benchmarks/claims/real_figures.py --run {args.output_dir}")


if __name__ == "__main__":
    main()
