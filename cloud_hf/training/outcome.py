"""
Stage 4: reward critiques after which the reward head prefers the chosen response.

Shape suffixes: N pairs, K critiques of each response, P labelled tokens; a dimension of size 2 holds chosen and rejected.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation

from ..configuration_cloud import CLoudConfig, check_name
from ..critique_format import EncodedPrefix
from ..generation import CritiqueWriter
from ..loading import is_adapter, load_reward_model, read_model_config, tokenizer_source
from ..model_identity import hash_of_parameters, identify_weights
from ..scores import Sample, Sampling
from .encoding import SIDES
from .launch import check_parallelism, strategy_of
from .outcome_batch import WrittenCritiques, prefix_of, with_critiques
from .outcome_config import CLoudOutcomeConfig
from .outcome_loss import OutcomeLoss, outcome_loss
from .starting_model import prepare_tokenizer
from .trainer import CLoudTrainer


logger = logging.getLogger(__name__)


class CLoudOutcomeTrainer(CLoudTrainer):
    r"""
    Trainer that improves the critiques of a CLoud model. It is a [`CLoudTrainer`] that writes new critiques at every
    step.

    At each step, the current weights write K critiques of both responses of each pair, at temperature 1. The loss of
    the step is

        bradley_terry_weight * mean over pairs of the loss of [`~training.outcome_loss.outcome_loss`]
        + policy_weight * mean over pairs of its policy gradient
        + beta * mean over written critiques of the KL divergence from the reference model
        + lm_loss_weight * mean over labelled tokens of the cross-entropy of the dataset's critiques

    The critiques depend only on the seed, the step and the judged text, not on batches, ranks, or whether a run was
    resumed. With vLLM this holds up to rounding, which depends on how requests are batched.

    Args:
        model (`str` or [`CLoudForRewardModeling`] or [`~peft.PeftModel`]):
            A CLoud model from stage 3, or its name.
        args ([`CLoudOutcomeConfig`], *optional*):
            Configuration for this trainer.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Defaults to the model's.
        **kwargs:
            Other arguments of [`CLoudTrainer`]. The critiques in `train_dataset` are those that stage 3 was trained
            on; evaluation works as in stage 3, on the critiques in `eval_dataset`.

    Raises:
        `ValueError`: If the reference model has a different tokenizer or cannot be created, if a critique might not
            fit in the context, or if critiques cannot be written in this kind of run (FSDP, several GPUs in one process).

    Examples:

    ```python
    >>> from cloud_hf import CLoudOutcomeConfig, CLoudOutcomeTrainer
    >>> trainer = CLoudOutcomeTrainer("my-cloud-rm", CLoudOutcomeConfig("my-outcome-rm"), train_dataset=pairs)
    >>> trainer.train()
    ```
    """

    args: CLoudOutcomeConfig

    def __init__(
        self,
        model: Any,
        args: CLoudOutcomeConfig | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs,
    ):
        args = CLoudOutcomeConfig("outcome-model") if args is None else args
        needs_reference = bool(args.num_generations and args.beta)
        if args.num_generations:
            check_parallelism(args)
            _check_launch(args, model, kwargs.get("peft_config"))
            _check_model(model, args.model_init_kwargs)
        if needs_reference:
            processing_class = prepare_tokenizer(processing_class, model, args)
            _check_reference(args, model, processing_class)
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        self.reference = self._make_reference() if needs_reference else None
        self._vllm_writer: Any = None
        if args.num_generations and self.train_dataset is not None:
            self._check_lengths()
            self._count_equal_responses()

    def _make_reference(self) -> Any:
        """Return the frozen reference model, or `None` if the trained model without its new adapter is the reference."""
        args, is_sharded = self.args, strategy_of(self.args) == "zero3"
        if args.ref_model is None and is_peft_model(self.model):
            lora = self.model.peft_config["default"]
            if lora.bias != "none" or lora.init_lora_weights not in (True, "gaussian", "eva", "orthogonal", "mica"):
                raise ValueError(
                    f"With `bias` {lora.bias!r} and `init_lora_weights` {lora.init_lora_weights!r}, the model without its adapter is not the "
                    "model that training starts from, so it cannot be the reference. Set `ref_model`, set `beta` to 0, or leave both at their "
                    "defaults."
                )
            return None
        name = args.ref_model or (self.origin.base if is_sharded else None)
        if is_sharded and name is None:
            raise ValueError(
                "Under ZeRO-3, the model cannot be copied to serve as the reference: set `ref_model`, or set `beta` to 0."
            )
        # The copy has the initial weights even in a resumed run, because the Trainer loads the checkpoint's weights only in `train`
        if name is None:
            reference: Any = copy.deepcopy(self.model)
        else:
            hub_kwargs = {} if args.ref_model else self.model._hub_kwargs
            reference, _ = load_reward_model(name, dtype=self.model.dtype, **hub_kwargs)
            if self.data_collator.flattens:
                reference.prepare_for_segments(args.shared_prompt)
        reference.eval().requires_grad_(False)
        if is_sharded:
            return prepare_deepspeed(reference, self.accelerator)
        # DeepSpeed casts the trained model; cast the reference in the same way, so that equal weights give equal log-probabilities
        casts = args.bf16 and strategy_of(args).startswith("zero")
        return reference.to(args.device, torch.bfloat16 if casts else None)

    def _frozen_weights(self) -> dict[str, str]:
        frozen, name = super()._frozen_weights(), self.args.ref_model
        if self.reference is None:
            return frozen
        if name is not None:
            return {**frozen, "ref_model_weights": identify_weights(name)}
        # Under ZeRO-3, each process has only a part of the weights, but the reference was loaded by name
        base = self.origin.base if strategy_of(self.args) == "zero3" else None
        revision = self.model._hub_kwargs.get("revision")
        start = identify_weights(base, revision) if base else hash_of_parameters(self.reference)
        return {**frozen, "starting_model": start}

    def _check_lengths(self):
        """Raise `ValueError` if a critique might not fit in the context."""
        longest, side = max((max(self.train_dataset[f"{side}_prefix_length"]), side) for side in SIDES)
        self._longest_prefix = longest
        needed = longest + self.args.max_completion_length + 1
        # vLLM's plugin closes a critique with one more token
        context = self._context_length and self._context_length - self.args.use_vllm
        limit = min(limit for limit in (self.args.max_length, context, needed) if limit)
        if needed > limit:
            pair = self.train_dataset[f"{side}_prefix_length"].index(longest)
            raise ValueError(
                f"The train dataset: pair {pair} (counted from 0) has {longest} tokens before the critique of its {side} response, or "
                f"{needed} with a critique of `max_completion_length` ({self.args.max_completion_length}) tokens and its end token; at "
                f"most {limit} fit. Lower `max_completion_length`, raise `max_length` if it is lower than the context, or drop the row."
            )

    def _count_equal_responses(self):
        """
        Warn about pairs with identical responses, from which no preference can be learned; raise `ValueError` if all
        pairs are of this kind.
        """
        dataset: Any = self.train_dataset
        pairs = dataset.select_columns([f"{side}_{name}" for side in SIDES for name in ("ids", "prefix_length")])
        count = sum(prefix_of(pair, SIDES[0]) == prefix_of(pair, SIDES[1]) for pair in pairs)
        if count and count == len(pairs):
            raise ValueError(
                f"The train dataset: in all {count} pairs, both responses are identical. Check what `chosen` and `rejected` contain."
            )
        if count:
            logger.warning(
                "The train dataset: %d of %d pairs have identical responses, from which no preference can be learned.",
                count, len(pairs),
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- critiques

    def get_train_dataloader(self) -> DataLoader:
        """Return a dataloader of uncollated rows: they can be collated only once critiques have been written for them."""
        if not self.args.num_generations:
            return super().get_train_dataloader()
        collator, self.data_collator = self.data_collator, list
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """Write the critiques for all micro-batches of an optimizer step."""
        if self.args.num_generations:
            epoch_iterator = iter(self._write_critiques(list(islice(epoch_iterator, num_batches))))
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _write_critiques(self, batches: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Write critiques for the rows of each micro-batch, and collate them."""
        args = self.args
        prefixes = [prefix_of(row, side) for batch in batches for row in batch for side in SIDES]
        # The policy gradient is computed for the distribution at temperature 1, so sample from that distribution. The writer deviates from
        # it only for the few tokens that it bans or treats as the end of turn
        seed = (args.seed << 32) + self.state.global_step  # runs with consecutive seeds share no samples
        sampling = Sampling(args.num_generations, 1.0, args.max_completion_length, seed)
        write = self._write_with_vllm if args.use_vllm else self._write_with_transformers
        samples = iter(write(prefixes, sampling))
        return [self._collate(batch, [[next(samples) for _ in SIDES] for _ in batch]) for batch in batches]

    def _write_with_transformers(self, prefixes: list[EncodedPrefix], sampling: Sampling) -> list[list[Sample]]:
        checkpointing: Any = self.args.gradient_checkpointing_kwargs  # if it was a string, it has been parsed by now
        wrapped: Any = self.model_wrapped  # the upstream annotation covers distributed models only
        with (
            torch.no_grad(),
            self.accelerator.autocast(),
            unwrap_model_for_generation(
                wrapped, self.accelerator, gradient_checkpointing_kwargs=checkpointing
            ) as unwrapped,
        ):
            model: Any = unwrapped
            writer = CritiqueWriter(
                model.eval(), self.critique_format, sampling, self.args.generation_batch_size, show_progress=False
            )
            return writer.write(prefixes)

    def _write_with_vllm(self, prefixes: list[EncodedPrefix], sampling: Sampling) -> list[list[Sample]]:
        from ..serving.vllm.training_writer import VLLMWriter

        model: Any = self.accelerator.unwrap_model(self.model)
        tokenizer: Any = self.processing_class
        if self._vllm_writer is None:
            share = self.args.vllm_gpu_memory_utilization
            try:
                self._vllm_writer = VLLMWriter(
                    model, tokenizer, max_model_len=self._longest_prefix + self.args.max_completion_length + 2, gpu_memory_utilization=share,
                    dtype="bfloat16" if self.args.bf16 else str(model.dtype).removeprefix("torch."),
                )  # fmt: skip
            except RuntimeError as error:
                raise ValueError(
                    "vLLM's engine did not start; its log above has the reason. If there is too little memory, change "
                    f"`vllm_gpu_memory_utilization` ({share}), lower `max_completion_length` "
                    f"({self.args.max_completion_length}), or omit `use_vllm`."
                ) from error
        return self._vllm_writer.write(model, prefixes, sampling)

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._vllm_writer is not None:
                self._vllm_writer.close()
                self._vllm_writer = None

    def _collate(self, rows: list[dict[str, Any]], samples: list[list[list[Sample]]]) -> dict[str, Any]:
        """Collate a micro-batch of the written critiques, pair by pair, followed by the dataset's critiques if they serve as an anchor."""
        end = self.critique_format.end_token_id
        written = [
            with_critiques(row, chosen, rejected, end)
            for row, sides in zip(rows, samples, strict=True)
            for chosen, rejected in zip(*sides, strict=True)
        ]
        anchors = rows if self.args.lm_loss_weight else []
        batch = self.data_collator([*written, *anchors])
        batch.pop("cut", None)  # counts the dataset's cut-off critiques, not the written ones
        tokens = sum(len(row[f"{side}_ids"]) - row[f"{side}_prefix_length"] for row in anchors for side in SIDES)
        was_cut = [[[sample.finish_reason == "length" for sample in side] for side in sides] for sides in samples]
        same = [any(len({s.critique_ids for s in side}) == 1 < len(side) for side in sides) for sides in samples]
        return {
            **batch, "counts": torch.tensor([len(rows), tokens]), "was_cut": torch.tensor(was_cut).transpose(0, 1),
            "identical_critiques": torch.tensor(same),
        }  # fmt: skip

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor | None:
        """Count the optimizer step's pairs and the labelled tokens of its dataset critiques. The result has shape `(2,)`."""
        if not batch_samples or "counts" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        counts = torch.stack([batch["counts"].to(device) for batch in batch_samples]).sum(0)
        return self.accelerator.gather(counts[None]).sum(0)

    # ------------------------------------------------------------------------------------------------------------ loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "was_cut" not in inputs:  # during evaluation, or if no critiques are written
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        args = self.args
        counts, was_cut, identical = (inputs.pop(name) for name in ("counts", "was_cut", "identical_critiques"))
        inputs |= {"lm_loss_chunks": args.lm_loss_chunks, "use_cache": False, "return_dict": True}
        output = model(**inputs)
        written = WrittenCritiques(output, was_cut)
        rewards_2NK, logprobs_2NK = written.rewards_2NK, written.logprobs_2NK
        margin = inputs["margin"][: was_cut[0].numel()].view(was_cut[0].shape) if "margin" in inputs else 0.0
        losses = outcome_loss(rewards_2NK[0] - margin, rewards_2NK[1], *logprobs_2NK, objective=args.outcome_objective)
        kl_N = (
            written.kl_2NK(self._reference_losses(inputs)).mean((0, 2))
            if args.beta
            else torch.zeros_like(losses.direct)
        )
        self._add_outcomes(written, losses, {"kl": kl_N, "identical_critiques": identical})
        self._count_tokens(inputs)
        totals, processes = counts, 1  # called outside the Trainer's loops, so average over this batch
        if num_items_in_batch is not None:
            totals, processes = num_items_in_batch, self.accelerator.num_processes
        pairs, tokens = totals.clamp(min=1)
        pair_losses_N = (
            args.bradley_terry_weight * losses.direct + args.policy_weight * losses.policy + args.beta * kl_N
        )
        loss = (pair_losses_N.sum() / pairs + args.lm_loss_weight * written.anchor_loss / tokens) * processes
        return (loss, output) if return_outputs else loss

    @torch.no_grad()
    def _reference_losses(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the cross-entropy of each labelled token under the reference model, shape `(P,)`."""
        model, without_adapter = self.reference, nullcontext()
        if model is None:
            model = self.accelerator.unwrap_model(self.model)
            without_adapter = model.disable_adapter()
        with self.accelerator.autocast(), without_adapter:
            return model(**inputs).token_losses

    def training_facts(self) -> dict[str, Any]:
        """See [`WritesCard.training_facts`]."""
        args = self.args
        if not args.num_generations:
            return {}
        return {
            "Written critiques": f"{args.num_generations} per response at each step, of up to {args.max_completion_length} tokens",
            "Objective": args.outcome_objective,
            "Weight of the policy gradient": args.policy_weight,
            "Weight of the KL divergence": f"{args.beta}, from {'another model' if args.ref_model else 'the model it was trained from'}",
        }

    # --------------------------------------------------------------------------------------------------------- metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count 2 FLOPs per weight and token for writing and 2 for the reference model, in addition to the 6 for training."""
        passes = 3 + bool(self.args.num_generations) + bool(self.args.num_generations and self.args.beta)
        return super().floating_point_ops(inputs) * passes // 3

    @torch.no_grad()
    def _add_outcomes(self, written: WrittenCritiques, losses: OutcomeLoss, columns: dict[str, torch.Tensor]):
        """Add a batch's metrics to the sums from which the log is computed. Each column has one value per pair."""
        rewards_2NK, lengths_2NK, cut_2NK = written.rewards_2NK, written.lengths_2NK, written.was_cut_2NK.float()
        chosen_N, rejected_N = rewards_2NK.mean(2)
        columns = {
            "pairs": torch.ones_like(chosen_N),
            "pairwise_loss": losses.direct,
            "pair_likelihood": losses.log_sigmoid.exp().mean((1, 2)),
            "accuracy": chosen_N > rejected_N,
            "majority_accuracy": (rewards_2NK[0][:, :, None] > rewards_2NK[1][:, None]).float().mean((1, 2)) > 0.5,
            "ties": chosen_N == rejected_N,
            "margin": chosen_N - rejected_N,
            "mean_reward": rewards_2NK.mean((0, 2)),
            "square_reward": rewards_2NK.square().mean((0, 2)),
            "reward_spread": rewards_2NK.std(2, correction=0).mean(0),
            "critique_length": (lengths_2NK - 1 + cut_2NK).mean((0, 2)),
            "critiques_cut": cut_2NK.mean((0, 2)),
            "entropy": (-written.logprobs_2NK / lengths_2NK).mean((0, 2)),
            **columns,
        }
        if self.args.lm_loss_weight:
            columns["lm_loss"] = written.of_anchors(written.output.lm_loss_sums)
            columns["tokens"] = written.of_anchors(written.output.lm_loss_counts)
        self._add_sums({name: column.float() for name, column in columns.items()}, rewards_2NK[0], rewards_2NK[1])

    def _take_means(self, mode: str) -> dict[str, float]:
        means = super()._take_means(mode)
        if mode == "train" and means.get("critiques_cut") == 1.0 and self.args.num_generations:
            logger.warning(
                "Step %d: all critiques since the last log were cut off at `max_completion_length` %d, before their verdict. Raise "
                "this limit, or start from a model that ends its critiques.", self.state.global_step, self.args.max_completion_length,
            )  # fmt: skip
        return means


def _check_launch(args: CLoudOutcomeConfig, model: Any, peft_config: Any):
    """Raise `ValueError` if critiques cannot be written in this kind of run."""
    if args.use_vllm:
        # If vLLM is missing, the `ImportError` is raised before anything is loaded, and names the extra to install
        from ..serving.vllm.training_writer import VLLMWriter  # noqa: F401

        if (strategy := strategy_of(args)) != "single":
            raise ValueError(
                f"`use_vllm` needs a single process without DeepSpeed, but this run uses {strategy}. Omit `use_vllm`."
            )
        if peft_config is not None or (is_adapter(model) if isinstance(model, str) else is_peft_model(model)):
            raise ValueError(
                "`use_vllm` needs full fine-tuning: vLLM cannot reload an adapter's weights. Omit `use_vllm` or `use_peft`."
            )
    if strategy_of(args) == "fsdp":
        raise ValueError(
            "Critiques cannot be written under FSDP. Use DDP or DeepSpeed (ds_configs/zero2.json, zero3.json)."
        )


def _check_model(model: Any, init_kwargs: Any):
    """Raise `ValueError` if a model, given as an object or by name, cannot write critiques and judge them."""
    if isinstance(model, str):
        name, config = model, read_model_config(model, revision=(init_kwargs or {}).get("revision"))
    else:
        name, config = "The given model", model.config
    if not isinstance(config, CLoudConfig):
        what = "a language model without a reward head to judge critiques"
    elif not config.critique:
        what = "a classic model, which writes no critiques"
    elif config.format != "cloud":
        what = f"a model with `format` {config.format!r}, whose rewards are read from decoded text"
    else:
        return
    raise ValueError(f"{name} is {what}. Start from a model trained in stage 3 (`cloud-hf train-cloud`).")


def _check_reference(args: CLoudOutcomeConfig, model: Any, tokenizer: PreTrainedTokenizerBase):
    """Raise `ValueError` if there is no reference model, or its tokenizer differs from the trained model's."""
    if args.ref_model is None:
        if is_adapter(model) if isinstance(model, str) else is_peft_model(model):
            raise ValueError(
                "The model is an adapter. The reference would be its base, which is not the model that training starts from. Merge the "
                "adapter first (`cloud-hf merge-adapter`), set `ref_model`, or set `beta` to 0."
            )
        return
    check_name(args.ref_model)
    other = AutoTokenizer.from_pretrained(tokenizer_source(args.ref_model), trust_remote_code=args.trust_remote_code)
    if other.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"`ref_model` {args.ref_model} has a different tokenizer from the model, so their log-probabilities cannot be compared. "
            "Set `ref_model` to the stage 3 model that training starts from, or omit it."
        )
