"""
RL check of the study: TRL's GRPO trains a tiny policy on each reward model, and held-out problems show how often the policy is right, and
how often it only pleases the reward model. Uses the arms of a finished study, or trains them. Finished cells are kept.

python benchmarks/claims/rl_check.py --output_dir runs/claims     # minutes on one core, once the study is done
"""

import argparse
import functools
import json
import os
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Use one thread: the models are too small for more, and sums then do not depend on the number of cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import tasks
import torch
import yaml
from cells import Cell, cell
from datasets import Dataset
from run import HERE, RESULTS, machine, make_studies, quiet
from study import Study
from training import train, training_options
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from cloud_hf.loading import load_reward_model
from cloud_hf.rl.trl import cloud_reward
from cloud_hf.scoring import TransformersScorer


JUDGES = ("classic", "cloud", "stage4", "oracle")
BATCH = 32


@dataclass(frozen=True)
class RLSettings:
    """Settings of the RL check, chosen on validation problems generated with other seeds."""

    policy_steps: int  # of worked examples, 32 per step
    policy_lr: float
    steps: int
    lr: float
    beta: float
    problems: int  # per step
    num_generations: int  # per problem
    evaluate_every: int  # in steps


@dataclass(frozen=True)
class RLCheck:
    """Policies of one task and seed, stored in a folder inside the study's folder."""

    study: Study
    settings: RLSettings

    def cell(self, name: str, work, *inputs: Cell, **settings: Any) -> Cell:
        given = {
            "task": self.study.task,
            "seed": self.study.seed,
            **vars(self.settings),
            **settings,
            "inputs": [one.record["settings"] for one in inputs],
        }
        return cell(self.study.root / "rl" / self.study.task / f"seed{self.study.seed}" / name, given, work)

    def policy(self) -> Cell:
        """Teach the base to work step by step, on correct steps followed by answers, half of which are sampled at random."""
        base = self.study.base()
        return self.cell("policy", functools.partial(self._train_policy, base), base)

    def _train_policy(self, base: Cell, folder: Path) -> dict[str, Any]:
        study, rng = self.study, random.Random(f"{self.study.seed}/policy")
        found = tasks.problems(study.task, "train", study.settings.levels, BATCH * self.settings.policy_steps, f"{study.seed}/policy")  # fmt: skip
        rows = []
        for problem in found:
            answer = problem.answer if rng.random() < 0.5 else rng.choice(problem.choices)
            completion = f"{problem.steps} . {tasks.response(answer)}"
            rows.append({
                "prompt": as_chat(problem), "completion": [{"role": "assistant", "content": completion}]
            })  # fmt: skip
        options = training_options(folder, study.seed, self.settings.policy_lr)
        set_seed(study.seed)
        trainer = SFTTrainer(
            str(base.folder), SFTConfig(**options, max_length=None), train_dataset=Dataset.from_list(rows),
            processing_class=study.tokenizer,
        )  # fmt: skip
        return train(trainer, folder)

    def trained_on(self, judge: str) -> Cell:
        """Train the policy on the rewards of an arm, or of the oracle."""
        inputs = [self.policy(), *([] if judge == "oracle" else [self.study.arm(judge)])]
        work = functools.partial(self._train, inputs)
        return self.cell(judge, work, *inputs, split=self.study.split, held_out=self.study.settings.held_out)

    def _train(self, inputs: list[Cell], folder: Path) -> dict[str, Any]:
        study, settings, policy = self.study, self.settings, inputs[0]
        arm = inputs[1] if len(inputs) > 1 else None
        count = settings.steps * settings.problems
        found = tasks.problems(study.task, "train", study.settings.levels, count, f"{study.seed}/rl")
        rows = [{"prompt": as_chat(problem), "answer": problem.answer} for problem in found]
        options = training_options(folder, study.seed, settings.lr) | {
            "per_device_train_batch_size": settings.problems * settings.num_generations, "lr_scheduler_type": "linear",
            "max_steps": settings.steps, "num_generations": settings.num_generations, "beta": settings.beta,
            "max_completion_length": study.max_new_tokens, "temperature": 1.0,
        }  # fmt: skip
        trainer = GRPOTrainer(
            str(policy.folder), self.reward(arm), GRPOConfig(**options), train_dataset=Dataset.from_list(rows),
            processing_class=study.tokenizer,
        )  # fmt: skip
        exam = Exam(self, trainer)
        trainer.add_callback(exam)
        result = train(trainer, folder)
        rewards = np.eye(len(study.held_out[0].choices))[[0] * len(study.held_out)]  # the right answer comes first
        if arm is not None:
            with np.load(arm.folder / "scores.npz") as scores:
                rewards = scores["rewards"]
        np.savez_compressed(folder / "answers.npz", answers=np.array(exam.answers, dtype=np.int8), rewards=rewards)
        return {**result, "evaluated": exam.steps}

    def reward(self, arm: Cell | None) -> Any:
        """Return the project's reward function for an arm or, without an arm, one that rewards right answers."""
        if arm is None:
            return right_answer
        scorer = TransformersScorer(*load_reward_model(str(arm.folder)), batch_size=512)
        # A completion without an answer gets no reward, because reward models are not trained on such texts
        return cloud_reward(
            scorer, judged_part=final_answer, max_new_tokens=self.study.max_new_tokens, on_unjudgeable="none"
        )


