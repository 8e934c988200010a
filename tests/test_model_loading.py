"""Models by name."""

import json
import shutil

import pytest
import torch
from models_for_tests import PROMPTS, RESPONSES, save_language_model, save_published
from peft import LoraConfig, get_peft_model
from trainers_for_tests import make_trainer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from cloud_hf import CLoudForRewardModeling
from cloud_hf.loading import load_merged, load_reward_model, read_model_config


@pytest.fixture(scope="module")
def folders(base_folder, tmp_path_factory):
    """A folder with a base, an adapter of it and the merged model."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(base_folder, root / "base")
    lora = LoraConfig(r=4, init_lora_weights=False)
    make_trainer(str(root / "base"), root / "adapter", peft_config=lora).save_model()
    model, tokenizer = load_reward_model(str(root / "adapter"))
    model.save_pretrained(root / "merged")
    tokenizer.save_pretrained(root / "merged")
    return root


def rewards(model, tokenizer):
    return [score.reward for score in model.score(PROMPTS, RESPONSES, tokenizer, max_new_tokens=4)]


@pytest.fixture(scope="module")
def expected(folders):
    return rewards(*load_reward_model(str(folders / "merged")))


@pytest.mark.parametrize("name", ["/no/such", "./rm", "runs/cloud/model"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name):
    with pytest.raises(FileNotFoundError, match=f"There is no folder {name}, and no model on the Hub can"):
        read_model_config(name)


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_an_adapter_is_merged_whatever_loads_it(folders, expected, has_tokenizer):
    adapter = shutil.copytree(folders / "adapter", folders / f"adapter_{has_tokenizer}")
    if not has_tokenizer:
        for file in adapter.glob("tokenizer*"):
            file.unlink()
    tokenizer = AutoTokenizer.from_pretrained(folders / "merged")
    for model_class in (CLoudForRewardModeling, AutoModel):
        for place in ((adapter, {}), (folders, {"subfolder": adapter.name})):
            model = model_class.from_pretrained(place[0], **place[1])
            assert rewards(model, tokenizer) == pytest.approx(expected, abs=1e-5)
    assert rewards(*load_reward_model(str(folders), subfolder=adapter.name)) == pytest.approx(expected, abs=1e-5)


def test_a_model_in_a_subfolder(folders, expected):
    assert rewards(*load_reward_model(str(folders), subfolder="merged")) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(FileNotFoundError, match="gone is not a model: it has neither"):
        load_reward_model(str(folders), subfolder="gone")


@pytest.mark.parametrize("name", ["base", "adapter", "merged", "published"])
def test_options_are_keys_of_the_config(folders, tmp_path, name):
    load = CLoudForRewardModeling.from_base if name == "base" else CLoudForRewardModeling.from_pretrained
    folder = save_published(tmp_path, folders / "base") if name == "published" else folders / name
    tokenizer = AutoTokenizer.from_pretrained(folders / "base")
    torch.manual_seed(0)
    plain = load(folder)
    options = {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    options |= {"use_cache": False, "return_dict": False, "pad_token_id": 3, "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = load(folder, **options)
    config = model.config
    assert not config.text_config.use_cache and not config.return_dict
    assert (config.id2label, config.num_labels, config.pad_token_id) == ({0: "reward"}, 1, 3)
    assert rewards(model, tokenizer) == rewards(plain, tokenizer)
    for option, says in (
        ({"num_labels": 2}, "`num_labels` is 2, but a reward is one number"),
        ({"use_cash": False}, r"unknown key\(s\) use_cash"),
        ({"temperature": 0.5}, "`temperature` is 0.5, but this model needs None"),
        ({"tie_word_embeddings": True}, "`tie_word_embeddings` is True, but this model needs False"),
    ):
        if name != "merged" or "tie_word_embeddings" not in option:
            with pytest.raises(ValueError, match=says):
                load(folder, **option)


def test_an_adapter_that_is_no_reward_model_is_refused(folders, tmp_path):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folders / "base"), LoraConfig(task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path)
    for load in (load_merged, CLoudForRewardModeling.from_pretrained):
        with pytest.raises(ValueError, match="is an adapter of a language model, not of a reward model"):
            load(str(tmp_path))
    config = read_model_config(str(folders / "adapter"))
    with pytest.raises(ValueError, match="is loaded with its own config; drop `config`"):
        CLoudForRewardModeling.from_pretrained(folders / "adapter", config=config)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_with_a_layer_of_its_own_unties_it(tmp_path, layer):
    base = save_language_model(tmp_path / "base", tie_word_embeddings=True)
    lora = LoraConfig(r=4, modules_to_save=[layer, "reward_head"])
    trainer = make_trainer(str(base), tmp_path / "adapter", peft_config=lora, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    model, tokenizer = load_reward_model(str(tmp_path / "adapter"))
    assert rewards(model, tokenizer) == pytest.approx(rewards(trainer.model, tokenizer), abs=1e-5)
    model.save_pretrained(tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert not config["tie_word_embeddings"] and not config["text_config"]["tie_word_embeddings"]
    merged = CLoudForRewardModeling.from_pretrained(tmp_path / "merged")
    assert not merged.config.tie_word_embeddings
    assert rewards(merged, tokenizer) == pytest.approx(rewards(model, tokenizer), abs=1e-5)
