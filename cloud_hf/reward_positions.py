"""Find where to read rewards in sequences that another tool has encoded, and reject sequences whose reward would differ.

TRL, RewardBench and pipelines load a reward model by its path, render chats with its tokenizer, and call the model. What they add (a second
BOS, tokens after the end of turn, padding) must not change the reward, and a sequence that they have changed in any other way must not be
scored. A sequence is therefore accepted only if its ids match [`CritiqueFormat`]'s own encoding of the same conversation.
"""

from typing import TYPE_CHECKING, cast

from transformers import PreTrainedTokenizerBase

from .chat_parsing import RenderedChats
from .configuration_cloud import CLoudConfig
from .critique_format import CritiqueFormat


if TYPE_CHECKING:
    import torch


_CALL = "call `model.score(prompts, responses, tokenizer)`"
_RENDER = (
    "Render complete conversations with the model's tokenizer, `tokenizer.apply_chat_template(messages, tokenize=False)`, and "
    f"do not truncate them; or {_CALL}."
)
_NO_CRITIQUE = (
    "this model writes a critique before it scores, but the sequence contains none: "
    f"{_CALL}, or pass `cloud_hf.rl.trl.cloud_reward` to TRL and the task 'critique-reward' to `pipeline`."
)


class RewardFinder:
    """
    Finds reward positions in sequences that other tools encoded, for one model and its tokenizer. Raises `ValueError` if the tokenizer does
    not belong to the model, or if conversations cannot be recovered from their ids.
    """

    def __init__(self, config: CLoudConfig, tokenizer: PreTrainedTokenizerBase):
        if config.keep_thinking:
            raise ValueError(
                "This model was created with `keep_thinking`, but the chat template drops thinking before the model gets the sequence: "
                f"{_CALL} instead."
            )
        self.tokenizer = tokenizer
        self.critique_format = CritiqueFormat.from_config(config, tokenizer)
        self.critique_role, self.critique_prompt = config.critique_role, self.critique_format.critique_prompt.strip()
        self.chats = RenderedChats(tokenizer)
        others = cast(list[int | None], [tokenizer.eos_token_id, tokenizer.pad_token_id])
        # The tokens that the chat template writes after the last text; some templates write several control tokens
        tail = tokenizer(self.critique_format.tail, add_special_tokens=False)["input_ids"]
        self._trailing = {*cast(list[int], tail), *others}

    def find(self, input_ids: "torch.Tensor", attention_mask: "torch.Tensor | None") -> tuple[list[int], list[int]]:
        """
        Return two lists: the position of each sequence's first token (not counting an extra BOS), and the position of its reward.
        `input_ids` and `attention_mask` have the shape `(B, T)`; without a mask, no token is padding.

        Raises:
            `ValueError`: If a sequence's reward would differ from the one that a [`Scorer`] gives; the message names the row.
        """
        starts, ends = [], []
        for row, ids in enumerate(input_ids.tolist()):
            real = [1] * len(ids) if attention_mask is None else attention_mask[row].tolist()
            places = [place for place, is_real in enumerate(real) if is_real]
            try:
                start, end = self._find_in([ids[place] for place in places])
            except ValueError as error:
                raise ValueError(f"Sequence {row}: {error}") from error
            starts.append(places[start])
            ends.append(places[end])
        return starts, ends

    def _find_in(self, ids: list[int]) -> tuple[int, int]:
        end = self._end_of_turn(ids)
        messages = self._parse(str(self.tokenizer.decode(ids[: end + 1], clean_up_tokenization_spaces=False)))
        # Decoding may add a space before a message's text
        stripped = [{**message, "content": message["content"].strip()} for message in messages]
        is_same = self._is_critique if self.critique_format.critique else self._is_response
        # A tokenizer may add a BOS even if the template has already written one or does not use one
        for start in (0, 1) if ids[0] == self.tokenizer.bos_token_id else (0,):
            if any(is_same(form, ids[start : end + 1]) for form in (messages, stripped)):
                return start, end
        raise ValueError(
            "its tokens differ from this model's own encoding of the same conversation, so its reward would differ. Possible "
            "causes are control tokens in the text, a thinking block or tool calls in a response, truncation, and different chat "
            f"template variables; {_CALL} instead."
        )

    def _end_of_turn(self, ids: list[int]) -> int:
        """Return the position of the last end-of-turn token. Templates may write a newline or an EOS after it."""
        body = len(ids)
        while body and (ids[body - 1] in self._trailing or not str(self.tokenizer.decode(ids[body - 1])).strip()):
            body -= 1
        end = self.critique_format.end_token_id
        if end in ids[body:]:
            return len(ids) - 1 - ids[::-1].index(end)
        if self.critique_format.critique:
            raise ValueError(_NO_CRITIQUE)
        raise ValueError(
            f"it does not end with the end-of-turn token ({self.critique_format.end_token!r}), at which the reward is read. "
            f"{_RENDER}"
        )

    def _parse(self, text: str) -> list[dict]:
        try:
            messages = self.chats.parse(text)
        except ValueError as error:
            raise ValueError(
                f"it is not a conversation in the form that the model's tokenizer renders. {error} {_RENDER}"
            ) from error
        if not self.critique_format.critique:
            if messages[-1]["role"] != "assistant":
                raise ValueError(
                    f"it ends with a {messages[-1]['role']!r} turn, but the model judges an assistant's response."
                )
            return messages
        if messages[-1] == {"role": "assistant", "content": ""}:
            messages.pop()  # some templates end a user's turn with the token that opens the assistant's turn
        *_, before, last = [{}, {}, *messages]
        is_turn = last.get("role") == self.critique_role and last["content"].strip().startswith(self.critique_prompt)
        if not is_turn or before.get("role") != "assistant":
            raise ValueError(_NO_CRITIQUE)
        return messages

    def _is_response(self, messages: list[dict], ids: list[int]) -> bool:
        *prompt, response = messages
        return ids == list(self.critique_format.encode_prefix(prompt, response["content"]).input_ids)

    def _is_critique(self, messages: list[dict], ids: list[int]) -> bool:
        *prompt, response, turn = messages
        prefix = self.critique_format.encode_prefix(prompt, response["content"])
        if self.critique_format.rereads_critiques:
            critique = turn["content"].strip()[len(self.critique_prompt) :]
            return ids == list(self.critique_format.complete(prefix, critique).input_ids)
        length = len(prefix.input_ids)
        return ids[:length] == list(prefix.input_ids) and self.critique_format.end_token_id not in ids[length:-1]
