import pytest
from transformers import AutoConfig

from cloud_hf import CLoudConfig


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
