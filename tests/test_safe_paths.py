import json
import shutil

import pytest
from models_for_tests import make_model, save_language_model
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CLoudForRewardModeling
from cloud_hf.data.journal import Journal
from cloud_hf.safe_paths import check_links, is_inside


@pytest.mark.parametrize("name", ["model.safetensors", "part/model.safetensors", "a..b"])
def test_names_inside(name):
    assert is_inside(name)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "..", "a\\..\\x"])
def test_names_outside(name):
    assert not is_inside(name)


def test_links_may_not_leave_their_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "file").write_text("x")
    (folder / "inner").symlink_to("file")
    (folder / "outer").symlink_to("../secret")
    (tmp_path / "linked").symlink_to("folder")
    for root in (folder, tmp_path / "linked"):
        check_links(root, [root / "file", root / "inner"])
        with pytest.raises(ValueError, match=r"outer is a link to .*secret, outside .*\. Replace it with a copy"):
            check_links(root, [root / "outer"])


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    make_model(save_language_model(folder / "base")).save_pretrained(folder / "model", max_shard_size="20kB")
    make_tokenizer("llama3").save_pretrained(folder / "model")
    return folder / "model"


def copy(native, folder):
    return shutil.copytree(native, folder)


def test_the_hubs_cache_links_to_its_blobs(native, tmp_path):
    snapshot = copy(native, tmp_path / "models--org--model" / "snapshots" / "0123")
    blobs = tmp_path / "models--org--model" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    CLoudForRewardModeling.from_pretrained(snapshot)
    shard = next(snapshot.glob("*.safetensors"))
    (blobs / shard.readlink().name).rename(tmp_path / "elsewhere")
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link to"):
        CLoudForRewardModeling.from_pretrained(snapshot)


@pytest.mark.parametrize("outside", ["../elsewhere/{}", "{folder}/elsewhere/{}"])
def test_an_index_names_files_of_its_folder(native, tmp_path, outside):
    folder = copy(native, tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = next(iter(index["weight_map"].values()))
    (folder / file).rename(tmp_path / "elsewhere" / file)
    named = outside.format(file, folder=tmp_path)
    index["weight_map"] = {key: named if value == file else value for key, value in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is not inside its folder"):
        CLoudForRewardModeling.from_pretrained(folder)


def test_a_journal_is_not_written_through_a_link(tmp_path):
    (tmp_path / "secret").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").symlink_to("../secret")
    with pytest.raises(ValueError, match="is a link to"):
        Journal(tmp_path / "run" / "journal.jsonl", {})
    assert not (tmp_path / "secret").read_bytes()
