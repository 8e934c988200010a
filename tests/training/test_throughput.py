import time

import pytest
from models_for_tests import make_model, save_language_model
from peft import LoraConfig
from trainers_for_tests import make_trainer
from transformers import BitsAndBytesConfig

from cloud_hf.training.throughput import peak_flops


def test_the_log_says_how_fast_training_is(base_folder, tmp_path):
    trainer = make_trainer(make_model(base_folder), tmp_path, max_steps=4, logging_steps=2)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    seconds = trainer.state.log_history[-1]["train_runtime"]
    tokens = log[-1]["num_tokens"]
    # What the two logs counted is what was trained on: real tokens, not the padding
    times = [
        count / entry["tokens_per_second"]
        for count, entry in zip((log[0]["num_tokens"], tokens - log[0]["num_tokens"]), log, strict=True)
    ]
    assert 0 < sum(times) <= seconds
    assert log[0]["eta_hours"] == pytest.approx(times[0] / 3600) and log[1]["eta_hours"] == 0
    assert "mfu" not in log[0]  # a CPU's peak is not known


def test_evaluation_and_saving_do_not_count(base_folder, tmp_path, monkeypatch):
    trainer = make_trainer(make_model(base_folder), tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    real_save = trainer.save_model

    def slow_save(*args, **kwargs):
        time.sleep(2)
        return real_save(*args, **kwargs)

    monkeypatch.setattr(trainer, "save_model", slow_save)
    trainer.train()
    assert trainer.state.log_history[-1]["train_runtime"] > 4
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert sum(entry["eta_hours"] * 3600 for entry in log) < 2


@pytest.mark.parametrize("critique", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_counted_by_what_is_computed(tmp_path, critique, tied):
    """Six for a weight that is trained. Embeddings count where they are the LM head, and that where critiques are learned."""
    base = save_language_model(tmp_path / "base", tie_word_embeddings=tied)
    trainer = make_trainer(make_model(base, critique=critique), tmp_path)
    weights = {name: weight.numel() for name, weight in trainer.model.named_parameters()}
    vocabulary = weights["language_model.model.embed_tokens.weight"]
    computed = sum(weights.values()) - vocabulary * (1 if tied else 2) + (vocabulary if critique else 0)
    assert trainer._flops_per_token == 6 * computed


def test_frozen_weights_cost_less_and_quantised_ones_as_much(tmp_path):
    """Four operations for a weight of an adapter's base, whether or not it is stored in four bits."""
    pytest.importorskip("bitsandbytes")
    base = str(save_language_model(tmp_path / "base", hidden_size=64, intermediate_size=128))
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="float32")
    whole = make_trainer(base, tmp_path)
    head = sum(weight.numel() for weight in whole.model.reward_head.parameters())
    plain, quantised = (
        make_trainer(
            base, tmp_path, peft_config=LoraConfig(r=4, target_modules=["q_proj"]), quantization_config=config
        )
        for config in (None, quantization)
    )
    lora = 2 * 4 * (64 + 64)
    base_weights = whole._flops_per_token / 6 - head
    assert plain._flops_per_token == 4 * base_weights + 6 * (lora + head)
    assert quantised._flops_per_token == plain._flops_per_token


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12), ("NVIDIA A10G", 70e12), ("cpu", None),
    ],
)  # fmt: skip
def test_peaks_by_name(name, expected):
    assert peak_flops(name) == expected


# --------------------------------------------------------------------------------------------------------- trackers


def test_tensorboard_has_the_metrics(base_folder, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = make_trainer(make_model(base_folder), tmp_path, report_to="tensorboard")
    trainer.train()
    events = event_accumulator.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    written = [event.value for event in events.Scalars("train/pairwise_loss")]
    assert written == pytest.approx([entry["pairwise_loss"] for entry in trainer.state.log_history[:3]], rel=1e-5)
    assert "train/tokens_per_second" in events.Tags()["scalars"]


def test_wandb_offline_has_the_metrics(base_folder, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    trainer = make_trainer(make_model(base_folder), tmp_path / "out", report_to="wandb")
    trainer.train()
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["train/pairwise_loss"] == pytest.approx(trainer.state.log_history[2]["pairwise_loss"])
    assert summary["train/tokens_per_second"] > 0
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackio_has_the_metrics(base_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported first
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    trainer = make_trainer(
        make_model(base_folder), tmp_path, report_to="trackio", project="cloud-test", run_name="one"
    )
    trainer.train()
    logs = sqlite_storage.SQLiteStorage.get_logs("cloud-test", "one")
    losses = [entry["train/pairwise_loss"] for entry in logs if "train/pairwise_loss" in entry]
    assert losses == pytest.approx([entry["pairwise_loss"] for entry in trainer.state.log_history[:3]])
