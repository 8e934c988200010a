"""Closes critiques that run out of budget, so that every request has a reward (vLLM's V2 model runner, the default on GPUs)."""

import torch
from vllm import SamplingParams  # pyright: ignore[reportAttributeAccessIssue]
from vllm.config import VllmConfig
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from .processor import check_params


class CloseCritique(LogitsProcessor):
    """The V1 runner's `CloseCritique`, computed for all rows at once on the device."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams):
        check_params(sampling_params)

    def __init__(self, vllm_config: VllmConfig, req_states):
        config = vllm_config.model_config.hf_config
        self.reward_id, self.end_id = config.reward_token_id, config.critique_end_token_id
        self.max_model_len = vllm_config.model_config.max_model_len
        self.prompt_len = req_states.prompt_len
        # Per request slot: max_tokens and min_tokens. Written on the host, copied to the device once per step
        self.limits_cpu = torch.zeros(req_states.max_num_reqs, 2, dtype=torch.int64)
        self.penalty_cpu = torch.ones(req_states.max_num_reqs)
        self.limits = self.limits_cpu.to(req_states.device)
        self.penalty = self.penalty_cpu.to(req_states.device)
        self.is_staged = False

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self.limits_cpu[req_idx, 0] = sampling_params.max_tokens or self.max_model_len
        self.limits_cpu[req_idx, 1] = sampling_params.min_tokens
        # The prompt's ids need no check: every judged conversation contains an end of turn, so the penalty always applies
        self.penalty_cpu[req_idx] = sampling_params.repetition_penalty
        self.is_staged = True
        return True  # it modifies the logits of every request

    def apply_staged_writes(self):
        if self.is_staged:
            self.limits.copy_(self.limits_cpu)
            self.penalty.copy_(self.penalty_cpu)
            self.is_staged = False

    def apply(self, logits: torch.Tensor, ctx) -> torch.Tensor:
        # No Python branches on values: reading a value would make the host wait for the device in every step
        slot = ctx.expanded_idx_mapping.long()
        prompt_len = self.prompt_len.gpu[slot].long()
        written = ctx.pos.long() + 1 - prompt_len  # `pos` is the position of the last token that was fed
        budget = torch.minimum(self.limits[slot, 0], self.max_model_len - prompt_len)
        end = logits[:, self.reward_id]
        end = torch.where(end > 0, end / self.penalty[slot], end * self.penalty[slot])
        # In reward rows, only the end of turn's logit is finite, and nothing below touches it
        is_reward_row = ctx.input_ids == self.reward_id
        is_forced = (written == budget - 2) & ~is_reward_row
        is_lost = (written == budget - 1) & ~is_reward_row
        is_early = (written + 1 < self.limits[slot, 1]) & ~is_forced | is_lost
        logits.masked_fill_((is_forced | is_lost)[:, None], -torch.inf)
        logits[:, self.end_id].masked_fill_(is_lost, 0.0)
        logits[:, self.reward_id] = torch.where(
            is_forced, torch.zeros_like(end), end.masked_fill(is_early, -torch.inf)
        )
        return logits
