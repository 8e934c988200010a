"""Scoring with a vLLM engine in this process: critique and reward from one request."""

from collections.abc import Sequence
from contextlib import ExitStack

from transformers import AutoTokenizer
from vllm import LLM

from ..configuration_cloud import read_config
from ..critique_format import CritiqueFormat
from ..scoring import OnScore, Score, read_request, report_scores, with_rewards
from .vllm_model_folder import servable_model
from .vllm_requests import READING_TOKENS, VLLMRequests, seed_for


class CLoudVLLM:
    r"""
    [`Scorer`] over vLLM in this process.

    Args:
        model (`str`):
            Hub id or folder of a CLoud or classic model, or of a LoRA adapter.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
        **vllm_options:
            Passed to `vllm.LLM` (`dtype`, `max_model_len`, `tensor_parallel_size`, `enable_prefix_caching`, …). Rewards
            equal those of transformers with `dtype="float32"`; the default, `"auto"`, takes the checkpoint's.

    Raises:
        `ValueError`: If `model` is no CLoud model.

    Examples:

    ```python
    >>> from cloud_hf.serving import CLoudVLLM
    >>> scorer = CLoudVLLM("my-cloud-rm", max_model_len=4096)
    >>> [score] = scorer.score(["What is 2+2?"], ["4"], num_critiques=8, temperature=0.7)
    ```
    """

    def __init__(self, model: str, show_progress: bool = False, **vllm_options):
        self.show_progress = show_progress
        self._resources = ExitStack()
        folder = self._resources.enter_context(servable_model(str(model)))
        self.config = read_config(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.critique_format = CritiqueFormat.from_config(self.config, self.tokenizer)
        self._requests = VLLMRequests(self.critique_format, self.config)
        self.llm = LLM(folder, **vllm_options)

    @property
    def context_length(self) -> int:
        """Tokens of a sequence that the engine takes, less those it needs to close a critique."""
        return self._requests.context_length(self.llm.llm_engine.model_config.max_model_len)

    def score(
        self,
        prompts: list,
        responses: list[str],
        *,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        critiques: list | None = None,
        seed: int | None = None,
        on_score: OnScore | None = None,
    ) -> list[Score]:
        """See [`Scorer`]. Sampled critiques are other ones than those transformers would sample with the same seed."""
        request = read_request(
            self.critique_format,
            self.config,
            prompts,
            responses,
            num_critiques=num_critiques,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            critiques=critiques,
            context=self.llm.llm_engine.model_config.max_model_len,
            reserved_tokens=self._requests.reserved_tokens,
            reading_tokens=READING_TOKENS,
        )
        if request.given is not None:
            return report_scores(with_rewards(request.given_samples(), self._read(request.given)), on_score)
        vllm_config = self.llm.llm_engine.vllm_config
        seeds = [seed_for(seed, temperature, prefix, vllm_config) for prefix in request.prefixes]
        outputs = self.llm.generate(
            [self._requests.prompt_of(prefix) for prefix in request.prefixes],
            [self._requests.writing(num_critiques, temperature, max_new_tokens, own_seed) for own_seed in seeds],
            use_tqdm=self.show_progress,
        )
        samples = [self._requests.samples(output, max_new_tokens) for output in outputs]
        if self.critique_format.rereads_critiques:
            return report_scores(with_rewards(samples, self._read(request.reread(samples))), on_score)
        return report_scores([Score.of(row) for row in samples], on_score)

    def _read(self, rows: Sequence[Sequence]) -> list[float]:
        prompts = [self._requests.sequence_of(encoded) for row in rows for encoded in row]
        outputs = self.llm.generate(prompts, self._requests.reading(), use_tqdm=self.show_progress)
        return [self._requests.reward(output) for output in outputs]

    def close(self):
        """Stop the engine and free what it holds."""
        self.llm.llm_engine.engine_core.shutdown()
        self._resources.close()
