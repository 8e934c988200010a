"""
Measure cascades and successive halving on the shell game, with the models from finished quickstart runs.

Half of the pairs are easy (one swap), and half are hard (three or four swaps). The threshold is chosen on dev pairs, so that accuracy is at
most one point below that of the CLoud model alone or of all stages on all responses, whichever is lower. There are only 144 pairs with one
swap, so two thirds of the easy pairs have swaps that both models were trained on, but dev and test have no pairs in common. In the second
mix, all easy pairs have such swaps. Hard pairs have swap sequences that are in no training set.

python benchmarks/cascade.py --runs runs/quickstart-seed0 runs/quickstart-seed1 runs/quickstart-seed2
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np

from cloud_hf import TransformersScorer
from cloud_hf.cascade import CascadeFit
from cloud_hf.data.shell_game import CUPS, ShellGame, best_of_n_rows, preference_rows, response_text
from cloud_hf.evaluation.halving_results import halve_recorded
from cloud_hf.evaluation.metrics.cascade import CascadePoint, Goal, StageScores, fit_cascade, fit_stages, run_recorded
from cloud_hf.evaluation.stats import json_safe, mean_estimate
from cloud_hf.loading import load_reward_model


EASY, HARD = (1,), (3, 4)
SEEN = 48  # easy pairs per split with swaps that both models were trained on; they come last among the easy pairs
COPIES = 4  # of each of the four responses, for 16 candidates in total
CRITIQUES = 4  # in the cascade's third stage
MOST = 8  # maximum critiques per candidate
CURVE = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
CASCADES = {
    "both at once": ("classic", "cloud"),
    "one at a time": ("classic", "cloud"),
    "one at a time, then four critiques": ("classic", "cloud", "sampled"),
}
SAMPLING = {"temperature": 1.0, "seed": 0, "max_new_tokens": 100}
RESULT = Path(__file__).parent / "results" / "cascade.json"


def easy_pairs(split: str, seed: int) -> list[dict]:
    """Return a split's pairs with one swap: all with swaps held out for this split, and half of those with training swaps."""
    games = [ShellGame(start, (swap,)) for start in CUPS for swap in permutations(CUPS, 2)]
    rows = [
        {"prompt": game.prompt, "chosen": response_text(game.answer), "rejected": response_text(cup), "game": game}
        for game in games
        for cup in CUPS
        if cup != game.answer
    ]
    seen = [row for row in rows if row["game"].belongs_to("train")]
    random.Random(seed).shuffle(seen)
    half = seen[::2] if split == "validation" else seen[1::2]
    return [row for row in rows if row["game"].belongs_to(split)] + half


def mixed_pairs(split: str, seed: int) -> list[dict]:
    easy = easy_pairs(split, seed)
    return easy + preference_rows(len(easy), split, HARD, seed)


def score(scorer: TransformersScorer, rows: Sequence[tuple[str, Sequence[str]]], name: str, **options) -> dict:
    """Score the responses to each prompt. Returns rewards and tokens by prompt, response and critique, and the seconds."""
    chats = [(prompt, response) for prompt, responses in rows for response in responses]
    started = time.monotonic()
    scores = iter(scorer.score([prompt for prompt, _ in chats], [response for _, response in chats], **options))
    grouped = [[next(scores) for _ in responses] for _, responses in rows]
    return {
        "name": name,
        "seconds": time.monotonic() - started,
        "rewards": [[list(one.rewards) for one in row] for row in grouped],
        "tokens": [[[len(ids) for ids in one.critique_ids] for one in row] for row in grouped],
    }


def stage(found: dict, one_at_a_time: bool = False) -> StageScores:
    rewards = [[float(np.mean(of_one)) for of_one in row] for row in found["rewards"]]
    return StageScores(
        found["name"], rewards, [[sum(of_one) for of_one in row] for row in found["tokens"]], one_at_a_time
    )


def compare(point: CascadePoint, full: CascadePoint) -> dict:
    """Return a point's metrics, its difference in accuracy from the full model, and its share of the full model's tokens."""
    return {
        "threshold": point.threshold,
        "accuracy": point.accuracy,
        "minus_full": mean_estimate(np.subtract(point.worth, full.worth).tolist()),
        "tokens": point.tokens_per_row,
        "share_of_tokens": point.tokens_per_row.value / full.tokens_per_row.value,
        "reached": point.reached,
    }


