"""Keep untrusted text from being encoded as control tokens.

Text that spells an added token, even if only after normalisation, is cut into pieces that are encoded separately.
"""

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

from transformers import PreTrainedTokenizerBase


# Private-use characters that mark positions while a conversation is rendered. `CUT` splits untrusted text so that no added-token
# string survives in it; `SLOT` is the placeholder for a critique. Where input contains one of these characters, the character is
# replaced with `_ESCAPE` and a digit.
CUT = "\uf8f0"
SLOT = "\uf8f1"
_ESCAPE = "\uf8f2"
_ESCAPES = {CUT: f"{_ESCAPE}0", SLOT: f"{_ESCAPE}1", _ESCAPE: f"{_ESCAPE}2"}
ESCAPED = str.maketrans(_ESCAPES)


class ControlTokens:
    """
    The added tokens of a tokenizer, and methods that cut text so that its encoding contains none of them. Added tokens that are white
    space or single characters count as ordinary text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A fast tokenizer.
        further (`Sequence[str]`, *optional*):
            Strings to treat like added tokens.

    Attributes:
        token_ids (`frozenset[int]`): Ids of the added tokens, except the unknown token.
        pattern (`re.Pattern`): Matches the strings of all added tokens, and those in `further`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, further: Sequence[str] = ()):
        added = {
            token_id: token.content
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if len(token.content.replace("▁", " ").strip()) > 1
        }
        # Exclude the unknown token, because ordinary characters may be encoded as it
        self.token_ids = frozenset(added) - {cast(int, tokenizer.unk_token_id)}
        strings = {*added.values(), *further}
        self.pattern = _any_of(strings)
        self._normalizer = cast(Any, tokenizer).backend_tokenizer.normalizer
        # The tokenizer searches normalised text for the normalised spellings of these tokens
        normalized = [token.content for token in tokenizer.added_tokens_decoder.values() if token.normalized]
        spellings = {
            spelling
            for content in (normalized if self._normalizer else ())
            for spelling in (content, self._normalizer.normalize_str(content), self._normalized(content))
            if content in strings and len(spelling.replace("▁", " ").strip()) > 1
        }
        self._normalized_pattern = _any_of(spellings) if spellings else None

    def ids_in(self, ids: list[int]) -> list[int]:
        """Return the ids that are control tokens."""
        return [token_id for token_id in ids if token_id in self.token_ids]

    def plain(self, text: str) -> str:
        """Insert marks at which `text` is cut, so that no piece of it spells an added token."""
        return CUT.join(piece.translate(ESCAPED) for piece in self.cut(text))

    def shatter(self, text: str) -> str:
        """Cut between all characters and at both ends, for text that still becomes a control token after `plain`."""
        stripped = text.strip()
        start = text.index(stripped)
        core = [CUT, CUT.join(character.translate(ESCAPED) for character in stripped), CUT] if stripped else []
        return "".join([text[:start], *core, text[start + len(stripped) :]])

    def cut(self, text: str) -> list[str]:
        """Cut text into pieces, none of which spells an added token."""
        starts = _overlapping(self.pattern, text)
        pieces = _split_at(text, [start + 1 for start, _ in starts])
        if not self._spells_control(pieces):
            return pieces
        # Normalisation turns a piece (for example, full-width letters) into a token: find the characters that the token comes from
        forms = {character: self._normalized(character) for character in set(text)}
        places = [0, *accumulate(len(forms[character]) for character in text)]
        sources = [index for index, (start, end) in enumerate(pairwise(places)) for _ in range(start, end)]
        spans = _overlapping(
            cast(re.Pattern, self._normalized_pattern), "".join(forms[character] for character in text)
        )
        cuts = {start + 1 for start, _ in starts}
        for start, end in spans:
            cuts.update(range(sources[start] + 1, sources[end - 1] + 1))
        pieces = _split_at(text, sorted(cuts))
        return list(text) if self._spells_control(pieces) else pieces

    def _spells_control(self, pieces: list[str]) -> bool:
        """Return whether the normaliser turns a piece into an added token."""
        pattern = self._normalized_pattern
        return pattern is not None and any(pattern.search(self._normalizer.normalize_str(piece)) for piece in pieces)

    def _normalized(self, text: str) -> str:
        """Normalise text as if it were inside a word, because some normalisers change the start of their input."""
        before, after = (self._normalizer.normalize_str(part) for part in ("a", f"a{text}"))
        return after.removeprefix(before) if after.startswith(before) else text


def _any_of(strings: set[str]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or r"(?!)")


def _overlapping(pattern: re.Pattern, text: str) -> list[tuple[int, int]]:
    """Return the spans of all matches, including overlapping ones."""
    spans, start = [], 0
    while match := pattern.search(text, start):
        spans.append(match.span())
        start = match.start() + 1
    return spans


def _split_at(text: str, places: list[int]) -> list[str]:
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def pieces_of(rendered: str) -> list[str]:
    """Split a rendering at its marks, and return the pieces in their original spelling."""
    return [unescape(piece) for piece in rendered.split(CUT)]


def unescape(text: str) -> str:
    """Restore the characters that `ESCAPED` replaced."""
    for character, escaped in _ESCAPES.items() if _ESCAPE in text else ():
        text = text.replace(escaped, character)
    return text
