"""A classic model as a sequence classifier of transformers: equal rewards by every route, and back."""

import logging
from copy import deepcopy

import pytest
import torch
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model, tiny_text_config
from tokenizers.processors import TemplateProcessing
from tokenizers_for_tests import dated_tokenizer, make_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cloud_hf import CLoudForRewardModeling, CLoudTrainingConfig
from cloud_hf.classifier_conversion import check_import, plan_export
from cloud_hf.commands.convert import main as convert
from cloud_hf.loading import load_reward_model
from cloud_hf.scalar_models import ScalarScorer, load_scalar_model
from cloud_hf.training.trainer import load_model


# Templates that end at the end of turn, behind it, and with a date; learned positions; a tokenizer that adds a BOS; and hidden states
# that are projected to narrower embeddings
FAMILIES = {
    "llama3_2": ("llama", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "gemma3": ("gemma3_text", {"head_dim": 8}),
    "mistral_v3": ("mistral", {}),
    "chatml": ("gpt2", {}),
    "inline": ("qwen2", {}),
    "bos": ("llama", {}),
    "narrow": ("opt", {"word_embed_proj_dim": 16, "ffn_dim": 64, "do_layer_norm_before": False}),
}


def save_classic(folder, family="llama3", model_type="llama", tokenizer=None, **options):
    """A classic model with a linear head, and its tokenizer."""
    tokenizer = tokenizer or make_tokenizer(family)
    save_language_model(folder / "base", model_type, "qwen3" if family == "inline" else family, **options)
    tokenizer.save_pretrained(folder / "base")
    model = make_model(folder / "base", critique=False, reward_head="linear")
    model.save_pretrained(folder / "classic")
    tokenizer.save_pretrained(folder / "classic")
    return model, AutoTokenizer.from_pretrained(folder / "classic")


def tokenizer_with_bos():
    tokenizer = deepcopy(make_tokenizer("llama3"))
    bos = tokenizer.bos_token
    special = [(bos, tokenizer.bos_token_id)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=special)
    return tokenizer


def rewards_of(scorer, *more):
    return [score.reward for score in scorer.score(PROMPTS, RESPONSES, *more)]


@torch.inference_mode()
def plain_rewards(folder):
    """As model cards, and as tools that render first and encode later, which may add tokens."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    inputs = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    again = tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    return model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, tmp_path):
    model_type, options = FAMILIES[family]
    tokenizer = {"inline": lambda: dated_tokenizer("inline"), "bos": tokenizer_with_bos}.get(family, lambda: None)()
    name = "llama3" if family in ("bos", "narrow") else family
    model, tokenizer = save_classic(tmp_path, name, model_type, tokenizer, **options)
    expected = rewards_of(model, tokenizer)
    classifier = tmp_path / "classifier"
    convert([str(tmp_path / "classic"), str(classifier), "--to", "sequence-classification"])
    assert plain_rewards(classifier) == pytest.approx(expected, abs=1e-5)
    assert rewards_of(ScalarScorer(*load_scalar_model(str(classifier)))) == pytest.approx(expected, abs=1e-5)
    convert([str(classifier), str(tmp_path / "back"), "--to", "cloud"])
    again, its_tokenizer = load_reward_model(str(tmp_path / "back"))
    assert torch.equal(again.reward_head.out_proj.weight, model.reward_head.out_proj.weight)
    assert rewards_of(again, its_tokenizer) == pytest.approx(expected, abs=1e-5)


def test_the_scale_of_rewards_is_kept(tmp_path):
    model, tokenizer = save_classic(tmp_path)
    model.config.reward_std = 2.0
    model.save_pretrained(tmp_path / "classic")
    convert([str(tmp_path / "classic"), str(tmp_path / "classifier"), "--to", "sequence-classification"])
    assert plain_rewards(tmp_path / "classifier") == pytest.approx(rewards_of(model, tokenizer), abs=1e-5)
    assert "AutoModelForSequenceClassification" in (tmp_path / "classifier/README.md").read_text()


@pytest.mark.parametrize(
    ("options", "changes", "says"),
    [
        ({"critique": True}, {}, "needs a critique, which a sequence classifier does not write"),
        ({"reward_head": "mlp"}, {}, "a two-layer reward head.*`--reward_head linear`"),
        ({"keep_thinking": True}, {}, "`keep_thinking`, which no chat template"),
        ({}, {"reward_mean": 0.5}, "subtracts `reward_mean` 0.5"),
    ],
)
def test_what_a_classifier_cannot_do_is_refused(options, changes, says, base_folder, tmp_path):
    model = make_model(base_folder, **{"critique": False, "reward_head": "linear", **options})
    for name, value in changes.items():
        setattr(model.config, name, value)
    model.save_pretrained(tmp_path)
    make_tokenizer("llama3").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=says):
        plan_export(str(tmp_path))


def save_scalar(folder, family="llama3", **options):
    model_type, more = FAMILIES.get(family, ("llama", {}))
    torch.manual_seed(0)
    config = tiny_text_config(model_type, family, **{"num_labels": 1, **more, **options})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return model


def test_other_classifiers_that_a_classic_model_cannot_be_are_refused(base_folder, tmp_path):
    save_scalar(tmp_path / "qwen", "qwen3")
    with pytest.raises(ValueError, match=r"reads its reward at the end of its chat template, '<\|im_end\|>\\n'"):
        check_import(str(tmp_path / "qwen"))
    end = make_tokenizer("llama3").convert_tokens_to_ids("<|eot_id|>")
    save_scalar(tmp_path / "padded", pad_token_id=end)
    with pytest.raises(ValueError, match=rf"`pad_token_id` {end}, the end of turn '<\|eot_id\|>', so it reads"):
        check_import(str(tmp_path / "padded"))
    save_scalar(tmp_path / "two", num_labels=2)
    for name in (base_folder, tmp_path / "two"):
        with pytest.raises(ValueError, match="not a transformers sequence classifier with one label"):
            check_import(str(name))
    with pytest.raises(ValueError, match="`revision` applies only to the published layout"):
        convert(["a", str(tmp_path / "new"), "--to", "cloud", "--revision", "main"])


def test_training_can_start_from_the_head_of_a_scalar_model(tmp_path, caplog):
    """The head is kept where its shape fits: by a classic model, unless another head is asked for."""
    scalar = save_scalar(tmp_path, tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING):
        model = CLoudForRewardModeling.from_base(tmp_path, critique=False)
    assert torch.equal(model.reward_head.out_proj.weight, scalar.score.weight)
    assert "The reward head is taken from" in caplog.text
    for options in ({"critique": False, "reward_head": "mlp"}, {"critique": True}):
        assert CLoudForRewardModeling.from_base(tmp_path, **options).config.reward_head == "mlp"
    args = {"output_dir": str(tmp_path / "out"), "critique": False, "use_cpu": True, "bf16": False}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    trained = load_model(str(tmp_path), CLoudTrainingConfig(**args), tokenizer)
    assert torch.equal(trained.reward_head.out_proj.weight, scalar.score.weight)
    other = load_model(str(tmp_path), CLoudTrainingConfig(**args, reward_head="mlp"), tokenizer)
    assert other.reward_head.dense is not None
    with pytest.raises(ValueError, match="`reward_head` is 'two'; use mlp or linear"):
        CLoudTrainingConfig(**args, reward_head="two")