def measure_pairs(seed: int, scorers: dict[str, TransformersScorer]) -> tuple[dict, CascadeFit]:
    """Fit cascades on the dev pairs of both mixes, and run them on the test pairs. Also return the fit to use for best-of-16."""
    stages, seconds, results, fits = {}, {}, {}, {}
    easy = 0
    for split in ("validation", "test"):
        rows = [(row["prompt"], (row["chosen"], row["rejected"])) for row in mixed_pairs(split, seed)]
        found = {
            "classic": score(scorers["classic"], rows, "classic"),
            "cloud": score(scorers["cloud"], rows, "cloud", max_new_tokens=100),
            "sampled": score(scorers["cloud"], rows, "sampled", num_critiques=CRITIQUES, **SAMPLING),
        }
        stages[split] = {name: stage(part) for name, part in found.items()}
        seconds = {name: part["seconds"] / len(rows) for name, part in found.items()}
        easy = len(rows) // 2
    for mix, places in {"all": range(2 * easy), "trained swaps": range(easy - SEEN, easy + SEEN)}.items():
        dev, test = (
            {name: part.part(places) for name, part in stages[split].items()} for split in ("validation", "test")
        )
        results[mix], fits[mix] = measure_mix(dev, test)
    return {"mixes": results, "seconds_per_row": seconds}, fits["all"]


def measure_mix(dev: dict[str, StageScores], test: dict[str, StageScores]) -> tuple[dict, CascadeFit]:
    """Fit each cascade on dev rows, and compare it with the CLoud model on test rows. The first half of the rows is easy."""
    correct = [[1, 0]] * len(test["cloud"].rewards)
    alone = {name: run_recorded([part], fit_stages([part], correct), 1.0, correct) for name, part in test.items()}
    result, fits = {"rows": len(correct), "alone": {}, "cascades": {}}, {}
    for name, point in alone.items():
        easy, hard = np.array(point.worth).reshape(2, -1).mean(1)
        result["alone"][name] = {**compare(point, alone["cloud"]), "easy": easy, "hard": hard}
    for title, names in CASCADES.items():
        parts = [
            [replace(of[name], one_at_a_time=title != "both at once" and name != "classic") for name in names]
            for of in (dev, test)
        ]
        fits[title], _ = fit_cascade(parts[0], correct, Goal(loss=0.01))
        thresholds = (fits[title].thresholds[0], *CURVE)
        point, *curve = (run_recorded(parts[1], fits[title].stages, one, correct) for one in thresholds)
        result["cascades"][title] = {
            **compare(point, alone["cloud"]), "worth": point.worth, "full_worth": alone["cloud"].worth,
            "curve": [compare(one, alone["cloud"]) for one in curve],
        }  # fmt: skip
    return result, fits["one at a time"]


def measure_best_of_16(seed: int, problems: int, scorers: dict[str, TransformersScorer], fit: CascadeFit) -> dict:
    """Choose among 16 candidates (four copies of each response, with separate critiques) by halving and by the cascade."""
    rows = best_of_n_rows(problems, "test", HARD, seed)
    easy = {row["prompt"]: row for row in easy_pairs("test", seed)}
    games = [row["game"] for row in list(easy.values())[:problems]]
    rows = [(row["prompt"], row["responses"], row["correct"]) for row in rows]
    rows += [(one.prompt, [response_text(cup) for cup in CUPS], [cup == one.answer for cup in CUPS]) for one in games]
    chats = [(prompt, responses) for prompt, responses, _ in rows]
    cheap = score(scorers["classic"], chats, "classic")
    written = score(scorers["cloud"], chats, "cloud", num_critiques=COPIES * MOST, **SAMPLING)
    rewards, tokens = (_sixteen(written[name]) for name in ("rewards", "tokens"))
    worth = [[float(value) for value in correct for _ in range(COPIES)] for _, _, correct in rows]
    cheap_rewards = [[of_one[0] for of_one in row for _ in range(COPIES)] for row in cheap["rewards"]]
    result: dict = {"problems": len(rows)}
    for count in (1, 2, 4, MOST):
        cut = [[[one[:count] for one in row] for row in part] for part in (rewards, tokens)]
        best = [int(np.argmax([np.mean(one) for one in row])) for row in cut[0]]
        spent = [sum(map(sum, row)) for row in cut[1]]
        found = {
            "full": {
                "accuracy": mean_estimate([row[place] for row, place in zip(worth, best, strict=True)]),
                "tokens": mean_estimate(spent),
            }
        }
        for title, first in (("halving", None), ("classic first, then halving", cheap_rewards)):
            if count > 1 or first is not None:
                choices, used = halve_recorded(cut[0], cut[1], first)
                found[title] = _against(worth, choices, best, used, spent)
        stages = [
            StageScores("classic", cheap_rewards, [[0] * 16 for _ in rows]),
            StageScores(
                "cloud",
                [[float(np.mean(one)) for one in row] for row in cut[0]],
                [list(map(sum, row)) for row in cut[1]],
                True,
            ),
        ]
        point = run_recorded(stages, fit.stages, fit.thresholds[0], worth)
        found["cascade, one at a time"] = _against(
            worth, [int(np.argmax(row)) for row in point.rewards], best, point.tokens, spent
        )
        result[f"{count} critiques"] = found
    return result


