"""The published layout itself: configs as several writers made them, one file and shards."""

import pytest
import torch
from goldens import folder, load_tokenizer, read
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from cloud_hf import CLoudConfig, CLoudForRewardModeling
from cloud_hf.published import find_weights, native_key


@pytest.mark.parametrize("index", range(5))
def test_configs_of_every_writer(compare, index):
    case = read("config_variants.json")[index]
    text_config = AutoConfig.from_pretrained(folder() / "base_model")
    config = CLoudConfig.from_dict(case["config"], text_config=text_config)
    compare.exact(config.format, "reference")
    compare.exact(config.critique, case["config"]["feedback_method"] == "teacher")
    compare.exact(config.base_model_name_or_path, case["config"]["base_model_name_or_path"])
    compare.exact(config.text_config.hidden_size, 64)
    dtype = case["config"].get("dtype", case["config"].get("torch_dtype"))
    for part in (config, config.text_config):
        compare.exact(str(part.dtype).removeprefix("torch."), str(dtype))


@pytest.mark.parametrize("kind", ["teacher", "vanilla"])
def test_all_weights_are_the_checkpoints(compare, kind):
    path = folder() / f"ckpt_{kind}"
    model = CLoudForRewardModeling.from_pretrained(path, base_model_name_or_path=str(folder() / "base_model"))
    golden = {key: tensor for file in find_weights(str(path)) for key, tensor in load_file(file).items()}
    weights = model.state_dict()
    compare.exact(len(golden), len(weights))
    for key, tensor in golden.items():
        compare.exact(torch.equal(weights[native_key(key)], tensor), True, key)


def test_the_base_is_found_by_its_relative_name(compare, monkeypatch):
    monkeypatch.chdir(folder())
    model = CLoudForRewardModeling.from_pretrained("ckpt_teacher").eval()
    sample = read("a_predict_reward/teacher.json")["samples"][0]
    [score] = model.score([sample["prompt"]], [sample["response"]], load_tokenizer(), max_new_tokens=48)
    compare.close(score.reward, sample["reward"])


def test_a_config_with_model_type_loads_by_auto_model(compare, tmp_path):
    for file in (folder() / "ckpt_teacher").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (tmp_path / "config.json").read_text().replace("{", '{"model_type": "cloud",', 1)
    (tmp_path / "config.json").write_text(config)
    base = str(folder() / "base_model")
    model = AutoModel.from_pretrained(tmp_path, base_model_name_or_path=base).eval()
    sample = read("a_predict_reward/teacher.json")["samples"][0]
    [score] = model.score([sample["prompt"]], [sample["response"]], load_tokenizer(), max_new_tokens=48)
    compare.close(score.reward, sample["reward"])
