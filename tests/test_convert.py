import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hub_for_tests import run_with_hub, serve_hub
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model, save_published
from safetensors.torch import load_file
from same_scores import assert_same_scores
from scripts_for_tests import run
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModel, AutoTokenizer

from cloud_hf import CLoudForRewardModeling
from cloud_hf.convert import check_empty, plan, write


def convert(source, destination, **options):
    write(plan(str(source), **options), destination)
    return destination


def scores(folder, auto_class=AutoModel):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return auto_class.from_pretrained(folder).eval().score(PROMPTS, RESPONSES, tokenizer, max_new_tokens=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("critique", "shards"), [(True, 1), (True, 4), (False, 2)])
def test_there_and_back_is_bit_equal(tmp_path, base_folder, critique, shards, dtype):
    published = save_published(tmp_path / "published", base_folder, critique=critique, shards=shards, dtype=dtype)
    native = convert(published, tmp_path / "native")
    back = convert(native, tmp_path / "back")
    for pattern in ("*.safetensors", "*token*", "chat_template*"):
        for path in published.glob(pattern):
            assert (back / path.name).read_bytes() == path.read_bytes() == (native / path.name).read_bytes() or (
                path.suffix == ".safetensors" and (back / path.name).read_bytes() == path.read_bytes()
            )
    if shards > 1:
        name = "model.safetensors.index.json"
        assert json.loads((back / name).read_text()) == json.loads((published / name).read_text())
    config = json.loads((published / "config.json").read_text())
    del config["transformers_version"]
    assert json.loads((back / "config.json").read_text()) == config
    expected = scores(published, CLoudForRewardModeling)
    rounding = 1e-6 if dtype == torch.float32 else 1e-2
    assert_same_scores(scores(native), expected, rounding)
    assert_same_scores(scores(back, CLoudForRewardModeling), expected, rounding)


def test_the_native_folder_needs_nothing_else(tmp_path):
    base = save_language_model(tmp_path / "base", tie_word_embeddings=True)
    published = save_published(tmp_path / "published", base, shards=2)
    expected = scores(published, CLoudForRewardModeling)
    native = convert(published, tmp_path / "native")
    base.rename(tmp_path / "elsewhere")
    assert_same_scores(scores(native), expected)
    config = json.loads((native / "config.json").read_text())
    assert config["critique_end_token_id"] == make_tokenizer("llama3").convert_tokens_to_ids("<|eot_id|>")
    assert config["reward_token_id"] is not None
    assert "AutoModelForSequenceClassification" in config["auto_map"]
    card = (native / "README.md").read_text()
    assert "CLoud (critique-out-loud) reward model" in card and "from_pretrained('native'" in card

    script = (
        "import sys; sys.modules['cloud_hf'] = None\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        f"model = AutoModel.from_pretrained({str(native)!r}, trust_remote_code=True).eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(native)!r}, trust_remote_code=True)\n"
        f"print(repr([s.reward for s in model.score({PROMPTS!r}, {RESPONSES!r}, tokenizer, max_new_tokens=8)]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert eval(result.stdout.splitlines()[-1]) == pytest.approx([score.reward for score in expected], abs=1e-5)


def test_what_save_pretrained_writes_is_what_conversion_writes(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder)
    native = convert(published, tmp_path / "native")
    AutoModel.from_pretrained(native).save_pretrained(tmp_path / "saved")
    config, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("native", "saved"))
    for read in (config, other):
        read["text_config"].pop("_name_or_path", None)
    assert config == other
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "saved"))
    assert set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    beside = {path.name for path in (tmp_path / "native").iterdir()} - {path.name for path in published.iterdir()}
    assert beside - {"README.md"} == {path.name for path in (tmp_path / "saved").iterdir()} - {
        "config.json",
        "model.safetensors",
    }


def test_pickles_are_read_on_request(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder)
    expected = scores(published, CLoudForRewardModeling)
    torch.save(load_file(published / "model.safetensors"), published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="--from_pickle"):
        plan(str(published))
    native = convert(published, tmp_path / "native", from_pickle=True)
    assert_same_scores(scores(native), expected)
    with pytest.raises(ValueError, match="omit `--from_pickle`"):
        plan(str(native), from_pickle=True)
    torch.save({"code": print}, published / "pytorch_model.bin")
    with pytest.raises(ValueError, match="contains more than tensors, so it was not loaded"):
        plan(str(published), from_pickle=True)


