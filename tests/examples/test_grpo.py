"""The GRPO example, small: it starts, trains and reports; and nothing but rewards tells its policy what is right."""

import collections
import json

import pytest
import torch
from models_for_tests import make_model
from scripts_for_tests import EXAMPLES, command_module, run
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from trl import GRPOConfig

from cloud_hf.data import shell_game


@pytest.fixture(scope="module")
def grpo():
    return command_module("grpo_with_cloud")


@pytest.fixture
def models(tmp_path):
    """A language model and a reward model for the shell game, both untrained."""
    torch.manual_seed(0)
    tokenizer = shell_game.build_tokenizer()
    LlamaForCausalLM(shell_game.build_model_config(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_model(tmp_path / "base").save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path


def test_script(models):
    out = run(
        "grpo_with_cloud", "--config", EXAMPLES / "configs/shell-game/grpo.yaml",
        "--reward_model", models / "reward", "--model_name_or_path", models / "base", "--output_dir", models / "out",
        "--num_examples", 960, "--num_test", 8, "--max_critique_tokens", 4, "--max_steps", 2, "--logging_steps", 1,
        "--per_device_train_batch_size", 16, "--num_generations", 4,
    )  # fmt: skip
    assert "before: " in out and "after: " in out
    report = json.loads((models / "out/report.json").read_text())
    assert report["version"] == 1 and report["steps"] == 2
    for when in ("before", "after"):
        for rate in report[when].values():
            assert rate["n"] == 8 and rate["ci95"][0] <= rate["solved"] <= rate["ci95"][1]
    assert len(report["mean_rewards"]) == 2
    assert 0 < report["answers_judged"] <= 2 * 16
    start, trained = (AutoModelForCausalLM.from_pretrained(models / "out" / name) for name in ("start", "."))
    assert not torch.equal(start.model.norm.weight, trained.model.norm.weight)


def arguments(grpo, tmp_path, **options):
    args = grpo.PolicyArguments("base", "reward", **options)
    return args, GRPOConfig(str(tmp_path), max_steps=20, per_device_train_batch_size=16, use_cpu=True, bf16=False)


def test_no_training_data_holds_right_answers(grpo, tmp_path):
    args, training_args = arguments(grpo, tmp_path, num_examples=1200)
    named = collections.Counter()
    for row in grpo.example_rows(args, seed=0):
        game = shell_game.ShellGame.from_prompt(row["prompt"])
        *steps, answer = row["response"].split(". ")
        assert [step[-1] for step in steps] == game.positions
        named[shell_game.named_cup(answer) == game.answer] += 1
    assert named[True] / 1200 == pytest.approx(0.25, abs=0.05)
    problems = grpo.problems(args, training_args)
    assert problems.column_names == ["prompt"]
    assert len(problems) == 20 * 16 // training_args.num_generations
    test = {row["prompt"] for row in shell_game.direct_answer_rows(400, "test", [3])}
    assert not test & {prompt[0]["content"] for prompt in problems["prompt"]}


def test_only_answers_of_the_known_form_are_judged(grpo):
    assert grpo.final_answer("1: A and B gives C. The answer is C.") == "The answer is C."
    for text in ("", "1: A and B gives C.", "The answer is C. 2: A", "The answer is E.", "The answer is A C."):
        with pytest.raises(ValueError, match="No answer at the end"):
            grpo.final_answer(text)


def test_answers_are_judged_once(grpo):
    class Counting:
        batches = []

        def score(self, prompts, responses, **options):
            self.batches.append(list(zip(prompts, responses, strict=True)))
            return [f"{prompt}/{response}" for prompt, response in self.batches[-1]]

    judge = grpo.OncePerAnswer(Counting())
    prompts = [[{"role": "user", "content": text}] for text in "ppqp"]
    assert judge.score(prompts, list("abaa")) == ["p/a", "p/b", "q/a", "p/a"]
    assert judge.score(prompts, list("bcab")) == ["p/b", "p/c", "q/a", "p/b"]
    assert Counting.batches == [[("p", "a"), ("p", "b"), ("q", "a")], [("p", "c")]]


def test_problems_that_cannot_be_held_out_are_refused(grpo, tmp_path):
    with pytest.raises(ValueError, match="distinct problems to hold some out"):
        arguments(grpo, tmp_path, swaps=[1, 2])
