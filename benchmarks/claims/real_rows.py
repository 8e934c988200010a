"""
Sample training pairs with critiques, and evaluation pairs, that are short enough for a CPU. This is stage 0 of `real_model.py`.

python benchmarks/claims/real_rows.py --config benchmarks/claims/real_rows.yaml --base MODEL --data ../shared/data --output_dir rows
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer


COLUMNS = ("id", "prompt", "chosen", "rejected", "chosen_feedback", "rejected_feedback")
TEMPLATE_TOKENS = 64  # upper bound for the tokens of the system turn, the role markers and the request for a critique


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf8") if path.suffix == ".gz" else path.open(encoding="utf8") as file:
        return [json.loads(line) for line in file]


def write(rows: Iterable[dict[str, Any]], path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")


def draw(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Sample at most `count` rows, and keep their order."""
    kept = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    return [rows[i] for i in kept]


class Lengths:
    """Counter for the tokens of a row's longer side."""

    def __init__(self, base: str):
        self.tokenizer = AutoTokenizer.from_pretrained(base)

    def __call__(self, row: dict[str, Any], critique: bool) -> int:
        prompt = row["prompt"]
        prompt = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
        sides = [
            self.tokens(row[side]) + (self.tokens(row[f"{side}_feedback"]) if critique else 0)
            for side in ("chosen", "rejected")
        ]
        return TEMPLATE_TOKENS + self.tokens(prompt) + max(sides)

    def tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("config", "base", "data", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = yaml.safe_load(Path(args.config).read_text(encoding="utf8"))
    data, target, length = Path(args.data), Path(args.output_dir), Lengths(args.base)

    pairs = [{key: row[key] for key in COLUMNS} for name in settings["train"] for row in read(data / name)]
    fitting = [row for row in pairs if length(row, critique=True) <= settings["max_length"]]
    drawn = draw(fitting, settings["pairs"], args.seed)
    write(drawn, target / "train.jsonl")
    counts = {"train": {"rows": len(pairs), "fitting": len(fitting), "drawn": len(drawn)}}
    for name, file in settings["evaluation"].items():
        rows = read(data / file)
        fitting = [row for row in rows if length(row, critique=False) <= settings["eval_max_length"]]
        drawn = [
            {key: row[key] for key in ("id", "prompt", "chosen", "rejected")}
            for row in draw(fitting, settings["rows"], args.seed)
        ]
        write(drawn, target / f"{name}.jsonl")
        counts[name] = {"rows": len(rows), "fitting": len(fitting), "drawn": len(drawn)}
    (target / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    for name, count in counts.items():
        print(
            f"{name}: sampled {count['drawn']} of {count['rows']} rows, {count['fitting']} of which are short enough"
        )


if __name__ == "__main__":
    main()
