"""What is wrong with a launch is said before the model is loaded."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from models_for_tests import save_language_model
from trainers_for_tests import make_rows, make_trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from cloud_hf import (
    CLoudForRewardModeling,
    CLoudOutcomeConfig,
    CLoudOutcomeTrainer,
    CLoudTrainer,
    CLoudTrainingConfig,
    base_checks,
)
from cloud_hf.commands.train_critique_sft import CritiqueSFTConfig
from cloud_hf.training import launch
from cloud_hf.training.resume import check_launch


DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: pip install 'cloud-hf[deepspeed]'",
)


@pytest.fixture
def one_process(monkeypatch):
    """DeepSpeed on a CPU with one process, as `torchrun --nproc_per_node 1` sets it up."""
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 29577,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    yield
    unset_hf_deepspeed_config()  # models of later tests would load as parts of a ZeRO-3 one
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def deepspeed_config(folder, name="zero3", zero=None, **changes):
    config = {**json.loads((DS_CONFIGS / f"{name}.json").read_text()), **changes}
    config["zero_optimization"].update(zero or {})
    (folder / "ds.json").write_text(json.dumps(config))
    return str(folder / "ds.json")


def training_args(folder, **options):
    return CLoudTrainingConfig(str(folder / "out"), **{"use_cpu": True, "bf16": False, "report_to": [], **options})


@needs_deepspeed
@pytest.mark.parametrize(
    ("name", "zero", "changes", "says"),
    [
        ("zero3", {"stage3_gather_16bit_weights_on_model_save": False}, {}, "no complete model would be saved"),
        ("zero2", {}, {"train_batch_size": 48}, "`train_batch_size` to 48, but the training arguments imply 12"),
        ("zero2", {}, {"train_micro_batch_size_per_gpu": 3}, "`train_micro_batch_size_per_gpu` to 3"),
        ("zero2", {}, {"gradient_accumulation_steps": 4}, "`gradient_accumulation_steps` to 4"),
        ("zero2", {}, {"gradient_clipping": 7.0}, "conflicts with the training arguments: ds gradient_clipping=7.0"),
    ],
)
def test_deepspeed_configs_that_cannot_work(tmp_path, one_process, name, zero, changes, says):
    config = deepspeed_config(tmp_path, name, zero, **changes)
    args = training_args(tmp_path, deepspeed=config, per_device_train_batch_size=2, gradient_accumulation_steps=6)
    with pytest.raises(ValueError, match=says) as error:
        CLoudTrainer("no-such-model", args, train_dataset=make_rows())
    assert config in str(error.value)


@needs_deepspeed
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_our_deepspeed_configs_pass(tmp_path, one_process, name):
    check_launch(training_args(tmp_path, deepspeed=str(DS_CONFIGS / f"{name}.json")))


@needs_deepspeed
def test_divided_weights_are_checked_as_whole_ones_are(base_folder, tmp_path, one_process, monkeypatch):
    scales = {
        "logits_scaling": 0.5,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 0.35,
    }
    scaled = save_language_model(tmp_path / "scaled", "hyperclovax", **scales)
    monkeypatch.setitem(importlib.import_module("deepspeed.ops").__compatible_ops__, "deepspeed_shm_comm", False)
    args = training_args(tmp_path, deepspeed=str(DS_CONFIGS / "zero3.json"))
    assert args.hf_deepspeed_config.is_zero3()  # models load in parts for as long as `args` exists
    with pytest.raises(ValueError, match="changes its logits after the LM head"):
        CLoudForRewardModeling.from_base(scaled)
    model = CLoudForRewardModeling.from_base(base_folder)
    model.prepare_for_segments(shared_prompt=True)
    assert {weight.numel() for weight in model.parameters()} == {0}  # in parts again
    monkeypatch.setattr(
        base_checks, "packed_arguments", lambda *_: {"attention_mask": torch.ones(1, 65, dtype=torch.long)}
    )
    with pytest.raises(ValueError, match="the sequences of a flattened batch would see each other"):
        model.prepare_for_segments(shared_prompt=True)


@pytest.mark.parametrize("config", [CLoudTrainingConfig, CritiqueSFTConfig])
def test_deepspeed_is_not_installed(tmp_path, monkeypatch, config):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"DeepSpeed is not installed.*cloud-hf\[deepspeed\]"):
        config(str(tmp_path), deepspeed=str(DS_CONFIGS / "zero2.json"), use_cpu=True, bf16=False)


@pytest.mark.parametrize("config", [CLoudTrainingConfig, CritiqueSFTConfig])
def test_bf16_needs_a_gpu_that_can(tmp_path, monkeypatch, config):
    monkeypatch.setattr(launch, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match=r"`bf16` is on.*--bf16 False"):
        config(str(tmp_path))
    assert config(str(tmp_path), use_cpu=True).bf16  # a CPU computes in bfloat16, slowly


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"packing": True}, "`packing` is on, but this stage trains on each critique in a separate row"),
        ({"padding_free": True, "neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` is set, but with `padding_free`"),
    ],
)
def test_unusable_options_of_stage_1(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        CritiqueSFTConfig(str(tmp_path), use_cpu=True, bf16=False, **options)


def test_a_dataset_smaller_than_a_step(base_folder, tmp_path):
    trainer = make_trainer(
        str(base_folder), tmp_path, make_rows(7), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    with pytest.raises(ValueError, match="7 rows, but one optimizer step needs 8"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "`fsdp_state_dict_type` is SHARDED_STATE_DICT"),
        (
            {"state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": True},
            "`fsdp_cpu_ram_efficient_loading` is on",
        ),
        (
            {"fsdp_version": 1, "sync_module_states": False, "cpu_ram_efficient_loading": False},
            "`fsdp_version` is 1",
        ),
    ],
)
def test_fsdp_that_cannot_work(base_folder, tmp_path, monkeypatch, options, says):
    """With sharded state dicts transformers writes no model at all, and says nothing."""
    trainer = make_trainer(str(base_folder), tmp_path)
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **options})
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(type(trainer.accelerator), "is_fsdp2", plugin.fsdp_version == 2)
    monkeypatch.setitem(trainer.accelerator.state.__dict__, "fsdp_plugin", plugin)
    with pytest.raises(ValueError, match=says):
        trainer.train()


def test_fsdp_is_known_before_the_accelerator_exists(tmp_path, monkeypatch):
    args = CLoudOutcomeConfig(str(tmp_path), num_generations=2, use_cpu=True, bf16=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launch.strategy_of(args) == "single"  # accelerate shards nothing in a process that has no others
    monkeypatch.setitem(args.distributed_state._shared_state, "distributed_type", DistributedType.MULTI_GPU)
    assert launch.strategy_of(args) == "fsdp"
    with pytest.raises(ValueError, match="Critiques cannot be written under FSDP"):
        CLoudOutcomeTrainer("no-such-model", args, train_dataset=make_rows())


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")])
def test_accelerate_reads_our_configs(name, kind):
    path = DS_CONFIGS / f"accelerate_{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind and config.num_processes == 8
    for line in path.read_text().splitlines():
        assert "#" in line or line == "fsdp_config:", f"{line} is not explained"
    if name == "fsdp2":
        known = {option.dest for option in launch_command_parser()._actions}
        assert config.fsdp_config.keys() <= known
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
