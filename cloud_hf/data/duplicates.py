"""Texts as sequences of words, and those as n-grams. Texts that occur twice: exactly, or nearly, by the Jaccard similarity of their word 5-grams (MinHash and LSH). Which texts overlap with evaluation sets, by word n-grams."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from datasketch import MinHash, MinHashLSH
from tqdm import tqdm


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


NGRAM = 5
NUM_PERMUTATIONS = 128
# By which 128 permutations are likely to underestimate a similarity
ESTIMATE_ERROR = 0.05
# Prompts of one task share much of their wording: to compare each with all others would take days
MOST_COMPARED = 20


@dataclass(frozen=True, slots=True)
class Duplicate:
    """
    What a text duplicates.

    Attributes:
        of (`int`):
            Position of an earlier text, which is kept.
        similarity (`float`):
            Jaccard similarity of the two; 1.0 for exact duplicates.
    """

    of: int
    similarity: float


def find_exact_duplicates(texts: Iterable[str]) -> dict[int, Duplicate]:
    """
    Find texts that are equal to an earlier one.

    Args:
        texts (`Iterable[str]`):
            Texts in order; only a digest of each is kept in memory.

    Returns:
        `dict[int, Duplicate]`: For the position of each duplicate, the first text that it equals.
    """
    first: dict[bytes, int] = {}
    duplicates = {}
    for index, text in enumerate(texts):
        of = first.setdefault(hashlib.blake2b(text.encode(), digest_size=16).digest(), index)
        if of != index:
            duplicates[index] = Duplicate(of, 1.0)
    return duplicates


def find_near_duplicates(
    texts: Sequence[str], threshold: float = 0.8, groups: Sequence[str] | None = None
) -> dict[int, Duplicate]:
    """
    Find texts that are nearly equal to an earlier one that is not itself such a duplicate.

    Candidates come from MinHash LSH, and the likeliest are compared in full: what is reported has the similarity. Some are
    missed, nearly all of them close to the threshold. The result is the same in every run, and none are found among the
    texts that remain. Memory beside the texts: about 4 kB for each.

    Args:
        texts (`Sequence[str]`):
            Texts in order.
        threshold (`float`, *optional*, defaults to `0.8`):
            Jaccard similarity of the sets of word 5-grams from which on two texts count as one; in (0, 1].
        groups (`Sequence[str]`, *optional*):
            A group for each text; texts of different groups are no duplicates.

    Returns:
        `dict[int, Duplicate]`: For the position of each duplicate, a kept text before it, the likeliest by estimate.

    Raises:
        `ValueError`: If the threshold is not a similarity.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` is {threshold}; a Jaccard similarity lies above 0 and is at most 1.")
    index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=bands_and_rows(threshold), hashfunc=_short)
    sketches = np.zeros((len(texts), NUM_PERMUTATIONS), dtype=np.uint32)
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups or [""] * len(texts)])
    duplicates = {}
    for position, text in enumerate(tqdm(texts, desc="Comparing", disable=None)):
        grams = shingles(text)
        sketch = _EMPTY.copy()
        sketch.update_batch(gram.encode() for gram in grams)
        sketches[position] = sketch.hashvalues
        for candidate in _likeliest(index.query(sketch), sketches, position, threshold, group):
            similarity = jaccard(grams, shingles(texts[candidate]))
            if similarity >= threshold:
                duplicates[position] = Duplicate(candidate, similarity)
                break
        else:
            index.insert(position, sketch, check_duplication=False)
    return duplicates


def _likeliest(
    found: list[int], sketches: np.ndarray, position: int, threshold: float, group: np.ndarray
) -> list[int]:
    """The candidates of the same group that may reach the threshold, the most similar by estimate first, and a few only."""
    candidates = np.sort(np.array(found, dtype=np.int64))
    candidates = candidates[group[candidates] == group[position]]
    estimates = (sketches[candidates] == sketches[position]).mean(axis=1)
    likely = estimates >= threshold - ESTIMATE_ERROR
    order = np.argsort(-estimates[likely], kind="stable")[:MOST_COMPARED]
    return candidates[likely][order].tolist()


def bands_and_rows(threshold: float, recall: float = 0.75) -> tuple[int, int]:
    """
    The most selective LSH index that still finds two texts whose similarity is just the threshold with probability
    `recall`. Prompts of one task share much of their wording: an index that is less selective compares them all.

    Returns:
        `tuple[int, int]`: Number of bands, and of permutations in each.
    """
    rows = 1
    while (
        1 - (1 - threshold ** (rows + 1)) ** (NUM_PERMUTATIONS // (rows + 1)) >= recall
        and rows < NUM_PERMUTATIONS // 2
    ):
        rows += 1
    return NUM_PERMUTATIONS // rows, rows


def shingles(text: str) -> set[str]:
    """The word 5-grams of a text, upper and lower case alike; of a shorter one, the whole. Never empty."""
    return set(ngrams(words_and_marks(text) or [text], NGRAM))


def jaccard(one: set[str], other: set[str]) -> float:
    """The share of elements two sets, not both empty, have in common."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _short(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=8).digest()


# Copied, because making one draws its permutations anew
_EMPTY = MinHash(NUM_PERMUTATIONS)


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
