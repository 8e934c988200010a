"""Close critiques that run out of budget, so that every request returns a reward (vLLM's V1 model runner)."""

from dataclasses import dataclass

import torch
from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates


@dataclass(frozen=True)
class _Request:
    """Limits of one request, and its generated ids."""

    budget: int  # tokens, including the reward token and the end of turn
    min_tokens: int
    end_penalty: float
    output_ids: list[int]  # vLLM appends to this list
    reads: bool  # the prompt ends with the reward token, so the first row carries the reward


def check_params(params: SamplingParams):
    """Raise `ValueError`, naming the option, if a sampling option would lose the reward."""
    unusable = {
        "`stop`": bool(params.stop),
        "`stop_token_ids`": bool(params.stop_token_ids),
        "`prompt_logprobs` (in completions `echo` with `logprobs`)": params.prompt_logprobs is not None,
        "`repetition_detection`": params.repetition_detection is not None,
        "`thinking_token_budget`": params.thinking_token_budget is not None,
        "structured outputs": params.structured_outputs is not None,
        "`bad_words`": bool(params.bad_words),
        "`allowed_token_ids`": bool(params.allowed_token_ids),
        "`ignore_eos`": params.ignore_eos,
        "`logit_bias`": bool(params.logit_bias),
    }
    for option, is_used in unusable.items():
        if is_used:
            raise ValueError(
                f"A CLoud model does not support {option}: it would change or hide the tokens from which the reward is read."
            )


class CloseCritique(LogitsProcessor):
    """
    Logits processor that forces the reward token when there is room only for it and for the end of turn that carries the reward. Before
    `min_tokens`, it bans the reward token. It also gives the reward token the repetition penalty that would apply to the end of turn that
    the token replaces. A request for a single token gets the end of turn immediately; its logprob is below -1e8 and is not a reward.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams):
        check_params(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        config = vllm_config.model_config.hf_config
        self.reward_id, self.end_id = config.reward_token_id, config.critique_end_token_id
        self.max_model_len = vllm_config.model_config.max_model_len
        self.requests: dict[int, _Request] = {}

    def is_argmax_invariant(self) -> bool:
        return False  # this may force a token, so vLLM must not skip it for greedy requests

    def update_state(self, batch_update: BatchUpdate | None):
        process_dict_updates(self.requests, batch_update, self._read_request)

    def _read_request(self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]) -> _Request:
        prompt_ids = prompt_ids or []
        return _Request(
            # vLLM also ends a request at the end of the context, where the reward would be lost
            min(params.max_tokens or self.max_model_len, self.max_model_len - len(prompt_ids)),
            params.min_tokens,
            # vLLM penalises ids that occur in the prompt: the end of turn may occur there, the reward token never does
            params.repetition_penalty if self.end_id in prompt_ids else 1.0,
            output_ids,
            prompt_ids[-1:] == [self.reward_id],
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, request in self.requests.items():
            written = len(request.output_ids)
            if request.output_ids[-1] == self.reward_id if written else request.reads:
                continue  # this row's logit is the reward, which must not change
            # As vLLM and transformers do: divide positive logits, multiply negative ones
            if request.end_penalty != 1.0:
                logit = logits[row, self.reward_id]
                logits[row, self.reward_id] = torch.where(
                    logit > 0, logit / request.end_penalty, logit * request.end_penalty
                )
            # Two tokens are left: the reward token, and the end of turn with the reward
            if written == request.budget - 2:
                logits[row] = -torch.inf
                logits[row, self.reward_id] = 0.0
            elif written == request.budget - 1:
                logits[row] = -torch.inf
                logits[row, self.end_id] = 0.0
            elif written + 1 < request.min_tokens:  # vLLM would mask the end of turn that must follow the reward token
                logits[row, self.reward_id] = -torch.inf
        return logits
