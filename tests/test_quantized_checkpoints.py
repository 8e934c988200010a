"""Checkpoints by compressed-tensors: quantised layers, but neither head."""

import pytest
import torch
from models_for_tests import CRITIQUES, PROMPTS, RESPONSES, make_model
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CLoudForRewardModeling


pytest.importorskip("compressed_tensors", reason="needs compressed-tensors, which vLLM installs")

from quantized_for_tests import HEADS, save_quantized


def score(model):
    scores = model.score(PROMPTS, RESPONSES, make_tokenizer("llama3"), max_new_tokens=4)
    scores += model.score(PROMPTS, RESPONSES, make_tokenizer("llama3"), critiques=[[each] for each in CRITIQUES])
    return torch.tensor([score.reward for score in scores])


def test_a_quantised_model_gives_the_rewards_of_its_rounded_weights(base_folder, tmp_path):
    plain = make_model(base_folder)
    rounded = save_quantized(plain, tmp_path / "one")
    loaded = CLoudForRewardModeling.from_pretrained(tmp_path / "one").eval()
    torch.testing.assert_close(score(loaded), score(rounded), atol=1e-5, rtol=0)
    assert not torch.allclose(score(rounded), score(plain), atol=1e-3)
    assert loaded.reward_head.dense.weight.equal(plain.reward_head.dense.weight)


@pytest.mark.parametrize("head", range(2))
def test_a_quantised_head_is_refused(base_folder, tmp_path, head):
    save_quantized(make_model(base_folder), tmp_path, ignore=[HEADS[head]])
    with pytest.raises(
        ValueError, match=r"has quantised heads \(.*_packed\), which distort rewards\. Quantise it again"
    ):
        CLoudForRewardModeling.from_pretrained(tmp_path)
