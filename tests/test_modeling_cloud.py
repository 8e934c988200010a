import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models_for_tests import PROMPTS, RESPONSES, encode_batch, make_model, save_language_model
from safetensors.torch import load_file
from tokenizers_for_tests import make_tokenizer
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cloud_hf import CLoudConfig, CLoudForRewardModeling, CritiqueFormat, modeling_cloud


# ------------------------------------------------------------------------------------------------------ saving


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("critique", [True, False])
def test_save_and_load_is_bit_equal_through_every_auto_class(tmp_path, tied, critique):
    model = make_model(save_language_model(tmp_path / "base", tie_word_embeddings=tied), critique=critique)
    model.save_pretrained(tmp_path / "saved")
    make_tokenizer("llama3").save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.bin"))
    assert ("language_model.lm_head.weight" in load_file(tmp_path / "saved/model.safetensors")) != tied
    batch = encode_batch(model)
    for auto_class in (AutoModel, AutoModelForSequenceClassification, CLoudForRewardModeling):
        loaded = auto_class.from_pretrained(tmp_path / "saved").eval()
        assert isinstance(loaded, CLoudForRewardModeling) and loaded.config.critique == critique
        for (name, tensor), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(tensor, other), name
        # Weights that lie elsewhere in memory can give another last digit
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-6, rtol=0)
    assert isinstance(AutoConfig.from_pretrained(tmp_path / "saved"), CLoudConfig)


def test_a_process_without_the_package_gets_the_same_scores(tmp_path, model):
    tokenizer = make_tokenizer("llama3")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    [expected] = model.score(PROMPTS[:1], RESPONSES[:1], tokenizer, max_new_tokens=8)
    script = tmp_path / "elsewhere.py"
    script.write_text(
        "import importlib.util, json, sys\n"
        "assert importlib.util.find_spec('cloud_hf') is None, 'the package must not be there'\n"
        "from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / 'saved')!r}, trust_remote_code=True)\n"
        "for auto in (AutoModel, AutoModelForSequenceClassification):\n"
        f"    model = auto.from_pretrained({str(tmp_path / 'saved')!r}, trust_remote_code=True).eval()\n"
        f"    [score] = model.score({PROMPTS[:1]!r}, {RESPONSES[:1]!r}, tokenizer, max_new_tokens=8)\n"
        "    print(json.dumps([type(model).__name__, score.reward, score.critique]))\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
    )
    # -S leaves out site-packages' .pth files, through which an editable install would be found
    environment = {**os.environ, "PYTHONPATH": _site_packages(), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-S", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert len(results) == 2, done.stdout + done.stderr
    for name, reward, critique in results:
        assert name == "CLoudForRewardModeling"
        assert critique == expected.critique
        assert reward == pytest.approx(expected.reward, abs=1e-6)
    assert torch.equal(
        load_file(tmp_path / "again/model.safetensors")["reward_head.dense.weight"], model.reward_head.dense.weight
    )


def _site_packages() -> str:
    return str(Path(torch.__file__).parents[1])


def test_a_checkpoint_without_its_head_is_refused(tmp_path, base_folder, model):
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    AutoModelForCausalLM.from_pretrained(base_folder).save_pretrained(tmp_path / "headless")
    (tmp_path / "headless/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks 4 of the weights"):
        CLoudForRewardModeling.from_pretrained(tmp_path / "headless")


# --------------------------------------------------------------------------------------------------- from_base


def test_from_base_takes_the_weights_and_makes_a_head(base_folder):
    language_model = AutoModelForCausalLM.from_pretrained(base_folder)
    model = CLoudForRewardModeling.from_base(base_folder)
    for name, tensor in language_model.state_dict().items():
        assert torch.equal(tensor, model.language_model.state_dict()[name]), name
    assert model.reward_head.dense.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert not model.reward_head.dense.bias.any() and not model.reward_head.out_proj.bias.any()
    tokenizer = make_tokenizer("llama3")
    assert model.config.critique_end_token_id == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert model.config.reward_token_id == len(tokenizer) + 2


def test_from_base_finds_config_and_tokenizer_where_it_finds_the_weights(base_folder):
    by_path = CLoudForRewardModeling.from_base(base_folder)
    by_subfolder = CLoudForRewardModeling.from_base(base_folder.parent, subfolder=base_folder.name)
    assert by_subfolder.config.text_config.hidden_size == by_path.config.text_config.hidden_size
    assert torch.equal(by_subfolder.get_output_embeddings().weight, by_path.get_output_embeddings().weight)


def test_from_base_joins_the_end_tokens_of_both_of_the_bases_configs(tmp_path):
    base = save_language_model(tmp_path)
    eos, path = make_tokenizer("llama3").eos_token_id, base / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [7, eos]}))
    assert CLoudForRewardModeling.config_from_base(base).text_config.eos_token_id == [eos, 7]


def test_from_base_refuses_what_is_no_language_model(tmp_path, base_folder, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="already a CLoud model"):
        CLoudForRewardModeling.from_base(tmp_path)
    with pytest.raises(ValueError, match="create a reward model from it with"):
        CLoudForRewardModeling.from_pretrained(base_folder, config=CLoudConfig(text_config=model.config.text_config))


