"""Texts as sequences of words, and those as n-grams."""

import re
import unicodedata


# Chinese and Japanese are written without spaces: each of their characters counts as a word
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = rf"[{_CJK}]|[^\W{_CJK}]+"
_WORDS = re.compile(_WORD)
_WORDS_AND_MARKS = re.compile(rf"{_WORD}|[^\w\s.,;:!?]|[.,;:!?](?=\w)")


def words(text: str) -> list[str]:
    """
    The words of a text, upper and lower case alike.

    Examples:

    ```python
    >>> words("Why not 3 + 4?")
    ['why', 'not', '3', '4']
    ```
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def words_and_marks(text: str) -> list[str]:
    """
    The words of a text and its other marks, except the punctuation that merely ends a word. "3 + 4" and "3 - 4" differ,
    "why?" and "Why" do not.

    Examples:

    ```python
    >>> words_and_marks("Why not 3 + 4.5?")
    ['why', 'not', '3', '+', '4', '.', '5']
    ```
    """
    return _WORDS_AND_MARKS.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(tokens: list[str], n: int) -> list[str]:
    """
    Every run of n tokens, joined by spaces, in order; all tokens as one where there are fewer; none of no tokens.

    Examples:

    ```python
    >>> ngrams(["a", "b", "c"], 2), ngrams(["a"], 2)
    (['a b', 'b c'], ['a'])
    ```
    """
    if not tokens:
        return []
    return [" ".join(tokens[start : start + n]) for start in range(max(1, len(tokens) - n + 1))]
