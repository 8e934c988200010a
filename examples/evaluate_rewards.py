"""
Accuracy of reward models on preference pairs (columns prompt, chosen, rejected), with 95 % intervals.

A pair counts as right when the chosen response has the strictly higher reward; ties are wrong and are reported.
Writes report.json, report.md and one JSON-lines file of scores and critiques per model and dataset.

python examples/evaluate_rewards.py --models cloud-rm classic-rm --dataset_name pairs.jsonl other/preference-set \
    --output_dir results --max_new_tokens 512 --overlong_policy truncate_prompt
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trl import TrlParser

from cloud_hf.data.schemas import PAIR_COLUMNS
from cloud_hf.evaluation import PairEvaluation, evaluate_pairs
from cloud_hf.evaluation.arguments import ScoringArguments, load_datasets, open_scorer, short_names


@dataclass(kw_only=True)
class EvaluationArguments(ScoringArguments):
    """
    Arguments of [`ScoringArguments`], and

    Parameters:
        group_column (`str`, *optional*):
            Column by whose values accuracy is also reported, such as `subset`.
    """

    group_column: str | None = field(default=None, metadata={"help": "Column to also report accuracy by."})


ARGUMENTS = (EvaluationArguments,)


def main(args: EvaluationArguments):
    datasets = load_datasets(args, PAIR_COLUMNS + ((args.group_column,) if args.group_column else ()))
    shown = short_names(args.models) | short_names(args.dataset_name)
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    results = []
    for model_name in args.models:
        with open_scorer(model_name, args) as (scorer, critique_format, options):
            for dataset_name, rows in datasets.items():
                print(f"{model_name} on {dataset_name}: {len(rows)} pairs")
                result = evaluate_pairs(scorer, rows, critique_format, group_column=args.group_column, **options)
                results.append({"model": model_name, "dataset": dataset_name, **result.summary()})
                file_name = f"scores_{shown[model_name]}_{shown[dataset_name]}.jsonl".replace("/", "-")
                write_scores(result, output_dir / file_name)
                report = {"version": 1, "arguments": asdict(args), "results": results}
                (output_dir / "report.json").write_text(json.dumps(report, indent=2))
    table = "\n".join(markdown_table(results, shown))
    (output_dir / "report.md").write_text(f"# Preference accuracy\n\n{table}\n")
    print(f"\n{table}\n\nReport in {output_dir}")


def write_scores(result: PairEvaluation, path: Path):
    with path.open("w", encoding="utf8") as file:
        for pair in result.pairs:
            row = {"index": pair.index, "id": pair.id, "group": pair.group}
            for side, score in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                row[f"{side}_reward"] = score.reward
                row[f"{side}_rewards"] = score.rewards
                row[f"{side}_critiques"] = score.critiques
                row[f"{side}_finish_reasons"] = score.finish_reasons
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def markdown_table(results: list[dict], shown: dict[str, str]) -> list[str]:
    lines = [
        "| model | dataset | accuracy | 95 % interval | pairs | ties | dropped | shortened | critiques cut |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in results:
        low, high = row["ci95"]
        lines.append(
            f"| {shown[row['model']]} | {shown[row['dataset']]} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | "
            f"{row['n']} | {row['ties']} | {row['dropped']} | {row['shortened']} | {row['critiques_cut']:.1%} |"
        )
        lines += [
            f"| | – {name} | {group['accuracy']:.1%} | {group['ci95'][0]:.1%} to {group['ci95'][1]:.1%} | {group['n']} | | | | |"
            for name, group in row["by_group"].items()
        ]
    return lines


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
