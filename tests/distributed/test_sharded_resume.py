"""A run that is killed and resumed, again and again, ends as one that nobody disturbed."""

import json
import random
import time

import pytest
import torch
from launching import SCRIPT, launch, make_rows, write_spec
from models_for_tests import save_language_model
from safetensors.torch import load_file

from cloud_hf import CLoudTrainingConfig
from cloud_hf.training.resume import find_checkpoint, whole_checkpoints


STEPS = 24
# The last optimizer step of an epoch is cut to one micro-batch, in which one process has a row and the other has none
ROWS = 33
# Checkpoints fall between two lines of the log and two evaluations; dropout needs the state of the random numbers
OPTIONS = {
    "max_steps": STEPS, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "logging_steps": 2,
    "eval_strategy": "steps", "eval_steps": 8, "disable_dropout": False, "lr_scheduler_type": "cosine", "warmup_steps": 4,
}  # fmt: skip
# How fast it went, which no two runs share
TIMES = ("runtime", "per_second", "total_flos", "eta_hours", "mfu")


@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.full) for name in ("single", "zero2", "zero3"))]
)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, strategy):
    kill_and_compare(tmp_path, strategy, kills=1, seed=0)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", ["single", "ddp", "zero2", "zero3", "fsdp2"])
def test_five_kills(tmp_path, strategy):
    kill_and_compare(tmp_path, strategy, kills=5, seed=1)


def kill_and_compare(folder, strategy, kills, seed):
    save_language_model(folder / "base", attention_dropout=0.1)
    start(folder / "undisturbed", strategy, folder / "base")[0].wait()
    steps = sorted(random.Random(f"{strategy}{seed}").sample(range(2, STEPS), kills))
    delays = random.Random(seed)
    for step in steps:
        launched, output = start(folder / "killed", strategy, folder / "base")
        wait_for_step(launched, output / "step", step)
        time.sleep(delays.uniform(0, 0.4))  # somewhere in the steps that follow, or in a save
        launched.kill()
    start(folder / "killed", strategy, folder / "base")[0].wait()
    expected, found = folder / "undisturbed/run", folder / "killed/run"
    reference, weights = weights_of(expected), weights_of(found)
    assert weights.keys() == reference.keys()
    for key, weight in reference.items():
        assert torch.equal(weights[key], weight), key
    assert log_of(found) == log_of(expected)
    assert len(whole_checkpoints(found)) == 2
    if strategy != "single":
        alone = CLoudTrainingConfig(str(found), use_cpu=True, bf16=False)
        with pytest.raises(ValueError, match="`world_size` was 2, is 1"):
            find_checkpoint(alone, True)
    print(f"{strategy:8} killed after steps {steps}: weights, log and metrics equal bit by bit")


def start(folder, strategy, base):
    """A run, from its last whole checkpoint if it has one."""
    output = folder / "run"
    resume = bool(output.exists() and whole_checkpoints(output))
    run = {"name": "run", "base": str(base), "options": OPTIONS, "resume": resume}
    path = write_spec(folder, strategy, [run], make_rows(ROWS))
    (output / "step").unlink(missing_ok=True)
    return launch(strategy, SCRIPT, path), output


def wait_for_step(launched, file, step):
    """Until the run has made a step, or a later one where it has passed it before."""
    while not (file.exists() and int(file.read_text()) >= step):
        assert launched.running(), launched.text()
        time.sleep(0.01)


def weights_of(folder):
    return load_file(folder / "model/model.safetensors")


def log_of(folder):
    result = json.loads((folder / "result.json").read_text())
    return [{k: v for k, v in line.items() if not any(time in k for time in TIMES)} for line in result["log"]]
