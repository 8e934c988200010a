import json
import shutil

import pytest
import torch
from datasets import Dataset
from models_for_tests import CRITIQUES, PROMPTS, RESPONSES, save_language_model, save_published
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from same_scores import assert_same_scores
from transformers import AutoConfig, AutoModel, AutoTokenizer

from cloud_hf import CLoudConfig, CLoudForRewardModeling, CLoudTrainer, CLoudTrainingConfig
from cloud_hf.configuration_cloud import read_config
from cloud_hf.loading import load_reward_model


@pytest.fixture
def published(tmp_path, base_folder):
    return save_published(tmp_path / "published", base_folder, seed=5)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, **changes):
    """Change tensors of a one-file checkpoint; `None` removes one."""
    weights = load_file(folder / "model.safetensors") | changes
    weights = {key: value for key, value in weights.items() if value is not None}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_weights_are_the_checkpoints_and_not_the_bases(tmp_path, tied, shards):
    base = save_language_model(tmp_path / "base", tie_word_embeddings=tied)
    one = save_published(tmp_path / "one", base, seed=7)
    many = save_published(tmp_path / "many", base, seed=7, shards=shards)
    golden = load_file(one / "model.safetensors")
    weights = CLoudForRewardModeling.from_pretrained(many).state_dict()
    for key, tensor in golden.items():
        assert torch.equal(weights[key.replace("reward_base_model.", "language_model.")], tensor), key
    assert len(weights) == len(golden) + tied


def test_the_architecture_can_be_given(published, base_folder, tmp_path):
    expected = CLoudForRewardModeling.from_pretrained(published).state_dict()
    edit_config(published, base_model_name_or_path="somebody/gated-base")
    text_config = AutoConfig.from_pretrained(base_folder)
    for given in ({"base_model_name_or_path": base_folder}, {"text_config": text_config}, {"text_config": text_config.to_dict()}, {"base_model_name_or_path": str(base_folder)}):  # fmt: skip
        model = CLoudForRewardModeling.from_pretrained(published, **given)
        assert all(torch.equal(expected[key], tensor) for key, tensor in model.state_dict().items())
        model, _ = load_reward_model(str(published), **given)
        assert model.config.format == "reference"
    with pytest.raises(
        ValueError, match=r"'somebody/gated-base'.*cannot be reached.*base_model_name_or_path=.*text_config="
    ):
        CLoudForRewardModeling.from_pretrained(published)


