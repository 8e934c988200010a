"""Settings that a training run was launched with, and checks of them before the model loads."""

import importlib.util
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available


@dataclass(frozen=True)
class Launch:
    """
    Settings that a resumed run must share with the one that wrote the checkpoint.

    Optimizer states and the order of the data depend on some of them; others the optimizer's state would bring back
    silently; the rest decide the loss and its gradient. Options that a stage does not have are `None`.
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
    lr_scheduler_type: str
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    max_grad_norm: float
    bf16: bool
    fp16: bool
    neftune_noise_alpha: float | None
    critique: bool | None
    lm_loss_weight: float | None
    bradley_terry_weight: float | None
    center_rewards_coefficient: float | None

    @classmethod
    def of(cls, args: TrainingArguments) -> "Launch":
        """Read the settings of the present run."""
        # Stage 1 has no token budget and no λ
        settings: dict[str, Any] = args.to_dict() | {"world_size": args.world_size}
        values: dict[str, Any] = {field.name: settings.get(field.name) for field in fields(cls)[1:]}
        return cls(strategy_of(args), **values)

    @property
    def batch(self) -> int:
        """Rows of an optimizer step, over all processes and micro-batches."""
        return self.world_size * self.per_device_train_batch_size * self.gradient_accumulation_steps

    def differences(self, written: dict[str, Any]) -> list[str]:
        """Return the settings that differ from a checkpoint's, as text. Version 0.1 did not write all of them."""
        return [
            f"`{name}` was {written[name]}, is {value}"
            for name, value in asdict(self).items()
            if name in written and written[name] != value
        ]


def strategy_of(args: TrainingArguments) -> str:
    """Return `"zero1"` to `"zero3"`, `"fsdp"`, `"ddp"` or `"single"`."""
    if args.deepspeed_plugin is not None:
        return f"zero{deepspeed_config(args).get('zero_optimization', {}).get('stage', 0)}"
    state: Any = args.distributed_state
    if args.fsdp_plugin_args is not None or str(state.distributed_type) == "DistributedType.FSDP":
        return "fsdp"
    return "ddp" if args.world_size > 1 else "single"


def deepspeed_config(args: TrainingArguments) -> dict[str, Any]:
    """Return the DeepSpeed config of a run that has one."""
    plugin: Any = args.deepspeed_plugin
    return plugin.hf_ds_config.config


def check_machine(args: TrainingArguments):
    """
    Check that DeepSpeed is installed and a GPU supports bf16, if requested; otherwise raise `ImportError` or `ValueError`. Call
    it before the `__post_init__` of `TrainingArguments`, whose messages are less helpful.
    """
    if args.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            f"`deepspeed` is {args.deepspeed!r}, but DeepSpeed is not installed. Install it with `pip install "
            "'cloud-hf[deepspeed]'`, or omit `deepspeed`: FSDP2 shards as ZeRO-3 does and comes with torch "
            "(ds_configs/accelerate_fsdp2.yaml)."
        )
    bf16 = args.bf16 or (args.bf16 is None and not args.fp16)  # TRL's default
    if bf16 and not args.use_cpu and not is_torch_bf16_gpu_available():
        raise ValueError(
            "`bf16` is on, which is the default, but there is no GPU that computes in bfloat16. Pass `--bf16 False`; on a "
            "machine without a GPU, `--use_cpu --bf16 False`."
        )


def check_dataset_size(args: TrainingArguments, rows: int):
    """
    Raise `ValueError` if there are fewer rows than one optimizer step takes: it would train on a smaller batch than requested,
    and on several processes some rows would count twice.
    """
    launch = Launch.of(args)
    if rows < launch.batch:
        raise ValueError(
            f"The train dataset has {rows} rows, but one optimizer step takes {launch.batch} "
            f"(`per_device_train_batch_size` {launch.per_device_train_batch_size} x `gradient_accumulation_steps` "
            f"{launch.gradient_accumulation_steps} x {launch.world_size} processes). Lower one of them, or add rows."
        )


def check_deepspeed(args: TrainingArguments):
    """Raise `ValueError` if the DeepSpeed config contradicts the training arguments, or no model would be saved."""
    if args.deepspeed_plugin is None:
        return
    name = args.deepspeed if isinstance(args.deepspeed, str) else "The DeepSpeed config"
    config = deepspeed_config(args)
    zero = config.get("zero_optimization", {})
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and zero.get(gathers) is not True:
        raise ValueError(
            f"{name} has stage 3 without `{gathers}`: every process would hold a part of the weights and no model would "
            "be saved. Set it to true in `zero_optimization`, as ds_configs/zero3.json does."
        )
    launch = Launch.of(args)
    expected = {
        "train_micro_batch_size_per_gpu": launch.per_device_train_batch_size,
        "gradient_accumulation_steps": launch.gradient_accumulation_steps,
        "train_batch_size": launch.batch,
    }
    for key, value in expected.items():
        if config.get(key, "auto") not in ("auto", value):
            raise ValueError(
                f"{name} has `{key}` {config[key]}, but the training arguments make it {value}: a step of {launch.batch} "
                f"rows is {launch.per_device_train_batch_size} per device x {launch.gradient_accumulation_steps} "
                f'accumulated x {launch.world_size} processes. Set it to "auto", or change the arguments.'
            )
    # transformers collects the other contradictions
    if args.deepspeed and args.hf_deepspeed_config.mismatches:
        lines = "; ".join(line.removeprefix("- ") for line in args.hf_deepspeed_config.mismatches)
        raise ValueError(f'{name} contradicts the training arguments: {lines}. Set these keys to "auto".')
