"""Model cards for the models that this package's trainers save."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from huggingface_hub import EvalResult
from transformers.trainer_utils import SchedulerType
from trl.trainer.utils import get_trackio_space_url

from ..cards import CLASSIC, CRITIC, Example, Kind, hub_id, inherit, model_card, shown_name
from ..configuration_cloud import longest_sequence
from ..data.preference_rows import iterate_rows, read_preference
from ..markdown import in_code, table
from ..share_interval import wilson
from .launch import rows_per_step, strategy_of
from .resume import MixedTrainer


_LOSSES = ("loss", "pairwise_loss", "lm_loss")
_EXAMPLE_ROWS, _EXAMPLE_CHARACTERS, _EXAMPLE_TOKENS = 100, 600, 256
_RESERVED = 8  # tokens left free to close the critique


@dataclass
class Origin:
    """Model-card facts that a trainer cannot derive from its model and data."""

    base: str | None = None  # Hub id or folder of the model or adapter that training started from
    dataset_name: str | None = None  # Hub ids or paths
    eval_name: str | None = None
    eval_part: str | None = None  # description of the held-out rows of that dataset
    max_length: int | None = None  # longest sequence in tokens
    example: Example | None = None  # a training row with the model's output


class WritesCard(MixedTrainer):
    """Trainer mixin that writes a model card with the model's origin, its training settings and held-out results."""

    origin: Origin
    critique_format: Any
    kind: Kind

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags=None):
        """Write the model card into `output_dir`. The arguments are those of the same method of [`~trl.RewardTrainer`]."""
        if not self.is_world_process_zero():
            return
        origin, folder = self.origin, Path(self.args.output_dir)
        data_name = dataset_name or origin.dataset_name
        base, adapter = origin.base or self.model.config.name_or_path, bool(is_peft_model(self.model))
        made_from = (
            f"It was trained from {in_code(shown_name(base) or '')}" if base else "It was trained from a new model"
        )
        metadata = inherit(base, [data_name])
        if adapter:
            metadata["base_model_relation"] = "adapter"
        results, notes = _held_out(self)
        critique_prompt = _asked_in_messages(self.critique_format) if self.kind is CRITIC else None
        card = model_card(
            self.hub_model_id or model_name or folder.resolve().name,
            self.kind,
            f"{made_from}{', as a LoRA adapter' if adapter else ''}.",
            metadata,
            package=adapter,
            training=_training_section(self, data_name),
            example=None if self.kind is CRITIC and critique_prompt is None else origin.example,
            critique_prompt=critique_prompt,
            tags=[tags] if isinstance(tags, str) else tags or [],
            results=results,
            notes=notes,
        )
        card.save(folder / "README.md")

    def training_facts(self) -> dict[str, Any]:
        """Return the rows that only this trainer adds to the card's training table."""
        return {}

    def add_example(self, rows: Dataset):
        """
        Rewrite the card with the trained model's output for a short training row as an example. Do nothing if the
        weights are sharded.
        """
        if self.is_world_process_zero() and strategy_of(self.args) in ("single", "ddp"):
            self.origin.example = next(_examples(self, rows), None)
            self.create_model_card()


def _examples(trainer: Any, rows: Dataset) -> Iterator[Example]:
    """Yield the model's outputs for the short rows among the first `_EXAMPLE_ROWS` rows."""
    critique_format, model = trainer.critique_format, trainer.accelerator.unwrap_model(trainer.model).eval()
    for _, row in islice(iterate_rows(rows), _EXAMPLE_ROWS):
        try:
            _, prompt, response, _ = read_preference(row)
        except ValueError:  # training drops this row
            continue
        is_text = isinstance(prompt, str) and isinstance(response, str) and response.strip()
        if not is_text or len(prompt) + len(response) > _EXAMPLE_CHARACTERS:
            continue
        ids = critique_format.encode_prefix(prompt, response).input_ids
        context = longest_sequence(model.config.get_text_config(decoder=True)) or 10**6
        room = min(_EXAMPLE_TOKENS, context - len(ids) - _RESERVED)
        if room < 1:
            continue
        if trainer.kind is CRITIC:
            inputs = torch.tensor([ids], device=model.device)
            end = critique_format.end_token_id
            [made] = model.generate(inputs, max_new_tokens=room, do_sample=False, eos_token_id=end, pad_token_id=end)
            written = made[len(ids) :].tolist()
            yield Example(prompt, response, critique_format.decode(written), is_cut=end not in written)
        else:
            [score] = model.score([prompt], [response], critique_format.tokenizer, max_new_tokens=room)
            yield Example(prompt, response, score.critique, score.reward, "length" in score.finish_reasons)


def _asked_in_messages(critique_format: Any) -> str | None:
    """Return the critique prompt if sending it as a plain chat message requests a critique exactly as in training, else `None`."""
    plain = critique_format.critique_role == "user" and type(critique_format).__name__ == "CritiqueFormat"
    return critique_format.critique_prompt if plain else None


