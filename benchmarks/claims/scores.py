"""Scores that the study collected, and the outcome of each arm on each problem."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import ARMS, MEMBERS


@dataclass
class Scores:
    """Rewards of one task. For each arm and seed, there is one row per problem, with the right answer first."""

    task: str
    arrays: dict[str, np.ndarray]
    cells: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, results: Path) -> "list[Scores]":
        record = json.loads((results / "cells.json").read_text())
        found = []
        for path in sorted(results.glob("scores_*.npz")):
            task = path.stem.removeprefix("scores_")
            cells = {key.split("/", 1)[1]: cell for key, cell in record["cells"].items() if key.startswith(f"{task}/")}
            with np.load(path) as file:
                found.append(cls(task, dict(file.items()), cells))
        for scores in found:
            scores.add_ensembles()
        return found

    def add_ensembles(self):
        """Add the mean of five classic models, each scaled by the standard deviation of its rewards."""
        for seed in self.seeds("classic"):
            members = [f"seed{seed}/{name}/rewards" for name in ("classic", *(f"classic_{k}" for k in MEMBERS))]
            if all(name in self.arrays for name in members):
                scaled = [self.arrays[name] / (self.arrays[name].std() or 1) for name in members]
                self.arrays[f"seed{seed}/ensemble/rewards"] = np.mean(scaled, axis=0)

    def seeds(self, *arms: str) -> list[int]:
        """Return the seeds for which all arms are finished."""
        of_arm = [
            {int(key.split("/")[0].removeprefix("seed")) for key in self.arrays if key.split("/")[1] == arm}
            for arm in arms
        ]
        return sorted(set.intersection(*of_arm))

    @property
    def arms(self) -> list[str]:
        names = {key.split("/")[1] for key in self.arrays if key.endswith("/rewards")}
        return [name for name in (*ARMS, "ensemble", "verdict") if name in names]

    def get(self, seed: int, arm: str, name: str) -> np.ndarray:
        return self.arrays[f"seed{seed}/{arm}/{name}"]

    def levels(self, seed: int) -> np.ndarray:
        return next(
            values for key, values in self.arrays.items() if key.startswith(f"seed{seed}/") and key.endswith("/levels")
        )

    def margins(self, seed: int, arm: str) -> np.ndarray:
        """Return the reward of the right answer minus the reward of each other choice."""
        rewards = self.get(seed, arm, "rewards").astype(float)
        return rewards[:, :1] - rewards[:, 1:]

    def outcomes(self, seed: int, arm: str) -> np.ndarray:
        """Return, for each problem, the share of pairs in the right order; a tie counts half."""
        return np.heaviside(self.margins(seed, arm), 0.5).mean(1)

    def best_of_n(self, seed: int, arm: str) -> np.ndarray:
        """Return, for each problem, the probability that the right answer is picked among all choices; ties are broken at random."""
        rewards = self.get(seed, arm, "rewards")
        best = rewards == rewards.max(1, keepdims=True)
        return best[:, 0] / best.sum(1)

    def sampled(self, seed: int, arm: str, temperature: float, count: int, how: str) -> np.ndarray:
        """Return each problem's outcome with `count` of the sampled critiques, combined by mean, median or vote."""
        rewards = self.get(seed, f"{arm}_samples", f"rewards_{temperature}").astype(float)
        # Disjoint draws use every critique once
        draws = rewards.reshape(*rewards.shape[:2], -1, count)
        if how == "vote":
            margins = np.sign(draws[:, :1] - draws[:, 1:]).sum(-1)
        else:
            combined = {"mean": np.mean, "median": np.median}[how](draws, axis=-1)
            margins = combined[:, :1] - combined[:, 1:]
        return np.heaviside(margins, 0.5).mean((1, 2))
