"""How a training run was started."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import TrainingArguments


@dataclass(frozen=True)
class Launch:
    """
    What a run that is resumed must have in common with the one that wrote the checkpoint: what optimizer states and the
    order of the data depend on, what the optimizer's state would silently bring back, and the loss. Options that a stage
    does not have are `None`.

    Example: `Launch.of(CLoudTrainingConfig("cloud-rm"))`
    """

    strategy: str
    world_size: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    seed: int
    data_seed: int | None
    token_budget: int | None
    padding_free: bool | None
    shared_prompt: bool | None
    dataloader_drop_last: bool
    train_sampling_strategy: str
    optim: str
    learning_rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    critique: bool | None
    lm_loss_weight: float | None
    bradley_terry_weight: float | None

    @classmethod
    def of(cls, args: TrainingArguments) -> "Launch":
        """How the present run was started."""
        settings = args.to_dict() | {"world_size": args.world_size}  # stage 1 has no token budget, no λ
        return cls(strategy_of(args), *(settings.get(field.name) for field in fields(cls)[1:]))

    @property
    def batch(self) -> int:
        """Rows of an optimizer step."""
        return self.world_size * self.per_device_train_batch_size * self.gradient_accumulation_steps

    def differences(self, written: dict[str, Any]) -> list[str]:
        """What was otherwise in the run that wrote `written`."""
        own = asdict(self)
        return [f"`{name}` was {written[name]}, is {own[name]}" for name in own if written[name] != own[name]]


def strategy_of(args: TrainingArguments) -> str:
    """`"zero1"` to `"zero3"`, `"fsdp"`, `"ddp"` or `"single"`."""
    if args.deepspeed_plugin is not None:
        return f"zero{deepspeed_config(args).get('zero_optimization', {}).get('stage', 0)}"
    if args.fsdp_plugin_args is not None or str(args.distributed_state.distributed_type) == "DistributedType.FSDP":
        return "fsdp"
    return "ddp" if args.world_size > 1 else "single"


def deepspeed_config(args: TrainingArguments) -> dict[str, Any]:
    """The DeepSpeed config of a run that has one."""
    return args.deepspeed_plugin.hf_ds_config.config
