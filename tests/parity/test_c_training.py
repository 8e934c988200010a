import math

import pytest
import torch
from datasets import Dataset
from goldens import SIDES, encode, folder, load_format, load_model, load_tokenizer, read
from transformers import AutoModelForCausalLM

from cloud_hf import CLoudForRewardModeling, CLoudTrainer, CLoudTrainingConfig


def encoded_pairs(name, indices, max_length):
    samples = read("b_collate/samples.json")["samples"]
    pairs = [{side: encode(samples[index], side, name, max_length) for side in SIDES} for index in indices]
    return [
        {
            **{f"{side}_ids": list(pair[side].input_ids) for side in SIDES},
            **{f"{side}_prefix_length": pair[side].prefix_length for side in SIDES},
        }
        for pair in pairs
    ]


def make_trainer(tmp_path, kind, pairs, **options):
    options = {"bf16": False, "use_cpu": True, "report_to": [], "gradient_checkpointing": False, **options}
    model = CLoudForRewardModeling.from_pretrained(
        folder() / f"ckpt_{kind}", base_model_name_or_path=str(folder() / "base_model")
    )
    args = CLoudTrainingConfig(str(tmp_path), **options)
    tokenizer = load_tokenizer(kind)
    return CLoudTrainer(model, args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)


def backward(trainer, pairs, scale=1.0):
    """Loss and outputs of one batch of pairs; gradients add up."""
    loss, outputs = trainer.compute_loss(trainer.model, trainer.data_collator(pairs), return_outputs=True)
    (loss * scale).backward()
    return loss.item(), outputs


def published_name(name):
    return name.replace("language_model.", "reward_base_model.", 1)


def norms(model):
    """L2 norms of the gradients; 0 where there is none."""
    named = {published_name(name): p.grad for name, p in model.named_parameters()}
    return {name: 0.0 if grad is None else grad.norm().item() for name, grad in named.items()}


def group_norms(per_parameter):
    def norm(part):
        return math.sqrt(sum(value**2 for name, value in per_parameter.items() if part in name))

    head = norm("reward_head")
    total = norm("")
    return {
        "total": total,
        "reward_head": head,
        "base_model": math.sqrt(max(total**2 - head**2, 0.0)),
        "lm_head": norm("lm_head"),
        "embed_tokens": norm("embed_tokens"),
        "decoder_layers": norm(".layers."),
    }


