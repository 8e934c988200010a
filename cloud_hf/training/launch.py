"""How a training run was started."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import TrainingArguments


@dataclass(frozen=True)
class Launch:
    """
    What a checkpoint's optimizer states and data order depend on, beside the weights.

    Example: `Launch(strategy="zero2", world_size=8, per_device_train_batch_size=2, gradient_accumulation_steps=6,
    seed=17, data_seed=None, token_budget=None, padding_free=False, shared_prompt=False, dataloader_drop_last=False)`
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

    @classmethod
    def of(cls, args: TrainingArguments) -> "Launch":
        """How the present run was started."""
        settings = args.to_dict() | {"world_size": args.world_size}  # stage 1 has no token budget
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
