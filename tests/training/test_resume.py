"""Checkpoints that were interrupted, or that another run wrote, are not resumed from; a full disk costs none."""

import json
import os
import shutil
import subprocess

import httpx
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from models_for_tests import save_language_model
from peft import LoraConfig
from safetensors.torch import load_file
from trainers_for_tests import make_rows, make_trainer
from transformers import BitsAndBytesConfig, Trainer, TrainerCallback

from cloud_hf import CLoudTrainingConfig
from cloud_hf.cli import parse
from cloud_hf.commands import train_cloud, train_critique_sft
from cloud_hf.training.resume import OPTIONAL_ENTRIES, RECORD, NotSaved, explain_failure, hash_rows, whole_checkpoints


OPTIONS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "per_device_train_batch_size": 4}


def names(folder):
    return [path.name for path in whole_checkpoints(folder)]


@pytest.fixture
def run(base_folder, tmp_path):
    """The folder of a run with three checkpoints."""
    make_trainer(str(base_folder), tmp_path, **OPTIONS).train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    return tmp_path


def test_an_interrupted_checkpoint_is_passed_over(base_folder, run, caplog):
    torn = run / "checkpoint-6"
    (torn / RECORD).unlink()
    (torn / "optimizer.pt").unlink()
    trainer = make_trainer(str(base_folder), run, **OPTIONS)
    with pytest.raises(
        ValueError, match=r"checkpoint-6 is not a complete checkpoint.*The last complete one is checkpoint-4"
    ):
        trainer.train(resume_from_checkpoint=str(torn))
    steps = Steps()
    trainer.add_callback(steps)
    trainer.train(resume_from_checkpoint=True)
    assert steps.made == [5, 6]
    assert "checkpoint-6: it was not completely written" in caplog.text
    assert names(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] and (torn / "optimizer.pt").exists()


class Steps(TrainerCallback):
    def __init__(self):
        self.made = []

    def on_step_end(self, args, state, control, **kwargs):
        self.made.append(state.global_step)


@pytest.mark.parametrize("max_steps", [6, 5])
def test_a_run_that_is_over_makes_no_further_step(base_folder, run, max_steps):
    steps = Steps()
    trainer = make_trainer(str(base_folder), run, callbacks=[steps], **{**OPTIONS, "max_steps": max_steps})
    result = trainer.train(resume_from_checkpoint=True)
    assert steps.made == [] and result.global_step == 6
    weights = load_file(run / "checkpoint-6/model.safetensors")
    assert all(torch.equal(weights[name], weight) for name, weight in trainer.model.state_dict().items())


