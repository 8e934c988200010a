"""The part of an unfinished critique's text that no later token can change."""

import re

from ...critique_format import CritiqueFormat


class StablePrefix:
    """
    Decodes the first ids of a critique to a text that the finished critique's text will start with.

    Args:
        critique_format ([`CritiqueFormat`]):
            The model's format.
        vocab_size (`int`):
            Number of ids that the model can generate, including those without a token.

    Examples:

    ```python
    >>> stable_prefix = StablePrefix(critique_format, config.text_config.vocab_size)
    >>> stable_prefix(ids[:3]), stable_prefix(ids)
    ('The answer', 'The answer is right')
    ```
    """

    def __init__(self, critique_format: CritiqueFormat, vocab_size: int):
        self._format = critique_format
        tokenizer = critique_format.tokenizer
        tokens = dict.fromkeys(range(vocab_size), "") | {id: token for token, id in tokenizer.get_vocab().items()}
        # Byte tokens decode together, once their run has ended; ids without a text do not end it
        byte_ids = {id for id, token in tokens.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
        silent_ids = {id for id, token in tokens.items() if not token} | set(tokenizer.all_special_ids)
        self._unstable_ids = frozenset(byte_ids | silent_ids) if byte_ids else frozenset()

    def __call__(self, critique_ids: list[int]) -> str:
        """Decode the first ids of a critique, without text that may still change."""
        length = len(critique_ids)
        while length and critique_ids[length - 1] in self._unstable_ids:
            length -= 1
        text = self._format.decode(critique_ids[:length]).rstrip("\ufffd")  # possibly the first bytes of a character
        if self._format.rereads_critiques:
            # Spaces before punctuation are cleaned up: the last word may still lose the space before it
            text = text[: max(text.rfind(" "), 0)]
        return text.rstrip()
