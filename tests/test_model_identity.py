import shutil

import torch
from models_for_tests import save_language_model
from safetensors.torch import save_file

from cloud_hf.model_identity import hash_of_weights, identify_model


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
    assert hash_of_weights(tmp_path) == "a055f9eb019e44ce387a2c69487f0fc1"