def _sixteen(values: list) -> list:
    """Give each copy of a response separate critiques."""
    return [[one[copy * MOST : (copy + 1) * MOST] for one in row for copy in range(COPIES)] for row in values]


def _against(worth, choices, best, used, spent) -> dict:
    ours, full = ([row[place] for row, place in zip(worth, chosen, strict=True)] for chosen in (choices, best))
    return {
        "accuracy": mean_estimate(ours),
        "minus_full": mean_estimate(np.subtract(ours, full).tolist()),
        "worth": ours,
        "full_worth": full,
        "tokens": mean_estimate(list(used)),
        "share_of_tokens": float(np.sum(used) / np.sum(spent)),
    }


def shortcuts(run: dict) -> dict[str, dict]:
    """Return the results that a run compares with the full model, by title: cascades on pairs, and choices among 16 candidates."""
    of_pairs = run["pairs"]["mixes"].items()
    found = {f"{mix}: {title}": part for mix, of_mix in of_pairs for title, part in of_mix["cascades"].items()}
    counts = [(count, parts) for count, parts in run["best_of_16"].items() if count != "problems"]
    return found | {
        f"best of 16, {count}: {title}": part
        for count, parts in counts
        for title, part in parts.items()
        if title != "full"
    }


def pooled(runs: list[dict]) -> dict:
    """Pool the rows of all seeds, and list the accuracy difference and the share of tokens for each seed."""
    result = {}
    for title in shortcuts(runs[0]):
        parts = [shortcuts(run)[title] for run in runs]
        ours, full = (np.concatenate([part[name] for part in parts]).tolist() for name in ("worth", "full_worth"))
        shares = [part["share_of_tokens"] for part in parts]
        result[title] = {
            "accuracy": mean_estimate(ours),
            "full_accuracy": mean_estimate(full),
            "minus_full": mean_estimate(np.subtract(ours, full).tolist()),
            "share_of_tokens": float(np.mean(shares)),
            "seeds": {"minus_full": [part["minus_full"].value for part in parts], "share_of_tokens": shares},
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="Folders of finished quickstart runs.")
    parser.add_argument(
        "--problems", type=int, default=24, help="Number of best-of-16 problems of each kind, at most 24."
    )
    args = parser.parse_args()
    runs = []
    for run in args.runs:
        seed = json.loads((run / "stages" / "run.json").read_text())["seed"]
        scorers = {name: TransformersScorer(*load_reward_model(str(run / name)), 256) for name in ("classic", "cloud")}
        pairs, fit = measure_pairs(seed, scorers)
        best = measure_best_of_16(seed, args.problems, scorers, fit)
        runs.append({"seed": seed, "pairs": pairs, "best_of_16": best})
        print(json.dumps(json_safe(runs[-1]), default=str)[:2000])
    page = {"version": 2, "runs": runs, "pooled": pooled(runs)}
    for part in (part for run in runs for part in shortcuts(run).values()):
        del part["worth"], part["full_worth"]
    RESULT.write_text(json.dumps(json_safe(page), separators=(",", ":")).replace('{"seed"', '\n{"seed"') + "\n")
    print(json.dumps(json_safe(page["pooled"]), indent=1))


if __name__ == "__main__":
    main()
