"""Score with a vLLM engine in this process. Except in the reference format, one request returns both critique and reward."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from tqdm.auto import tqdm
from vllm import LLM, LLMEngine, RequestOutput, SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.inputs import TokensInput

from ...critique_format import EncodedCritique, EncodedPrefix
from ...generation import Sample
from ...interrupts import processes_without_interrupts
from ...scores import OnScore, Sampling, Score
from .requests import VLLMRequests


class CLoudVLLM:
    r"""
    [`Scorer`] that runs a vLLM engine in this process.

    Args:
        model (`str`):
            Hub id or folder of a CLoud or classic model, or of a LoRA adapter.
        show_progress (`bool`, *optional*, defaults to `False`):
            Show a progress bar.
        **vllm_options:
            Passed to `vllm.LLM` (`dtype`, `max_model_len`, `tensor_parallel_size`, `enable_prefix_caching`, …). With
            `dtype="float32"`, rewards match those of transformers; the default, `"auto"`, is the checkpoint's data
            type (if its weights are quantised: vLLM's choice). On a CPU, `kv_cache_memory_bytes` defaults to the memory for 16
            sequences of `max_model_len` tokens, or to half of the free memory if that is less.

    Raises:
        `ValueError`: If `model` is not a CLoud or classic model, or if a vLLM option is unknown, cannot be used or names
            files other than the model's.

    Examples:

    ```python
    >>> scorer = CLoudVLLM("my-cloud-rm", max_model_len=4096)
    >>> [score] = scorer.score(["What is 2+2?"], ["4"], num_critiques=8, temperature=0.7)
    ```
    """

    def __init__(self, model: str, show_progress: bool = False, **vllm_options):
        self.show_progress = show_progress
        self._resources = ExitStack()
        self._requests, folder, options = VLLMRequests.load(str(model), vllm_options, self._resources)
        self.config, self.critique_format = self._requests.config, self._requests.critique_format
        self.tokenizer = self.critique_format.tokenizer
        with processes_without_interrupts():
            self.llm = LLM(folder, **options)

    @property
    def context_length(self) -> int:
        """Maximum sequence length in tokens, minus the tokens that the engine needs to close a critique."""
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
        read_every: int | None = None,
        stop_when_stable: float | None = None,
        on_score: OnScore | None = None,
    ) -> list[Score]:
        """
        Judge responses. See [`Scorer`]. Even with the same seed, samples differ from those of transformers. `stop_when_stable` is not
        supported, and neither is `read_every` with given critiques.
        """
        sampling = Sampling(num_critiques, temperature, max_new_tokens, seed, read_every, stop_when_stable)
        max_model_len = self.llm.llm_engine.model_config.max_model_len
        request = self._requests.read(prompts, responses, sampling, critiques, max_model_len)
        scores: dict[int, Score] = {}
        with _Run(self.llm.llm_engine) as run, tqdm(total=len(responses), disable=not self.show_progress) as bar:

            def end(row: int, samples: list[Sample]):
                scores[row] = request.score(row, samples)
                bar.update()
                if on_score is not None:
                    on_score(row, scores[row])

            def written(row: int, output: RequestOutput):
                samples = self._requests.samples(output, sampling)
                if self.critique_format.rereads_critiques:
                    self._read(run, samples, request.reread(row, samples), partial(end, row))
                else:
                    end(row, samples)

            if request.given is not None:
                for row, samples in enumerate(request.given_samples()):
                    self._read(run, samples, request.given[row], partial(end, row))
            else:
                self._write(run, request.prefixes, sampling, written)
            run.finish()
        return [scores[row] for row in range(len(responses))]

    def write(self, prefixes: list[EncodedPrefix], sampling: Sampling) -> list[list[Sample]]:
        """Write critiques of encoded prompts and responses, with their rewards."""
        samples: dict[int, list[Sample]] = {}

        def written(row: int, output: RequestOutput):
            samples[row] = self._requests.samples(output, sampling)

        with _Run(self.llm.llm_engine) as run:
            self._write(run, prefixes, sampling, written)
            run.finish()
        return [samples[row] for row in range(len(prefixes))]

    def _write(self, run: "_Run", prefixes: list[EncodedPrefix], sampling: Sampling, written: Callable):
        """Start the requests that write critiques; `written` is called with the row and the output of each."""
        vllm_config = self.llm.llm_engine.vllm_config
        # Computed before the first request starts: an error must leave nothing behind in the engine
        params = [self._requests.writing(sampling, prefix, vllm_config) for prefix in prefixes]
        for row, prefix in enumerate(prefixes):
            run.add(self._requests.prompt_of(prefix), params[row], partial(written, row))

    def _read(self, run: "_Run", samples: list[Sample], sequences: list[EncodedCritique], end: Callable):
        """Start reading the rewards of a row's samples; `end` is called with the samples and their rewards."""
        rewards: dict[int, float] = {}

        def keep(index: int, output: RequestOutput):
            rewards[index] = self._requests.reward(output)
            if len(rewards) == len(samples):
                end([replace(sample, reward=rewards[place]) for place, sample in enumerate(samples)])

        for index, encoded in enumerate(sequences):
            run.add(self._requests.sequence_of(encoded), self._requests.reading(), partial(keep, index))

    def close(self):
        """Stop the engine and free its resources."""
        self.llm.llm_engine.engine_core.shutdown()
        self._resources.close()


class _Run:
    """
    Requests of one call, each with a callback for its output. `LLM.generate` would return all outputs only at the end, which would delay
    `on_score`. Leaving the `with` block aborts unfinished requests; otherwise, the engine would return their outputs to the next call.
    """

    def __init__(self, engine: LLMEngine):
        self._engine = engine
        self._ids: list[str] = []
        self._takers: dict[str, Callable[[RequestOutput], None]] = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._takers:
            self._engine.abort_request(self._ids, internal=True)

    def add(self, prompt: TokensInput, params: SamplingParams, take: Callable[[RequestOutput], None]):
        name = str(len(self._ids))
        self._takers[name] = take
        self._ids.append(self._engine.add_request(name, prompt, params))

    def finish(self):
        """Wait for all requests, including those that callbacks start."""
        while self._takers:
            for output in self._engine.step():
                assert isinstance(output, RequestOutput)  # pooling models return other types
                self._takers.pop(output.request_id)(output)
