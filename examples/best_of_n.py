"""
Best-of-N: how often the candidate with the highest reward is correct, for every N up to the number of candidates.

Rows have the columns prompt, responses (a list) and correct (a list of booleans or scores, one per response).
Writes best_of_n.json and best_of_n.png.

python examples/best_of_n.py --models cloud-rm classic-rm --dataset_name gsm8k_bon4.jsonl \
    --output_dir results --max_new_tokens 512
"""

import json
from pathlib import Path

from trl import TrlParser

from cloud_hf.evaluation import evaluate_best_of_n
from cloud_hf.evaluation.arguments import ScoringArguments, load_datasets, open_scorer, short_names
from cloud_hf.evaluation.plots import plot_best_of_n


ARGUMENTS = (ScoringArguments,)


def main(args: ScoringArguments):
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    results = []
    datasets = load_datasets(args, ("prompt", "responses", "correct"))
    shown = short_names(args.models) | short_names(args.dataset_name)
    for model_name in args.models:
        with open_scorer(model_name, args) as (scorer, critique_format, options):
            for dataset_name, rows in datasets.items():
                print(f"{model_name} on {dataset_name}: {len(rows)} problems")
                result = evaluate_best_of_n(scorer, rows, critique_format, **options).summary()
                results.append({"model": model_name, "dataset": dataset_name, **result})
                (output_dir / "best_of_n.json").write_text(json.dumps({"version": 1, "results": results}, indent=2))
                rates = ", ".join(f"{n}: {rate:.1%}" for n, rate in result["rates"].items())
                print(f"best of {rates}")
    for dataset_name in datasets:
        arms = {shown[row["model"]]: row for row in results if row["dataset"] == dataset_name}
        name = "best_of_n.png" if len(datasets) == 1 else f"best_of_n_{shown[dataset_name]}.png".replace("/", "-")
        plot_best_of_n(arms, output_dir / name)


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
