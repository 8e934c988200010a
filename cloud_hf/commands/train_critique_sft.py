"""Stage 1: teach a language model to write critiques by supervised fine-tuning on oracle critiques."""

from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from ..adapters import check_mergeable
from ..argument_help import check_bounds, documented
from ..cards import CRITIC
from ..configuration_cloud import CLoudConfig, caps_attention, lacks_lm_head, language_config, longest_sequence
from ..critique_format import IGNORE_INDEX, format_class
from ..loading import read_model_config, record_base
from ..training.arguments import DataArguments, TrainedModelConfig, load_tokenizer, model_init_kwargs, model_name
from ..training.card import Origin, WritesCard
from ..training.encoding import encode_critiques
from ..training.finite_checks import StopsWhenNotFinite
from ..training.launch import check_machine
from ..training.lora import model_for_sft
from ..training.resume import ExactResume, check_launch, check_new_run
from ..training.run import train_and_save
from ..training.throughput import LogsThroughput


@documented
@dataclass
class CritiqueArguments:
    """
    Options that define how a critique is requested. Use the same values in every stage.

    Parameters:
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn. Defaults to the sentence that the published checkpoints use.
        critique_role (`str`, *optional*, defaults to `"user"`):
            Role of the critique turn: user or assistant.
        keep_thinking (`bool`, *optional*, defaults to `False`):
            Keep `<think>` blocks that the chat template would drop.
        format (`str`, *optional*, defaults to `"cloud"`):
            Layout of conversations: cloud, or reference for the format of the published checkpoints.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            How to handle rows that exceed `max_length`: error, drop, truncate_prompt or truncate_end.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            How to handle rows that cannot be used: error, or drop, which leaves them out and reports their number.
    """

    critique_prompt: str | None = None
    critique_role: str = "user"
    keep_thinking: bool = False
    format: str = "cloud"
    overlong_policy: str = "error"
    bad_rows: str = "error"


@dataclass
class CritiqueSFTConfig(SFTConfig):
    """[`~trl.SFTConfig`] that first checks the machine and rejects unsupported options, with clearer error messages."""

    def __post_init__(self):
        check_bounds(self, max_length=1)
        check_machine(self)
        if self.packing or self.eval_packing:
            raise ValueError(
                "`packing` is on, but this stage trains on each critique in a separate row. Omit the option. With FlashAttention, "
                "`--padding_free True` avoids padding."
            )
        if self.padding_free and self.neftune_noise_alpha is not None:
            raise ValueError(
                "`neftune_noise_alpha` is set, but with `padding_free` its noise would be scaled by the length of the batch "
                "instead of by the length of each sequence. Omit one of these options."
            )
        super().__post_init__()


class CritiqueSFTTrainer(WritesCard, LogsThroughput, StopsWhenNotFinite, ExactResume, SFTTrainer):
    """[`~trl.SFTTrainer`] that resumes exactly, logs throughput, writes a model card, and stops if the loss is not finite."""

    kind = CRITIC

    def prediction_step(self, model, inputs, *args, **kwargs):
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        # No position predicts the first token of a row, so its label does not count
        tokens = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        self._evaluated.append((float(loss) * tokens, tokens))
        return loss, *others

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        # The Trainer's loss is a mean over batches, which depends on how tokens are distributed among the batches. With several ranks,
        # the rows that accelerate repeats to fill the last batch count twice
        self._evaluated: list[tuple[float, int]] = []
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        losses, tokens = zip(*gather_object(self._evaluated), strict=True)
        output.metrics[f"{metric_key_prefix}_loss"] = sum(losses) / max(sum(tokens), 1)
        return output

    def _save(self, output_dir: str | None = None, state_dict=None):
        super()._save(output_dir, state_dict)
        model: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            record_base(str(output_dir or self.args.output_dir), model)


ARGUMENTS = (DataArguments, CritiqueArguments, CritiqueSFTConfig, TrainedModelConfig)


def main(
    data_args: DataArguments,
    critique_args: CritiqueArguments,
    training_args: CritiqueSFTConfig,
    model_args: TrainedModelConfig,
):
    check_launch(training_args)
    check_new_run(training_args)
    name = model_name(model_args)
    config = _read_base(name, model_args.model_revision)
    tokenizer = load_tokenizer(model_args, training_args)
    critique_format = format_class(critique_args.format)(
        tokenizer,
        critique_prompt=critique_args.critique_prompt,
        critique_role=critique_args.critique_role,
        keep_thinking=critique_args.keep_thinking,
    )
    limits = [training_args.max_length, longest_sequence(language_config(config))]
    limit = min((limit for limit in limits if limit), default=None)

    def encode(rows: Dataset, split: str) -> Dataset:
        policy, num_proc = critique_args.overlong_policy, training_args.dataset_num_proc
        return encode_critiques(rows, critique_format, limit, policy, split, num_proc, critique_args.bad_rows)

    train_rows, eval_rows = data_args.load(training_args.eval_strategy)
    train_dataset = encode(train_rows, "train")
    eval_dataset = None if eval_rows is None else encode(eval_rows, "eval")
    # All rows fit by now; with a `max_length`, SFTTrainer would silently truncate critiques
    training_args.max_length = None
    training_args.chat_template_path = None
    if caps_attention(language_config(config)) and model_args.attn_implementation in (None, "sdpa"):
        model_args.attn_implementation = "eager"
    training_args.model_init_kwargs = model_init_kwargs(model_args, training_args)
    model_options = model_for_sft(model_args, config, training_args.model_init_kwargs)
    if not isinstance(model_options["model"], str):
        training_args.model_init_kwargs = None  # the model is already loaded
    trainer = CritiqueSFTTrainer(
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        **model_options,
    )
    if isinstance(trainer.model, PeftModel):
        check_mergeable(trainer.model)
    trainer.critique_format = critique_format
    trainer.origin = Origin(name, data_args.dataset_name, *data_args.held_out(), max_length=limit)
    train_and_save(trainer, train_rows)
    if trainer.is_world_process_zero():
        output = training_args.output_dir
        print(
            f"Wrote the language model to {output}. Next: cloud-hf self-critiques --model_name_or_path {output} "
            f"--dataset_name {data_args.dataset_name} --output_dir self-critiques"
        )


def _read_base(name: str, revision: str | None) -> Any:
    """Return the config of the model to start from. Raises `ValueError` if it is a reward model."""
    config = read_model_config(name, revision=revision)
    if isinstance(config, CLoudConfig):
        raise ValueError(f"{name} is a CLoud model; this stage starts from a language model.")
    if lacks_lm_head(config):
        raise ValueError(f"{name} is a reward model without an LM head; this stage starts from a language model.")
    return config
