import json
import shutil

import pytest
import torch
from models_for_tests import save_language_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cloud_hf.adapters import adapter_base
from cloud_hf.model_identity import hash_of_parameters, hash_of_weights, identify_model, identify_weights


def version(folder):
    return identify_model(str(folder))["model_version"]


def test_the_version_follows_from_what_the_model_computes(base_folder, tmp_path):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    assert version(copy) == version(base_folder)
    (copy / "trainer_state.json").write_text("{}")
    assert version(copy) == version(base_folder)
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("512", "513"))
    assert version(copy) != version(base_folder)
    assert version(save_language_model(tmp_path / "other", seed=1)) != version(base_folder)


def test_of_large_files_a_sample_is_read(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(3 * 2**20))
    assert version(tmp_path / "one") == version(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(bytes(3 * 2**20 - 1) + b"x")
    assert version(tmp_path / "one") != version(tmp_path / "two")


def test_a_small_tensor_between_large_ones_changes_the_version(tmp_path):
    """A reward head between the sampled blocks of a file, with the same shape and name, is another model."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(2**20, generator=generator) for name in ("a", "z")}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        head = torch.randn(1, 512, generator=generator)
        save_file({**weights, "head": head}, tmp_path / name / "model.safetensors")
    assert version(tmp_path / "one") != version(tmp_path / "two")


def test_a_large_tensor_is_sampled_at_both_ends(tmp_path):
    versions = set()
    for place in (None, 0, -1):
        weight = torch.zeros(2**20)
        if place is not None:
            weight[place] = 1.0
        save_file({"a": weight, "b": torch.zeros(8)}, tmp_path / "model.safetensors")
        versions.add(version(tmp_path))
    assert len(versions) == 3


def test_the_hash_that_adapters_record_does_not_change(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 2**13)
    assert hash_of_weights(tmp_path, by_tensor=False) == "a055f9eb019e44ce387a2c69487f0fc1"


def test_an_adapter_is_another_model_over_another_base(tmp_path):
    """Though its own files are the same, and whatever made it left no record of its base."""
    base = save_language_model(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    recorded = json.loads(config.read_text())
    for path in (str(base), "../base"):  # as PEFT and as this package name it
        config.write_text(json.dumps({**recorded, "base_model_name_or_path": path}))
        save_language_model(tmp_path / "base")
        before = version(tmp_path / "adapter")
        assert before == version(tmp_path / "adapter")
        save_language_model(tmp_path / "base", seed=1)
        assert version(tmp_path / "adapter") != before


@pytest.mark.parametrize("by_tensor", [True, False])
def test_a_base_with_another_small_tensor_is_another_base(base_folder, tmp_path, by_tensor):
    """Records of version 0.1, of complete files, are still read."""
    base = shutil.copytree(base_folder, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "filler_a": torch.zeros(2**22), "filler_z": torch.zeros(2**22)}, base / "model.safetensors")
    name = str(tmp_path / "adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"])).save_pretrained(
        name
    )
    record = {"version": 1 + by_tensor, "model": str(base), "weights": hash_of_weights(base, by_tensor)}
    (tmp_path / "adapter/base_model.json").write_text(json.dumps(record))
    assert adapter_base(name)[0] == str(base)
    (base / "model.safetensors").unlink()
    save_file(
        {**weights, "filler_a": torch.zeros(2**22), "filler_z": torch.zeros(2**22), "model.norm.weight": torch.ones(32) * 2},
        base / "model.safetensors",
    )  # fmt: skip
    if by_tensor:
        with pytest.raises(ValueError, match="trained on another base"):
            adapter_base(name)


def test_weights_are_identified_wherever_their_folder_lies(base_folder, tmp_path):
    moved = shutil.copytree(base_folder, tmp_path / "moved")
    (moved / "tokenizer.json").unlink()
    assert identify_weights(str(moved)) == identify_weights(str(base_folder))
    assert identify_weights(str(save_language_model(tmp_path / "other", seed=1))) != identify_weights(str(moved))
    assert identify_weights("org/model") == "org/model@main" == identify_weights("org/model", "main")
    assert identify_weights("org/model", "abc") == "org/model@abc"


def test_parameters_of_loaded_models_are_told_apart(base_folder, tmp_path):
    def version(folder, **kwargs):
        return hash_of_parameters(AutoModelForCausalLM.from_pretrained(folder, **kwargs))

    assert version(base_folder) == version(base_folder)
    half = version(base_folder, dtype="bfloat16")
    assert len({version(base_folder), half, version(save_language_model(tmp_path / "other", seed=1))}) == 3
    scalar = torch.nn.Module()
    scalar.weight = torch.nn.Parameter(torch.tensor(1.0))
    assert hash_of_parameters(scalar)
