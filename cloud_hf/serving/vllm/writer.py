"""Write the critiques of a model in training with a vLLM engine, which reloads its weights."""

import tempfile
from typing import Any

from transformers import PreTrainedTokenizerBase
from vllm.platforms import current_platform

from ...critique_format import EncodedPrefix
from ...scores import Sample, Sampling
from .scorer import CLoudVLLM


class VLLMWriter:
    """
    A vLLM engine next to a trainer, for a model that changes in every step.

    Args:
        model ([`CLoudForRewardModeling`]):
            The model in training.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        **vllm_options:
            Passed to `vllm.LLM`.
    """

    def __init__(self, model: Any, processing_class: PreTrainedTokenizerBase, **vllm_options):
        # Weights pass through a folder: vLLM reads every architecture's checkpoints, but not its modules' names
        self._folder = tempfile.TemporaryDirectory(prefix="cloud-vllm-")
        model.save_pretrained(self._folder.name)
        processing_class.save_pretrained(self._folder.name)
        if (
            current_platform.is_cpu()
        ):  # where seeds need whole prefills, and the default size of the KV cache is enough
            vllm_options = {**vllm_options, "enable_chunked_prefill": False}
            vllm_options.pop("gpu_memory_utilization", None)
        self._scorer = CLoudVLLM(self._folder.name, **vllm_options)

    def write(self, model: Any, prefixes: list[EncodedPrefix], sampling: Sampling) -> list[list[Sample]]:
        """Write the critiques of each prefix with the current weights of `model`."""
        model.save_pretrained(self._folder.name)
        self._scorer.llm.collective_rpc("reload_weights", kwargs={"weights_path": self._folder.name})
        self._scorer.llm.reset_prefix_cache()  # it holds states of the former weights
        return self._scorer.write(prefixes, sampling)

    def close(self):
        """Stop the engine and remove the weights."""
        self._scorer.close()
        self._folder.cleanup()
