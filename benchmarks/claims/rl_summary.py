"""Results of the RL check, computed from the answers that it collected: curves, tables and a section of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cloud_hf.markdown import table


JUDGES = {"classic": "classic", "cloud": "CLoud", "stage4": "CLoud, stage 4", "oracle": "oracle (upper limit)"}
TEXT = """TRL's GRPO trains one policy on each reward model through `cloud_hf.rl.trl.cloud_reward`. The policy comes from the base of all arms and
some worked examples with correct steps, half of whose answers are random; reward models see the answer alone. Solved: held-out problems
with the right answer, sampled at temperature 1. Favoured: those whose answer the reward model ranks first among all choices. Their difference is what the
policy gains from errors of the reward model."""


def summarise(results: Path) -> dict[str, Any]:
    """Return curves over the training steps by task and judge, for each seed and as means. Empty if the check was not run."""
    if not (results / "rl_check.json").is_file():
        return {}
    cells = json.loads((results / "rl_check.json").read_text())["cells"]
    found: dict[str, Any] = {}
    with np.load(results / "rl_answers.npz") as arrays:
        for judge in JUDGES:
            for key in sorted(key for key in cells if key.endswith(f"/{judge}")):
                task, seed, _ = key.split("/")
                curves = curves_of(arrays[f"{key}/answers"], arrays[f"{key}/rewards"])
                seeds = found.setdefault(task, {}).setdefault(
                    judge, {"steps": cells[key]["result"]["evaluated"], "seeds": {}}
                )
                seeds["seeds"][seed.removeprefix("seed")] = curves
                seeds["cpu_s"] = seeds.get("cpu_s", 0.0) + cells[key]["cpu_s"]
    for judges in found.values():
        for one in judges.values():
            of_seeds = list(one["seeds"].values())
            one["mean"] = {name: np.mean([of[name] for of in of_seeds], axis=0).tolist() for name in of_seeds[0]}
    return found


def curves_of(answers: np.ndarray, rewards: np.ndarray) -> dict[str, list[float]]:
    """
    Compute the shares of the held-out problems, and the mean reward, at each evaluation.

    Args:
        answers (`np.ndarray` of shape `(evaluations, problems)`):
            Indices of the answers among a problem's choices, of which the right one comes first; -1 for no answer.
        rewards (`np.ndarray` of shape `(problems, choices)`):
            Reward of each choice.
    """
    scaled = (rewards - rewards.mean()) / (rewards.std() or 1)
    given = np.take_along_axis(scaled[None], answers.clip(0)[:, :, None].astype(int), axis=2)[:, :, 0]
    answered = answers >= 0
    favoured = (answers == rewards.argmax(1)) & answered
    return {
        "solved": (answers == 0).mean(1).tolist(),
        "favoured": favoured.mean(1).tolist(),
        "reward": [float(values[of].mean()) if of.any() else 0.0 for values, of in zip(given, answered, strict=True)],
        "answered": answered.mean(1).tolist(),
    }


def section(found: dict[str, Any]) -> list[str]:
    """Return the parts of the report that cover the RL check."""
    parts = ["## A policy trained on each reward model", TEXT]
    for task, judges in found.items():
        rows = [
            [
                JUDGES[judge],
                f"{one['mean']['solved'][0]:.1%} to {one['mean']['solved'][-1]:.1%}",
                f"{one['mean']['favoured'][0]:.1%} to {one['mean']['favoured'][-1]:.1%}",
                f"{one['mean']['reward'][0]:+.2f} to {one['mean']['reward'][-1]:+.2f}",
                ", ".join(f"{of['solved'][-1]:.1%}" for of in one["seeds"].values()),
            ]
            for judge, one in judges.items()
        ]
        header = [f"{task}: reward of", "solved", "favoured", "reward, in standard deviations", "solved, each seed"]
        parts.append(table(rows, header))
    return [*parts, "![Solved and favoured answers by step](claims_rl.png)"]
