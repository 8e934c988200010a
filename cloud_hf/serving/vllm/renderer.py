"""Turn vLLM requests into prompts from which a reward can be read, or reject them.

vLLM calls the renderer for every route. Chat messages are encoded by [`CritiqueFormat`], so any chat client gets the results that `score`
would return. Prompts that a client rendered itself are checked: if a prompt does not open the critique turn, the number returned at the end
is not the reward.
"""

import asyncio
import copy
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams, TokenizeParams

from ...critique_format import CritiqueFormat
from ..server.contracts import split_chat


logger = logging.getLogger(__name__)

# The reward token that closes a critique, and the end of turn that carries the reward
CLOSING_TOKENS = 2

# Variables of a chat template that CritiqueFormat sets
_OWN_VARIABLES = {"add_generation_prompt", "continue_final_message", "tokenize", "tools"}


class CLoudRenderer(HfRenderer):
    """vLLM's renderer, but with chats encoded by [`CritiqueFormat`]. Raises `ValueError` if the tokenizer is absent or not the model's."""

    def __init__(self, config: VllmConfig, tokenizer):
        if tokenizer is None:
            raise ValueError("A CLoud model cannot be served without its tokenizer: drop `skip_tokenizer_init`.")
        # A copy and a lock, because vLLM renders in threads, and tokenizers are not thread-safe
        self._format_lock = threading.Lock()
        hf_config: Any = config.model_config.hf_config
        self._format = CritiqueFormat.from_config(hf_config, copy.deepcopy(tokenizer))
        self._is_pooling = config.model_config.runner_type == "pooling"
        self._rereads = self._format.critique and self._format.rereads_critiques
        self._reward_id, self._end_id = hf_config.reward_token_id, self._format.end_token_id
        _hide(hf_config.reward_token_id, tokenizer)
        probes = [self._format.encode_prefix(*texts).input_ids for texts in (("x", "x"), ("No 1", "(2)"))]
        # The ids that open the critique turn are the trailing ids that two chats with different texts have in common
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(*(reversed(ids) for ids in probes), strict=False))
        self._opening = tuple(token_id for token_id, _ in alike)[::-1]
        self._bos_count = self._count_bos(probes[0], tokenizer.bos_token_id)
        super().__init__(config, tokenizer)

    def warmup(self, chat_params: ChatParams):
        """Do nothing: vLLM's warm-up chat ends with a user message, which cannot be judged, and the template is already compiled."""

    def get_eos_token_id(self) -> int:
        """Return the token that carries the reward and ends every request, which is not always the tokenizer's EOS."""
        return self._end_id

    # ------------------------------------------------------------------------------------------------------ messages

    def render_messages(self, messages: list[Any], params: ChatParams) -> Any:
        """Encode a conversation that ends with the response to judge. Raises `ValueError` if it cannot be judged."""
        self._check_chat_params(params)
        chat: Any = [self._as_sent(message) for message in messages]
        if tools := params.chat_template_kwargs.get("tools"):
            chat = {"messages": chat, "tools": tools}
        elif params.tool_choice is not None:  # set only if the request has tools
            raise VLLMValidationError(
                "This server hides the tools from the model, which changes the reward: start it without "
                "`--exclude-tools-when-tool-choice-none`."
            )
        row = split_chat(chat, "messages")
        with self._format_lock:
            prefix = self._format.encode_prefix(row.prompt, row.response)
        if prefix.response_changed:
            logger.warning("The chat template hides or changes text of a response to judge.")
        ids = list(prefix.input_ids)
        if not self._format.critique and not self._is_pooling:
            ids[-1] = self._reward_id
        conversation = [{"role": message["role"], "content": message.get("content")} for message in messages]
        return conversation, TokensPrompt(prompt_token_ids=ids)

    def _as_sent(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message without the nulls, iterators and renamed field that vLLM's request classes create."""
        sent = {
            name: list(value) if isinstance(value, Iterator) else value
            for name, value in message.items()
            if value is not None
        }
        # vLLM's chat route renames `reasoning_content`, the only name that most templates read
        may_be_renamed = "reasoning" in sent and "reasoning_content" not in sent
        if may_be_renamed and "reasoning_content" in str(self._format.tokenizer.chat_template):
            sent["reasoning_content"] = sent.pop("reasoning")
        return sent

    async def render_messages_async(self, messages: list[Any], params: ChatParams) -> Any:
        """See [`CLoudRenderer.render_messages`]."""
        return await asyncio.to_thread(self.render_messages, messages, params)

    def _check_chat_params(self, params: ChatParams):
        variables = params.chat_template_kwargs
        if self._rereads:
            raise VLLMValidationError(_REREADS)
        if params.chat_template is not None:
            raise VLLMValidationError(
                "A CLoud model judges with the chat template it was trained with: drop `chat_template`."
            )
        if variables.get("continue_final_message"):
            raise VLLMValidationError("A CLoud model judges the last message: drop `continue_final_message`.")
        # vLLM also passes variables that the template does not use
        used = {name for name in variables if name in str(self._format.tokenizer.chat_template)}
        if others := sorted(used - _OWN_VARIABLES):
            raise VLLMValidationError(
                f"A CLoud model's config determines the chat template's variables: drop {', '.join(others)}."
            )

    # ------------------------------------------------------------------------------------------------------- prompts

    def tokenize_prompt(self, prompt, params: TokenizeParams):
        """Tokenise a prompt. Raises `ValueError` if it would be truncated or its reward would be lost."""
        return self._checked(super().tokenize_prompt(prompt, params), params)

    async def tokenize_prompt_async(self, prompt, params: TokenizeParams):
        """See [`CLoudRenderer.tokenize_prompt`]."""
        return self._checked(await super().tokenize_prompt_async(prompt, params), params)

    def _checked(self, prompt, params: TokenizeParams):
        if params.truncate_prompt_tokens is not None:
            raise VLLMValidationError(
                "A truncated conversation has a different reward: drop `truncate_prompt_tokens`, and shorten the messages instead."
            )
        ids = list(prompt["prompt_token_ids"])
        # `CLoudVLLM` and the reward server, which send the second request, pass their prompts to the engine directly
        if self._rereads and ids[-1:] != [self._reward_id]:
            raise VLLMValidationError(_REREADS)
        if self._is_pooling:
            return {**prompt, "prompt_token_ids": self._up_to_reward(ids)}
        if params.max_output_tokens == 1 and ids[-1:] != [self._reward_id]:
            raise VLLMValidationError(
                f"`{params.max_output_tokens_param}` is 1, but the end of a critique and its reward take {CLOSING_TOKENS} tokens."
            )
        return prompt

    def _up_to_reward(self, ids: list[int]) -> list[int]:
        """Drop the tokens that a chat template writes after the last end of turn, where a classic model's reward is read."""
        if self._end_id not in ids:
            return ids
        length = len(ids) - ids[::-1].index(self._end_id)
        with self._format_lock:
            rest = self._format.decode(ids[length:])
        return ids if rest else ids[:length]

    def validate_token_ids(self, token_ids: Sequence[int], *, parameter: str | None = None):
        """Check a prompt's ids before they go to the engine, whichever route they come from."""
        super().validate_token_ids(token_ids, parameter=parameter)
        if error := self._error_of(tuple(token_ids)):
            raise VLLMValidationError(error)

    def _error_of(self, ids: tuple[int, ...]) -> str | None:
        """Return the reason why a prompt's reward would be wrong, or `None`."""
        if self._count_bos(ids, self.get_bos_token_id()) != self._bos_count:
            return (
                f"The prompt must begin with {self._bos_count} BOS tokens, as this model's conversations do (vLLM adds one to "
                "text prompts unless `add_special_tokens` is false)."
            )
        if self._is_pooling:
            if ids[-1] != self._end_id:
                return (
                    "The prompt must end with the response's end of turn, where the reward is read. " + _SEND_MESSAGES
                )
            return None
        size = len(self._opening)
        if ids[-1] == self._reward_id:
            has_turn = any(ids[start : start + size] == self._opening for start in range(len(ids) - size))
            if self._format.critique and not self._rereads and not has_turn:
                return "The prompt ends with the reward token, but contains no critique turn."
            return None
        if not self._format.critique:
            return "A classic reward model writes nothing: serve it with `--runner pooling`, or end the prompt with its reward token."
        if ids[-size:] != self._opening:
            return (
                "This prompt does not open the critique turn, so its last token would not carry a reward. "
                + _SEND_MESSAGES
            )
        if len(ids) + CLOSING_TOKENS > self.model_config.max_model_len:
            return (
                f"The prompt has {len(ids)} tokens, and closing a critique takes {CLOSING_TOKENS} more. Together, they exceed the context "
                f"of {self.model_config.max_model_len} tokens."
            )
        return None

    @staticmethod
    def _count_bos(ids: Sequence[int], bos_id: Any) -> int:
        return next((place for place, token_id in enumerate(ids) if token_id != bos_id), len(ids))


def _hide(token_id: int | None, tokenizer):
    """Mark the reward token, an unused token in the vocabulary, as special, so vLLM leaves it out of the critique's text."""
    token = tokenizer.added_tokens_decoder.get(token_id)
    if token is not None and not token.special:
        tokenizer.add_tokens([token.content], special_tokens=True)


_REREADS = "The authors' format reads rewards from the critique's text, in a second request: use `CLoudVLLM` or the reward server."
_SEND_MESSAGES = "Send the messages to the chat route instead, the last one being the response to judge."
