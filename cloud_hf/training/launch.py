"""Record the settings of a training run, and check them before the model loads."""

import importlib.util
import json
import os
from typing import Any

import torch
from accelerate import DistributedType, ParallelismConfig
from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available, is_torch_bf16_gpu_available
from trl import RewardConfig, SFTConfig

from ..argument_help import check_bounds


# Some of these settings determine the optimizer states and the order of the data; some would be overwritten silently by the
# restored optimizer state; the rest determine the loss and its gradient
_SETTINGS = (
    "strategy", "world_size", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed",
    "token_budget", "padding_free", "shared_prompt", "dataloader_drop_last", "train_sampling_strategy", "optim",
    "optim_args", "optim_target_modules", "learning_rate", "lr_scheduler_type", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "max_grad_norm", "warmup_steps", "lr_scheduler_kwargs", "disable_dropout", "bf16",
    "fp16", "neftune_noise_alpha", "critique", "loss_type", "label_smoothing_factor", "router_aux_loss_coef",
    "average_tokens_across_devices", "lm_loss_weight", "bradley_terry_weight", "center_rewards_coefficient",
    "num_generations", "max_completion_length", "outcome_objective", "policy_weight", "beta", "ref_model",
)  # fmt: skip
# Options of accelerate that determine which rows form a batch
_BATCH_OPTIONS = ("use_seedable_sampler", "split_batches", "even_batches")

# Checkpoints of version 3 may lack these, because they were recorded only later
RECORDED_LATER = (
    "warmup_steps", "lr_scheduler_kwargs", "disable_dropout", "optim_args", "optim_target_modules", "loss_type",
    "label_smoothing_factor", "router_aux_loss_coef", "average_tokens_across_devices", *_BATCH_OPTIONS,
)  # fmt: skip
# Sizes in accelerate's `ParallelismConfig` that split sequences or matrices
_DIVIDING = ("cp_size", "sp_size", "tp_size")


def launch_settings(args: TrainingArguments) -> dict[str, Any]:
    """
    Return the settings that a resumed run must share with the run that wrote the checkpoint. Settings that a stage
    does not have are `None`; for example, stage 1 has neither a token budget nor λ.
    """
    settings = {**args.to_dict(), "strategy": strategy_of(args), "world_size": args.world_size}
    # `None` if unused, to match checkpoints from earlier releases, which lack these settings
    added = {name: settings.get(name) or None for name in ("partial_reward_weight", "use_vllm")}
    added |= {name: getattr(args.accelerator_config, name) for name in _BATCH_OPTIONS}
    # As read from a record: lists for tuples, text for numbers of NumPy
    return json.loads(json.dumps({**{name: settings.get(name) for name in _SETTINGS}, **added}, default=str))


def rows_per_step(args: TrainingArguments) -> int:
    """Return the number of rows per optimizer step, over all processes and micro-batches."""
    return args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps


def strategy_of(args: TrainingArguments) -> str:
    """Return how training is distributed: `"zero1"` to `"zero3"`, `"fsdp"`, `"ddp"` or `"single"`."""
    if args.deepspeed_plugin is not None:
        return f"zero{deepspeed_config(args).get('zero_optimization', {}).get('stage', 0)}"
    state: Any = args.distributed_state
    kind, launched = state.distributed_type, os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    # accelerate's state says FSDP only once the Trainer has created the Accelerator, and never on one process or on CPUs
    will_shard = launched and kind not in (DistributedType.NO, DistributedType.MULTI_CPU)
    if args.fsdp_plugin_args is not None or kind == DistributedType.FSDP or will_shard:
        return "fsdp"
    return "ddp" if args.world_size > 1 else "single"


def deepspeed_config(args: TrainingArguments) -> dict[str, Any]:
    """Return the DeepSpeed config of a run that has one."""
    plugin: Any = args.deepspeed_plugin
    return plugin.hf_ds_config.config


