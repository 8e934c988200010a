"""Tiny random models, saved as folders, for every test that needs one."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers_for_tests import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cloud_hf import CLoudForRewardModeling, CritiqueFormat


PROMPTS = ["What is 12 + 30?", "Name a river in Egypt, please, and say how long it is.", "x", "Write a poem."]
RESPONSES = ["It is 42.", "The Nile is a river.", "", "No.\n\nI would rather not write a poem today, sorry!"]
CRITIQUES = ["Right.", "The answer is vague: which length?", "Empty.", "It refuses for no reason."]


def tiny_text_config(model_type: str = "llama", family: str = "llama3", **kwargs):
    """Config of a two-layer model over the vocabulary of a test tokenizer, with three spare ids."""
    tokenizer = make_tokenizer(family)
    options = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
        # Wide weights, so that greedy choices differ by more than float noise
        "initializer_range": 0.3,
        **kwargs,
    }
    return AutoConfig.for_model(model_type, **options)


def save_language_model(
    folder: Path, model_type: str = "llama", family: str = "llama3", seed: int = 0, **kwargs
) -> Path:
    """A random causal language model with its tokenizer. Its generation config samples, as published bases' do."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_text_config(model_type, family, **kwargs))
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    model.save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return folder


def make_model(folder: Path, seed: int = 0, **kwargs) -> CLoudForRewardModeling:
    """A reward model whose head is wide enough that rewards differ."""
    torch.manual_seed(seed)
    model = CLoudForRewardModeling.from_base(folder, **kwargs).eval()
    torch.nn.init.normal_(model.reward_head.out_proj.weight, std=0.5)
    return model


def save_published(
    folder: Path, base: Path, seed: int = 0, critique: bool = True, shards: int = 1, dtype=None
) -> Path:
    """A random reward model in the authors' layout. Its language model's weights are not those of `base`."""
    torch.manual_seed(seed)
    language_model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    size = language_model.config.hidden_size
    weights = {f"reward_base_model.{key}": value for key, value in language_model.state_dict().items()}
    if language_model.config.tie_word_embeddings:
        del weights["reward_base_model.lm_head.weight"]
    weights["reward_head.dense.weight"] = torch.randn(size, size) * 0.2
    weights["reward_head.dense.bias"] = torch.randn(size) * 0.2
    weights["reward_head.out_proj.weight"] = torch.randn(1, size) * 0.5
    weights["reward_head.out_proj.bias"] = torch.randn(1)
    dtype = dtype or torch.float32
    weights = {key: value.to(dtype).contiguous() for key, value in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["CLoudRewardModel"],
        "base_model_name_or_path": str(base),
        "feedback_method": "teacher" if critique else "vanilla",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.40.2",
    }
    (folder / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[shard::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    size = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def encode_batch(model, family="llama3", side="right"):
    """Padded ids, mask and labels of the four test rows."""
    critique_format = CritiqueFormat.from_config(model.config, make_tokenizer(family))
    rows = [
        critique_format.encode(prompt, response, critique if model.config.critique else None)
        for prompt, response, critique in zip(PROMPTS, RESPONSES, CRITIQUES, strict=True)
    ]
    width = max(len(row.input_ids) for row in rows)

    def pad(values, filler):
        pads = [filler] * (width - len(values))
        return [*pads, *values] if side == "left" else [*values, *pads]

    return {
        "input_ids": torch.tensor([pad(row.input_ids, 7) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row.input_ids), 0) for row in rows]),
        "labels": torch.tensor([pad(row.labels, -100) for row in rows]),
    }
