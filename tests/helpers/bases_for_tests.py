"""Bases as people train them, in small: architecture, tokenizer and template, and what is special about them."""

from typing import Any, NamedTuple


class Base(NamedTuple):
    """`spare` is the number of ids of the vocabulary that the tokenizer leaves free."""

    model_type: str
    family: str
    options: dict[str, Any] = {}
    spare: int = 3
    critique_role: str = "user"


# Architectures without grouped queries: vLLM would believe the config, and write beyond its cache
_ALL_HEADS = {"num_key_value_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LLAMA_3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
_GEMMA = {"head_dim": 32, "sliding_window": 32}
_GRANITE = {
    "logits_scaling": 4.0,
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
}

BASES = {
    "Llama 3": Base("llama", "llama3"),
    "Llama 3.1": Base("llama", "llama3_1", {"rope_parameters": _LLAMA_3_ROPE}),
    "Llama 3.2": Base("llama", "llama3_2", {"tie_word_embeddings": True, "head_dim": 32}),
    "SmolLM2": Base("llama", "chatml", {"tie_word_embeddings": True}, spare=0),
    "SmolLM3": Base("smollm3", "chatml", {"no_rope_layers": [1, 0], "tie_word_embeddings": True}),
    "DeepSeek R1 Distill": Base("llama", "deepseek_r1", critique_role="assistant"),
    "Qwen 2.5": Base("qwen2", "qwen2_5", {"tie_word_embeddings": True}),
    "Qwen 3": Base("qwen3", "qwen3", {"head_dim": 32}),
    "Qwen 3 MoE": Base("qwen3_moe", "qwen3", {"head_dim": 32, **_EXPERTS}),
    "Gemma": Base("gemma", "gemma2", {"head_dim": 32}),
    "Gemma 2": Base("gemma2", "gemma2", {**_GEMMA, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 32}),
    "Gemma 3": Base("gemma3_text", "gemma3", _GEMMA),
    "Gemma 4": Base("gemma4_text", "gemma3", _GEMMA),
    "Mistral": Base("mistral", "mistral_v3", {"sliding_window": 32}),
    "Ministral 3": Base("ministral3", "mistral_v3", {"head_dim": 32}),
    "Mixtral": Base("mixtral", "mistral_v3", {"num_local_experts": 4}),
    "Phi 2": Base("phi", "chatml", _ALL_HEADS),
    "Phi 3": Base("phi3", "phi3", {"sliding_window": 32}),
    "Phi 4 mini": Base("phi3", "phi3", {"tie_word_embeddings": True, "partial_rotary_factor": 0.75}, spare=0),
    "OLMo 2": Base("olmo2", "chatml"),
    "OLMo 3": Base("olmo3", "chatml", {"sliding_window": 32}),
    "Granite": Base("granite", "chatml", {"tie_word_embeddings": True, **_GRANITE}),
    "Cohere": Base("cohere", "chatml", {"logit_scale": 0.25}),
    "Cohere 2": Base("cohere2", "chatml", {"logit_scale": 0.25, **_GEMMA}),
    "gpt-oss": Base("gpt_oss", "llama3", {**_GEMMA, "num_local_experts": 4}),
    "GPT-2": Base("gpt2", "chatml", _ALL_HEADS, spare=0),
    "GPT-2, untied": Base("gpt2", "chatml", {**_ALL_HEADS, "tie_word_embeddings": False}, spare=0),
    "GPT-NeoX": Base("gpt_neox", "chatml", _ALL_HEADS),
}
# A full vocabulary, tied and with position embeddings, and scaled logits
QUICK = ("SmolLM2", "GPT-2", "Granite")
