"""The Bradley-Terry loss inside critiques (`partial_reward_weight`)."""

import pytest
import torch
from models_for_tests import make_model
from packed_batches import MODES, make_rows, train
from torch.nn import functional as F
from trainers_for_tests import make_trainer

from cloud_hf import CLoudTrainingConfig
from cloud_hf.training.encoding import SIDES


OPTIONS = {"learning_rate": 0.0, "lm_loss_weight": 0.5, "partial_reward_weight": 0.7}


@pytest.mark.parametrize("margin", [{}, {"margin": 0.7}])
def test_it_is_the_loss_of_rewards_of_cut_critiques(base_folder, tmp_path, margin):
    model = make_model(base_folder)
    trainer = make_trainer(model, tmp_path, make_rows(critiques=(1, 2), **margin), **OPTIONS)
    rows = [trainer.train_dataset[place] for place in range(4)]
    batch = trainer.data_collator(rows)
    assert batch["inner_positions"].shape == (8, 4)
    losses = []
    with torch.no_grad():
        for place, row in enumerate(rows):
            rewards, fractions = [], []
            for side, number in zip(SIDES, (place, place + 4), strict=True):
                ids, start = row[f"{side}_ids"], row[f"{side}_prefix_length"]
                ends = batch["inner_positions"][number].tolist()
                assert ends == sorted(ends) and all(start <= end < len(ids) - 1 for end in ends)
                fractions.append([(end + 1 - start) / (len(ids) - 1 - start) for end in ends])
                cut = [torch.tensor([ids[: end + 1]]) for end in ends]
                rewards.append(
                    [model(part, reward_positions=torch.tensor([part.shape[1] - 1])).logits for part in cut]
                )
            assert fractions[0] == pytest.approx(fractions[1], abs=0.2)  # whole tokens
            chosen, rejected = torch.tensor(rewards)
            losses.append(-F.logsigmoid(chosen - rejected - margin.get("margin", 0.0)).mean())
        with_partial = trainer.compute_loss(model, dict(batch)).item()
        without = make_trainer(
            model, tmp_path, make_rows(critiques=(1, 2), **margin), **{**OPTIONS, "partial_reward_weight": 0.0}
        )
        plain = {name: tensor for name, tensor in batch.items() if name != "inner_positions"}
        again = without.data_collator(rows)
        assert again.keys() == plain.keys() and all(torch.equal(again[name], plain[name]) for name in plain)
        assert with_partial - without.compute_loss(model, plain).item() == pytest.approx(
            0.7 * sum(losses).item() / 4, abs=1e-5
        )


def test_batches_accumulation_and_packing_do_not_change_it(base_folder, tmp_path):
    found = []
    for number, (mode, size) in enumerate((("padded", 6), ("padded", 1), ("padding_free", 2), ("shared_prompt", 3))):
        options = {
            **OPTIONS,
            **MODES[mode],
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": 6 // size,
        }
        found.append(train(make_model(base_folder), tmp_path / str(number), make_rows(), **options))
    for log, gradients in found[1:]:
        for name in ("loss", "partial_pairwise_loss", "pairwise_loss", "lm_loss"):
            assert log[name] == pytest.approx(found[0][0][name], abs=2e-6), name
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], atol=2e-6, rtol=1e-4)


def test_an_evaluation_has_it(base_folder, tmp_path):
    trainer = make_trainer(make_model(base_folder), tmp_path, make_rows(), eval_dataset=make_rows(3), **OPTIONS)
    metrics = trainer.evaluate()
    joint = metrics["eval_pairwise_loss"] + 0.5 * metrics["eval_lm_loss"] + 0.7 * metrics["eval_partial_pairwise_loss"]
    assert metrics["eval_loss"] == pytest.approx(joint, abs=1e-6)


def test_models_without_inner_rewards_are_refused(base_folder, tmp_path):
    for options in ({"critique": False}, {"format": "reference"}):
        with pytest.raises(ValueError, match=r"`partial_reward_weight` is 0\.5, but only a CLoud model"):
            CLoudTrainingConfig(str(tmp_path), use_cpu=True, bf16=False, partial_reward_weight=0.5, **options)
    with pytest.raises(ValueError, match="`partial_reward_weight` is -1"):
        CLoudTrainingConfig(str(tmp_path), use_cpu=True, bf16=False, partial_reward_weight=-1)
    with pytest.raises(ValueError, match="reads no reward inside critiques"):
        make_trainer(make_model(base_folder, format="reference"), tmp_path, partial_reward_weight=0.5)