# ----------------------------------------------------------------------------------------------------------- sections


def _held_out(trainer: Any) -> tuple[list[EvalResult], str]:
    """Return the accuracy of the saved weights on the evaluation rows, and a sentence that reports the losses on these rows."""
    args, state, sets, origin = trainer.args, trainer.state, trainer.eval_dataset, trainer.origin
    best = args.load_best_model_at_end and state.best_global_step
    step, logged = best or state.global_step, {}
    for entry in state.log_history:
        if entry.get("step") == step:
            logged.update(entry)
    results, notes = [], []
    for part, rows in (sets if isinstance(sets, dict) else {"": sets}).items():
        prefix = f"eval_{part}_" if part else "eval_"
        losses = [f"{name} {logged[prefix + name]:.4g}" for name in _LOSSES if prefix + name in logged]
        if not losses:
            continue
        batch = args.eval_batch_size * args.world_size
        n = len(rows) - (len(rows) % batch if args.dataloader_drop_last else 0)
        name = ", ".join(filter(None, (shown_name(origin.eval_name) or "evaluation rows", origin.eval_part, part)))
        notes.append(f"Losses on {n} rows of {in_code(name)}: {', '.join(losses)}.")
        if (accuracy := logged.get(f"{prefix}accuracy")) is not None and n:
            results.append(_result(name, origin.eval_name, accuracy, n))
    if best and notes:
        notes.append("The checkpoint was selected on these rows, so the results are optimistic.")
    return results, " ".join(notes)


def _result(name: str, source: str | None, accuracy: float, n: int) -> EvalResult:
    return EvalResult(
        task_type="text-classification",
        task_name="Reward modeling",
        dataset_type=hub_id(source) or name,
        dataset_name=name,
        dataset_args={"rows": n},
        metric_type="accuracy",
        metric_name="accuracy",
        metric_args={"ci95": list(wilson(accuracy, n))},
        metric_value=accuracy,
    )


def _training_section(trainer: Any, dataset_name: str | None) -> str:
    args, model, state = trainer.args, trainer.model, trainer.state
    rows = "critiques" if trainer.kind is CRITIC else "pairs"
    named = in_code(shown_name(dataset_name) or "") or "not named"
    facts: dict[str, Any] = {"Data": f"{named}, {len(trainer.train_dataset)} {rows}"}
    if trainer.kind is not CRITIC:
        weight = args.lm_loss_weight if trainer.kind is not CLASSIC else "none: it writes no critiques"
        facts |= {"Bradley-Terry weight": args.bradley_terry_weight, "λ (weight of the critique LM loss)": weight}
        if args.partial_reward_weight:
            facts["Weight of the loss inside critiques"] = args.partial_reward_weight
    facts |= trainer.training_facts()
    facts |= {
        "Learning rate": f"{args.learning_rate:g}, {SchedulerType(args.lr_scheduler_type).value}",
        "Batch": f"{rows_per_step(args)} {rows} per step",
        "Length": f"{state.global_step} steps, {state.epoch or 0:.3g} epochs",
        "Longest sequence": f"{trainer.origin.max_length or args.max_length or longest_sequence(model.config.get_text_config(decoder=True))} tokens",
        "Seed": args.seed,
        "Precision": _precision(args, model),
        "Hardware": f"{args.world_size} × {_device(args)}, {strategy_of(args)}",
    }
    if is_peft_model(model):
        config = model.peft_config["default"]
        facts["LoRA"] = f"rank {config.r}, alpha {config.lora_alpha}"
    if link := _tracker(args):
        facts["Tracker"] = link
    facts["Versions"] = ", ".join(
        f"{name} {version(name)}" for name in ("cloud-hf", "torch", "transformers", "trl", "peft")
    )
    last: dict[str, float] = {}
    for entry in state.log_history:
        last.update({key: entry[key] for key in _LOSSES if key in entry})
    losses = ", ".join(f"{key} {value:.4g}" for key, value in last.items())
    text = table([(name, str(value)) for name, value in facts.items()])
    return f"{text}\n\nLast training log, on training rows: {losses}." if losses else text


def _precision(args: Any, model: Any) -> str:
    if args.bf16 or args.fp16:
        return f"{'bfloat16' if args.bf16 else 'float16'} autocast"
    return str(model.dtype).removeprefix("torch.")


def _device(args: Any) -> str:
    if args.device.type == "cuda":
        return torch.cuda.get_device_name(args.device)
    return f"{args.device.type} ({platform.machine()})"


def _tracker(args: Any) -> str | None:
    """Return the URL of the run in its experiment tracker, or `None` if the run has no web page."""
    if "wandb" in args.report_to:
        import wandb

        return wandb.run.url if wandb.run else None
    return get_trackio_space_url() if "trackio" in args.report_to else None
