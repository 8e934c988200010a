"""Train and score the arms of one task and seed, with the project's trainers."""

import functools
import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tasks
from arms import ARMS, Arm
from cells import Cell, cell
from datasets import Dataset
from training import StopWhenExact, train, training_options
from transformers import LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

from cloud_hf import CLoudForRewardModeling, CLoudTrainer, CLoudTrainingConfig, CritiqueFormat
from cloud_hf.commands.train_critique_sft import CritiqueSFTConfig, CritiqueSFTTrainer
from cloud_hf.loading import load_critic
from cloud_hf.training.card import Origin
from cloud_hf.training.encoding import encode_critiques
from cloud_hf.training.outcome import CLoudOutcomeTrainer
from cloud_hf.training.outcome_config import CLoudOutcomeConfig


SAMPLES = 16
TEMPERATURES = (0.5, 1.0)
CHECKED = 60  # number of validation problems


@dataclass(frozen=True)
class Settings:
    """Settings for a task, chosen on validation problems."""

    levels: tuple[int, ...]  # difficulties
    width: int  # hidden size of the model
    base_steps: int  # training steps on direct answers, 32 problems per step
    base_lr: float
    pairs: int  # number of preference pairs; every stage uses the same rows
    critic_passes: int  # maximum passes in stage 1
    critic_exact: float  # share of exact critiques on validation problems at which stage 1 ends
    critic_lr: float
    stage3_passes: int
    cloud_lr: float
    classic_lr: float
    outcome_passes: float  # stage 4
    outcome_lr: float
    held_out: int = 240  # number of problems
    sampled: int = 120  # how many of these problems self-consistency uses


