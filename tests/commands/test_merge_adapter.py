"""LoRA through all stages, script by script, and the adapter merged at the end."""

import json
import shutil

import pytest
import torch
from models_for_tests import PROMPTS, RESPONSES
from scripts_for_tests import CPU, run
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from cloud_hf.commands import merge_adapter
from cloud_hf.loading import load_reward_model


ROW = {
    "prompt": "What is 1 + 30?", "chosen": "It is 31.", "rejected": "It is 1.", "chosen_feedback": "Right, and clear.",
    "rejected_feedback": "Wrong sum.",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(base_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora")
    (out / "pairs.jsonl").write_text("\n".join(json.dumps({**ROW, "id": str(i)}) for i in range(8)))
    lora = ["--use_peft", "--lora_r", 4, "--learning_rate", 1e-2]
    data = ["--dataset_name", out / "pairs.jsonl", "--max_length", 300, "--max_steps", 3, *CPU]
    run("train_critique_sft", "--model_name_or_path", base_folder, "--output_dir", out / "sft", *data, *lora)
    run(
        "build_self_critiques", "--model_name_or_path", out / "sft", "--dataset_name", out / "pairs.jsonl", "--output_dir",
        out / "self", "--max_new_tokens", 6, "--longer_tries", 0, "--truncated", "keep",
    )  # fmt: skip
    data[1] = out / "self"
    said = run("train_cloud", "--model_name_or_path", out / "sft", "--output_dir", out / "cloud", *data)
    assert "training continues from it, together with the reward head" in said
    return out


def merge(**options):
    merge_adapter.main(merge_adapter.MergeArguments(**{key: str(value) for key, value in options.items()}))


def test_the_merged_checkpoint_is_a_plain_one(runs, base_folder):
    run("merge_adapter", "--model_name_or_path", runs / "cloud", "--output_dir", runs / "merged")
    assert not list((runs / "merged").glob("adapter*")) and (runs / "merged/chat_template.jinja").exists()
    card = (runs / "merged/README.md").read_text()
    assert "The LoRA adapter `cloud` was merged into `" in card and "AutoModel.from_pretrained('merged'" in card
    for folder in (runs / "sft", runs / "cloud", runs / "merged"):
        own_files = [path for path in folder.iterdir() if path.suffix in (".json", ".md")]
        assert not [path for path in own_files if str(base_folder) in path.read_text()]
    adapter, tokenizer = load_reward_model(str(runs / "cloud"))
    merged = AutoModel.from_pretrained(runs / "merged")
    expected = adapter.score(PROMPTS, RESPONSES, tokenizer, max_new_tokens=8)
    scores = merged.score(PROMPTS, RESPONSES, AutoTokenizer.from_pretrained(runs / "merged"), max_new_tokens=8)
    assert [score.critique_ids for score in scores] == [score.critique_ids for score in expected]
    assert [s.reward for s in scores] == pytest.approx([s.reward for s in expected], abs=1e-5)
    base = AutoModelForCausalLM.from_pretrained(base_folder).state_dict()
    changed = {key for key, weight in merged.language_model.state_dict().items() if not torch.equal(weight, base[key])}
    assert changed == {key for key in base if "q_proj" in key or "v_proj" in key}
    assert merged.reward_head.dense.weight.dtype == torch.float32


def test_an_adapter_of_stage_1_becomes_a_language_model(runs, base_folder, tmp_path):
    moved = shutil.copytree(base_folder, tmp_path / "moved")
    merge(model_name_or_path=runs / "sft", output_dir=tmp_path / "sft", base_model_name_or_path=moved)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.state_dict()[name], base.state_dict()[name])
    assert AutoTokenizer.from_pretrained(tmp_path / "sft").chat_template


def test_merging_what_cannot_be_merged_is_refused(runs, base_folder, tmp_path):
    with pytest.raises(ValueError, match=r"is not an adapter .*, so there is nothing to merge"):
        merge(model_name_or_path=base_folder, output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match=r"already exists; give a new folder"):
        merge(model_name_or_path=runs / "cloud", output_dir=tmp_path)
    lost = shutil.copytree(runs / "cloud", tmp_path / "lost")
    config = json.loads((lost / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (lost / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lost adapts .*gone, which (cannot be read|does not contain a model)"):
        merge(model_name_or_path=lost, output_dir=tmp_path / "out")
    merge(model_name_or_path=lost, output_dir=tmp_path / "out", base_model_name_or_path=base_folder)
    assert (tmp_path / "out/config.json").exists()