def test_tied_pickles_come_once(tmp_path):
    base = save_language_model(tmp_path / "base", tie_word_embeddings=True)
    published = save_published(tmp_path / "published", base)
    expected = scores(published, CLoudForRewardModeling)
    weights = load_file(published / "model.safetensors")
    weights["reward_base_model.lm_head.weight"] = weights["reward_base_model.model.embed_tokens.weight"]
    torch.save(weights, published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    assert_same_scores(scores(convert(published, tmp_path / "native", from_pickle=True)), expected)


def test_the_command_line(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder, shards=2)

    command = ("cloud_hf.convert", published, tmp_path / "native")
    dry = run(*command, "--dry_run")
    assert not (tmp_path / "native").exists()
    assert "llama of 2 layers" in dry and "model-00002-of-00002.safetensors" in dry
    run(*command)
    with pytest.raises(FileNotFoundError, match="There is no folder /no/such/model"):
        plan("/no/such/model")
    again = run(*command, fails=True)
    assert "is not an empty folder" in again and "Traceback" not in again


def test_what_the_published_layout_cannot_say_is_refused(tmp_path, base_folder):
    make_model(base_folder).save_pretrained(tmp_path / "ours")
    make_tokenizer("llama3").save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="only models with `format` 'reference'"):
        plan(str(tmp_path / "ours"))
    model = make_model(base_folder, format="reference")
    model.save_pretrained(tmp_path / "reference")
    make_tokenizer("llama3").save_pretrained(tmp_path / "reference")
    with pytest.raises(ValueError, match="pass `--base_model_name_or_path`"):
        plan(str(tmp_path / "reference"))
    published = convert(tmp_path / "reference", tmp_path / "out", base_model_name_or_path=str(base_folder))
    assert_same_scores(scores(published, CLoudForRewardModeling), scores(tmp_path / "reference"))
    model.config.reward_mean = 1.0
    model.save_pretrained(tmp_path / "reference")
    with pytest.raises(ValueError, match="cannot store `reward_mean`"):
        plan(str(tmp_path / "reference"), base_model_name_or_path=str(base_folder))


def test_a_config_other_than_that_of_the_base_is_refused(tmp_path, base_folder, caplog):
    native = convert(save_published(tmp_path / "published", base_folder), tmp_path / "native")
    config = json.loads((native / "config.json").read_text())

    def change(**keys):
        (native / "config.json").write_text(json.dumps(config | {"text_config": config["text_config"] | keys}))

    change(dtype="bfloat16", use_cache=False)
    assert plan(str(native)).to == "published"
    change(rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    with pytest.raises(
        ValueError, match=r"base .* whose `rope_parameters` is .*but the model's is .*'rope_theta': 50.0"
    ):
        plan(str(native))
    assert not caplog.records
    assert plan(str(native), base_model_name_or_path="org/none").to == "published"
    assert "The config of the base org/none cannot be read" in caplog.text


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder)
    tokenizer = AutoTokenizer.from_pretrained(published)
    tokenizer.add_tokens([f"<new{i}>" for i in range(9)])
    tokenizer.save_pretrained(published)
    with pytest.raises(ValueError, match=r"model's vocabulary has only .*--tokenizer"):
        plan(str(published))
    assert plan(str(published), tokenizer=str(base_folder)).to == "native"
    for file in published.glob("*tok*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        plan(str(published))


def test_what_cannot_be_written_is_said_before_anything_is(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder, shards=2)
    for folder in ("a", "b"):
        (published / folder).mkdir()
    index = json.loads((published / "model.safetensors.index.json").read_text())
    names = {
        f"model-0000{n}-of-00002.safetensors": f"{folder}/model.safetensors" for n, folder in ((1, "a"), (2, "b"))
    }
    for old, new in names.items():
        (published / old).rename(published / new)
    index["weight_map"] = {key: names[file] for key, file in index["weight_map"].items()}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="shards with the same name in several folders"):
        plan(str(published))
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial/model-00001-of-00002.safetensors").write_text("")
    with pytest.raises(ValueError, match="contains an unfinished conversion; remove it"):
        check_empty(tmp_path / "partial")


def test_one_shard_with_an_index_and_a_mixture_of_experts(tmp_path):
    base = save_language_model(tmp_path / "base", "mixtral", num_local_experts=2, num_experts_per_tok=1)
    model = make_model(base, format="reference")
    model.save_pretrained(tmp_path / "native")
    make_tokenizer("llama3").save_pretrained(tmp_path / "native")
    published = convert(tmp_path / "native", tmp_path / "published", base_model_name_or_path=str(base))
    expected = scores(published, CLoudForRewardModeling)
    assert_same_scores(scores(tmp_path / "native"), expected)
    name = "model-00001-of-00001.safetensors"
    (published / "model.safetensors").rename(published / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(published / name), name)}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_scores(scores(convert(published, tmp_path / "again")), expected)


