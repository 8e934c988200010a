"""The spelling the authors' published checkpoints were trained and scored with, quirks included.

A critique follows its prompt in two ways: in training one space joins them ("question: Good."), in scoring none does
("question:Good."). And in scoring the reward is not read from the ids the model wrote but from their text: decoded, its
spaces cleaned up, stripped, and tokenised again. Rewards of published checkpoints come out as published only if all that
is kept; a model trained in our own format never sees it.

Untrusted text is text here too: what it spells never becomes a control token. (A control token that the model itself
wrote stays one when its critique is read again.)
"""

from dataclasses import replace
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from .configuration_cloud import CLoudConfig
from .conversation import Conversation
from .critique_format import _CUT, _SLOT, CritiqueFormat, EncodedCritique, EncodedPrefix


# What decoding once did to spaces before punctuation; transformers 5 leaves them
_SPACES_CLEANED_UP = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve", " 're": "'re",
}  # fmt: skip


class ReferenceFormat(CritiqueFormat):
    r"""
    The [`CritiqueFormat`] of published checkpoints (`CLoudConfig(format="reference")`), made for Llama-3 chat templates.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A fast tokenizer with a chat template that ends user and assistant turns alike.
        critique (`bool`, *optional*, defaults to `True`):
            `False` for the classic reward model.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn, used as it is: it ends with the space that joins a critique in training.
        critique_role, keep_thinking, chat_template_kwargs:
            See [`CritiqueFormat`]; the first two cannot be changed.

    Raises:
        `ValueError`: As [`CritiqueFormat`], and if user and assistant turns end differently.
    """

    name = "reference"
    repetition_penalty = 1.01
    allows_empty_prompts = True
    rereads_critiques = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *args, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        prefix = self.encode_prefix("x", "x")
        turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        more_ids = self.encode_prefix(turns, "x").input_ids
        if more_ids.count(self.end_token_id) != prefix.input_ids.count(self.end_token_id) + 2:
            raise ValueError(
                "The chat template does not end user and assistant turns with the same token, as `format` 'reference' "
                "needs."
            )
        # A template that trims turns takes the critique prompt's last space, too; in training it then comes back
        turn = self._apply_template(Conversation([{"role": "user", "content": "x "}]))
        self._trims = f"x {self.end_token}" not in turn
        # Not the tokenizer's attribute: in transformers 4 the clean-up was on unless a tokenizer said no
        self._cleans_up = tokenizer.init_kwargs.get("clean_up_tokenization_spaces", True)

    def complete(self, prefix: EncodedPrefix, critique: str | list[int] | None = None) -> EncodedCritique:
        """
        Append a critique for scoring: glued to its prompt, and the whole tokenised anew. See [`CritiqueFormat.complete`].
        """
        if not self.critique or critique is None:
            return super().complete(prefix, critique)
        if isinstance(critique, str):
            return self._tokenize(prefix, *self._text_and_reference(critique.strip()))
        ids = self._checked_ids(critique)
        text = self.decode(ids)
        if self._control_ids(self._encode(text)) == self._control_ids(ids):
            return self._tokenize(prefix, text, text)
        # Ordinary tokens spell a control token: only those the model wrote as such stay
        texts, references = [], []
        for is_control, group in groupby(ids, key=self._control_id_set.__contains__):
            piece = self._decode_all(list(group))
            text, reference = (piece, piece) if is_control else self._text_and_reference(piece)
            texts.append(text)
            references.append(reference)
        return self._tokenize(prefix, "".join(texts).strip(), "".join(references).strip())

    def complete_for_training(self, prefix: EncodedPrefix, critique: str | list[int] | None = None) -> EncodedCritique:
        """
        Append a critique for training, as given: one space joins it to its prompt. Ids are trained on as their text, in
        which nothing is a control token. `prefix_length` counts up to and with the token that opens the critique turn: the
        reference trains on all of that turn, its fixed prompt included.
        """
        if not self.critique or critique is None:
            return super().complete(prefix, critique)
        text = critique if isinstance(critique, str) else self.decode(self._checked_ids(critique))
        if self._trims:
            text = (self.critique_prompt[len(self.critique_prompt.rstrip()) :] + text).rstrip()
        encoded = self._tokenize(prefix, *self._text_and_reference(text))
        ids = encoded.input_ids
        ends = [index for index, token_id in enumerate(ids) if token_id == self.end_token_id]
        opening = next(index for index in range(ends[-2] + 1, len(ids)) if ids[index] in self._control_id_set)
        return EncodedCritique(ids, opening + 1, prefix.response_changed)

    def truncate_end(self, encoded: EncodedCritique, max_length: int) -> EncodedCritique:
        """
        Cut a sequence as the reference does in training: on the right, and the last token that fits becomes the
        tokenizer's end of sequence, also where nothing had to be cut.

        Args:
            encoded ([`EncodedCritique`]):
                A sequence.
            max_length (`int`):
                Tokens that fit.

        Returns:
            [`EncodedCritique`]: The same object where it is shorter than `max_length`.
        """
        if len(encoded.input_ids) < max_length:
            return encoded
        ids = (*encoded.input_ids[: max_length - 1], self.tokenizer.eos_token_id)
        return EncodedCritique(ids, min(encoded.prefix_length, max_length), encoded.response_changed)

    def decode(self, critique_ids: list[int]) -> str:
        """The text of generated critique ids, special tokens included, spaces before punctuation removed, stripped."""
        return self._decode_all(critique_ids).strip()

    def stop_ids(self, config: CLoudConfig) -> list[int]:
        """The tokenizer's end of sequence, at which the reference cuts a critique."""
        eos = self.tokenizer.eos_token_id
        return [] if eos in (None, self.end_token_id) else [eos]

    def banned_ids(self, config: CLoudConfig) -> list[int]:
        """None: the reference writes what its model writes."""
        return []

    def _render_turns(self, conversation):
        if not self.critique:
            return super()._render_turns(conversation)
        turn = {"role": "user", "content": self.critique_prompt}
        text = self._apply_template(replace(conversation, messages=[*conversation.messages, turn]))
        return text[: text.rindex(self.end_token)]

    def _decode_all(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for spaced, clean in _SPACES_CLEANED_UP.items() if self._cleans_up else ():
            text = text.replace(spaced, clean)
        # The two characters this package uses as marks, should a model ever write one
        return text.replace(_CUT, "").replace(_SLOT, "")

    def _text_and_reference(self, text: str) -> tuple[str, str]:
        """The text so cut that it holds no control token, and what stands for it where control tokens are counted."""
        plain = self._plain(self._check_text(text, "critique"))
        return plain, text if plain == text else "x"

    def _tokenize(self, prefix: EncodedPrefix, text: str, reference: str) -> EncodedCritique:
        ids = self._encode_text(
            f"{prefix.text}{text}{self.end_token}", f"{prefix.reference}{reference}{self.end_token}"
        )
        # The critique's first characters may have merged with the prompt's last: then it starts at that token
        start = next(
            (index for index, pair in enumerate(zip(ids, prefix.input_ids, strict=False)) if pair[0] != pair[1]),
            min(len(prefix.input_ids), len(ids) - 1),
        )
        return EncodedCritique(tuple(ids), start, prefix.response_changed)