class Exam(TrainerCallback):
    """Callback that answers held-out problems during training. It records an answer's index among the problem's choices, or -1 for none."""

    def __init__(self, check: RLCheck, trainer: GRPOTrainer):
        self.problems, self.every = check.study.held_out, check.settings.evaluate_every
        self.model: Any = trainer.model
        self.tokenizer: Any = trainer.processing_class
        self.max_new_tokens = check.study.max_new_tokens
        self.steps: list[int] = []
        self.answers: list[list[int]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.take(0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.take(state.global_step)

    @torch.no_grad()
    def take(self, step: int):
        """Answer all problems by sampling, as training does."""
        mode = self.model.training
        draws = torch.get_rng_state()
        torch.manual_seed(0)
        inputs = self.tokenizer.apply_chat_template(
            [as_chat(problem) for problem in self.problems], add_generation_prompt=True, return_dict=True,
            return_tensors="pt", padding=True, padding_side="left",
        )  # fmt: skip
        ids = self.model.eval().generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=True, top_k=0)
        self.model.train(mode)
        torch.set_rng_state(draws)
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        self.steps.append(step)
        self.answers.append([place_of(text, problem) for text, problem in zip(texts, self.problems, strict=True)])


def as_chat(problem: tasks.Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.prompt}]


def final_answer(completion: str) -> str:
    """
    Extract the answer, which is the only part of a completion that a reward model sees.

    Raises:
        `ValueError`: If the completion does not end with an answer.
    """
    match = re.search(r"Answer \w$", completion)
    if match is None:
        raise ValueError(f"There is no answer at the end of {completion!r}.")
    return match[0]


def right_answer(completions, answer, **columns) -> list[float]:
    """Return a reward of 1 for each right answer, otherwise 0."""
    return [
        float(completion[-1]["content"].endswith(tasks.response(right)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def place_of(completion: str, problem: tasks.Problem) -> int:
    answers = [tasks.response(choice) for choice in problem.ordered_choices]
    return next((place for place, answer in enumerate(answers) if completion.endswith(answer)), -1)


def collect(root: Path, output: Path):
    """Gather the answers and records of all finished policies in files small enough to commit."""
    output.mkdir(parents=True, exist_ok=True)
    records, arrays = {}, {}
    for path in sorted(root.glob("rl/*/seed*/*/cell.json")):
        key, record = path.parent.relative_to(root / "rl").as_posix(), json.loads(path.read_text())
        records[key] = {name: record[name] for name in ("result", "cpu_s", "finished")}
        records[key] |= {name: record["settings"][name] for name in ("split",) if name in record["settings"]}
        if (path.parent / "answers.npz").is_file():
            with np.load(path.parent / "answers.npz") as answers:
                arrays |= {f"{key}/{name}": values for name, values in answers.items()}
    np.savez_compressed(output / "rl_answers.npz", **arrays)
    text = json.dumps({"version": 1, "machine": machine(), "cells": records}, indent=0)
    (output / "rl_check.json").write_text(text + "\n")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/claims"), help="folder of the study's cells")
    parser.add_argument("--tasks", nargs="+", choices=("shell", "clock", "chain"), default=["shell"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=list(JUDGES))
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="which problems to answer")
    parser.add_argument("--settings", type=Path, default=HERE / "settings.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the study to replace")
    parser.add_argument(
        "--set_rl", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the RL check to replace"
    )
    parser.add_argument("--results", type=Path, help="folder for the answers; defaults to the committed one")
    args = parser.parse_args(arguments)
    quiet()
    changes = {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in args.set_rl)}
    settings = RLSettings(**{**yaml.safe_load(args.settings.read_text())["rl"], **changes})
    for study in make_studies(args):
        check = RLCheck(study, settings)
        for judge in args.judges:
            done = check.trained_on(judge)
            with np.load(done.folder / "answers.npz") as found:
                solved = [f"{share:.3f}" for share in (found["answers"] == 0).mean(1)]
            print(f"{study.task} seed {study.seed} {judge}: {done.record['cpu_s']:.0f} CPU-s, solved {' '.join(solved)}", flush=True)  # fmt: skip
    collect(args.output_dir, args.results or (RESULTS if args.split == "test" else args.output_dir / "results"))


if __name__ == "__main__":
    sys.exit(main())