def test_a_full_disk_is_noticed_first(tmp_path, base_folder, monkeypatch):
    conversion = plan(str(save_published(tmp_path / "published", base_folder)))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match=r"its disk has 0\.000 GB left"):
        write(conversion, tmp_path / "native")
    assert not (tmp_path / "native").exists()


# ------------------------------------------------------------------------------------------------------ by Hub id


IN_ONE_PROCESS = f"""
import contextlib, io, json, pathlib, sys
from transformers import AutoTokenizer
from cloud_hf import CLoudForRewardModeling
from cloud_hf.cli import run
cache, native = sys.argv[1:]
found = []

def convert(*arguments):
    sys.argv, out, err = ["convert", *arguments], io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run("cloud_hf.commands.convert")
        except SystemExit as end:
            status = end.code
    weights = list(map(str, pathlib.Path(cache).rglob("*.safetensors")))
    found.append([status, out.getvalue() + err.getvalue(), weights])

convert("org/orphan", native)
convert("org/cloud", native, "--dry_run")
convert("org/cloud", native)
model = CLoudForRewardModeling.from_pretrained("org/cloud").eval()
tokenizer = AutoTokenizer.from_pretrained("org/cloud")
found.append([score.reward for score in model.score({PROMPTS!r}, {RESPONSES!r}, tokenizer, max_new_tokens=8)])
print(json.dumps(found))
"""


def test_by_hub_id(tmp_path, base_folder):
    """A base that is not on the Hub is named, a dry run downloads no weights, and a model converts and loads."""
    published = save_published(tmp_path / "published", base_folder, shards=3)
    config = json.loads((published / "config.json").read_text())
    orphan = shutil.copytree(published, tmp_path / "orphan")
    for folder, base in ((published, "org/base"), (orphan, "org/none")):
        (folder / "config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    cache, native = tmp_path / "cache", tmp_path / "native"
    with serve_hub({"org/cloud": published, "org/base": base_folder, "org/orphan": orphan}) as hub:
        result = run_with_hub(hub, cache, "-c", IN_ONE_PROCESS, cache, native)
        assert result.returncode == 0, result.stderr
        assert "model.safetensors" not in hub.sent  # the base's config alone was read
    missing, dry, converted, rewards = json.loads(result.stdout.splitlines()[-1])
    assert missing[0] == 2 and "'org/none'" in missing[1] and "--base_model_name_or_path" in missing[1]
    assert not missing[2] and not dry[0] and not dry[2] and "25 tensors" in dry[1]
    assert not converted[0] and "base_model: org/cloud" in (native / "README.md").read_text()
    assert AutoModel.from_pretrained(native).config.base_model_name_or_path == "org/base"
    options = {"base_model_name_or_path": str(base_folder)}
    model = CLoudForRewardModeling.from_pretrained(published, **options).eval()
    expected = model.score(PROMPTS, RESPONSES, make_tokenizer("llama3"), max_new_tokens=8)
    assert rewards == pytest.approx([score.reward for score in expected], abs=1e-5)


# ------------------------------------------------------------------------------------------------- a stranger's folder


def test_no_file_outside_the_folder_is_copied_or_read(tmp_path, base_folder):
    (tmp_path / "secret.json").write_text("{}")
    published = save_published(tmp_path / "published", base_folder, shards=2)
    (published / "tokenizer_secret.json").symlink_to("../secret.json")
    with pytest.raises(ValueError, match=r"tokenizer_secret.json is a link to .*secret.json"):
        plan(str(published))
    (published / "tokenizer_secret.json").unlink()
    path = published / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = next(iter(index["weight_map"].values()))
    (published / file).rename(tmp_path / file)
    (published / file).symlink_to(f"../{file}")
    with pytest.raises(ValueError, match="is a link to"):
        plan(str(published))
    path.write_text(path.read_text().replace(file, f"../{file}"))
    with pytest.raises(ValueError, match="which is not inside its folder"):
        plan(str(published))


def test_no_pickle_outside_the_folder_is_read(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder)
    torch.save(load_file(published / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    (published / "pytorch_model.bin").symlink_to("../pytorch_model.bin")
    with pytest.raises(ValueError, match="is a link to"):
        plan(str(published), from_pickle=True)
    (published / "pytorch_model.bin").unlink()
    index = {"metadata": {}, "weight_map": {"x": "../pytorch_model.bin"}}
    (published / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is not inside its folder"):
        plan(str(published), from_pickle=True)
