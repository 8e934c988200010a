"""
GRPO on the shell game with a CLoud model as the only reward.

The policy starts from the quickstart's language model, which can work through swaps. It is first fine-tuned on examples with correct
steps and random answers, after which it knows the steps and the answer format but solves only one problem in four. TRL's GRPOTrainer
then trains the policy on new problems, with rewards from the CLoud model, which sees only the answers, not the steps. Correct answers
are used only to measure how often the policy solves held-out problems, before and after training.

make quickstart
python examples/grpo_with_cloud.py --config examples/configs/shell-game/grpo.yaml --reward_model runs/quickstart/cloud \
    --model_name_or_path runs/quickstart/critique-sft --output_dir runs/grpo

With a reward server (python -m cloud_hf.serving.server runs/quickstart/cloud) instead of an in-process model:

python examples/grpo_with_cloud.py --config examples/configs/shell-game/grpo.yaml --backend server \
    --reward_model http://127.0.0.1:8000 --model_name_or_path runs/quickstart/critique-sft --output_dir runs/grpo
"""

import json
import random
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from make_shell_game import encode_answers
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from cloud_hf.argument_help import documented
from cloud_hf.cli import run
from cloud_hf.data import shell_game
from cloud_hf.data.shell_game import ShellGame
from cloud_hf.loading import load_reward_model, read_model_config
from cloud_hf.rl.trl import cloud_reward
from cloud_hf.scalar_models import ScalarScorer, is_scalar_model, load_scalar_model
from cloud_hf.scoring import Score, Scorer, TransformersScorer


@documented
@dataclass
class PolicyArguments:
    """
    Policy, reward model and problems.

    Parameters:
        model_name_or_path (`str`):
            Language model to start from; it must already know how to work through swaps.
        reward_model (`str`):
            Hub id or folder of the reward model: a CLoud model, a classic model or, with transformers, a scalar model. With
            `--backend server`, the address of the server.
        backend (`str`, *optional*, defaults to `"transformers"`):
            Where the reward model runs: transformers or vllm in this process, or server.
        swaps (`list[int]`, *optional*, defaults to `[1, 2, 3]`):
            Numbers of swaps per problem, used in rotation. The largest must be at least 3: with fewer swaps,
            there are too few distinct problems to hold some out.
        num_examples (`int`, *optional*, defaults to `5120`):
            Number of worked examples, with random answers, for the policy's initial fine-tuning.
        num_test (`int`, *optional*, defaults to `400`):
            Number of held-out problems, all with the largest number of swaps.
        max_critique_tokens (`int`, *optional*, defaults to `100`):
            Maximum length of a critique in tokens.
    """

    model_name_or_path: str
    reward_model: str
    backend: str = field(default="transformers", metadata={"choices": ["transformers", "vllm", "server"]})
    swaps: list[int] = field(default_factory=lambda: [1, 2, 3])
    num_examples: int = 5120
    num_test: int = 400
    max_critique_tokens: int = 100

    def __post_init__(self):
        if max(self.swaps) < 3:
            raise ValueError(
                f"`swaps` is {self.swaps}; the largest must be at least 3: with fewer swaps, there are "
                "too few distinct problems to hold some out."
            )


ARGUMENTS = (PolicyArguments, GRPOConfig)


def main(args: PolicyArguments, training_args: GRPOConfig):
    output_dir, started = Path(training_args.output_dir), time.monotonic()
    set_seed(training_args.seed)
    judge = OncePerAnswer(load_scorer(args))
    test = shell_game.direct_answer_rows(args.num_test, "test", [max(args.swaps)], training_args.seed)
    start_policy(args, training_args, output_dir / "start")
    trainer = GRPOTrainer(
        str(output_dir / "start"),
        cloud_reward(judge, judged_part=final_answer, on_unjudgeable="none", max_new_tokens=args.max_critique_tokens),
        args=training_args,
        train_dataset=problems(args, training_args),
    )
    before = solve_rates(trainer, test, "before")
    trainer.train()
    after = solve_rates(trainer, test, "after")
    trainer.save_model()
    report = {
        "version": 1,
        "arguments": asdict(args),
        "seed": training_args.seed,
        "steps": trainer.state.global_step,
        "before": before,
        "after": after,
        "mean_rewards": [entry["reward"] for entry in trainer.state.log_history if "reward" in entry],
        "answers_judged": len(judge.scores),
        "wall_s": time.monotonic() - started,
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2))
    print(
        f"Wrote the policy and report.json to {output_dir} after {report['wall_s']:.0f} s. Next: transformers chat {output_dir}"
    )


