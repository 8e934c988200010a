"""TRL's reward trainer, plus the critique LM loss from arXiv 2408.11791, equation 4."""

from dataclasses import fields
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler
from transformers import DataCollator, PreTrainedTokenizerBase, TrainingArguments
from trl import RewardTrainer
from trl.trainer.utils import global_then_local_main_first

from ..adapters import check_lora
from ..cards import Kind, kind_of
from ..configuration_cloud import CLoudConfig, check_name
from ..critique_format import IGNORE_INDEX, CritiqueFormat
from ..data.rows import check_columns
from ..loading import read_model_config, record_base
from ..modeling_cloud import unused_token_id
from ..scoring import context_length
from .card import Origin, WritesCard
from .collator import DataCollatorForCLoud
from .config import CLoudTrainingConfig
from .encoding import ENCODED_COLUMNS, encode_pairs
from .finite_checks import StopsWhenNotFinite
from .launch import check_parallelism
from .lora import HEAD, check_dropout
from .metrics import PairMetrics, num_pairs
from .resume import ExactResume, check_launch
from .sampler import GroupSampler, TokenBudgetSampler, group_pairs
from .starting_model import check_model, choose_trained_weights, disable_numeric_dropout, load_model, prepare_tokenizer
from .throughput import LogsThroughput


# Number of positions inside each critique at which `partial_reward_weight` trains the reward
_INNER_REWARDS = 4


