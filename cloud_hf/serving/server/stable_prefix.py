"""The text of a critique that is still being written, as far as no later token can change it."""

import re

from ...critique_format import CritiqueFormat


class SettledText:
    """
    Decodes the beginning of a critique so that what it returns is always the beginning of the whole critique's text.

    Args:
        critique_format ([`CritiqueFormat`]):
            The model's format.
        vocab_size (`int`):
            Number of ids that the model can write, those without a token included.

    Examples:

    ```python
    >>> settled_text = SettledText(critique_format, config.text_config.vocab_size)
    >>> settled_text(ids[:3]), settled_text(ids)
    ('The answer', 'The answer is right')
    ```
    """

    def __init__(self, critique_format: CritiqueFormat, vocab_size: int):
        self._format = critique_format
        tokenizer = critique_format.tokenizer
        tokens = dict.fromkeys(range(vocab_size), "") | {id: token for token, id in tokenizer.get_vocab().items()}
        # Tokens of one byte become text when their run ends, and ids without a text do not end it
        byte_ids = {id for id, token in tokens.items() if re.fullmatch(r"<0x[0-9A-F]{2}>", token)}
        silent_ids = {id for id, token in tokens.items() if not token} | set(tokenizer.all_special_ids)
        self._unsettled_ids = frozenset(byte_ids | silent_ids) if byte_ids else frozenset()

    def __call__(self, critique_ids: list[int]) -> str:
        """The settled text of the first ids of a critique."""
        length = len(critique_ids)
        while length and critique_ids[length - 1] in self._unsettled_ids:
            length -= 1
        text = self._format.decode(critique_ids[:length]).rstrip("\ufffd")  # perhaps the first bytes of a character
        if self._format.rereads_critiques:
            # Spaces before punctuation are cleaned up: the last word may still lose the one before it
            text = text[: max(text.rfind(" "), 0)]
        return text.rstrip()
