"""What is asked of vLLM for a critique and its reward, and how the answer is read; used in-process and by the server."""

from dataclasses import dataclass

from vllm import CompletionOutput, RequestOutput, SamplingParams
from vllm.config import VllmConfig
from vllm.inputs import TokensInput, tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from ...configuration_cloud import CLoudConfig
from ...critique_format import CritiqueFormat, EncodedCritique, EncodedPrefix
from ...generation import Sample, row_seed


# The reward token that closes a critique, and the end of turn that carries the reward
CLOSING_TOKENS = 2
# vLLM refuses a prompt that leaves no place for a next token, from which a given sequence's reward is read
READING_TOKENS = 1


def seed_for(seed: int | None, temperature: float, prefix: EncodedPrefix, vllm_config: VllmConfig) -> int | None:
    """
    The seed of a request: its own, by the text that is judged, so that neither order nor batch matters; `None` if greedy.

    Raises:
        `ValueError`: Where the engine would die of it.
    """
    if seed is None or temperature == 0:
        return None
    if current_platform.is_cpu() and vllm_config.scheduler_config.enable_chunked_prefill:
        raise ValueError(
            "On a CPU, vLLM 0.32 stops for good when the prefill of a request with a `seed` is cut into chunks. Start it "
            "with `enable_chunked_prefill=False` (in scripts `--vllm_options '{\"enable_chunked_prefill\": false}'`), or leave "
            "`seed` out."
        )
    return row_seed(seed, 0, prefix.input_ids) % 2**62


@dataclass(frozen=True)
class VLLMRequests:
    """
    Prompts, sampling parameters and answers of one model.

    Args:
        critique_format ([`CritiqueFormat`]):
            The model's format.
        config ([`CLoudConfig`]):
            Its config.

    Raises:
        `ValueError`: If the tokenizer and the config of a reference-format model name different stop tokens.
    """

    critique_format: CritiqueFormat
    config: CLoudConfig

    def __post_init__(self):
        # The model inside vLLM knows the config's stop tokens alone
        if self.critique_format.stop_ids(self.config) != CritiqueFormat.stop_ids(self.critique_format, self.config):
            raise ValueError(
                f"The tokenizer's end of sequence is token {self.critique_format.tokenizer.eos_token_id}, but the language "
                f"model's config says {self.config.text_config.eos_token_id}: vLLM would end critiques elsewhere than the "
                "reference. Set `text_config.eos_token_id` in the model's config to the tokenizer's."
            )

    @property
    def reserved_tokens(self) -> int:
        """Tokens that must fit behind a critique of full length."""
        # Where the reward is read anew, one more token shows whether the critique would have ended
        return CLOSING_TOKENS + self.critique_format.rereads_critiques

    def context_length(self, max_model_len: int) -> int:
        """Tokens of a sequence that the engine takes, less those it needs to close a critique."""
        return max_model_len - self.reserved_tokens + 1

    def writing(
        self, num_critiques: int, temperature: float, max_new_tokens: int, seed: int | None, **options
    ) -> SamplingParams:
        """Sampling parameters of a request that writes critiques of at most `max_new_tokens`."""
        return SamplingParams(
            n=num_critiques,
            temperature=temperature,
            max_tokens=max_new_tokens + self.reserved_tokens,
            repetition_penalty=self.critique_format.repetition_penalty,
            seed=seed,
            logprobs=0,
            stop_token_ids=[self.critique_format.end_token_id],
            detokenize=False,
            **{"output_kind": RequestOutputKind.FINAL_ONLY, **options},
        )

    def prompt_of(self, prefix: EncodedPrefix) -> TokensInput:
        """The prompt after which a critique is written."""
        return tokens_input(list(prefix.input_ids))

    def samples(self, output: RequestOutput, max_new_tokens: int) -> list[Sample]:
        """The critiques of a finished request, with their rewards."""
        return [self._sample(completion, max_new_tokens) for completion in output.outputs]

    def _sample(self, completion: CompletionOutput, max_new_tokens: int) -> Sample:
        ids = list(completion.token_ids)
        reward_id, end_id = self.config.reward_token_id, self.critique_format.end_token_id
        length = ids.index(reward_id)
        is_cut = length > max_new_tokens
        if length == max_new_tokens and not self.critique_format.rereads_critiques:
            # Closed there in any case: the model ended it itself if nothing else was more likely
            is_cut = completion.logprobs[length][reward_id].rank != 1
        critique_ids = tuple(ids[: min(length, max_new_tokens)])
        text = self.critique_format.decode(list(critique_ids))
        return Sample(completion.logprobs[-1][end_id].logprob, text, critique_ids, "length" if is_cut else "stop")

    def reading(self) -> SamplingParams:
        """Sampling parameters of a request that reads the reward of a given sequence."""
        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=0,
            stop_token_ids=[self.critique_format.end_token_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def sequence_of(self, encoded: EncodedCritique) -> TokensInput:
        """The prompt whose reward is read: its last end of turn becomes the reward token."""
        return tokens_input([*encoded.input_ids[:-1], self.config.reward_token_id])

    def reward(self, output: RequestOutput) -> float:
        """The reward of a finished request of [`VLLMRequests.reading`]."""
        return output.outputs[0].logprobs[0][self.critique_format.end_token_id].logprob
