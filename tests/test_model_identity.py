import shutil

from models_for_tests import save_language_model

from cloud_hf.model_identity import identify_model


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
