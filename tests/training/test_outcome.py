"""Stage 4: its limits are stage 3 and stage 3 on rewritten critiques; batches, launches and interruptions change nothing."""

import shutil

import pytest
import torch
from critics_for_tests import save_critic
from datasets import Dataset
from models_for_tests import make_model
from peft import LoraConfig
from safetensors.torch import load_file
from tokenizers_for_tests import make_tokenizer
from torch.nn import functional as F
from trainers_for_tests import KeepGradients, make_rows, make_trainer

from cloud_hf import CLoudForRewardModeling, CLoudOutcomeConfig, CLoudOutcomeTrainer
from cloud_hf.generation import CritiqueWriter
from cloud_hf.scores import Sampling
from cloud_hf.training.encoding import SIDES
from cloud_hf.training.outcome_batch import WrittenCritiques, prefix_of, with_critiques


@pytest.fixture(scope="module")
def stage3(tmp_path_factory):
    """The folder of a CLoud model whose critiques end at different lengths, if they end."""
    folder = tmp_path_factory.mktemp("stage3")
    make_model(save_critic(folder / "base")).save_pretrained(folder / "cloud")
    make_tokenizer("llama3").save_pretrained(folder / "cloud")
    return str(folder / "cloud")


def make(model, folder, rows=None, callbacks=None, peft_config=None, **options):
    defaults = {
        "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3, "report_to": [],
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True, "save_strategy": "no",
        "max_completion_length": 12, "num_generations": 3,
    }  # fmt: skip
    return CLoudOutcomeTrainer(
        model,
        CLoudOutcomeConfig(str(folder), **{**defaults, **options}),
        train_dataset=make_rows() if rows is None else rows,
        processing_class=make_tokenizer("llama3"),
        callbacks=callbacks,
        peft_config=peft_config,
    )


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(one, two):
    two = two.state_dict()
    assert all(torch.equal(weight, two[name]) for name, weight in one.state_dict().items())


# ----------------------------------------------------------------------------------------------------------- limits


def test_without_generation_it_is_stage_three(stage3, tmp_path):
    four = make(stage3, tmp_path, num_generations=0, lm_loss_weight=0.5)
    three = make_trainer(stage3, tmp_path, lm_loss_weight=0.5)
    four.train(), three.train()
    assert losses_of(four) == losses_of(three)
    assert_same_weights(four.model, three.model)


def test_without_policy_term_it_is_stage_three_on_rewritten_critiques(stage3, tmp_path):
    options = {"max_steps": 1, "lm_loss_weight": 0.0, "optim": "sgd", "learning_rate": 0.1}
    online = make(stage3, tmp_path, num_generations=1, policy_weight=0.0, beta=0.0, **options)
    sampling = Sampling(1, 1.0, 12, seed=online.args.seed << 32)
    writer = CritiqueWriter(online.model.eval(), online.critique_format, sampling, 8, False)
    rows = list(online.train_dataset)
    with torch.no_grad():
        samples = writer.write([prefix_of(row, side) for row in rows for side in SIDES])
    chosen, rejected = samples[::2], samples[1::2]
    end = online.critique_format.end_token_id
    rewritten = [with_critiques(row, *one, *two, end) for row, one, two in zip(rows, chosen, rejected, strict=True)]
    three = make_trainer(stage3, tmp_path, Dataset.from_list(rewritten), **options)
    online.train(), three.train()
    assert losses_of(online) == pytest.approx(losses_of(three), abs=1e-6)
    for name, weight in three.model.state_dict().items():
        torch.testing.assert_close(online.model.state_dict()[name], weight, atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------------------- the loss


@torch.no_grad()
def test_logprobs_and_kl_are_those_of_the_sampled_tokens(stage3, tmp_path):
    """The forced end of a cut critique is not part of what the policy did, and the dataset's critiques are not written."""
    trainer = make(stage3, tmp_path)
    rows = [trainer.train_dataset[index] for index in range(4)]
    [batch] = trainer._write_critiques([rows])
    was_cut = batch["was_cut"]
    assert was_cut.shape == (2, 4, 3) and 0 < was_cut.sum() < was_cut.numel()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "reward_positions")}
    output = trainer.model(**inputs)
    written = WrittenCritiques(output, was_cut)
    logits = trainer.model.language_model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    reference = output.token_losses + torch.linspace(-1, 1, len(output.token_losses))
    shifted = torch.zeros_like(losses)
    shifted[batch["labels"][:, 1:] != -100] = reference
    for side in range(2):
        for pair in range(4):
            for critique in range(3):
                row = side * (len(logits) // 2) + pair * 3 + critique
                places = (batch["labels"][row, 1:] != -100).nonzero()[:, 0]
                sampled = places[:-1] if was_cut[side, pair, critique] else places
                place = (side, pair, critique)
                assert written.logprobs_2NK[place].item() == pytest.approx(
                    -losses[row, sampled].sum().item(), abs=1e-4
                )
                ratio = losses[row, sampled] - shifted[row, sampled]
                expected = (ratio.exp() - ratio - 1).sum().item()
                assert written.kl_2NK(reference)[place].item() == pytest.approx(expected, abs=1e-4)
                assert written.rewards_2NK[place] == output.logits[row, 0]
    anchors = sum(losses[row].sum().item() for side in range(2) for row in range(side * 16 + 12, side * 16 + 16))
    assert written.anchor_loss.item() == pytest.approx(anchors, rel=1e-5)


def test_batches_and_shared_prompts_change_nothing(stage3, tmp_path):
    """Critiques, losses, metrics and gradients: a step as one batch of eight, as four of two, and in two rows."""
    logs, gradients = [], []
    for options in ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2}, {"shared_prompt": True}):
        keep = KeepGradients()
        steps = 8 // options.get("per_device_train_batch_size", 4)
        own = {"gradient_accumulation_steps": steps, "max_steps": 1, "max_grad_norm": 0.0}
        trainer = make(stage3, tmp_path, make_rows(8, margin=0.3), [keep], **own, **options)
        trainer.train()
        logs.append(trainer.state.log_history[0])
        gradients.append(keep.gradients)
    names = {
        "loss", "pairwise_loss", "pair_likelihood", "accuracy", "majority_accuracy", "margin", "reward_spread", "lm_loss",
        "kl", "entropy", "critique_length", "critiques_cut", "identical_critiques", "mean_reward", "reward_std",
    }  # fmt: skip
    for other_log, other_gradients in zip(logs[1:], gradients[1:], strict=True):
        for name in names:
            assert other_log[name] == pytest.approx(logs[0][name], abs=1e-5), name
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other_gradients[name], gradient, atol=2e-5, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------- launches


