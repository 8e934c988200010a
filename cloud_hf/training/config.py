"""Options of [`CLoudTrainer`]: TRL's reward options and the joint loss."""

import math
from dataclasses import dataclass, field

from trl import RewardConfig

from ..data.rows import TRAINING_POLICIES, check_policy
from .launch import check_machine


@dataclass
class CLoudTrainingConfig(RewardConfig):
    r"""
    Configuration class for the [`CLoudTrainer`].

    This class includes only the parameters that are added to [`~trl.RewardConfig`].

    Parameters:
        > Parameters that control the model, used when it is made from a plain language model

        critique (`bool`, *optional*, defaults to `True`):
            Whether the model critiques before it scores. `False` trains a classic reward model.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn. Defaults to the sentence of the published checkpoints.
        critique_role (`str`, *optional*, defaults to `"user"`):
            Role of the critique turn.
        keep_thinking (`bool`, *optional*, defaults to `False`):
            Whether `<think>` blocks are shown to the reward model where the chat template would drop them.
        format (`str`, *optional*, defaults to `"cloud"`):
            `"reference"` spells conversations as the authors' published checkpoints do, see [`ReferenceFormat`].

        > Parameters that control the data preprocessing

        max_length (`int`, *optional*, defaults to `4096`):
            Longest sequence in tokens, critique included. The model's context is the limit if it is smaller or this is
            `None`.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            What happens to pairs with a longer sequence: `"error"` stops before training, `"drop"` leaves them out and
            says how many, `"truncate_prompt"` removes the oldest text of their prompt. `"truncate_end"` cuts the critique
            as the reference implementation does, for `format="reference"` only.

        > Parameters that control the batches

        padding_free (`bool`, *optional*, defaults to `False`):
            Whether the sequences of a batch lie one after another in one row instead of being padded. Losses and
            gradients are the same. With `attn_implementation` `"sdpa"` or FlashAttention.
        shared_prompt (`bool`, *optional*, defaults to `False`):
            Whether, in such a row, the prefix that chosen and rejected (and several critiques of a response) have in
            common is there once. Losses and gradients are the same. With `attn_implementation` `"sdpa"`.
        token_budget (`int`, *optional*):
            Most tokens of a training batch on one device, padding included. Pairs of about equal length then share a
            batch, as many as the budget allows and at most `per_device_train_batch_size`.

        > Parameters that control the loss

        lm_loss_weight (`float`, *optional*, defaults to `1.25`):
            λ, the weight of the critique LM loss (arXiv 2408.11791, equation 4). The authors used 1.25 at 8B and 0.75
            at 70B.
        bradley_terry_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the Bradley-Terry loss.
        lm_loss_chunks (`int`, *optional*):
            In how many pieces the vocabulary logits of a batch's critiques are computed. One is fastest; more take less
            memory and compute the logits twice. Defaults to one for each 16,384 entries of the vocabulary.
    """

    critique: bool = field(
        default=True, metadata={"help": "Critique before scoring; False trains a classic reward model."}
    )
    critique_prompt: str | None = field(default=None, metadata={"help": "Text that opens the critique turn."})
    critique_role: str = field(default="user", metadata={"help": "Role of the critique turn: user or assistant."})
    keep_thinking: bool = field(
        default=False, metadata={"help": "Show <think> blocks that the chat template would drop."}
    )
    format: str = field(default="cloud", metadata={"help": "Spelling of conversations: cloud or reference."})
    max_length: int | None = field(
        default=4096, metadata={"help": "Longest sequence in tokens; None for the model's context."}
    )
    overlong_policy: str = field(
        default="error", metadata={"help": "Over-long pairs: error, drop, truncate_prompt or truncate_end."}
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Lay the sequences of a batch one after another instead of padding them."}
    )
    shared_prompt: bool = field(
        default=False, metadata={"help": "Flatten the batch with one copy of the prefixes that its sequences share."}
    )
    token_budget: int | None = field(
        default=None, metadata={"help": "Most tokens of a training batch on one device; groups by length."}
    )
    lm_loss_weight: float = field(default=1.25, metadata={"help": "Weight λ of the critique LM loss."})
    bradley_terry_weight: float = field(default=1.0, metadata={"help": "Weight of the Bradley-Terry loss."})
    lm_loss_chunks: int | None = field(
        default=None, metadata={"help": "Pieces in which the logits of critiques are computed; more take less memory."}
    )

    def __post_init__(self):
        check_policy(self.overlong_policy, TRAINING_POLICIES)
        for name in ("lm_loss_weight", "bradley_terry_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be a number from 0 up.")
        for name in ("max_length", "token_budget", "lm_loss_chunks"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1, or None.")
        if self.token_budget is not None and self.train_sampling_strategy != "random":
            raise ValueError(
                f"`token_budget` groups pairs by length itself: `train_sampling_strategy` is "
                f"{self.train_sampling_strategy!r}, leave it 'random'."
            )
        if self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "`train_sampling_strategy` 'group_by_length' goes by one sequence a row, and pairs have two. `token_budget` "
                "groups pairs by length."
            )
        if self.token_budget is not None and self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size` changes a number of pairs, but `token_budget` counts tokens. Drop one."
            )
        if not self.critique and self.lm_loss_chunks is not None:
            raise ValueError(
                "`lm_loss_chunks` is set, but a classic model has no critique loss (`critique` is False)."
            )
        check_machine(self)
        super().__post_init__()
        flattened = [name for name in ("padding_free", "shared_prompt") if getattr(self, name)]
        if flattened and self.pad_to_multiple_of is not None:
            raise ValueError(f"`pad_to_multiple_of` is set, but with `{flattened[0]}` nothing is padded. Drop one.")
