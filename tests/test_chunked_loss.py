"""The LM loss in pieces is the loss at once, whatever the LM head is."""

import pytest
import torch
from models_for_tests import encode_batch, make_model, save_language_model
from peft import LoraConfig, get_peft_model


def gradients(model, batch, chunks, autocast):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**batch, lm_loss_chunks=chunks)
    (output.lm_loss * 3 + output.logits.sum()).backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


HEADS = {
    "plain": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "soft-capped": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 20.0}),
    "biased": ("phi", {}),
    "adapted": ("llama", {}),
    "frozen": ("llama", {}),
}


@pytest.mark.parametrize("chunks", [3, 1000])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("autocast", [False, True])
def test_pieces_add_up(tmp_path, head, chunks, autocast):
    architecture, options = HEADS[head]
    model = make_model(save_language_model(tmp_path / "base", architecture, initializer_range=0.1, **options))
    batch = encode_batch(model)
    if head == "frozen":
        model.get_output_embeddings().requires_grad_(False)
    if head == "adapted":
        config = LoraConfig(r=2, target_modules=["lm_head"], modules_to_save=["reward_head"], init_lora_weights=False)
        model = get_peft_model(model, config)
    whole, expected = gradients(model, batch, 1, autocast)
    pieces, found = gradients(model, batch, chunks, autocast)
    atol = 2e-2 if autocast else 1e-5
    for name in ("lm_loss", "lm_loss_sums", "lm_loss_counts"):
        torch.testing.assert_close(pieces[name], whole[name], atol=atol, rtol=atol)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=atol * max(1, gradient.abs().max().item()), rtol=atol)