def load_scorer(args: PolicyArguments) -> Scorer:
    if args.backend == "vllm":
        from cloud_hf.serving import CLoudVLLM

        return CLoudVLLM(args.reward_model)
    if args.backend == "server":
        from cloud_hf.serving import CLoudClient

        return CLoudClient(args.reward_model)
    if is_scalar_model(read_model_config(args.reward_model)):
        return ScalarScorer(*load_scalar_model(args.reward_model), batch_size=256)
    return TransformersScorer(*load_reward_model(args.reward_model), batch_size=256)


class OncePerAnswer:
    """Cache scores: a problem has only four possible answers, and greedy critiques do not vary."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.scores: dict[tuple[str, str], Score] = {}

    def score(self, prompts: list, responses: list[str], **options) -> list[Score]:
        rows = [(prompt[-1]["content"], response) for prompt, response in zip(prompts, responses, strict=True)]
        new = [row for row in dict.fromkeys(rows) if row not in self.scores]
        if new:
            answers = self.scorer.score([prompt for prompt, _ in new], [response for _, response in new], **options)
            self.scores |= dict(zip(new, answers, strict=True))
        return [self.scores[row] for row in rows]


def final_answer(completion: str) -> str:
    """
    Extract the answer, which is the only part that the reward model sees. A completion without an answer raises `ValueError` and gets no
    reward: the reward model was never trained on such completions and scores them above wrong answers, which would teach the policy to omit
    answers.
    """
    match = re.search(rf"The answer is [{shell_game.CUPS}]\.$", completion)
    if match is None:
        raise ValueError(f"No answer at the end of {completion!r}.")
    return match[0]


def example_rows(args: PolicyArguments, seed: int) -> list[dict]:
    """Generate problems whose responses have correct steps and a random cup as the answer."""
    rng = random.Random(f"{seed}/examples")
    rows = shell_game.direct_answer_rows(args.num_examples, "train", args.swaps, seed)
    for row in rows:
        game = ShellGame.from_prompt(row["prompt"])
        steps = re.match(r"(.*?) So ", game.critique(""))[1]
        row["response"] = f"{steps} {shell_game.response_text(rng.choice(shell_game.CUPS))}"
    return rows


def start_policy(args: PolicyArguments, training_args: GRPOConfig, folder: Path):
    """Fine-tune the language model on the worked examples."""
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    rows = example_rows(args, training_args.seed)
    config = SFTConfig(
        str(folder), learning_rate=1e-3, per_device_train_batch_size=16, num_train_epochs=1, warmup_steps=0.05,
        adam_beta2=0.99, max_length=None, logging_steps=50, save_strategy="no", report_to="none",
        dataloader_pin_memory=False, gradient_checkpointing=False, bf16=False, use_cpu=training_args.use_cpu,
        seed=training_args.seed,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    trainer = SFTTrainer(model, config, train_dataset=encode_answers(rows, tokenizer), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


def problems(args: PolicyArguments, training_args: GRPOConfig) -> Dataset:
    """Generate prompts for training, with new problems at every step."""
    per_step = training_args.generation_batch_size // training_args.num_generations
    rows = shell_game.direct_answer_rows(
        training_args.max_steps * per_step, "train", args.swaps, training_args.seed + 1
    )
    return Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])


@torch.inference_mode()
def solve_rates(trainer: GRPOTrainer, rows: list[dict], when: str) -> dict:
    """Measure the proportion of problems that the policy solves, both with sampling as in training and greedily."""
    model, tokenizer = trainer.model.eval(), trainer.processing_class
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True, padding_side="left"
    ).to(model.device)
    rates = {}
    for name, options in (("sampled", {"do_sample": True, "temperature": 1.0}), ("greedy", {"do_sample": False})):
        ids = model.generate(**inputs, max_new_tokens=trainer.args.max_completion_length, **options)
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right = sum(text.endswith(row["response"]) for text, row in zip(texts, rows, strict=True))
        interval = binomtest(right, len(rows)).proportion_ci(0.95, method="wilson")
        rates[name] = {"n": len(rows), "solved": right / len(rows), "ci95": (interval.low, interval.high)}
        print(f"{when}: {right / len(rows):.1%} solved ({interval.low:.1%} to {interval.high:.1%}), {name}")
    print(f"{when}: {rows[0]['prompt']} {texts[0]}")
    return rates


if __name__ == "__main__":
    run(__name__)