def test_a_new_run_does_not_start_in_a_used_folder(base_folder, run):
    """Interrupted before its third checkpoint, it would resume from the earlier run's third one."""
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    with pytest.raises(ValueError, match=r"contains checkpoint-6 from an earlier run.*another `--output_dir`"):
        make_trainer(str(base_folder), run, **{**OPTIONS, "learning_rate": 0.1}).train()
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    for folder in whole_checkpoints(run):
        (folder / RECORD).unlink()  # interrupted ones are never resumed from
    make_trainer(str(base_folder), run, **OPTIONS).train()
    assert names(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_commands_refuse_a_used_folder_before_the_model_loads(run, tmp_path):
    args = CLoudTrainingConfig(str(run), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="contains checkpoint-6 from an earlier run"):
        train_cloud.main(None, args, None)


def test_later_checkpoints_are_set_aside_when_a_run_goes_back(base_folder, run):
    trainer = make_trainer(str(base_folder), run, **{**OPTIONS, "max_steps": 3})
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert names(run) == ["checkpoint-2", "checkpoint-3"]
    assert sorted(path.name[:12] for path in (run / "set_aside").iterdir()) == ["checkpoint-4", "checkpoint-6"]


def test_a_run_that_resumes_from_elsewhere_needs_an_unused_folder(base_folder, run, tmp_path):
    first = str(run / "checkpoint-2")
    make_trainer(str(base_folder), tmp_path / "other", **OPTIONS).train(resume_from_checkpoint=first)
    assert names(tmp_path / "other") == ["checkpoint-4", "checkpoint-6"]
    with pytest.raises(ValueError, match="contains checkpoint-6 from an earlier run"):
        make_trainer(str(base_folder), tmp_path / "other", **OPTIONS).train(resume_from_checkpoint=first)


def test_checkpoints_of_two_runs_in_one_folder(base_folder, run, tmp_path):
    other = tmp_path / "other"
    make_trainer(str(base_folder), other, **{**OPTIONS, "max_steps": 2}).train()
    shutil.copytree(other / "checkpoint-2", run / "checkpoint-8")
    with pytest.raises(ValueError, match="checkpoints from several runs"):
        make_trainer("no-such-model", run, resume_from_checkpoint="true", **OPTIONS)


def test_no_checkpoint_is_whole(base_folder, run):
    for folder in whole_checkpoints(run):
        (folder / RECORD).unlink()
    with pytest.raises(
        ValueError, match="has no complete checkpoint to resume from; checkpoint-2, checkpoint-4, checkpoint-6"
    ):
        make_trainer(str(base_folder), run, **OPTIONS).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "rows", "says"),
    [
        ({"per_device_train_batch_size": 2}, 16, "`per_device_train_batch_size` was 4, is 2"),
        ({"gradient_accumulation_steps": 2}, 16, "`gradient_accumulation_steps` was 1, is 2"),
        ({"seed": 1}, 16, "`seed` was 42, is 1"),
        ({"token_budget": 2000}, 16, "`token_budget` was None, is 2000"),
        ({}, 15, "`train_dataset_rows` was 16, is 15"),
        ({"train_sampling_strategy": "sequential"}, 16, "`train_sampling_strategy` was random, is sequential"),
        ({"optim": "sgd"}, 16, "`optim` was .*, is sgd"),
        ({"learning_rate": 0.5}, 16, "`learning_rate` was 0.001, is 0.5"),
        ({"lm_loss_weight": 0.1}, 16, "`lm_loss_weight` was 1.25, is 0.1"),
        ({"center_rewards_coefficient": 0.1}, 16, "`center_rewards_coefficient` was None, is 0.1"),
        ({"lr_scheduler_type": "cosine"}, 16, "`lr_scheduler_type` was linear, is cosine"),
        ({"warmup_steps": 2}, 16, "`warmup_steps` was 0.*, is 2"),
        ({"disable_dropout": False}, 16, "`disable_dropout` was True, is False"),
        ({"max_grad_norm": 0.5}, 16, "`max_grad_norm` was 1.0, is 0.5"),
        ({"bf16": True}, 16, "`bf16` was False, is True"),
        ({"neftune_noise_alpha": 5.0}, 16, "`neftune_noise_alpha` was None, is 5.0"),
        ({"peft_config": LoraConfig(r=4)}, 16, "`adapter` was None, is {'r': 4"),
        ({"optim_args": "x=1"}, 16, "`optim_args` was None, is x=1"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, 16, "`use_seedable_sampler` was True, is False"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, 16, "`dtype` was torch.float32, is torch.bfloat16"),
    ],
)
def test_a_checkpoint_of_a_run_started_otherwise(base_folder, run, changes, rows, says):
    trainer = make_trainer(str(base_folder), run, make_rows(rows), **{**OPTIONS, **changes})
    with pytest.raises(ValueError, match=says):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, lora_alpha=8)])
