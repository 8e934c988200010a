"""Close critiques that run out of budget, so that every request returns a reward (vLLM's V2 model runner, the default on GPUs)."""

import torch
from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from .logits_processor import check_params


class CloseCritique(LogitsProcessor):
    """Like the V1 runner's `CloseCritique`, but computed on the device for all rows at once."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams):
        check_params(sampling_params)

    def __init__(self, vllm_config: VllmConfig, req_states):
        config = vllm_config.model_config.hf_config
        self.reward_id, self.end_id = config.reward_token_id, config.critique_end_token_id
        self.max_model_len = vllm_config.model_config.max_model_len
        self.prompt_len = req_states.prompt_len
        # One value per request slot, written on the host and copied without waiting for the device, as in vLLM's own processors
        self.max_tokens, self.min_tokens = (UvaBackedTensor(req_states.max_num_reqs, torch.int32) for _ in range(2))
        self.penalty = UvaBackedTensor(req_states.max_num_reqs, torch.float32)
        self.is_staged = False

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self.max_tokens.np[req_idx] = sampling_params.max_tokens or self.max_model_len
        self.min_tokens.np[req_idx] = sampling_params.min_tokens
        # No need to search the prompt for an end of turn: every judged conversation contains one, so the penalty always applies
        self.penalty.np[req_idx] = sampling_params.repetition_penalty
        self.is_staged = True
        return True  # it modifies the logits of every request

    def apply_staged_writes(self):
        if self.is_staged:
            for values in (self.max_tokens, self.min_tokens, self.penalty):
                values.copy_to_uva()
            self.is_staged = False

    def apply(self, logits: torch.Tensor, ctx) -> torch.Tensor:
        # Do not branch on values in Python, because reading one would make the host wait for the device at every step
        slot = ctx.expanded_idx_mapping.long()
        prompt_len = self.prompt_len.gpu[slot].long()
        written = ctx.pos.long() + 1 - prompt_len  # `pos` is the position of the last input token
        budget = torch.minimum(self.max_tokens.gpu[slot].long(), self.max_model_len - prompt_len)
        end, penalty = logits[:, self.reward_id], self.penalty.gpu[slot]
        end = torch.where(end > 0, end / penalty, end * penalty)
        # In reward rows, only the end-of-turn token's logit is finite, and nothing below touches it
        is_reward_row = ctx.input_ids == self.reward_id
        is_forced = (written == budget - 2) & ~is_reward_row
        is_lost = (written == budget - 1) & ~is_reward_row
        is_early = (written + 1 < self.min_tokens.gpu[slot]) & ~is_forced | is_lost
        logits.masked_fill_((is_forced | is_lost)[:, None], -torch.inf)
        logits[:, self.end_id].masked_fill_(is_lost, 0.0)
        logits[:, self.reward_id] = torch.where(
            is_forced, torch.zeros_like(end), end.masked_fill(is_early, -torch.inf)
        )
        return logits
