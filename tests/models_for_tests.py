"""Tiny random models, saved as folders, for every test that needs one."""

from pathlib import Path

import torch
from tokenizers_for_tests import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from cloud_hf import CLoudForRewardModeling


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
