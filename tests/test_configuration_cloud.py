import json

import pytest
from transformers import AutoConfig

from cloud_hf import CLoudConfig
from cloud_hf.configuration_cloud import read_config


TEXT_CONFIG = {"model_type": "llama", "hidden_size": 64, "tie_word_embeddings": True}


def test_round_trip_keeps_everything(tmp_path):
    config = CLoudConfig(
        text_config=TEXT_CONFIG,
        critique_prompt="Judge: ",
        keep_thinking=True,
        chat_template_kwargs={"a": 1},
        reward_mean=2.0,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, CLoudConfig)
    assert loaded.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}
    assert loaded.critique_prompt == "Judge:"
    assert loaded.text_config.hidden_size == loaded.get_text_config().hidden_size == 64
    assert loaded.num_labels == 1 and loaded.tie_word_embeddings


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"critique_promt": "x"}, "unknown key.* critique_promt"),
        ({"critique_role": "system"}, "`critique_role` is 'system'"),
        ({"critique_prompt": "  "}, "`critique_prompt` is empty"),
        ({"reward_std": 0.0}, "`reward_std` is 0.0"),
        ({"num_labels": 2}, "a reward is one number"),
        ({"text_config": {"hidden_size": 64}}, "no `model_type`"),
    ],
)
def test_unusable_values_are_refused_by_name(kwargs, says):
    with pytest.raises(ValueError, match=says):
        CLoudConfig(**{"text_config": TEXT_CONFIG, **kwargs})


def test_attributes_of_the_language_model_are_found_where_tools_read_them(tmp_path):
    config = CLoudConfig(text_config={**TEXT_CONFIG, "pad_token_id": 3, "eos_token_id": [1, 2]})
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "hidden_size", "vocab_size", "num_hidden_layers"):
        assert getattr(config, name) == getattr(config.text_config, name)
    assert config.max_position_embeddings == config.get_text_config().max_position_embeddings
    assert not hasattr(config, "no_such_attribute")
    config.pad_token_id = None  # as some tools write it, who then find it unset
    config.save_pretrained(tmp_path)
    assert CLoudConfig.from_pretrained(tmp_path).pad_token_id == 3


def test_a_reward_is_not_squashed():
    """By pipelines (`problem_type`) or sentence-transformers, which apply a sigmoid to a single number."""
    config = CLoudConfig(text_config=TEXT_CONFIG)
    assert config.problem_type == "regression"
    assert config.sentence_transformers == {"activation_fn": "torch.nn.modules.linear.Identity"}


def test_no_path_of_the_base_is_written(tmp_path):
    for name, kept in ((str(tmp_path), False), ("/of/another/machine", False), ("org/model", True)):
        config = CLoudConfig(text_config={**TEXT_CONFIG, "_name_or_path": name})
        config.save_pretrained(tmp_path / "saved")
        assert (name in (tmp_path / "saved/config.json").read_text()) == kept


@pytest.mark.parametrize("wrong", [5, -1.5, "x", True, [], ["a"], {}, 10**30])
@pytest.mark.parametrize(
    "field",
    [
        *(
            "text_config",
            "critique",
            "critique_prompt",
            "critique_role",
            "format",
            "keep_thinking",
            "chat_template_kwargs",
        ),
        *(
            "critique_end_token_id",
            "reward_token_id",
            "reward_mean",
            "reward_std",
            "base_model_name_or_path",
            "num_labels",
        ),
        *("dtype", "auto_map", "id2label", "quantization_config"),
        *("text_config.model_type", "text_config.hidden_size", "text_config.vocab_size", "text_config.dtype"),
        *("text_config.layer_types", "text_config.rope_parameters", "text_config.eos_token_id"),
    ],
)
def test_a_wrong_type_in_a_file_is_a_sentence_that_names_the_field(tmp_path, field, wrong):
    config = CLoudConfig(text_config={"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}).to_dict()
    part = config["text_config"] if field.startswith("text_config.") else config
    key = field.removeprefix("text_config.")
    part[key] = wrong
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        read_config(tmp_path)  # some of the values are of the right type
    except ValueError as error:
        assert key.replace("_", " ") in str(error).replace("_", " ") or "identifier" in str(error)


@pytest.mark.parametrize("config", [5, None, [], "x", {"model_type": []}, {"model_type": None}])
def test_a_file_that_is_no_config_is_a_sentence(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError):
        read_config(tmp_path)
