"""Bases that are no plain language models: their language model is taken, or they are refused."""

from pathlib import Path

import pytest
import torch
from bases_for_tests import BASES
from models_for_tests import make_model, save_language_model, tiny_text_config
from safetensors.torch import load_file
from tokenizers_for_tests import make_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    Qwen3VLMoeConfig,
)
from trl import ModelConfig

from cloud_hf import CLoudForRewardModeling, CritiqueFormat
from cloud_hf.configuration_cloud import read_config
from cloud_hf.training.lora import model_for_sft


TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.3, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")} | {
    f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")
}
MULTIMODAL = {
    "gemma3": ({"sliding_window": 16}, {**VISION, "image_size": 28}, {"mm_tokens_per_image": 4}),
    "mistral3": ({"model_type": "mistral"}, {**VISION, "head_dim": 8, "model_type": "pixtral", "image_size": 28}, {}),
    "qwen2_5_vl": ({"rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]}}, QWEN_VISION, {}),
    "llava": ({"model_type": "llama"}, {**VISION, "model_type": "clip_vision_model", "image_size": 28}, {}),
    "idefics3": ({"model_type": "llama"}, {**VISION, "image_size": 28}, {"pad_token_id": 3}),
    "llama4": (
        {"num_local_experts": 2, "intermediate_size_mlp": 64},
        {**VISION, "image_size": 28, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        {},
    ),
    "qwen3_5": (
        {
            **LINEAR,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": {
                **MROPE,
                "mrope_section": [1, 0, 0],
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        },
        QWEN_VISION,
        {},
    ),
}


@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_a_multimodal_base_gives_its_language_model(tmp_path, model_type):
    text, vision, options = MULTIMODAL[model_type]
    tokenizer = make_tokenizer("qwen3")
    text = {**TEXT, **text, "vocab_size": len(tokenizer) + 3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **options)
    base = AutoModelForImageTextToText.from_config(config).eval()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = make_model(tmp_path / "base")
    ids = torch.randint(5, 400, (2, 40))
    expected = base(input_ids=ids).logits
    torch.testing.assert_close(model.language_model(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    weights = load_file(tmp_path / "saved/model.safetensors")
    assert all(
        name.startswith(("language_model.model.", "language_model.lm_head", "reward_head.")) for name in weights
    )
    loaded = CLoudForRewardModeling.from_pretrained(tmp_path / "saved").eval()
    [score], [again] = (m.score(["x"], ["y"], tokenizer, critiques=["Fine."]) for m in (model, loaded))
    assert again.reward == pytest.approx(score.reward, abs=1e-5)
    alone = model_for_sft(ModelConfig(str(tmp_path / "base")), read_config(tmp_path / "base"), {})["model"]
    torch.testing.assert_close(alone(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    alone.save_pretrained(tmp_path / "alone")
    assert read_config(tmp_path / "alone").model_type == model.config.text_config.model_type


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (Qwen3VLMoeConfig(), "is a qwen3_vl_moe model, and transformers has no causal language model of the type qwen3_vl_moe_text"),
        (DebertaV2Config(), "is a deberta-v2 model, and transformers has no causal language model of the type deberta-v2"),
    ],
)  # fmt: skip
def test_what_is_no_language_model_is_refused(tmp_path, config, match):
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=match):
        CLoudForRewardModeling.from_base(tmp_path, make_tokenizer("qwen3"))


@pytest.mark.parametrize(
    ("model_type", "options"), [("bert", {}), ("gemma", {"head_dim": 8, "use_bidirectional_attention": True})]
)
def test_a_base_whose_tokens_see_those_that_follow_is_refused(tmp_path, model_type, options):
    """Encoders, and the language model of PaliGemma."""
    folder = save_language_model(tmp_path, model_type, **options)
    with pytest.raises(ValueError, match="tokens attend to later tokens, so it cannot write"):
        CLoudForRewardModeling.from_base(folder)


@pytest.mark.parametrize("attention", [None, "sdpa", "eager"])
def test_logits_of_attention_are_capped(tmp_path, attention):
    """transformers' sdpa, its default, leaves that out."""
    base = save_language_model(tmp_path / "base", "gemma2", head_dim=8, attn_logit_softcapping=1.0)
    ids = torch.randint(5, 400, (2, 20))
    sdpa, eager = (
        AutoModelForCausalLM.from_pretrained(base, attn_implementation=name)(ids).logits for name in ("sdpa", "eager")
    )
    assert not torch.allclose(sdpa, eager, atol=1e-2)
    make_model(base).save_pretrained(tmp_path / "saved")
    options = {} if attention is None else {"attn_implementation": attention}
    for model in (make_model(base, **options), CLoudForRewardModeling.from_pretrained(tmp_path / "saved", **options)):
        torch.testing.assert_close(model.eval().language_model(ids).logits, eager, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="only flash_attention_2 supports that combination"):
        model.prepare_for_segments(shared_prompt=False)


def test_a_language_model_that_calls_the_decoder_inside_its_trunk(tmp_path):
    model = make_model(
        save_language_model(tmp_path, "opt", word_embed_proj_dim=16, ffn_dim=64, do_layer_norm_before=False)
    )
    tokenizer = make_tokenizer("llama3")
    [score] = model.score(["x"], ["y"], tokenizer, max_new_tokens=4)
    critique_format = CritiqueFormat.from_config(model.config, tokenizer)
    prefix = critique_format.encode_prefix("x", "y").input_ids
    ids = torch.tensor([[*prefix, *score.critique_ids[0], critique_format.end_token_id]])
    reward = model(input_ids=ids, reward_positions=torch.tensor([ids.shape[1] - 1])).logits
    assert score.reward == pytest.approx(reward.item(), abs=1e-5)


# ------------------------------------------------------------------------------------------- scalar reward models


def save_scalar_model(folder, model_type, **options):
    """Another tool's reward model, which has no LM head of its own."""
    torch.manual_seed(0)
    config = tiny_text_config(model_type, num_labels=1, **options)
    scalar = AutoModelForSequenceClassification.from_config(config).eval()
    scalar.save_pretrained(folder)
    make_tokenizer("llama3").save_pretrained(folder)
    return scalar


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "mistral", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_scalar_reward_model_gives_its_body(tmp_path, model_type, tied):
    options = {"head_dim": 8, "attn_logit_softcapping": None} if model_type == "gemma2" else {}
    scalar = save_scalar_model(tmp_path / "scalar", model_type, tie_word_embeddings=tied, **options)
    ids = torch.randint(5, 400, (2, 20))
    expected = scalar.base_model(input_ids=ids).last_hidden_state
    for critique in (False, True) if tied else (False,):
        model = make_model(tmp_path / "scalar", critique=critique)
        torch.testing.assert_close(model.trunk(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=0)
        model.save_pretrained(tmp_path / "saved")
        loaded = CLoudForRewardModeling.from_pretrained(tmp_path / "saved").eval()
        torch.testing.assert_close(loaded.trunk(input_ids=ids).last_hidden_state, expected, atol=1e-5, rtol=0)
    if not tied:
        with pytest.raises(
            ValueError, match=r"without an LM head, so it cannot write critiques. Create a classic model"
        ):
            make_model(tmp_path / "scalar")


def test_a_multimodal_scalar_reward_model_gives_its_head(tmp_path):
    text, vision, options = MULTIMODAL["gemma3"]
    tokenizer = make_tokenizer("llama3")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**TEXT, **text, "vocab_size": len(tokenizer)},
        vision_config=vision,
        num_labels=1,
        **options,
    )
    scalar = AutoModelForSequenceClassification.from_config(config).eval()
    scalar.save_pretrained(tmp_path)
    model = CLoudForRewardModeling.from_base(tmp_path, tokenizer, critique=False).eval()
    ids = torch.randint(5, 400, (1, 20))
    reward = model(input_ids=ids, reward_positions=torch.tensor([19])).logits
    torch.testing.assert_close(reward, scalar(input_ids=ids).logits, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------- the table in the docs


def test_the_table_of_bases_is_that_of_the_tests():
    lines = (Path(__file__).parents[1] / "docs/train.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.count("|") == 6]
    ours = {}
    for name, architecture, template, thinking, vllm in rows[2:]:
        family = template.split("`")[1]
        ours[name] = (architecture.strip("`"), family)
        role = "assistant" if "--critique_role assistant" in template else "user"
        critique_format = CritiqueFormat(make_tokenizer(family), critique_role=role)
        changed = critique_format.encode_prefix("x", "<think>No.</think>Yes.").response_changed
        assert thinking == ("hidden" if changed else "shown"), name
        chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]
        try:
            critique_format.encode_prefix(chat, "y")
        except ValueError:
            assert "no system turn" in template, name
        else:
            assert "no system turn" not in template, name
        assert vllm == ("equal" if name in BASES else "not run"), name
    bases = {name.removesuffix(", untied"): (base.model_type, base.family) for name, base in BASES.items()}
    assert bases == {name: pair for name, pair in ours.items() if name in bases}
    assert set(ours) - set(bases) == {"Qwen 3.5"}
