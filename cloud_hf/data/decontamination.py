"""Which texts overlap with evaluation sets, by word n-grams."""

from collections.abc import Iterable

from .ngrams import ngrams, words


class EvaluationNGrams:
    """
    The word n-grams of evaluation sets.

    Case, punctuation and white space do not count. A text of fewer than n words is compared as a whole: it overlaps with a
    text of the same words, not with a longer one that contains them. A text without words overlaps with nothing.

    Args:
        n (`int`, *optional*, defaults to `13`):
            Words in a row that two texts must share.

    Examples:

    ```python
    >>> ngrams = EvaluationNGrams(3)
    >>> ngrams.add("eval", ["Which cup holds the ball?"])
    >>> ngrams.find("And which CUP holds it?")
    {'eval': 'which cup holds'}
    ```
    """

    def __init__(self, n: int = 13):
        if n < 1:
            raise ValueError(f"`n` is {n}; an n-gram has at least one word.")
        self.n = n
        self._sets: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def add(self, name: str, texts: Iterable[str]):
        """
        Add texts of an evaluation set.

        Args:
            name (`str`):
                Name of the set.
            texts (`Iterable[str]`):
                Its texts, one for each prompt. N-grams do not run from one into the next.
        """
        for text in texts:
            for ngram in ngrams(words(text), self.n):
                names = self._sets.get(ngram, ())
                if name not in names:
                    self._sets[ngram] = (*names, name)

    def find(self, text: str) -> dict[str, str]:
        """
        Find what a text shares with the evaluation sets.

        Args:
            text (`str`):
                A text.

        Returns:
            `dict[str, str]`: For each set it overlaps with, the first n-gram they share. Empty if there is none.
        """
        found: dict[str, str] = {}
        for ngram in ngrams(words(text), self.n):
            for name in self._sets.get(ngram, ()):
                found.setdefault(name, ngram)
        return found