class CLoudTrainer(PairMetrics, WritesCard, LogsThroughput, StopsWhenNotFinite, ExactResume, RewardTrainer):
    r"""
    Trainer for CLoud and classic reward models.

    The loss of an optimizer step is

        bradley_terry_weight * mean over pairs of -log sigmoid(r(chosen) - r(rejected) - margin)
        + lm_loss_weight * mean over labelled tokens of the cross-entropy of the critiques
        + partial_reward_weight * the same mean over pairs, but with rewards read inside the critiques

    The means are taken over the complete step, across all micro-batches and ranks, so gradient accumulation and data
    parallelism do not change the loss. TRL's `margin` column and `center_rewards_coefficient` work as in [`~trl.RewardTrainer`].

    Args:
        model (`str` or [`CLoudForRewardModeling`] or [`~peft.PeftModel`]):
            A CLoud model or its name; the name of a plain language model, which becomes a CLoud model with the critique options in `args`;
            or the name of a LoRA adapter for either, to continue training that adapter.
        args ([`CLoudTrainingConfig`] or [`~trl.RewardConfig`] or [`~transformers.TrainingArguments`], *optional*):
            Configuration for this trainer. With one of the other two classes, a CLoud model keeps its kind (`critique`), and the other
            options of [`CLoudTrainingConfig`] have their default values.
        data_collator (`DataCollator`, *optional*):
            Defaults to [`DataCollatorForCLoud`].
        train_dataset (`Dataset`):
            Preference pairs with critiques, in any form that [`~data.preference_rows.read_preferences`] accepts; see
            [`~training.encoding.encode_pairs`] for the columns.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*):
            One or several datasets with the same columns.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Defaults to the model's.
        **kwargs:
            Other arguments of [`~trl.RewardTrainer`], such as `peft_config`, `callbacks`, `optimizers`. The predictions that
            `compute_metrics` receives and `predict` returns are rewards of shape `(2 * pairs, 1)`: all chosen responses, then all rejected
            ones, both in dataset order.

    Examples:

    ```python
    >>> from cloud_hf import CLoudTrainer, CLoudTrainingConfig
    >>> trainer = CLoudTrainer("Qwen/Qwen3-0.6B", CLoudTrainingConfig("my-cloud-rm"), train_dataset=pairs)
    >>> trainer.train()
    ```
    """

    # Tell the Trainer not to divide the loss by the number of micro-batches: `compute_loss` divides by the counts of the step
    loss_is_scaled_for_ga = True

    # The Trainer declares these more loosely
    args: CLoudTrainingConfig
    data_collator: Any
    train_dataset: Any
    _train_sampler: Any

    _tag_names = ["cloud-hf", "critique-out-loud", "reward-model"]
    _name = "CLoud"

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs,
    ):
        self.origin = Origin(base=model if isinstance(model, str) else None)
        if isinstance(model, str):
            check_name(model)
        args = _cloud_config(args, model)
        peft_config, quantization_config = kwargs.pop("peft_config", None), kwargs.pop("quantization_config", None)
        check_parallelism(args)
        check_launch(args)
        if peft_config is not None:
            check_lora("`peft_config`", peft_config)
        check_dropout(peft_config, args.disable_dropout)
        if not isinstance(model, str):
            check_model(model, quantization_config, peft_config)
        processing_class = prepare_tokenizer(processing_class, model, args)
        if isinstance(model, str):
            model = load_model(model, args, processing_class, quantization_config, peft_config)
            args.model_init_kwargs = None  # already used; TRL would warn about them for a model instance
        self.critique_format = CritiqueFormat.from_config(model.config, processing_class)
        _complete_config(model.config, self.critique_format)
        self._context_length = context_length(model.config)
        data_collator = _prepare_batches(data_collator, model, args, self.critique_format.end_token_id)
        model = choose_trained_weights(model, peft_config, args.disable_dropout)
        # With QLoRA, TRL casts all trained weights to bf16, which is too coarse for rewards. Keep the head's weights, and restore them
        # below
        head = {name: weight.detach().clone() for name, weight in model.named_parameters() if HEAD in name}
        super().__init__(
            model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if args.disable_dropout:
            disable_numeric_dropout(self.model)
        for name, weight in self.model.named_parameters():
            if HEAD in name and weight.dtype != head[name].dtype:
                weight.data = head[name]
            # The Bradley-Terry loss does not change if all rewards shift by the same amount, so the gradients of this bias are only
            # rounding errors, which Adam would scale up to full steps
            if HEAD in name and name.endswith("out_proj.bias") and not args.center_rewards_coefficient:
                weight.requires_grad_(False)
        self._train_sampler = self._make_train_sampler()

    @property
    def kind(self) -> Kind:
        """Kind of the model, for its card."""
        return kind_of(self.model.config.critique)

    def _prepare_dataset(self, dataset: Any, processing_class, args: Any, dataset_name: str):
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"The {dataset_name} dataset is a {type(dataset).__name__}. Every row is checked before training starts, "
                "which needs a map-style `datasets.Dataset`."
            )
        if "chosen_ids" in dataset.column_names:
            check_columns(dataset.column_names, ENCODED_COLUMNS, f"The encoded {dataset_name} dataset")
            return dataset  # already encoded by `encode_pairs`
        max_length = min((limit for limit in (args.max_length, self._context_length) if limit), default=None)
        policy, num_proc = args.overlong_policy, args.dataset_num_proc
        # The first process encodes, and the others read its cache
        with global_then_local_main_first():
            return encode_pairs(
                dataset, self.critique_format, max_length, policy, dataset_name, num_proc, args.bad_rows
            )

    def predict(self, test_dataset: Dataset, *args, **kwargs):
        """See [`~transformers.Trainer.predict`]. The dataset may have any form that `evaluate` accepts."""
        tokenizer: Any = self.processing_class
        dataset: Any = self._prepare_dataset(test_dataset, tokenizer, self.args, "test")
        return super().predict(dataset, *args, **kwargs)

    def _check_dataset_size(self, rows: int):
        if self.args.token_budget is None:
            return super()._check_dataset_size(rows)
        batches, processes = len(self._train_sampler), self.args.world_size
        if rows < processes or batches < processes * self.args.gradient_accumulation_steps:
            raise ValueError(
                f"The train dataset has {rows} pairs. With `token_budget` {self.args.token_budget}, they fit into {batches} "
                f"batches, but one optimizer step needs {self.args.gradient_accumulation_steps} "
                f"(`gradient_accumulation_steps`) on each of {processes} processes. Lower `token_budget`, "
                "`gradient_accumulation_steps` or the number of processes, or add rows."
            )

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        # Before it collates, the Trainer drops all columns that are not listed here
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *ENCODED_COLUMNS, "cut"]))

    # ------------------------------------------------------------------------------------------------------- batches

    def _make_train_sampler(self) -> Sampler | None:
        """Create a sampler that groups pairs if an option requires it; otherwise, return `None` to use TRL's sampler."""
        args = self.args
        shares = args.shared_prompt and args.train_sampling_strategy == "random"
        if self.train_dataset is None or (args.token_budget is None and not shares):
            return None
        max_pairs = args.per_device_train_batch_size
        groups = group_pairs(self.train_dataset, self.data_collator, max_pairs, args.token_budget)
        seed = args.seed if args.data_seed is None else args.data_seed
        if args.token_budget is None:
            return GroupSampler(groups, seed)
        return TokenBudgetSampler(
            groups,
            args.token_budget,
            max_pairs,
            padded=not self.data_collator.flattens,
            num_processes=args.world_size,
            seed=seed,
            drop_last=args.dataloader_drop_last,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self._train_sampler is None:
            dataset: Any = train_dataset
            return super()._get_train_sampler(dataset)
        return self._train_sampler

    def get_train_dataloader(self) -> DataLoader:
        if self.args.token_budget is None:
            return super().get_train_dataloader()
        # The Trainer's dataloader accepts only samplers of rows, not of batches
        dataset: Any = self._remove_unused_columns(self.train_dataset, description="Training")
        dataloader = DataLoader(
            dataset,
            batch_sampler=self._train_sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator() if self.args.dataloader_persistent_workers else None,
        )
        return self.accelerator.prepare(dataloader)

    def _run_epoch(self, *args, epoch: int, **kwargs):
        if self._train_sampler is not None:
            # The Trainer sets the epoch on the dataloader's sampler, but in a resumed run, additional wrappers hide that sampler
            self._train_sampler.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    # ---------------------------------------------------------------------------------------------------------- loss

    # Nothing below reads a value on the host, because the host would wait for everything queued on the GPU. Metrics stay on
    # the device until a logging step

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor | None:
        """Count the optimizer step's pairs and labelled tokens across all micro-batches and ranks. The result has shape `(2,)`."""
        if not batch_samples:
            return None
        counts = torch.stack([_counts(batch).to(device) for batch in batch_samples]).sum(0)
        return self.accelerator.gather(counts[None]).sum(0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        cut = inputs.pop("cut", None)  # for the metrics only: the model does not accept it
        if self.args.lm_loss_chunks is not None:
            inputs["lm_loss_chunks"] = self.args.lm_loss_chunks
        inputs |= {"use_cache": False, "return_dict": True}  # with a cache, gradient checkpointing would warn
        outputs = model(**inputs)
        pairwise_loss = self._pairwise_loss(inputs, outputs)
        lm_loss = pairwise_loss.new_zeros(()) if outputs.lm_loss is None else outputs.lm_loss
        partial_P = self._partial_losses(inputs, outputs)
        self._add_metrics(inputs, cut, outputs, partial_P)
        if num_items_in_batch is None:  # called outside the Trainer's loops, so average over this batch
            share = torch.ones(2, device=pairwise_loss.device)
        else:
            # DDP, DeepSpeed and FSDP average gradients over ranks; multiplying by the number of ranks turns the average into a sum
            share = _counts(inputs) / num_items_in_batch.clamp(min=1) * self.accelerator.num_processes
        loss = (
            self.args.bradley_terry_weight * pairwise_loss * share[0] + self.args.lm_loss_weight * lm_loss * share[1]
        )
        if partial_P is not None:
            loss = loss + self.args.partial_reward_weight * partial_P.mean() * share[0]
        return (loss, outputs) if return_outputs else loss

    def _pairwise_loss(self, inputs: dict[str, Any], outputs: Any) -> torch.Tensor:
        """Compute TRL's loss but not its metrics, which would make the host wait at every step."""
        chosen, rejected = outputs.logits[:, 0].chunk(2)
        loss = -F.logsigmoid(chosen - rejected - inputs.get("margin", 0.0)).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * (chosen + rejected).square().mean()
        return loss

    def _partial_losses(self, inputs: dict[str, torch.Tensor], outputs: Any) -> torch.Tensor | None:
        """Compute each pair's mean Bradley-Terry loss over the positions inside its critiques at which rewards are read."""
        if outputs.inner_rewards is None:
            return None
        chosen_PR, rejected_PR = outputs.inner_rewards.chunk(2)
        margin = inputs["margin"][:, None] if "margin" in inputs else 0.0
        return -F.logsigmoid(chosen_PR - rejected_PR - margin).mean(1)

    # ------------------------------------------------------------------------------------------------------- metrics

    @torch.no_grad()
    def _add_metrics(
        self, inputs: dict[str, torch.Tensor], cut: torch.Tensor | None, outputs: Any, partial_P: torch.Tensor | None
    ):
        """
        Add a batch's metrics to the sums from which `_take_means` computes means. Unlike means of batch means, these
        do not depend on the batch size.
        """
        chosen, rejected = outputs.logits[:, 0].detach().chunk(2)
        columns = {
            "pairs": torch.ones_like(chosen),
            "pairwise_loss": -F.logsigmoid(chosen - rejected - inputs.get("margin", 0.0)),
            "accuracy": (chosen > rejected).float(),
            "ties": (chosen == rejected).float(),
            "margin": chosen - rejected,
            "mean_reward": (chosen + rejected) / 2,
            "square_reward": (chosen.square() + rejected.square()) / 2,  # for `reward_std`
        }
        if outputs.lm_loss is not None:
            columns["lm_loss"] = sum(outputs.lm_loss_sums.chunk(2))
            columns["tokens"] = sum(outputs.lm_loss_counts.chunk(2))
        if partial_P is not None:
            columns["partial_pairwise_loss"] = partial_P
        if self.args.center_rewards_coefficient is not None:
            columns["centring"] = (chosen + rejected).square()
        if cut is not None:
            columns["critiques_cut"] = cut.float() / 2
        self._add_sums(columns, chosen, rejected)
        self._count_tokens(inputs)

    def _uses_lm_head(self) -> bool:
        return self.model.config.critique

    # -------------------------------------------------------------------------------------------------------- saving

    def save_model(self, *args, **kwargs):
        # Under ZeRO-3, transformers saves only an adapter's trainable weights, but PEFT needs all of them, including the frozen bias of the head
        frozen = [w for name, w in self.model.named_parameters() if ".default." in name and not w.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            super().save_model(*args, **kwargs)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)

    def _save(self, output_dir: str | None = None, state_dict=None):
        super()._save(output_dir, state_dict)
        folder, model = str(output_dir or self.args.output_dir), self.accelerator.unwrap_model(self.model)
        # Save the config even for adapters: it identifies the kind of reward model that they adapt
        model.config.save_pretrained(folder)
        if is_peft_model(model):
            record_base(folder, model)


def _cloud_config(args: TrainingArguments | None, model: Any) -> CLoudTrainingConfig:
    """Convert arguments to a [`CLoudTrainingConfig`], as TRL's trainers convert [`~transformers.TrainingArguments`] to their own."""
    if isinstance(args, CLoudTrainingConfig):
        return args
    if args is None:
        return CLoudTrainingConfig("cloud-model")
    # Read the fields instead of calling `to_dict`, which hides the values of all options that end in `_token`
    options = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    given: Any = options.get("model_init_kwargs") or {}
    config = read_model_config(model, revision=given.get("revision")) if isinstance(model, str) else model.config
    if isinstance(config, CLoudConfig):
        options["critique"] = config.critique
    return CLoudTrainingConfig(**options)


def _complete_config(config: CLoudConfig, critique_format: CritiqueFormat):
    """Add the token ids that the configs of published checkpoints lack."""
    if config.critique_end_token_id is None:
        config.critique_end_token_id = critique_format.end_token_id
        config.reward_token_id = unused_token_id(critique_format.tokenizer, config.text_config.vocab_size)


def _prepare_batches(
    data_collator: DataCollator | None, model: Any, args: CLoudTrainingConfig, pad: int
) -> DataCollator:
    """Create the data collator for `args`, and prepare the model's attention for its batches."""
    pad_to_multiple_of: Any = args.pad_to_multiple_of  # an integer or `None`: the config has already parsed strings
    options = ("padding_free", "shared_prompt", "token_budget", "partial_reward_weight")
    if data_collator is not None and (given := [name for name in options if getattr(args, name)]):
        raise ValueError(f"`{given[0]}` needs the default collator: omit `data_collator`.")
    if args.padding_free or args.shared_prompt:
        model.prepare_for_segments(args.shared_prompt)
    if args.partial_reward_weight and model.config.format != "cloud":
        raise ValueError(
            "`partial_reward_weight` is set, but a model with `format` 'reference' reads no reward inside critiques."
        )
    return data_collator or DataCollatorForCLoud(
        pad_token_id=pad,  # padding is masked, so any id in the vocabulary works
        pad_to_multiple_of=pad_to_multiple_of,
        critique=model.config.critique,
        padding_free=args.padding_free,
        shared_prompt=args.shared_prompt,
        inner_rewards=_INNER_REWARDS if args.partial_reward_weight else 0,
        seed=args.seed,
    )


def _counts(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Count the pairs and labelled tokens in a micro-batch."""
    # No position predicts the first token of a row, so its label does not count
    tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum() if "labels" in batch else batch["input_ids"].new_zeros(())
    return torch.stack([tokens.new_full((), num_pairs(batch)), tokens])