@dataclass(frozen=True)
class Study:
    """Cells of one task and seed; `split` names the held-out split."""

    root: Path
    task: str
    seed: int
    split: str
    settings: Settings

    @property
    def folder(self) -> Path:
        return self.root / self.task / f"seed{self.seed}"

    @functools.cached_property
    def tokenizer(self):
        return tasks.tokenizer()

    @functools.cached_property
    def problems(self) -> list[tasks.Problem]:
        return tasks.problems(self.task, "train", self.settings.levels, self.settings.pairs, self.seed)

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        return tasks.pairs(self.problems, self.seed)

    @functools.cached_property
    def held_out(self) -> list[tasks.Problem]:
        return tasks.problems(self.task, self.split, self.settings.levels, self.settings.held_out, self.seed)

    @property
    def max_new_tokens(self) -> int:
        """Length of the longest oracle critique, plus a few tokens."""
        longest = max(self.problems, key=lambda problem: len(problem.critique(problem.answer)))
        return len(longest.critique(longest.answer).split()) + 4

    def cell(self, name: str, work, *inputs: Cell, **settings: Any) -> Cell:
        """Return a cell that depends on the task, the seed, its settings and the cells that it reads."""
        given = {
            "task": self.task,
            "seed": self.seed,
            **settings,
            "inputs": [one.record["settings"] for one in inputs],
        }
        return cell(self.folder / name, given, work)

    # --------------------------------------------------------------------------------------------- stages 0, 1 and 2

    def base(self) -> Cell:
        """Train the base that all arms share, a language model that answers directly."""
        settings = self.settings
        keys = ("levels", "width", "base_steps", "base_lr")
        return self.cell("base", self._train_base, **{key: getattr(settings, key) for key in keys})

    def _train_base(self, folder: Path) -> dict[str, Any]:
        settings, encoder = self.settings, CritiqueFormat(self.tokenizer, critique=False)
        count = 32 * settings.base_steps
        encoded = []
        for problem in tasks.problems(self.task, "train", settings.levels, count, f"{self.seed}/answers"):
            ids = list(encoder.encode(problem.prompt, tasks.response(problem.answer)).input_ids)
            encoded.append({"input_ids": ids, "labels": [-100] * (len(ids) - 2) + ids[-2:]})
        options = training_options(folder, self.seed, settings.base_lr)
        set_seed(self.seed)
        model = LlamaForCausalLM(tasks.model_config(self.tokenizer, settings.width))
        trainer = SFTTrainer(
            model, SFTConfig(**options), train_dataset=Dataset.from_list(encoded), processing_class=self.tokenizer
        )
        return train(trainer, folder)

    def critic(self) -> Cell:
        """Stage 1: teach the base to write critiques."""
        keys = ("levels", "pairs", "critic_passes", "critic_exact", "critic_lr")
        base = self.base()
        work = functools.partial(self._train_critic, base)
        return self.cell("critic", work, base, **{key: getattr(self.settings, key) for key in keys})

    def _train_critic(self, base: Cell, folder: Path) -> dict[str, Any]:
        settings = self.settings
        options = training_options(folder, self.seed, settings.critic_lr, passes=settings.critic_passes)
        critique_format = CritiqueFormat(self.tokenizer, critique_prompt=tasks.CRITIQUE_PROMPT)
        trainer = CritiqueSFTTrainer(
            str(base.folder), CritiqueSFTConfig(**options, max_length=None), processing_class=self.tokenizer,
            train_dataset=encode_critiques(Dataset.from_list(self.rows), critique_format, None, "error"),
        )  # fmt: skip
        trainer.critique_format, trainer.origin = critique_format, Origin(str(base.folder))
        judge = self.critic_model(base)
        judge.language_model = trainer.model
        stop = StopWhenExact(functools.partial(self._share_exact, judge), settings.critic_exact)
        trainer.add_callback(stop)
        result = train(trainer, folder)
        return {**result, "passes": trainer.state.epoch, "validation_exact": stop.shares}

    def _share_exact(self, judge: CLoudForRewardModeling) -> float:
        """Return the share of exact critiques on validation problems."""
        found = tasks.problems(self.task, "validation", self.settings.levels, CHECKED, f"{self.seed}/stage 1")
        prompts, responses, oracle = self.questions(found)
        scores = judge.score(prompts, responses, self.tokenizer, max_new_tokens=self.max_new_tokens, batch_size=512)
        return float(np.mean([score.critique == other for score, other in zip(scores, oracle, strict=True)]))

    def self_critiques(self) -> Cell:
        """Stage 2: have the critic rewrite the critiques of all pairs."""
        critic = self.critic()
        return self.cell("self_critiques", functools.partial(self._write_critiques, critic), critic)

    def _write_critiques(self, critic: Cell, folder: Path) -> dict[str, Any]:
        rows = [dict(row) for row in self.rows]
        sides = [(row, side) for row in rows for side in ("chosen", "rejected")]
        scores = self.critic_model(critic).score(
            [row["prompt"] for row, _ in sides], [row[side] for row, side in sides], self.tokenizer,
            max_new_tokens=self.max_new_tokens, batch_size=512,
        )  # fmt: skip
        for (row, side), score in zip(sides, scores, strict=True):
            row[f"{side}_feedback"], row[f"{side}_feedback_ids"] = score.critique, score.critique_ids[0]
        (folder / "rows.json").write_text(json.dumps(rows))
        tokens = self.prefix_tokens(sides) + sum(len(score.critique_ids[0]) for score in scores)
        return {"flops": 2 * critic.result["weights"] * tokens}

    def critic_model(self, critic: Cell) -> CLoudForRewardModeling:
        """Load the critic with a random reward head."""
        config = CLoudForRewardModeling.config_from_base(
            critic.folder, self.tokenizer, critique_prompt=tasks.CRITIQUE_PROMPT
        )
        set_seed(self.seed)
        return load_critic(str(critic.folder), config)

    def prefix_tokens(self, sides: list[tuple[dict[str, Any], str]]) -> int:
        encoder = CritiqueFormat(self.tokenizer, critique_prompt=tasks.CRITIQUE_PROMPT)
        return sum(len(encoder.encode_prefix(row["prompt"], row[side]).input_ids) for row, side in sides)

    # ---------------------------------------------------------------------------------------------------------- arms

    def arm(self, name: str) -> Cell:
        """Train an arm, and use it to score the held-out problems."""
        arm, settings = ARMS[name], self.settings
        inputs = {"base": self.base, "critic": self.critic, "cloud": lambda: self.arm("cloud")}[arm.start]()
        rows = self.self_critiques() if arm.critiques in ("self", "shuffled") else None
        passes = self.passes(arm)
        options = {
            "arm": asdict(arm),
            "passes": passes,
            "lr": self.learning_rate(arm),
            "pairs": settings.pairs,
            "levels": settings.levels,
            "held_out": settings.held_out,
            "split": self.split,
        }
        work = functools.partial(self._train_arm, arm, inputs, rows, passes, options["lr"])
        return self.cell(name, work, inputs, *([rows] if rows else []), **options)

    def passes(self, arm: Arm) -> float:
        """Return the number of passes that an arm makes over the pairs."""
        settings = self.settings
        if arm.outcome and arm.start == "cloud":
            return settings.outcome_passes
        if arm.passes == "all":
            return self.critic().result["passes"] + settings.stage3_passes
        if not arm.passes.startswith("compute:"):
            return settings.stage3_passes
        reference, own = arm.passes.removeprefix("compute:"), "cloud" if arm.start == "cloud" else "classic"
        one_pass = self.arm(own).result["flops"] / self.settings.stage3_passes
        target = self.arm(reference).result["flops"] if arm.start == "cloud" else self.training_flops(reference)
        return math.ceil(target / one_pass)

    def learning_rate(self, arm: Arm) -> float:
        settings = self.settings
        if arm.critiques is None:
            return settings.classic_lr
        if arm.start == "base":  # the arm learns to write critiques, as stage 1 does
            return settings.critic_lr
        return settings.outcome_lr if arm.start == "cloud" else settings.cloud_lr

    def training_flops(self, name: str) -> float:
        """Return the training FLOPs of an arm, excluding those of the base that all arms share."""
        arm, flops = ARMS[name], self.arm(name).result["flops"]
        if arm.start == "cloud":
            return flops + self.training_flops("cloud")
        if arm.start == "critic":
            flops += self.critic().result["flops"]
        return flops + (self.self_critiques().result["flops"] if arm.critiques in ("self", "shuffled") else 0)

    def _train_arm(
        self, arm: Arm, start: Cell, own: Cell | None, passes: float, lr: float, folder: Path
    ) -> dict[str, Any]:
        rows = self.rows if own is None else json.loads((own.folder / "rows.json").read_text())
        rows = self.arm_rows(arm, rows)
        options = training_options(folder, self.seed + 1000 * arm.member, lr, passes=passes)
        options |= {"max_length": 512, "lm_loss_weight": arm.lm_weight, "critique": arm.critiques is not None}
        options |= {"critique_prompt": tasks.CRITIQUE_PROMPT, "bad_rows": "drop"}
        model: Any = str(start.folder)
        if arm.frozen:
            model = self.critic_model(start)
            model.language_model.requires_grad_(False)
        given = {"train_dataset": Dataset.from_list(rows), "processing_class": self.tokenizer}
        if arm.outcome:
            args = {**options, "lm_loss_weight": 0.25, "max_completion_length": self.max_new_tokens}
            args |= {"generation_batch_size": 512, **arm.outcome}
            if arm.start == "critic":
                model = self.critic_model(start)
            trainer: Any = CLoudOutcomeTrainer(model, CLoudOutcomeConfig(**args), **given)
        else:
            trainer = CLoudTrainer(model, CLoudTrainingConfig(**options), **given)
        result = train(trainer, folder)
        if arm.outcome:
            # Writing costs one forward pass over the trained sequences, and the reference model costs another
            result["flops"] *= 1 + (2 if arm.outcome.get("beta", 0.001) else 1) / 3
        return {**result, **self.score_held_out(arm, trainer.model, folder)}

    def arm_rows(self, arm: Arm, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the training rows of an arm."""
        sides = ("chosen", "rejected")
        if arm.blank_prompt:
            return [{**row, "prompt": "?"} for row in rows]
        if arm.critiques == "blank":
            return [{**row, **{f"{side}_feedback": blank(row[f"{side}_feedback"]) for side in sides}} for row in rows]
        if arm.critiques == "shuffled":
            texts = [row[f"{side}_feedback"] for row in rows for side in sides]
            moved = iter(shuffled(texts, self.seed))
            return [
                {**{key: value for key, value in row.items() if not key.endswith("_ids")}}
                | {f"{side}_feedback": next(moved) for side in sides}
                for row in rows
            ]
        return rows

    # ------------------------------------------------------------------------------------------------------- scoring

    def score_held_out(self, arm: Arm, model: Any, folder: Path) -> dict[str, Any]:
        """Score all choices of the held-out problems. Saves the rewards with one row per problem, in which the right answer is first."""
        prompts, responses, oracle = self.questions(self.held_out, "?" if arm.blank_prompt else None)
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "batch_size": 512}
        if arm.critiques == "blank":
            options["critiques"] = [blank(text) for text in oracle]
        scores = model.score(prompts, responses, self.tokenizer, **options)
        if arm.critiques == "shuffled":
            options["critiques"] = shuffled([score.critique for score in scores], self.seed)
            scores = model.score(prompts, responses, self.tokenizer, **options)
        arrays = {"rewards": self.by_problem([score.reward for score in scores], np.float32), "levels": self.levels()}
        if arm.critiques in ("self", "oracle"):
            arrays |= self.about_critiques([score.critique for score in scores], oracle)
        np.savez_compressed(folder / "scores.npz", **arrays)  # pyright: ignore[reportArgumentType]
        shape = {"accuracy": accuracy(arrays["rewards"]), "weights": model.num_parameters(exclude_embeddings=True)}
        if "exact" in arrays:
            shape["exact"] = float(arrays["exact"].mean())
        return {**shape, **self.inference_tokens(prompts, responses, scores, arm.critiques is not None)}

    def inference_tokens(self, prompts, responses, scores, critique: bool) -> dict[str, float]:
        """Return the mean number of tokens in a response's prefix and in its critique."""
        encoder = CritiqueFormat(self.tokenizer, critique=critique, critique_prompt=tasks.CRITIQUE_PROMPT)
        lengths = [len(encoder.encode_prefix(*row).input_ids) for row in zip(prompts, responses, strict=True)]
        written = [len(score.critique.split()) + 1 for score in scores] if critique else [0]
        return {"prefix_tokens": float(np.mean(lengths)), "critique_tokens": float(np.mean(written))}

    def questions(self, problems: list[tasks.Problem], prompt: str | None = None):
        """Return the prompts, responses and oracle critiques for all choices."""
        asked = [(problem, choice) for problem in problems for choice in problem.ordered_choices]
        return (
            [prompt or problem.prompt for problem, _ in asked],
            [tasks.response(choice) for _, choice in asked],
            [problem.critique(choice) for problem, choice in asked],
        )

    def levels(self) -> np.ndarray:
        return np.array([problem.difficulty for problem in self.held_out], dtype=np.int8)

    def by_problem(self, values: list, dtype) -> np.ndarray:
        choices = len(self.held_out[0].choices)
        return np.array(values, dtype=dtype).reshape(-1, choices, *np.shape(values[0]))

    def about_critiques(self, texts: list[str], oracle: list[str]) -> dict[str, np.ndarray]:
        """Return masks of the critiques that equal the oracle's, and of those that call their response right."""
        return {
            "exact": self.by_problem([text == other for text, other in zip(texts, oracle, strict=True)], bool),
            "verdicts": self.by_problem([text.endswith(" right") for text in texts], bool),
        }

    def verdict(self) -> Cell:
        """Score with the verdict word of the stage 1 critic, without a reward head."""
        critic = self.critic()
        settings = {"held_out": self.settings.held_out, "split": self.split}
        return self.cell("verdict", functools.partial(self._judge, critic), critic, **settings)

    def _judge(self, critic: Cell, folder: Path) -> dict[str, Any]:
        prompts, responses, oracle = self.questions(self.held_out)
        scores = self.critic_model(critic).score(
            prompts, responses, self.tokenizer, max_new_tokens=self.max_new_tokens, batch_size=512
        )
        arrays = self.about_critiques([score.critique for score in scores], oracle)
        rewards = arrays["verdicts"].astype(np.float32)
        np.savez_compressed(folder / "scores.npz", rewards=rewards, levels=self.levels(), **arrays)
        shape = {"accuracy": accuracy(rewards), "exact": float(arrays["exact"].mean())}
        return {
            "flops": 0,
            "weights": critic.result["weights"],
            **shape,
            **self.inference_tokens(prompts, responses, scores, True),
        }

    def samples(self, name: str) -> Cell:
        """Sample several critiques of each response from an arm."""
        arm = self.arm(name)
        settings = {"sampled": self.settings.sampled, "samples": SAMPLES, "temperatures": TEMPERATURES}
        return self.cell(f"{name}_samples", functools.partial(self._sample, arm), arm, **settings)

    def _sample(self, arm: Cell, folder: Path) -> dict[str, Any]:
        model = CLoudForRewardModeling.from_pretrained(arm.folder)
        prompts, responses, _ = self.questions(self.held_out[: self.settings.sampled])
        arrays = {}
        for temperature in TEMPERATURES:
            scores = model.score(
                prompts, responses, self.tokenizer, num_critiques=SAMPLES, temperature=temperature, seed=self.seed,
                max_new_tokens=self.max_new_tokens, batch_size=512,
            )  # fmt: skip
            arrays[f"rewards_{temperature}"] = self.by_problem([score.rewards for score in scores], np.float32)
        np.savez_compressed(folder / "scores.npz", **arrays)  # pyright: ignore[reportArgumentType]
        return {}


# ------------------------------------------------------------------------------------------------------------- helpers


def accuracy(rewards: np.ndarray) -> float:
    """Return the share of pairs in the right order. The right answer is in the first column, and a tie counts half."""
    return float(np.heaviside(rewards[:, :1] - rewards[:, 1:], 0.5).mean())


def blank(critique: str) -> str:
    """Return as many blank tokens as a critique has tokens."""
    return " ".join([tasks.BLANK] * len(critique.split()))


def shuffled(texts: list[str], seed: int) -> list[str]:
    """Permute texts across rows and sides, among texts with the same number of words."""
    groups: dict[int, list[int]] = {}
    for place, text in enumerate(texts):
        groups.setdefault(len(text.split()), []).append(place)
    moved, rng = list(texts), random.Random(f"shuffled/{seed}")
    for places in groups.values():
        for place, other in zip(places, rng.sample(places, len(places)), strict=True):
            moved[place] = texts[other]
    return moved
