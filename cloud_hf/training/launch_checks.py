"""What is wrong with how a run was started, said before a model is loaded or a step is made."""

import importlib.util

from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from .checkpoints import find_checkpoint
from .launch import Launch, deepspeed_config


def check_machine(args: TrainingArguments):
    """
    Check what `TrainingArguments` needs; call it before its `__post_init__`, whose messages are less helpful.

    Raises:
        `ImportError`: If `deepspeed` is given and DeepSpeed is not installed.
        `ValueError`: If bf16 is asked for and the machine cannot do it.
    """
    if args.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(
            f"`deepspeed` is {args.deepspeed!r}, but DeepSpeed is not installed. Install it with `pip install "
            "'cloud-hf[deepspeed]'`, or leave `deepspeed` out; FSDP2 shards as ZeRO-3 does and comes with torch "
            "(ds_configs/accelerate_fsdp2.yaml)."
        )
    bf16 = args.bf16 or (args.bf16 is None and not args.fp16)  # TRL's default
    if bf16 and not args.use_cpu and not is_torch_bf16_gpu_available():
        raise ValueError(
            "`bf16` is on, as it is where nothing else is said, but no GPU here computes in bfloat16. Pass `--bf16 "
            "False`; on a machine without a GPU, `--use_cpu --bf16 False`."
        )


def check_launch(args: TrainingArguments):
    """
    Check how the run was started and configured, before the model is loaded.

    Raises:
        `ValueError`: If the DeepSpeed config contradicts the training arguments or would save no model, or if the
            checkpoint to resume from is not whole or was written by a run that was started otherwise.
    """
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args)
    if args.resume_from_checkpoint is not None:
        find_checkpoint(args, args.resume_from_checkpoint)


def check_dataset_size(args: TrainingArguments, rows: int):
    """
    Check that the data fill at least one optimizer step. Fewer rows would train on another batch size than asked for, and
    on several processes some would count twice, to give each process as many.

    Raises:
        `ValueError`: If there are fewer rows than a step takes.
    """
    launch = Launch.of(args)
    if rows < launch.batch:
        raise ValueError(
            f"The train dataset has {rows} rows, but one optimizer step takes {launch.batch} "
            f"(`per_device_train_batch_size` {launch.per_device_train_batch_size} x `gradient_accumulation_steps` "
            f"{launch.gradient_accumulation_steps} x {launch.world_size} processes). Lower one of them, or add rows."
        )


def _check_deepspeed(args: TrainingArguments):
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
    if args.deepspeed and args.hf_deepspeed_config.mismatches:
        lines = "; ".join(line.removeprefix("- ") for line in args.hf_deepspeed_config.mismatches)
        raise ValueError(f'{name} contradicts the training arguments: {lines}. Set these keys to "auto".')