def compare_norms(compare, ours, golden):
    assert set(ours) == set(golden)
    for name, value in golden.items():
        compare.close(ours[name], value or 0.0, name, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", ["full", "trunc"])
@pytest.mark.parametrize("kind", ["teacher", "vanilla"])
def test_losses_and_gradients(compare, tmp_path, kind, size):
    golden = read(f"c_training/{kind}.json")[size]
    pairs = encoded_pairs(kind, golden["sample_indices"], golden["max_seq_len"])
    trainer = make_trainer(tmp_path, kind, pairs, lm_loss_weight=golden["lm_weight"])
    loss, outputs = backward(trainer, pairs)
    chosen, rejected = outputs.logits[:, 0].detach().chunk(2)
    compare.close(chosen, golden["chosen_rewards"])
    compare.close(rejected, golden["rejected_rewards"])
    pair_losses = -torch.nn.functional.logsigmoid(chosen - rejected)
    compare.close(pair_losses, golden["bt_loss_per_pair"])
    compare.close(pair_losses.mean(), golden["bt_loss_mean"])
    compare.close((chosen > rejected).float().mean(), golden["pairwise_accuracy"])
    compare.close(loss, golden["total_loss_mean"])
    lm_loss = 0.0 if outputs.lm_loss is None else outputs.lm_loss.item()
    compare.close(pair_losses + golden["lm_weight"] * lm_loss, golden["total_loss_per_pair"])
    if kind == "teacher":
        compare.close(lm_loss, golden["lm_loss"])
        labels = trainer.data_collator(pairs)["labels"]
        compare.exact((labels[:, 1:] != -100).sum().item(), golden["lm_loss_tokens"])
    compare_norms(compare, norms(trainer.model), golden["grad_norms_total_loss"]["per_parameter"])
    compare_norms(compare, group_norms(norms(trainer.model)), golden["grad_norms_total_loss"]["groups"])


@pytest.mark.parametrize(("kind", "part"), [("teacher", "bt"), ("teacher", "lm"), ("vanilla", "bt")])
@pytest.mark.parametrize("size", ["full", "trunc"])
def test_gradients_of_each_loss_alone(compare, tmp_path, size, kind, part):
    golden = read(f"c_training/{kind}.json")[size]
    pairs = encoded_pairs(kind, golden["sample_indices"], golden["max_seq_len"])
    weights = {"bradley_terry_weight": float(part == "bt"), "lm_loss_weight": float(part == "lm")}
    trainer = make_trainer(tmp_path, kind, pairs, **weights)
    backward(trainer, pairs)
    compare_norms(compare, group_norms(norms(trainer.model)), golden[f"grad_norms_{part}_only"])


@pytest.mark.parametrize("size", ["full", "trunc"])
def test_two_micro_batches_weighed_as_the_reference_weighs_them(compare, tmp_path, size):
    """Each the mean over its own tokens. (CLoudTrainer's steps weigh all tokens of a step alike.)"""
    golden = read("c_training/teacher.json")[size]
    pairs = encoded_pairs("teacher", golden["sample_indices"], golden["max_seq_len"])
    trainer = make_trainer(tmp_path, "teacher", pairs, lm_loss_weight=golden["lm_weight"])
    micro = golden["two_microbatches"]
    losses = []
    for part, half in zip(micro["parts"], (pairs[:2], pairs[2:]), strict=True):
        loss, outputs = backward(trainer, half, scale=0.5)
        losses.append(loss)
        compare.close(loss, part["loss"])
        compare.close(outputs.lm_loss.item(), part["lm_loss"])
    compare.close(sum(losses) / 2, micro["total_loss"])
    compare_norms(compare, group_norms(norms(trainer.model)), micro["grad_norms"])


@pytest.mark.parametrize("size", ["full", "trunc"])
def test_critique_sft(compare, size):
    golden = read("c_training/csft.json")[size]
    pairs = encoded_pairs("csft", golden["sample_indices"], golden["max_seq_len"])
    model = AutoModelForCausalLM.from_pretrained(folder() / golden["model"], dtype=torch.float32)
    sequences = [(pair[f"{side}_ids"], pair[f"{side}_prefix_length"]) for side in SIDES for pair in pairs]
    width = max(len(ids) for ids, _ in sequences)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in sequences])
    labels = torch.tensor([[-100] * start + ids[start:] + [-100] * (width - len(ids)) for ids, start in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in sequences])
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    compare.close(loss.item(), golden["lm_loss"])
    compare.exact((labels[:, 1:] != -100).sum().item(), golden["lm_loss_tokens"])
    compare_norms(compare, norms(model), golden["grad_norms"]["per_parameter"])
    compare_norms(compare, group_norms(norms(model)), golden["grad_norms"]["groups"])


def test_a_pair_cut_to_nothing_adds_no_critique_loss_instead_of_nan(compare, tmp_path):
    golden = read("c_training/edge_no_lm_tokens.json")
    pairs = encoded_pairs("teacher", [golden["sample_index"]], golden["max_seq_len"])
    compare.exact(pairs[0]["chosen_ids"] == pairs[0]["rejected_ids"], golden["chosen_equals_rejected_ids"])
    trainer = make_trainer(tmp_path, "teacher", pairs)
    loss, outputs = backward(trainer, pairs)
    compare.close(outputs.logits[:, 0].tolist(), [golden["chosen_reward"], golden["rejected_reward"]])
    compare.close(loss, golden["bt_loss"])
    assert golden["lm_loss"] == golden["total_loss"] == "nan" and outputs.lm_loss.item() == 0.0


def test_scoring_a_trained_sequence_gives_its_training_reward(compare):
    """The classic model has one spelling in training and scoring."""
    golden = read("c_training/vanilla.json")["full"]
    samples = [read("b_collate/samples.json")["samples"][index] for index in golden["sample_indices"]]
    for side in SIDES:
        scores = load_model("vanilla").score(
            [s["prompt"] for s in samples], [s[side] for s in samples], load_format("vanilla").tokenizer
        )
        compare.close([score.reward for score in scores], golden[f"{side}_rewards"])