def test_a_quantised_copy_of_the_base_describes_whole_weights(published, base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    model = CLoudForRewardModeling.from_pretrained(published, base_model_name_or_path=tmp_path / "copy")
    assert "quantization_config" not in model.config.text_config.to_dict()


def test_options_of_the_config_are_taken(published):
    model = CLoudForRewardModeling.from_pretrained(published, reward_mean=1.5, critique_prompt="Judge: ")
    assert model.config.reward_mean == 1.5 and model.config.critique_prompt == "Judge: "


def test_training_goes_on_from_a_published_checkpoint(published, base_folder, tmp_path):
    """Also where the base it names is out of reach, and then from an adapter."""
    edit_config(published, base_model_name_or_path="somebody/gated-base")
    rows = {"prompt": PROMPTS, "chosen": ["yes"] * 4, "rejected": ["no"] * 4, "chosen_feedback": CRITIQUES, "rejected_feedback": CRITIQUES}  # fmt: skip
    options = {
        "max_steps": 2, "per_device_train_batch_size": 2, "bf16": False, "use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 1e-2,
        "model_init_kwargs": {"base_model_name_or_path": str(base_folder)}, "overlong_policy": "truncate_end", "max_length": 60,
    }  # fmt: skip
    for peft_config in (None, LoraConfig(r=2)):
        args = CLoudTrainingConfig(str(tmp_path / f"trained-{peft_config is None}"), **options)
        trainer = CLoudTrainer(
            str(published), args, train_dataset=Dataset.from_dict(rows), processing_class=AutoTokenizer.from_pretrained(published), peft_config=peft_config
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
        config = trainer.model.config
        assert config.format == "reference" and config.critique_end_token_id and config.reward_token_id
        model, tokenizer = load_reward_model(args.output_dir)
        trained = [score.reward for score in model.score(PROMPTS, RESPONSES, tokenizer, max_new_tokens=8)]
        start, _ = load_reward_model(str(published), base_model_name_or_path=str(base_folder))
        assert trained != [score.reward for score in start.score(PROMPTS, RESPONSES, tokenizer, max_new_tokens=8)]


@pytest.mark.parametrize("model_type", [None, "cloud", "FeedbackRewardModel"])
def test_every_spelling_of_the_config(published, model_type, caplog):
    edit_config(published, model_type=model_type, architectures=["FeedbackRewardModel"], hidden_size=32)
    model = CLoudForRewardModeling.from_pretrained(published)
    assert model.config.format == "reference" and model.config.critique
    assert "Unused keys of the published config: hidden_size" in caplog.text
    assert isinstance(read_config(str(published)), CLoudConfig)
    if model_type == "cloud":
        assert isinstance(AutoModel.from_pretrained(published), CLoudForRewardModeling)


def test_what_is_saved_after_loading_is_native(published, tmp_path):
    model = CLoudForRewardModeling.from_pretrained(published).eval()
    tokenizer = AutoTokenizer.from_pretrained(published)
    model.save_pretrained(tmp_path / "native")
    assert all(not key.startswith("reward_base") for key in load_file(tmp_path / "native/model.safetensors"))
    again = AutoModel.from_pretrained(tmp_path / "native").eval()
    scores = [m.score(PROMPTS, RESPONSES, tokenizer, max_new_tokens=8) for m in (model, again)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [None, torch.float32, torch.bfloat16])
def test_the_language_model_has_one_data_type(tmp_path, base_folder, dtype, asked):
    published = save_published(tmp_path / "published", base_folder, dtype=dtype)
    model = CLoudForRewardModeling.from_pretrained(published, **({} if asked is None else {"dtype": asked}))
    assert {weight.dtype for weight in model.language_model.parameters()} == {asked or dtype}
    assert {weight.dtype for weight in model.reward_head.parameters()} == {torch.float32}


def test_a_base_that_samples_changes_nothing(tmp_path):
    """The generation config of published bases samples; critiques are greedy all the same."""
    base = save_language_model(tmp_path / "base")
    published = save_published(tmp_path / "published", base)
    shutil.copy(base / "generation_config.json", published)
    tokenizer = AutoTokenizer.from_pretrained(published)
    model = CLoudForRewardModeling.from_pretrained(published).eval()
    first, second = (model.score(PROMPTS, RESPONSES, tokenizer, max_new_tokens=16) for _ in range(2))
    assert_same_scores(first, second)


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_missing_or_misshapen_head_is_named(published):
    edit_weights(published, **{"reward_head.out_proj.bias": None})
    with pytest.raises(ValueError, match=r"no complete reward head: it lacks reward_head\.out_proj\.bias"):
        CLoudForRewardModeling.from_pretrained(published)
    edit_weights(published, **{"reward_head.out_proj.bias": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"reward_head\.out_proj\.bias has the shape \(2,\) in the checkpoint"):
        CLoudForRewardModeling.from_pretrained(published)


def test_another_vocabulary_or_another_base_is_told_apart(published, tmp_path):
    vocabulary = CLoudForRewardModeling.from_pretrained(published).config.text_config.vocab_size
    for change, says in (
        (
            {"vocab_size": vocabulary + 5},
            f"a vocabulary of {vocabulary} tokens, where the architecture has {vocabulary + 5}",
        ),
        ({"num_hidden_layers": 3}, r"lacks 9 weight\(s\)"),
        ({"num_hidden_layers": 1}, r"has 9 weight\(s\) that the architecture lacks"),
        ({"intermediate_size": 128}, "another base model"),
    ):
        text_config = AutoConfig.from_pretrained(
            json.loads((published / "config.json").read_text())["base_model_name_or_path"]
        )
        for key, value in change.items():
            setattr(text_config, key, value)
        with pytest.raises(ValueError, match=says):
            CLoudForRewardModeling.from_pretrained(published, text_config=text_config)


def test_missing_and_damaged_shards_are_named(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder, shards=3)
    shard = published / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is not a complete safetensors file"):
        CLoudForRewardModeling.from_pretrained(published)
    shard.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of its 3 shards: model-00002-of-00003\.safetensors"):
        CLoudForRewardModeling.from_pretrained(published)


@pytest.mark.parametrize(
    "index", ["{nope", "[]", "{}", '{"metadata": {}, "weight_map": {"a": 5}}', '{"weight_map": {"a": "b"}}']
)
def test_a_damaged_index_is_named(tmp_path, base_folder, index):
    published = save_published(tmp_path / "published", base_folder, shards=2)
    (published / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not"):
        CLoudForRewardModeling.from_pretrained(published)


def test_two_sets_of_weights_are_told(tmp_path, base_folder):
    published = save_published(tmp_path / "published", base_folder, shards=2)
    save_published(published, base_folder)
    with pytest.raises(ValueError, match="has both"):
        CLoudForRewardModeling.from_pretrained(published)


def test_pickled_weights_are_refused(published):
    torch.save(load_file(published / "model.safetensors"), published / "pytorch_model.bin")
    (published / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pickled.*python -m cloud_hf\.convert .* DST --from_pickle"):
        CLoudForRewardModeling.from_pretrained(published)
    (published / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        CLoudForRewardModeling.from_pretrained(published)


def test_pickled_weights_of_a_native_folder_are_refused(published, tmp_path):
    CLoudForRewardModeling.from_pretrained(published).save_pretrained(tmp_path / "native")
    torch.save(load_file(tmp_path / "native" / "model.safetensors"), tmp_path / "native" / "pytorch_model.bin")
    (tmp_path / "native" / "model.safetensors").unlink()
    for model_class in (CLoudForRewardModeling, AutoModel):
        with pytest.raises(ValueError, match="are pickled"):
            model_class.from_pretrained(tmp_path / "native")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"feedback_method": "oracle"}, "`feedback_method` is 'oracle'; use teacher or vanilla"),
        ({"feedback_method": ["teacher"]}, "`feedback_method` .*use teacher or vanilla"),
        ({"torch_dtype": "floaty"}, "data type 'floaty', which torch does not support"),
        ({"base_model_name_or_path": 5}, "`base_model_name_or_path` is 5, which is not a name"),
        ({"feedback_method": None}, "neither that of a CLoud model.* nor that of a published checkpoint"),
        ({"feedback_method": None, "model_type": "cloud"}, "neither that of a CLoud model"),
        ({"base_model_name_or_path": None}, "has no `base_model_name_or_path`"),
    ],
)
def test_configs_of_neither_layout_say_what_they_lack(published, change, says):
    edit_config(published, **change)
    for load in (CLoudForRewardModeling.from_pretrained, lambda folder: load_reward_model(str(folder))):
        with pytest.raises(ValueError, match=says):
            load(published)