def test_a_resumed_run_is_an_uninterrupted_one(stage3, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "beta": 0.1}
    whole = make(stage3, tmp_path / "whole", **options)
    whole.train()
    part = make(stage3, tmp_path / "whole", **options)
    part.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert losses_of(part)[-2:] == losses_of(whole)[-2:]
    assert part.state.log_history[-2]["kl"] > 0
    assert_same_weights(part.model, whole.model)


def test_a_resumed_run_keeps_its_reference(stage3, tmp_path):
    """A checkpoint as the starting model would be its own reference; a copy of the starting model, or the model itself, is the same one."""
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "beta": 0.1}
    make(stage3, tmp_path / "run", **options).train()
    first = str(tmp_path / "run/checkpoint-1")
    with pytest.raises(ValueError, match=r"`starting_model` was \w+, is \w+.*the run started from, not a checkpoint"):
        make(first, tmp_path / "run", **options).train(resume_from_checkpoint=first)
    moved = shutil.copytree(stage3, tmp_path / "moved")
    for number, model in enumerate((str(moved), CLoudForRewardModeling.from_pretrained(stage3))):
        trainer = make(model, tmp_path / f"resumed-{number}", **options)
        assert trainer.train(resume_from_checkpoint=first).global_step == 2
    without = {**options, "beta": 0.0}
    make(stage3, tmp_path / "without", **without).train()
    first = str(tmp_path / "without/checkpoint-1")
    assert make(first, tmp_path / "without", **without).train(resume_from_checkpoint=first).global_step == 2


def test_a_resumed_run_keeps_its_named_reference(stage3, tmp_path):
    reference = shutil.copytree(stage3, tmp_path / "reference")
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "beta": 0.1, "ref_model": str(reference)}
    make(stage3, tmp_path / "run", **options).train()
    first = str(tmp_path / "run/checkpoint-1")
    # All weights but the reference's come from the checkpoint
    assert make(first, tmp_path / "other", **options).train(resume_from_checkpoint=first).global_step == 2
    shutil.copy(f"{first}/model.safetensors", reference)
    with pytest.raises(ValueError, match=r"`ref_model_weights` was \w+, is \w+"):
        make(stage3, tmp_path / "run", **options).train(resume_from_checkpoint=first)