def test_a_checkpoint_without_settings_that_were_recorded_later(base_folder, tmp_path, peft_config):
    options = {**OPTIONS, "max_steps": 4, "peft_config": peft_config}
    make_trainer(str(base_folder), tmp_path, **options).train()
    for record in tmp_path.glob(f"*/{RECORD}"):
        content = json.loads(record.read_text())
        later = [key for key in {**content, **content["launch"]} if key in OPTIONAL_ENTRIES]
        for key in later:
            content.pop(key, None)
            content["launch"].pop(key, None)
        assert {"loss_type", "dtype"} < {*later}
        record.write_text(json.dumps(content))
    steps = Steps()
    trainer = make_trainer(str(base_folder), tmp_path, callbacks=[steps], **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps.made == [3, 4]


def test_a_checkpoint_of_other_rows(base_folder, run):
    trainer = make_trainer(str(base_folder), run, make_rows(16, chosen="Another."), **OPTIONS)
    with pytest.raises(ValueError, match="`train_dataset_hash` was"):
        trainer.train(resume_from_checkpoint=True)


def test_the_hash_of_rows_is_of_their_contents():
    rows = [{"ids": [1, 2], "text": "a"}, {"ids": [3], "text": "b"}]
    same = hash_rows(Dataset.from_list(rows))
    assert hash_rows(Dataset.from_list([rows[1], *rows]).select([1, 2])) == same
    for other in (
        rows[::-1],
        [{"ids": [1], "text": "a"}, {"ids": [2, 3], "text": "b"}],
        [{"ids": [1, 2], "text": "a"}, {"ids": [3], "text": "c"}],
        [{"ids": [[1], [2]], "text": "a"}, {"ids": [[3]], "text": "b"}],
    ):
        assert hash_rows(Dataset.from_list(other)) != same


@pytest.mark.parametrize("token_budget", [None, 2000])
def test_persistent_workers_change_nothing_when_a_run_resumes(base_folder, tmp_path, token_budget):
    """Dropout draws from the random numbers that starting workers draws from."""
    options = {
        **OPTIONS, "max_steps": 12, "save_steps": 5, "disable_dropout": False, "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True, "token_budget": token_budget,
    }  # fmt: skip
    model = save_language_model(tmp_path / "base", attention_dropout=0.1)
    undisturbed = make_trainer(str(model), tmp_path / "one", **options)
    undisturbed.train()
    resumed = make_trainer(str(model), tmp_path / "two", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "one/checkpoint-5"))
    for (name, a), b in zip(undisturbed.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_of_another_adapter(base_folder, tmp_path):
    make_trainer(str(base_folder), tmp_path, peft_config=LoraConfig(r=4), **OPTIONS).train()
    for config, says in (
        (LoraConfig(r=8), "`adapter` was {'r': 4.*is {'r': 8"),
        (None, "`adapter` was {'r': 4.*is None"),
    ):
        with pytest.raises(ValueError, match=says):
            make_trainer(str(base_folder), tmp_path, peft_config=config, **OPTIONS).train(resume_from_checkpoint=True)
    steps = Steps()
    trainer = make_trainer(str(base_folder), tmp_path, callbacks=[steps], peft_config=LoraConfig(r=4), **OPTIONS)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert steps.made == [5, 6]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_dropout": 0.9}, "`lora_dropout` was 0.1, is 0.9"),
        (
            {"modules_to_save": ["reward_head", "lm_head"]},
            r"`modules_to_save` was \['reward_head'\], is \['lm_head', ",
        ),
        ({"rank_pattern": {"v_proj": 2}}, "`rank_pattern` was None, is {'v_proj': 2}"),
        ({"alpha_pattern": {"v_proj": 64}}, "`alpha_pattern` was None, is {'v_proj': 64}"),
        ({"layers_to_transform": [0]}, r"`layers_to_transform` was None, is \[0\]"),
        ({"exclude_modules": {"v_proj", "k_proj"}}, r"`exclude_modules` was None, is \['k_proj', 'v_proj'\]"),
        ({"bias": "all"}, "`bias` was none, is all"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights` was True, is pissa"),
    ],
)
def test_a_checkpoint_of_an_adapter_with_other_options(adapter_run, changes, says):
    base, run = adapter_run
    with pytest.raises(ValueError, match=says):
        resume_adapter(base, run, **changes)


@pytest.fixture(scope="module")
def adapter_run(base_folder, tmp_path_factory):
    """The base of an adapter, and the folder of a run that trains the adapter and has one checkpoint."""
    run = tmp_path_factory.mktemp("run")
    make_adapter_trainer(base_folder, run).train()
    return base_folder, run


def make_adapter_trainer(base, folder, quantization_config=None, **changes):
    config = LoraConfig(**{"r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], **changes})
    options = {**OPTIONS, "max_steps": 2, "disable_dropout": False, "quantization_config": quantization_config}
    return make_trainer(str(base), folder, peft_config=config, **options)


def resume_adapter(base, run, **changes):
    make_adapter_trainer(base, run, **changes).train(resume_from_checkpoint=str(run / "checkpoint-2"))


def test_a_checkpoint_of_an_adapter_of_another_base(adapter_run, tmp_path):
    base, run = adapter_run
    other = save_language_model(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match=r"`base_model` was \w{32}, is \w{32}.*with the model that the run started from"
    ):
        resume_adapter(other, run)
    resume_adapter(shutil.copytree(base, tmp_path / "moved"), run)


def test_a_checkpoint_of_a_quantised_model(tmp_path):
    pytest.importorskip("bitsandbytes")
    base = save_language_model(tmp_path / "base", hidden_size=64, intermediate_size=128)  # blocks have 64 weights
    run = tmp_path / "run"
    quantised = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="float32")}
    make_adapter_trainer(base, run, **quantised).train()
    with pytest.raises(ValueError, match=r"`quantization_config` was {.*'bitsandbytes'.*}, is None"):
        resume_adapter(base, run)


def test_a_quantised_run_resumes_with_weights_of_the_same_type(tmp_path):
    """TRL trains the adapter in bf16, but PEFT would load it in fp32."""
    pytest.importorskip("bitsandbytes")
    base = save_language_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="float32")
    undisturbed, resumed = (
        make_trainer(
            str(base), tmp_path / name, peft_config=LoraConfig(r=4), quantization_config=quantization_config,
            **{**OPTIONS, "max_steps": 4},
        )
        for name in ("one", "two")
    )  # fmt: skip
    undisturbed.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "one/checkpoint-2"))
    weights = dict(undisturbed.model.named_parameters())
    assert any(weight.dtype == torch.bfloat16 for weight in weights.values())
    for name, weight in resumed.model.named_parameters():
        assert weight.dtype == weights[name].dtype and torch.equal(weight, weights[name]), name


def test_a_full_run_may_resume_from_another_start(base_folder, run, tmp_path):
    """All weights come from the checkpoint."""
    other = save_language_model(tmp_path / "other", seed=1)
    for start in (other, run / "checkpoint-2"):
        trainer = make_trainer(str(start), tmp_path / start.name, **OPTIONS)
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
        weights = load_file(run / "checkpoint-6/model.safetensors")
        assert all(torch.equal(weights[name], weight) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("--loss_type dft", "`loss_type` was nll, is dft"),
        ("--label_smoothing_factor 0.3", "`label_smoothing_factor` was 0.0, is 0.3"),
        ("--average_tokens_across_devices False", "`average_tokens_across_devices` was True, is False"),
    ],
)
def test_a_checkpoint_of_stage_1_with_another_loss(stage_1_words, changed, says):
    args = parse(train_critique_sft.ARGUMENTS, f"{stage_1_words} --resume_from_checkpoint true {changed}".split())
    with pytest.raises(ValueError, match=says):
        train_critique_sft.main(*args)


@pytest.fixture(scope="module")
def stage_1_words(base_folder, tmp_path_factory):
    """The command of a run of stage 1 that has left a checkpoint."""
    folder = tmp_path_factory.mktemp("stage_1")
    make_rows().to_json(folder / "rows.jsonl")
    words = f"--model_name_or_path {base_folder} --dataset_name {folder}/rows.jsonl --output_dir {folder}/out --max_steps 1"
    words += (
        " --use_cpu --bf16 False --report_to none --save_strategy steps --save_steps 1 --per_device_train_batch_size 2"
    )
    train_critique_sft.main(*parse(train_critique_sft.ARGUMENTS, words.split()))
    return words


def test_a_checkpoint_that_lost_something_since(run):
    """Without optimizer or random states transformers would resume as if nothing had happened."""
    for name in ("optimizer.pt", "rng_state.pth", "model.safetensors", "running_metrics_0.json"):
        file = run / "checkpoint-6" / name
        content = file.read_bytes()
        for part in (content[:-1], b""):
            file.write_bytes(part) if part else file.unlink()
            says = rf"checkpoint-6 has changed since it was written: {name} \({len(part)} of {len(content)} bytes"
            with pytest.raises(ValueError, match=says):
                make_trainer("no-such-model", run, resume_from_checkpoint="true", **OPTIONS)
        file.write_bytes(content)
    with pytest.raises(OSError, match="connect to"):  # all is there again: the model is looked for
        make_trainer("no-such-model", run, resume_from_checkpoint="true", **OPTIONS)


def test_a_checkpoint_of_another_version(run):
    record = json.loads((run / "checkpoint-6" / RECORD).read_text())
    (run / "checkpoint-6" / RECORD).write_text(json.dumps({**record, "version": 1}))
    with pytest.raises(ValueError, match="another version of cloud_hf"):
        make_trainer("no-such-model", run, resume_from_checkpoint="true", **OPTIONS)


@pytest.mark.parametrize(
    ("launch", "says"),
    [({"world_size": 8}, "`world_size` was 8, is 1"), ({"strategy": "zero3"}, "`strategy` was zero3, is single")],
)
def test_a_checkpoint_of_another_world_is_refused_before_the_model_loads(run, launch, says):
    record = json.loads((run / "checkpoint-6" / RECORD).read_text())
    record["launch"].update(launch)
    (run / "checkpoint-6" / RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=says):
        make_trainer("no-such-model", run, resume_from_checkpoint="true", **OPTIONS)


def test_a_checkpoint_of_the_model_alone(base_folder, tmp_path):
    trainer = make_trainer(str(base_folder), tmp_path, save_only_model=True, **OPTIONS)
    trainer.train()
    with pytest.raises(ValueError, match=r"checkpoint-6 has only the model.*--model_name_or_path .*checkpoint-6"):
        trainer.train(resume_from_checkpoint=True)
    again = make_trainer(str(tmp_path / "checkpoint-6"), tmp_path / "again", **OPTIONS)  # as the message says
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), weight), name


def test_older_checkpoints_go_when_the_new_one_is_whole(base_folder, tmp_path, monkeypatch):
    """With one checkpoint kept, there is at every moment one that is whole."""
    kept = []
    rotate = shutil.rmtree

    def remove(folder, *args, **kwargs):
        if "checkpoint-" in str(folder):
            kept.append(names(tmp_path))
        rotate(folder, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", remove)
    make_trainer(str(base_folder), tmp_path, save_total_limit=1, **OPTIONS).train()
    assert kept == [["checkpoint-2", "checkpoint-4"], ["checkpoint-4", "checkpoint-6"]]
    assert names(tmp_path) == ["checkpoint-6"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_save_that_fails_keeps_the_last_checkpoint(base_folder, tmp_path, monkeypatch, error):
    trainer = make_trainer(str(base_folder), tmp_path, save_total_limit=1, **OPTIONS)
    save = trainer._save_rng_state

    def fail(folder):
        if trainer.state.global_step == 4:
            raise error
        save(folder)

    monkeypatch.setattr(trainer, "_save_rng_state", fail)
    with pytest.raises(
        NotSaved, match=r"checkpoint-4 could not be written.*The last complete checkpoint is checkpoint-2"
    ):
        trainer.train()
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_refused_upload_is_not_taken_for_a_full_disk(tmp_path):
    refused = httpx.Response(403, request=httpx.Request("POST", "https://hub"))
    says = "The Hub refused the upload of model: 403 Forbidden"
    with pytest.raises(NotSaved, match=says) as raised, explain_failure("model", tmp_path):
        raise HfHubHTTPError("403 Forbidden", response=refused)
    assert "MiB free" not in str(raised.value)


@pytest.mark.parametrize("command", [train_cloud, train_critique_sft])
def test_a_refused_upload_costs_neither_model_nor_state_nor_card(command, base_folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise HfHubHTTPError(
            "403 Forbidden", response=httpx.Response(403, request=httpx.Request("POST", "https://hub"))
        )

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *_, **__: None)
    monkeypatch.setattr(Trainer, "push_to_hub", refuse)
    make_rows().to_json(tmp_path / "rows.jsonl")
    words = f"--model_name_or_path {base_folder} --dataset_name {tmp_path}/rows.jsonl --output_dir {tmp_path}/out --max_steps 1"
    words += " --use_cpu --bf16 False --report_to none --push_to_hub True --save_strategy no --per_device_train_batch_size 2"
    with pytest.raises(NotSaved, match="The Hub refused the upload"):
        command.main(*parse(command.ARGUMENTS, words.split()))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "trainer_state.json", "README.md"} <= written


def mounted(folder, size):
    """Whether a small file system could be mounted on `folder`."""
    folder.mkdir()
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk(base_folder, tmp_path):
    """A real one: the second checkpoint does not fit next to the first."""
    first = tmp_path / "first"
    make_trainer(str(base_folder), first, **{**OPTIONS, "max_steps": 2}).train()
    size = sum(file.stat().st_size for file in first.rglob("*") if file.is_file())
    disk = tmp_path / "disk"
    if not mounted(disk, int(size * 1.5)):
        pytest.skip("no file system can be mounted here")
    try:
        trainer = make_trainer(str(base_folder), disk, save_total_limit=1, **OPTIONS)
        with pytest.raises(NotSaved, match=r"checkpoint-4 could not be written, with .* MiB free"):
            trainer.train()
        assert names(disk) == ["checkpoint-2"]
        shutil.copytree(disk, tmp_path / "larger")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    steps = Steps()
    trainer = make_trainer(str(base_folder), tmp_path / "larger", callbacks=[steps], **OPTIONS)
    trainer.train(resume_from_checkpoint=True)
    assert steps.made == [3, 4, 5, 6]