def check_machine(args: RewardConfig | SFTConfig):
    """
    Raise `ImportError` if DeepSpeed or Liger's kernels are requested but not installed, and `ValueError` if a number is out of range, or if
    bf16 or activation offloading is requested but no GPU supports it. Call this function before the `__post_init__` of
    `TrainingArguments`, whose messages are less helpful.
    """
    check_bounds(args, per_device_train_batch_size=1, per_device_eval_batch_size=1, gradient_accumulation_steps=1)
    check_bounds(args, learning_rate=0, weight_decay=0, max_grad_norm=0)
    if args.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            f"`deepspeed` is {args.deepspeed!r}, but DeepSpeed is not installed. Install it with `pip install "
            "'cloud-hf[deepspeed]'`, or omit `deepspeed` and use FSDP2 (ds_configs/accelerate_fsdp2.yaml), "
            "which comes with torch and shards the same states as ZeRO-3."
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError(
            "`use_liger_kernel` is on, but Liger's kernels are not installed. Install them with `pip install liger-kernel`, or omit the "
            "option."
        )
    bf16 = args.bf16 or (args.bf16 is None and not args.fp16)  # TRL's default
    if bf16 and not args.use_cpu and not is_torch_bf16_gpu_available():
        raise ValueError(
            "`bf16` is on (the default), but no GPU supports bfloat16. Pass `--bf16 False`; on a "
            "machine without a GPU, `--use_cpu --bf16 False`."
        )
    if args.activation_offloading and (args.use_cpu or not torch.accelerator.is_available()):
        raise ValueError(
            "`activation_offloading` moves activations from a GPU to the CPU, but this run has no GPU. Omit the option."
        )


def check_parallelism(args: TrainingArguments):
    """Raise `ValueError` if one process would use several GPUs, or if sequences or matrices would be split across GPUs."""
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and would average their losses, regardless of how many rows each has. Start one "
            "process per GPU with `accelerate launch`, or expose a single one with CUDA_VISIBLE_DEVICES."
        )
    config: Any = args.parallelism_config
    if config is None and os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true":
        config = ParallelismConfig()
    found = {} if config is None else {f"`parallelism_config` has {name}": getattr(config, name) for name in _DIVIDING}
    if args.deepspeed_plugin is not None:
        divides = deepspeed_config(args).get("tensor_parallel", {}).get("autotp_size", 1)
        found["The DeepSpeed config has `tensor_parallel.autotp_size`"] = divides
    for name, size in found.items():
        if size > 1:
            raise ValueError(
                f"{name}={size}, which splits sequences or matrices across GPUs. CLoud training can shard only the data and "
                "the model's states: use FSDP2 (ds_configs/accelerate_fsdp2.yaml) or ZeRO-3, and for long chats `--gradient_checkpointing` "
                "with a small `--token_budget`."
            )


def check_dataset_size(args: TrainingArguments, rows: int):
    """
    Raise `ValueError` if there are fewer rows than one optimizer step needs. Otherwise, the step would train on a smaller batch than
    requested, and with several processes some rows would count twice.
    """
    needed = rows_per_step(args)
    if rows < needed:
        raise ValueError(
            f"The train dataset has {rows} rows, but one optimizer step needs {needed} "
            f"(`per_device_train_batch_size` {args.per_device_train_batch_size} x `gradient_accumulation_steps` "
            f"{args.gradient_accumulation_steps} x {args.world_size} processes). Lower the batch size, "
            "the accumulation steps or the number of processes, or add rows."
        )


def check_deepspeed(args: TrainingArguments):
    """Raise `ValueError` if the DeepSpeed config conflicts with the training arguments, or no model would be saved."""
    if args.deepspeed_plugin is None:
        return
    name = args.deepspeed if isinstance(args.deepspeed, str) else "The DeepSpeed config"
    config = deepspeed_config(args)
    zero = config.get("zero_optimization", {})
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and zero.get(gathers) is not True:
        raise ValueError(
            f"{name} has stage 3 without `{gathers}`: each process would have only its part of the weights, and no complete "
            "model would be saved. Set it to true in `zero_optimization`, as ds_configs/zero3.json does."
        )
    batch = rows_per_step(args)
    expected = {
        "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "train_batch_size": batch,
    }
    for key, value in expected.items():
        if config.get(key, "auto") not in ("auto", value):
            raise ValueError(
                f"{name} sets `{key}` to {config[key]}, but the training arguments imply {value}: a step of {batch} "
                f"rows is {args.per_device_train_batch_size} per device x {args.gradient_accumulation_steps} "
                f'accumulated x {args.world_size} processes. Set `{key}` to "auto", or change the arguments.'
            )
    # transformers has already recorded the other conflicts in `mismatches`
    if args.deepspeed and args.hf_deepspeed_config.mismatches:
        lines = "; ".join(line.removeprefix("- ") for line in args.hf_deepspeed_config.mismatches)
        raise ValueError(f'{name} conflicts with the training arguments: {lines}. Set these keys to "auto".')
