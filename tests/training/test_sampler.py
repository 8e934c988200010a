"""Batches by a number of tokens, and rows kept together."""

import random
from pathlib import Path

import pytest
import torch
from launching import launch
from models_for_tests import make_model
from packed_batches import encoded_rows, make_budget_trainer, make_rows, train
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CLoudTrainer, CLoudTrainingConfig
from cloud_hf.training import DataCollatorForCLoud
from cloud_hf.training.sampler import GroupSampler, PairGroup, TokenBudgetSampler, group_pairs


def make_groups(count=60, sizes=(1,), seed=0):
    rng, groups, first = random.Random(seed), [], 0
    for i in range(count):
        size = sizes[i % len(sizes)]
        groups.append(PairGroup(tuple(range(first, first + size)), rng.randint(20, 200) * size))
        first += size
    return groups


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(1,), (1, 3), (2, 4, 4)])
def test_batches_hold_the_budget_and_every_pair(padded, processes, sizes):
    groups = make_groups(sizes=sizes)
    tokens = {pair: group.tokens / len(group.pairs) for group in groups for pair in group.pairs}
    sampler = TokenBudgetSampler(groups, 800, 12, padded, num_processes=processes, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) and len(batches) % processes == 0
        assert {pair for batch in batches for pair in batch} == set(tokens)
        assert sum(map(len, batches)) - len(tokens) < processes
        for start in range(0, len(batches), processes):
            assert len({len(batch) for batch in batches[start : start + processes]}) == 1
        for batch in batches:
            taken = len(batch) * max(tokens[pair] for pair in batch) if padded else sum(tokens[pair] for pair in batch)
            assert len(batch) <= 12 and taken <= 800
        epochs.append(batches)
    assert epochs[0] == epochs[2] != epochs[1]
    if sizes == (1,) and processes == 1:
        assert sum(tokens.values()) > 0.6 * 800 * len(epochs[0])


def test_pairs_of_one_row_share_a_batch():
    groups = make_groups(sizes=(1, 3))
    for batch in TokenBudgetSampler(groups, 800, 7, padded=False):
        for group in groups:
            assert len(set(group.pairs) & set(batch)) in (0, len(group.pairs))
    order = list(GroupSampler(groups, seed=1))
    assert sorted(order) == [pair for group in groups for pair in group.pairs] != order
    for group in groups:
        first = order.index(group.pairs[0])
        assert tuple(order[first : first + len(group.pairs)]) == group.pairs


def test_the_last_pairs_are_dropped_on_request():
    groups = make_groups(5)
    batches = list(TokenBudgetSampler(groups, 800, 8, padded=False, num_processes=2, drop_last=True))
    assert sorted(pair for batch in batches for pair in batch) != list(range(5))
    assert len({pair for batch in batches for pair in batch}) == 4
    with pytest.raises(ValueError, match="drops them all"):
        TokenBudgetSampler(groups[:1], 800, 8, padded=False, num_processes=2, drop_last=True)


def test_groups_are_the_rows(base_folder, tmp_path):
    rows = encoded_rows(base_folder, tmp_path, make_rows(6, critiques=(1, 3)))
    shared = DataCollatorForCLoud(pad_token_id=0, shared_prompt=True)
    groups = group_pairs(rows, shared, max_pairs=8)
    assert [group.pairs for group in groups] == [(0,), (1, 2, 3), (4,), (5, 6, 7), (8,), (9, 10, 11)]
    assert groups[1].tokens == shared([rows[i] for i in (1, 2, 3)])["input_ids"].numel()
    tight = group_pairs(rows, shared, max_pairs=8, token_budget=groups[1].tokens - 1)
    assert [group.pairs for group in tight][1:4] == [(1,), (2,), (3,)]
    assert [group.pairs for group in group_pairs(rows, shared, max_pairs=2)][1:3] == [(1, 2), (3,)]
    padded = DataCollatorForCLoud(pad_token_id=0, pad_to_multiple_of=64)
    groups = group_pairs(rows, padded, max_pairs=8)
    assert [group.pairs for group in groups] == [(i,) for i in range(12)]
    assert groups[4].tokens == padded([rows[4]])["input_ids"].numel()
    with pytest.raises(ValueError, match=r"pair 0: its two sequences have \d+ tokens, but `token_budget` is 10"):
        group_pairs(rows, padded, max_pairs=8, token_budget=10)


# ---------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("options", [{}, {"padding_free": True}, {"shared_prompt": True}])
def test_a_step_is_the_same_however_a_budget_cuts_it(base_folder, tmp_path, options):
    """All pairs in one optimizer step: mean over all pairs, mean over all labelled tokens."""
    rows = make_rows(6, critiques=(1, 3))
    log, gradients = train(make_model(base_folder), tmp_path, rows, per_device_train_batch_size=12)
    options = {"token_budget": 1300, **options}
    batches = len(make_budget_trainer(base_folder, tmp_path, rows, **options).get_train_dataloader())
    assert batches > 1
    other_log, other_gradients = train(
        make_model(base_folder), tmp_path, rows, gradient_accumulation_steps=batches, **options
    )
    for name in ("loss", "pairwise_loss", "lm_loss", "mean_reward"):
        assert other_log[name] == pytest.approx(log[name], abs=1e-5), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"shared_prompt": True}, {"shared_prompt": True, "token_budget": None}])
def test_resumed_is_uninterrupted(base_folder, tmp_path, options):
    """Also from the middle of a later epoch, whose order is another."""
    rows = make_rows(9, critiques=(1, 3))
    whole = make_budget_trainer(base_folder, tmp_path / "whole", rows, **options)
    whole.train()
    steps = whole.state.max_steps
    assert steps % 3 == 0 and steps >= 9
    resumed = make_budget_trainer(base_folder, tmp_path / "resumed", rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{steps // 3 + 2}"))
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_own_collators_are_refused(base_folder, tmp_path):
    args = CLoudTrainingConfig(str(tmp_path), use_cpu=True, bf16=False, token_budget=500)
    with pytest.raises(ValueError, match="`token_budget` needs the default collator"):
        CLoudTrainer(
            make_model(base_folder), args, data_collator=DataCollatorForCLoud(0), train_dataset=make_rows(2),
            processing_class=make_tokenizer("llama3"),
        )  # fmt: skip


def test_fewer_batches_than_a_step_takes_are_refused(base_folder, tmp_path):
    trainer = make_budget_trainer(base_folder, tmp_path, make_rows(4), gradient_accumulation_steps=64)
    batches = len(trainer.get_train_dataloader())
    assert batches < 64
    with pytest.raises(ValueError, match=f"into {batches} batches, but one optimizer step needs 64"):
        trainer.train()


def test_two_processes_resume_too(base_folder, tmp_path):
    """Equally many batches on both, each pair once, and the resumed run ends as the whole one."""
    script = Path(__file__).parents[1] / "helpers" / "budget_for_test.py"
    launch("ddp", script, base_folder, tmp_path).wait()
    assert (tmp_path / "compared").read_text() == "equal"