@pytest.mark.parametrize("options", [{"bias": "all"}, {"init_lora_weights": "pissa"}])
def test_an_adapter_that_changes_the_reference_is_refused(stage3, tmp_path, options):
    lora = LoraConfig(r=4, target_modules=["q_proj"], **options)
    with pytest.raises(
        ValueError,
        match=f"`{next(iter(options))}` '{next(iter(options.values()))}'.*not the model that training starts",
    ):
        make(stage3, tmp_path, peft_config=lora, beta=0.1)
    make(stage3, tmp_path, peft_config=lora, beta=0.0)


def test_an_adapter_is_compared_with_the_model_without_it(stage3, tmp_path):
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    trainer = make(stage3, tmp_path, peft_config=lora, learning_rate=0.01, beta=0.1)
    trainer.train()
    kls = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert trainer.reference is None and kls[0] == pytest.approx(0.0, abs=1e-6) and kls[1] > 1e-4
    trainer.save_model(str(tmp_path / "adapter"))
    assert not any("base_layer" in name for name in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    with pytest.raises(ValueError, match=r"The model is an adapter.*`cloud-hf merge-adapter`"):
        make(str(tmp_path / "adapter"), tmp_path / "further")


# ------------------------------------------------------------------------------------------------------- bad input


def test_critiques_that_are_all_cut_are_reported(stage3, tmp_path, caplog, monkeypatch):
    trainer = make(stage3, tmp_path, max_completion_length=1, max_steps=1)
    end = trainer.critique_format.end_token_id
    monkeypatch.setattr(trainer.critique_format, "banned_ids", lambda config: [end])
    trainer.train()
    assert trainer.state.log_history[0]["critiques_cut"] == 1.0
    assert "Step 1: all critiques since the last log were cut off at `max_completion_length` 1" in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_generations": 1}, "`num_generations` is 1, but a critique's return is measured"),
        ({"num_generations": -1}, "`num_generations` is -1; it must be at least 0"),
        ({"max_completion_length": 0}, "`max_completion_length` is 0; it must be at least 1"),
        ({"beta": -0.1}, "`beta` is -0.1; it must be a finite number of at least 0"),
        ({"policy_weight": float("nan")}, "`policy_weight` is nan"),
        ({"outcome_objective": "mean"}, "`outcome_objective` is 'mean'; it must be one of likelihood, mean_log"),
        ({"beta": 0.0, "ref_model": "x"}, "`ref_model` is set, but `beta` is 0"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` is 5.0, but training on outcomes"),
        ({"token_budget": 100}, "`token_budget` is 100, but training on outcomes"),
        ({"format": "reference"}, "`format` is 'reference', but training on outcomes"),
        ({"critique": False}, "`critique` is False, but training on outcomes"),
        (
            {"max_completion_length": 460},
            "The train dataset: pair .* tokens before the critique of its (chosen|rejected) response",
        ),
    ],
)
def test_mistakes_end_with_a_sentence(stage3, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        make(stage3, tmp_path, **options)


def test_models_that_cannot_be_compared_are_refused(stage3, base_folder, tmp_path):
    with pytest.raises(ValueError, match="is a language model without a reward head"):
        make(str(base_folder), tmp_path)
    make_model(str(base_folder), critique=False).save_pretrained(tmp_path / "classic")
    make_tokenizer("llama3").save_pretrained(tmp_path / "classic")
    with pytest.raises(ValueError, match=r"is a classic model, which writes no critiques\. Start from"):
        make(str(tmp_path / "classic"), tmp_path)
    with pytest.raises(ValueError, match=r"The given model is a classic model"):
        make(make_model(str(base_folder), critique=False), tmp_path)
    with pytest.raises(ValueError, match=r"The given model is a model with `format` 'reference'"):
        make(make_model(str(base_folder), format="reference"), tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder /nowhere/model"):
        make(stage3, tmp_path, ref_model="/nowhere/model")
    make_model(str(base_folder)).save_pretrained(tmp_path / "other")
    make_tokenizer("chatml").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"`ref_model` .*/other has a different tokenizer"):
        make(stage3, tmp_path, ref_model=str(tmp_path / "other"))


def test_pairs_of_equal_responses_are_counted_or_refused(stage3, tmp_path, caplog):
    rows = list(make_rows())
    equal = [{**row, "rejected": row["chosen"]} for row in rows]
    make(stage3, tmp_path, rows=Dataset.from_list([equal[0], *rows[1:]]))
    assert f"1 of {len(rows)} pairs have identical responses" in caplog.text
    with pytest.raises(ValueError, match=f"in all {len(rows)} pairs, both responses are identical"):
        make(stage3, tmp_path, rows=Dataset.from_list(equal))
