import time

import pytest
from models_for_tests import make_model
from peft import LoraConfig
from test_trainer import make_trainer

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


def test_operations_are_counted_by_what_is_trained(base_folder, tmp_path):
    whole = make_trainer(make_model(base_folder), tmp_path)
    weights = dict(whole.model.named_parameters())
    embeddings = weights.pop("language_model.model.embed_tokens.weight")
    assert embeddings.numel() and whole._flops_per_token == 6 * sum(weight.numel() for weight in weights.values())
    adapter = make_trainer(make_model(base_folder), tmp_path, peft_config=LoraConfig(r=1))
    assert adapter._flops_per_token < whole._flops_per_token


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