def test_a_model_with_unknown_logits_is_refused(base_folder, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def doubled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", doubled)
    with pytest.raises(ValueError, match="changes its logits after the LM head"):
        CLoudForRewardModeling.from_base(base_folder)


def test_a_base_is_checked_without_flash_attention(base_folder, monkeypatch):
    def kernel(module, *args, **kwargs):
        raise RuntimeError("FlashAttention only supports GPUs and 16-bit weights.")

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", kernel)
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", lambda self, name, *_, **__: name)
    model = CLoudForRewardModeling.from_base(base_folder, attn_implementation="flash_attention_2")
    assert model.trunk.config._attn_implementation == "flash_attention_2"


def test_a_template_with_a_date_is_pinned(tmp_path):
    model = make_model(save_language_model(tmp_path, family="llama3_2"))
    assert model.config.chat_template_kwargs == {"date_string": "26 Jul 2024", "strftime_now": "2024-07-26"}
    critique_format = CritiqueFormat.from_config(model.config, make_tokenizer("llama3_2"))
    assert "26 Jul 2024" in critique_format.tokenizer.decode(critique_format.encode_prefix("x", "y").input_ids)


def test_another_models_tokenizer_is_refused(model):
    with pytest.raises(ValueError, match="Load the tokenizer that was saved with the model"):
        model.score(["x"], ["y"], make_tokenizer("qwen3"))


# ----------------------------------------------------------------------------------------------------- forward


ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 5.0, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16},
    "phi3": {},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "gpt_neox": {},
    "gpt2": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_any_causal_lm_gives_its_own_hidden_states_and_lm_loss(tmp_path, model_type):
    folder = save_language_model(tmp_path, model_type, **ARCHITECTURES[model_type])
    model = make_model(folder)
    batch = encode_batch(model)
    output = model(**batch)
    logits = model.language_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert output.lm_loss.item() == pytest.approx(expected.item(), abs=2e-5)
    for row in range(len(PROMPTS)):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        hidden = model.trunk(input_ids=ids[None]).last_hidden_state[0, -1]
        assert output.logits[row].item() == pytest.approx(model.reward_head(hidden).item(), abs=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("critique", [True, False])
def test_padding_side_and_batch_do_not_matter(base_folder, attention, critique):
    model = make_model(base_folder, critique=critique, attn_implementation=attention)
    right, left = encode_batch(model, side="right"), encode_batch(model, side="left")
    a, b = model(**right), model(**left)
    torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.lm_loss, b.lm_loss, atol=1e-5, rtol=0)
    for row in range(len(PROMPTS)):
        ids = right["input_ids"][row][right["attention_mask"][row].bool()]
        torch.testing.assert_close(model(input_ids=ids[None]).logits[0], a.logits[row], atol=1e-5, rtol=0)


def test_pad_id_does_not_matter(model):
    batch = encode_batch(model)
    expected = model(**batch)
    batch["input_ids"][batch["attention_mask"] == 0] = model.config.critique_end_token_id
    torch.testing.assert_close(model(**batch).logits, expected.logits, atol=1e-6, rtol=0)


def test_reward_positions_are_honoured(model):
    batch = encode_batch(model)
    ends = batch["attention_mask"].sum(-1) - 1
    expected = model(**batch).logits
    torch.testing.assert_close(model(**batch, reward_positions=ends).logits, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(model(**batch, reward_positions=ends - 1).logits, expected, atol=1e-4)


def test_loss_in_chunks_equals_loss_in_one(model, monkeypatch):
    batch = encode_batch(model)
    whole = model(**batch).lm_loss
    whole.backward()
    gradients = [parameter.grad.clone() for parameter in model.language_model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(modeling_cloud, "_VOCABULARY_PER_CHUNK", 100)
    chunked = model(**batch).lm_loss
    chunked.backward()
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)
    for gradient, parameter in zip(gradients, model.language_model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-5)


def test_vocabulary_logits_exist_only_at_labelled_positions(model):
    batch = encode_batch(model)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    model(**batch)
    assert seen == [((batch["labels"][:, 1:] != -100).sum(), 32)]


def test_rows_without_labels_add_no_loss(model):
    batch = encode_batch(model)
    batch["labels"][:] = -100
    output = model(**batch)
    assert output.lm_loss.item() == 0.0
    (output.logits.sum() + output.lm_loss).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_reward_scale(model):
    batch = encode_batch(model)
    raw = model(**batch).logits
    model.config.reward_mean, model.config.reward_std = 0.5, 2.0
    torch.testing.assert_close(model(**batch).logits, (raw - 0.5) / 2)


def test_bf16_keeps_the_head_in_fp32(base_folder):
    model = make_model(base_folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.reward_head.parameters()} == {torch.float32}
    output = model(**encode_batch(model))
    assert output.logits.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**encode_batch(model)).logits.dtype == torch.float32
    assert model.to(torch.bfloat16)(**encode_batch(model)).logits.dtype == torch.float32


def test_gradient_checkpointing_changes_nothing(model):
    batch = encode_batch(model)
    model.train()

    def gradients():
        model.zero_grad()
        output = model(**batch)
        (output.logits.sum() + output.lm_loss).backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_resize_and_generate(model):
    model.resize_token_embeddings(600)
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 600
    assert model.config.text_config.vocab_size == 600
    ids = torch.tensor([[5, 6, 7]])
    generated = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(
        generated, model.language_model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    )
    assert generated.shape == (1, 7)


def test_options_for_quantisation_of_earlier_versions(tmp_path, model):
    """RewardBench passes them."""
    model.save_pretrained(tmp_path)
    loaded = CLoudForRewardModeling.from_pretrained(tmp_path, load_in_8bit=False, load_in_4bit=False)
    assert not getattr(loaded, "is_quantized", False)
    with pytest.raises(ValueError, match="inside `quantization_config`, not in addition to it"):
        CLoudForRewardModeling.from_pretrained(tmp_path, load_in_8bit=True, quantization_config={"load_in_8bit": True})
