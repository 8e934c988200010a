"""Options of [`CLoudTrainer`]: TRL's reward options and the joint loss."""

import math
from dataclasses import dataclass, field

from trl import RewardConfig

from ..data.overlong import TRAINING_POLICIES, check_policy
from .launch_checks import check_machine


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

        > Parameters that control the loss

        lm_loss_weight (`float`, *optional*, defaults to `1.25`):
            λ, the weight of the critique LM loss (arXiv 2408.11791, equation 4). The authors used 1.25 at 8B and 0.75
            at 70B.
        bradley_terry_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the Bradley-Terry loss.
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
    lm_loss_weight: float = field(default=1.25, metadata={"help": "Weight λ of the critique LM loss."})
    bradley_terry_weight: float = field(default=1.0, metadata={"help": "Weight of the Bradley-Terry loss."})

    def __post_init__(self):
        check_policy(self.overlong_policy, TRAINING_POLICIES)
        for name in ("lm_loss_weight", "bradley_terry_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be a number from 0 up.")
        check_machine(self)
        super().__post_init__()
