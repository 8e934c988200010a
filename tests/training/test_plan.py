import json
import subprocess
import sys
from pathlib import Path

import pytest
from models_for_tests import tiny_text_config

from cloud_hf import CLoudConfig
from cloud_hf.training.memory import simulate_step
from cloud_hf.training.plan import GB, PlanArguments, largest_micro_batch, make_plan


ROOT = Path(__file__).parents[2]
LLAMA_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return CLoudConfig(text_config=tiny_text_config(hidden_size=64, intermediate_size=256, num_hidden_layers=3))


def plan(config, **options):
    return make_plan(PlanArguments(model="m", **{"max_length": 64, **options}), config)


def test_within_15_percent_of_a_real_step():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from plan_accuracy import compare, make_config
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    for checkpointing in (True, False):
        result = compare(make_config(64, 3, 4, 4096), {"gradient_checkpointing": checkpointing}, length=256)
        assert 0.85 < result["ratio"] < 1.15, result


def test_what_each_stage_divides(small):
    whole = plan(small, bf16=False)
    count = whole.parameters / 4
    assert whole.optimizer == 8 * count
    plans = {zero: plan(small, zero=zero, gpus=4, gradient_accumulation_steps=2) for zero in ("1", "2", "3")}
    for zero, each in plans.items():
        assert each.optimizer == pytest.approx(12 * count / 4)
        assert each.parameters == pytest.approx(2 * count / (4 if zero == "3" else 1))
        assert each.gradients == pytest.approx(2 * count / (1 if zero == "1" else 4))
    assert plan(small, zero="fsdp", gpus=4).parameters == pytest.approx(4 * count / 4)
    assert plan(small, gpus=2, bf16=False).buckets == 4 * count
    offloaded = plan(small, zero="3", gpus=4, offload=True)
    assert offloaded.optimizer == 0 and offloaded.host == pytest.approx((12 + 2) * count / 4)
    assert plan(small, optim="adamw_bnb_8bit").optimizer == 2 * count


def test_adapters_train_little(small):
    lora = plan(small, lora_r=4, lora_target_modules=["q_proj", "v_proj"], dtype="bfloat16")
    head = 64 * 64 + 64 + 64 + 1
    trained = 3 * 2 * 2 * 4 * 64 + head
    assert lora.optimizer == 8 * trained
    qlora = plan(small, lora_r=4, load_in_4bit=True, dtype="bfloat16")
    assert qlora.parameters < lora.parameters


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(small):
    one, two = (simulate_step(small, pairs, 128) for pairs in (1, 2))
    without = simulate_step(small, 1, 128, gradient_checkpointing=False)
    assert 1.7 * one.saved < two.saved < 2.1 * one.saved
    assert one.saved < 0.5 * without.saved
    wide = CLoudConfig(text_config=tiny_text_config(vocab_size=20_000))
    in_one, in_eight = (simulate_step(wide, 1, 128, lm_loss_chunks=chunks) for chunks in (1, 8))
    assert sum(in_eight.peak(1.0)) < 0.7 * sum(in_one.peak(1.0))


def test_the_largest_micro_batch_fits_and_one_more_does_not(small):
    args = PlanArguments(model="m", max_length=64, gpu_memory_gb=0.05, reserve_gb=0.0)
    largest = largest_micro_batch(args, small, make_plan(args, small))
    assert largest > 1
    assert make_plan(args, small, largest).total <= 0.05 * GB < make_plan(args, small, largest + 1).total
    args.gpu_memory_gb = 1e-4
    assert largest_micro_batch(args, small, make_plan(args, small)) == 0


def test_a_recipe_at_full_size_is_planned_from_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA_8B}))
    recipe = ROOT / "examples/configs/llama3-8b/cloud.yaml"
    command = [
        sys.executable,
        "-m",
        "cloud_hf.training.plan",
        "--config",
        str(recipe),
        "--model",
        str(tmp_path),
        "--gpus",
        "8",
    ]
    done = subprocess.run([*command, "--zero", "3"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {
        line.rsplit(maxsplit=1)[0].strip(): line.split()[-1]
        for line in done.stdout.splitlines()
        if line.startswith("  ")
    }
    count = 8.03e9 + 4096**2
    assert float(rows["parameters"]) == pytest.approx(2 * count / 8 / GB, rel=0.01)
    assert float(rows["optimizer"]) == pytest.approx(12 * count / 8 / GB, rel=0.01)
    assert "2 pairs of up to 2048 tokens" in done.stdout and "Largest micro-batch that fits" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": None}, "Name a `model`"),
        ({"offload": True}, "`offload` needs `zero`"),
        ({"load_in_4bit": True}, "needs an adapter"),
        ({"optim": "sgd"}, "`optim` is 'sgd'"),
        ({"gpus": 0}, "`gpus` is 0"),
    ],
)
def test_settings_that_cannot_be_planned_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        PlanArguments(**{"model": "m", **options})
