"""Options of [`CLoudTrainer`]: TRL's reward options, plus those of the joint loss."""

import math
from dataclasses import dataclass

from trl import RewardConfig

from ..argument_help import check_bounds, documented
from ..configuration_cloud import REWARD_HEADS
from ..data.bad_rows import check_bad_rows
from ..data.fit_to_context import TRAINING_POLICIES, check_policy
from .launch import check_machine


@documented
@dataclass
class CLoudTrainingConfig(RewardConfig):
    r"""
    Configuration class for the [`CLoudTrainer`].

    This class lists only the parameters that it adds to [`~trl.RewardConfig`].

    Parameters:
        > Parameters that control the model; they apply when it is created from a plain language model

        critique (`bool`, *optional*, defaults to `True`):
            Whether to write a critique before scoring. `False` trains a classic reward model.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn. Defaults to the sentence that the published checkpoints use.
        critique_role (`str`, *optional*, defaults to `"user"`):
            Role of the critique turn.
        keep_thinking (`bool`, *optional*, defaults to `False`):
            Show `<think>` blocks to the reward model even if the chat template drops them.
        format (`str`, *optional*, defaults to `"cloud"`):
            Layout of conversations: `"cloud"`, or `"reference"` as in the authors' published checkpoints (see
            [`ReferenceFormat`]).
        reward_head (`str`, *optional*):
            `"mlp"` (two layers) or `"linear"` (one layer, as in transformers' `*ForSequenceClassification`). Defaults
            to `"linear"` for a classic model that starts from a scalar model with one label and reuses its head, and
            to `"mlp"` otherwise.

        > Parameters that control the data preprocessing

        max_length (`int`, *optional*, defaults to `4096`):
            Maximum length of a sequence in tokens, including the critique. If the model's context length is smaller,
            or if this is `None`, the context length applies.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            What to do with pairs that exceed `max_length`: `"error"` stops before training, `"drop"` skips them and
            reports how many, `"truncate_prompt"` removes the oldest text from their prompts. With
            `format="reference"`, there is also `"truncate_end"`, which truncates the critique as the reference
            implementation does.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            What to do with rows that cannot be used, such as rows with an empty response: `"error"` stops before
            training and names them, `"drop"` leaves them out and reports how many.

        > Parameters that control the batches

        padding_free (`bool`, *optional*, defaults to `False`):
            Concatenate the sequences of a batch into one row instead of padding them. This does not change losses or gradients. Needs
            `attn_implementation` `"sdpa"` or FlashAttention.
        shared_prompt (`bool`, *optional*, defaults to `False`):
            Like `padding_free`, but also compute each prefix that several sequences share (chosen and rejected, or
            several critiques of a response) only once. This does not change losses or gradients. Needs
            `attn_implementation` `"sdpa"`.
        token_budget (`int`, *optional*):
            Maximum number of tokens, including padding, in each device's training batch. Each batch then contains pairs
            of similar length: as many as the budget allows, but at most `per_device_train_batch_size`.

        > Parameters that control the loss

        lm_loss_weight (`float`, *optional*, defaults to `1.25`):
            λ, the weight of the critique LM loss (arXiv 2408.11791, equation 4). The authors used 1.25 at 8B and 0.75
            at 70B.
        bradley_terry_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the Bradley-Terry loss.
        partial_reward_weight (`float`, *optional*, defaults to `0.0`):
            Weight of an additional Bradley-Terry loss on rewards read inside the critiques, for models whose
            rewards will be read before a critique ends (`read_every`). Rewards are read at four tokens of each critique,
            at the same relative positions in both critiques of a pair; `seed` and the pair determine these positions.
        lm_loss_chunks (`int`, *optional*):
            Number of chunks in which the logits of a batch's critiques are computed. A single chunk is fastest;
            several chunks need less memory, but compute the logits twice. Defaults to one chunk per 16,384 vocabulary
            entries.
    """

    critique: bool = True
    critique_prompt: str | None = None
    critique_role: str = "user"
    keep_thinking: bool = False
    format: str = "cloud"
    reward_head: str | None = None
    max_length: int | None = 4096
    overlong_policy: str = "error"
    bad_rows: str = "error"
    padding_free: bool = False
    shared_prompt: bool = False
    token_budget: int | None = None
    lm_loss_weight: float = 1.25
    bradley_terry_weight: float = 1.0
    partial_reward_weight: float = 0.0
    lm_loss_chunks: int | None = None

    def __post_init__(self):
        check_policy(self.overlong_policy, TRAINING_POLICIES)
        check_bad_rows(self.bad_rows)
        check_weights(self, "lm_loss_weight", "bradley_terry_weight", "partial_reward_weight")
        if self.reward_head not in (None, *REWARD_HEADS):
            raise ValueError(f"`reward_head` is {self.reward_head!r}; use {' or '.join(REWARD_HEADS)}.")
        check_bounds(self, max_length=1, token_budget=1, lm_loss_chunks=1)
        self._check_loss()
        self._check_evaluation()
        flattened = next((name for name in ("padding_free", "shared_prompt") if getattr(self, name)), None)
        self._check_batches(flattened)
        check_machine(self)
        super().__post_init__()
        # Checked only here, because by now TRL has turned "auto" into a number or `None`
        if flattened and self.pad_to_multiple_of is not None:
            raise ValueError(f"`pad_to_multiple_of` is set, but `{flattened}` pads nothing. Omit one of them.")

    def _check_batches(self, flattened: str | None):
        """Check the batch options. `flattened` is the name of the option that concatenates the sequences of a batch, if one is set."""
        if self.token_budget is not None and self.train_sampling_strategy != "random":
            raise ValueError(
                f"`token_budget` already groups pairs by length, but `train_sampling_strategy` is "
                f"{self.train_sampling_strategy!r}; leave it at 'random'."
            )
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "`train_sampling_strategy` 'group_by_length' needs one sequence per row, but pairs have two. Use "
                "`token_budget` to group pairs by length."
            )
        if self.token_budget is not None and self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size` changes the number of pairs, but `token_budget` counts tokens. Omit one of them."
            )
        if flattened and self.neftune_noise_alpha is not None:
            raise ValueError(
                f"`neftune_noise_alpha` is set, but with `{flattened}` its noise would be scaled by the length of the "
                "batch instead of the length of each sequence. Omit one of them."
            )
        if flattened and (self.torch_compile or self.torch_compile_mode or self.torch_compile_backend):
            raise ValueError(
                f"`torch_compile` is set, but with `{flattened}` the sequence lengths differ from batch to batch, so every batch "
                "would trigger a recompilation. Omit one of them."
            )

    def _check_loss(self):
        if not self.critique and self.lm_loss_chunks is not None:
            raise ValueError(
                "`lm_loss_chunks` is set, but a classic model has no critique loss (`critique` is False)."
            )
        if self.partial_reward_weight and not (self.critique and self.format == "cloud"):
            raise ValueError(
                f"`partial_reward_weight` is {self.partial_reward_weight}, but only a CLoud model with `format` 'cloud' reads "
                "rewards inside critiques."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` is {self.label_smoothing_factor}, but the joint loss smooths no labels. Omit the option."
            )
        if self.use_liger_kernel:
            raise ValueError(
                "`use_liger_kernel` would have no effect: Liger patches only model types that it knows, and CLoud models are not among "
                "them. Omit the option; the critique loss already computes its logits in chunks."
            )

    def _check_evaluation(self):
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` is on, but it would round the reward head, which is kept in fp32, also in the model that is saved. Omit the "
                    "option; to evaluate in less memory, lower `per_device_eval_batch_size`."
                )
        if not self.eval_do_concat_batches:
            raise ValueError(
                "`eval_do_concat_batches` is False, but all chosen rewards come before all rejected ones, which needs the batches in one "
                "array. Omit the option."
            )


def check_weights(args: CLoudTrainingConfig, *names: str):
    """Raise `ValueError` unless the options with these names are finite and at least 0."""
    for name in names:
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"`{name}` is {getattr(args, name)}; it must be a finite number of at least 0.")
