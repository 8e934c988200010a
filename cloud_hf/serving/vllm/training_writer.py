"""Write critiques with a model in training: a vLLM engine reloads the model's current weights, then writes the critiques."""

import tempfile
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from vllm.platforms import current_platform

from ...critique_format import EncodedPrefix
from ...scores import Sample, Sampling
from .scorer import CLoudVLLM


class VLLMWriter:
    """
    vLLM engine that runs alongside a trainer, for a [`CLoudForRewardModeling`] whose weights change at every step. `vllm_options` are
    passed to `vllm.LLM`.
    """

    def __init__(self, model: Any, processing_class: PreTrainedTokenizerBase, **vllm_options):
        # Pass the weights through a folder: for every architecture, vLLM can map the names in a checkpoint, but not the names of the
        # model's modules
        self._folder = tempfile.TemporaryDirectory(prefix="cloud-vllm-")
        model.save_pretrained(self._folder.name)
        processing_class.save_pretrained(self._folder.name)
        # On a CPU, vLLM fails if the prefill of a seeded request is split (see `seed_for`), and the default KV cache is large enough
        if current_platform.is_cpu():
            vllm_options = {**vllm_options, "enable_chunked_prefill": False}
            vllm_options.pop("gpu_memory_utilization", None)
        self._scorer = CLoudVLLM(self._folder.name, **vllm_options)

    def write(self, model: Any, prefixes: list[EncodedPrefix], sampling: Sampling) -> list[list[Sample]]:
        """
        Write critiques for each prefix with the current weights of `model`. A critique of `max_new_tokens` tokens counts as truncated,
        because vLLM closes it without sampling an end token.
        """
        model.save_pretrained(self._folder.name)
        self._scorer.llm.collective_rpc("reload_weights", kwargs={"weights_path": self._folder.name})
        if not self._scorer.llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM could not reset its prefix cache, which contains states from the previous weights."
            )
        longest = sampling.max_new_tokens
        return [
            [replace(one, finish_reason="length") if len(one.critique_ids) == longest else one for one in samples]
            for samples in self._scorer.write(prefixes, sampling)
        ]

    def close(self):
        """Stop the engine and delete the temporary copy of the weights."""
        try:
            self._scorer.close()
        finally:
            self._folder.cleanup()
