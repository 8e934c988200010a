"""Training stops at the first number that is not finite, and leaves the last good checkpoint as it is."""

import math

import pytest
import torch
from models_for_tests import make_model
from safetensors.torch import load_file, save_file
from tokenizers_for_tests import make_tokenizer
from trainers_for_tests import make_rows, make_trainer
from transformers import TrainerCallback

from cloud_hf import CLoudConfig, CLoudForRewardModeling
from cloud_hf.scores import NotFinite


class Fault(TrainerCallback):
    """Does something bad in the third step."""

    def __init__(self, kind):
        self.kind, self.trainer = kind, None

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step != 2:
            return
        weight = model.reward_head.dense.weight
        if self.kind == "weights":
            weight.data[0, 0] = math.nan
        elif self.kind == "gradient":
            weight.register_hook(lambda gradient: gradient * math.inf)
        elif self.kind == "loss weight":
            args.lm_loss_weight = 1e39
        elif self.kind == "data":
            self.trainer.compute_loss = with_margin(self.trainer.compute_loss)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == 2 and self.kind == "learning rate":
            for group in optimizer.param_groups:
                group["lr"] = 1e39


def with_margin(compute_loss):
    def compute(model, inputs, *args, **kwargs):
        inputs["margin"] = torch.full((len(inputs["input_ids"]) // 2,), math.inf)
        return compute_loss(model, inputs, *args, **kwargs)

    return compute


SAYS = {
    "weights": "Step 3: the loss is nan",
    "gradient": "Step 3: the gradient norm is (nan|inf)",
    "loss weight": "Step 3: the loss is inf",
    "data": "Step 3: the loss is (nan|inf)",
    "learning rate": "After step 3: The model has weights that are NaN or infinite",
}


@pytest.mark.parametrize("kind", SAYS)
def test_a_run_stops_within_a_step_and_can_be_resumed(base_folder, tmp_path, kind):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    fault = Fault(kind)
    trainer = make_trainer(str(base_folder), tmp_path, callbacks=[fault], **options)
    fault.trainer = trainer
    with pytest.raises(NotFinite, match=rf"{SAYS[kind]}.*The last complete checkpoint is checkpoint-2") as error:
        trainer.train()
    assert "--resume_from_checkpoint true" in str(error.value)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    if kind in ("weights", "learning rate"):
        with pytest.raises(NotFinite, match="The model is not saved"):
            trainer.save_model()
    resumed = make_trainer(str(base_folder), tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert all(weight.isfinite().all() for weight in resumed.model.parameters())
    assert all(math.isfinite(line["loss"]) for line in resumed.state.log_history if "loss" in line)


def test_an_evaluation_that_is_not_finite_stops(base_folder, tmp_path):
    trainer = make_trainer(str(base_folder), tmp_path, eval_dataset=make_rows(2))
    trainer.model.reward_head.dense.bias.data[0] = math.nan
    with pytest.raises(NotFinite, match="the eval_loss is nan"):
        trainer.evaluate()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_at_load(base_folder, tmp_path, bad):
    make_model(base_folder).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["language_model.model.norm.weight"][3] = bad
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match=r"NaN or infinite, such as language_model\.model\.norm\.weight"):
        CLoudForRewardModeling.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_reward_scales_that_are_not_finite_are_refused(value):
    for name in ("reward_mean", "reward_std"):
        with pytest.raises(ValueError, match=f"`{name}` is {value}"):
            CLoudConfig(text_config={"model_type": "llama"}, **{name: value})


def test_a_margin_beyond_fp32_is_refused(base_folder, tmp_path):
    with pytest.raises(ValueError, match=r"`margin` is 1e\+39; give a number that fits in fp32"):
        make_trainer(str(base_folder), tmp_path, make_rows(4, margin=1e39))


def test_a_reward_beyond_fp32_is_refused(model):
    model.config.reward_std = 1e-300
    with pytest.raises(NotFinite, match="has rewards that are NaN or infinite"):
        model.score(["x"], ["y"], make_tokenizer("llama3"), critiques=["z"])
