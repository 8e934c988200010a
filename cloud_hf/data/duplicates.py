"""Find exact duplicates, near-duplicates (Jaccard similarity of word 5-grams) and overlaps with evaluation sets."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import regex
from datasketch import MinHash, MinHashLSH
from tqdm import tqdm


# Chinese and Japanese are written without spaces, so each of their characters counts as a word. Thai, Lao, Khmer and Burmese have no spaces
# either, but splitting them into words needs a dictionary, and single characters are too small a unit: 13 of them already form common
# phrases. In these scripts, each stretch of text without a space therefore counts as one word.
_CJK = r"\u3040-\u30ff\p{Han}"
# Vowel signs and accents without a precomposed character are marks (\p{M}). A mark continues a word, but `re` would split the word there.
_LETTER = r"\p{L}\p{N}_"
_WORD = rf"[[{_CJK}]&&[{_LETTER}]]\p{{M}}*|[[{_LETTER}]--[{_CJK}]][[{_LETTER}\p{{M}}]--[{_CJK}]]*"
_WORDS = regex.compile(_WORD, regex.V1)
_WORDS_AND_MARKS = regex.compile(rf"{_WORD}|[^{_LETTER}\s\x1c-\x1f.,;:!?]|[.,;:!?](?=[{_LETTER}])", regex.V1)
_NUMBER_WORDS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|"
    "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|once|twice|double|triple|half|third|quarter"
)
# Numbers (except those in names, such as gpt4) and mathematical signs determine the answer to a problem
_LEFT, _RIGHT = r"(?<=(?:[\d)]|(?<!\p{L})\p{L})\s*)", r"(?=\s*(?:[\d(]|\p{L}(?!\p{L})))"
_QUANTITIES = regex.compile(
    rf"\b(?:{_NUMBER_WORDS})\b|(?<![\p{{L}}_\d])\d+(?:[.,]\d+)*|[\p{{Sm}}--[|~]]|{_LEFT}[*/\^\-]{_RIGHT}|(?<![^\s(=])-(?=\d)|(?<=\d\s*)%|[\p{{Sc}}--$]|°\s*[cf]\b",
    regex.V1,
)
# Exponents are separated before normalization, because NFKC would turn x² into x2, which looks like a name
_EXPONENTS = regex.compile(r"[²³¹⁰⁴-⁹]+")
# Soft hyphens, zero-width characters and the like are invisible, so they must not make two texts differ
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()


def words(text: str) -> list[str]:
    """
    Split text into words, ignoring case.

    Examples:

    ```python
    >>> words("Why not 3 + 4?")
    ['why', 'not', '3', '4']
    ```
    """
    return _WORDS.findall(_normalize(text))


def words_and_marks(text: str) -> list[str]:
    """
    Split text into words and symbols, ignoring case. Of the marks `.,;:!?`, only those directly before a letter or digit count. "3 + 4" and
    "3 - 4" therefore differ, but "why?" and "Why" do not.

    Examples:

    ```python
    >>> words_and_marks("Why not 3 + 4.5?")
    ['why', 'not', '3', '+', '4', '.', '5']
    ```
    """
    return _WORDS_AND_MARKS.findall(_normalize(text))


def quantities(text: str) -> tuple[str, ...]:
    """
    Return the numbers and mathematical signs in a text, in order. If two texts differ in these, they pose different problems, however
    similar their wording is.

    Examples:

    ```python
    >>> quantities("A well-known sum: 1,000 - 3 = ?")
    ('1000', '-', '3', '=')
    ```
    """
    text = _normalize(_EXPONENTS.sub(r"^ \g<0>", text))
    return tuple(found.replace(",", "") for found in _QUANTITIES.findall(text))


def ngrams(tokens: list[str], n: int) -> list[str]:
    """
    Return all runs of n consecutive tokens, joined by spaces. A list of fewer than n tokens gives a single run, and an empty list none.

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
# Minimum probability of finding a pair whose similarity is exactly the threshold
RECALL = 0.75
# An estimate from 128 permutations may be this much below the true similarity
ESTIMATE_ERROR = 0.05
# Maximum number of exact comparisons per text. Prompts of the same task share much of their wording, so comparing all candidates would
# take days
MOST_COMPARED = 20


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Position of the earlier text (`of`), which is kept, and the Jaccard similarity of the two texts (1.0 for exact duplicates)."""

    of: int
    similarity: float


def find_exact_duplicates(texts: Iterable[str]) -> dict[int, Duplicate]:
    """
    Find texts that exactly repeat an earlier text, and map the position of each to that of the first occurrence. Only a digest of each text
    is kept in memory.
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
    Find texts that nearly duplicate an earlier text in the same group, and map the position of each to that of the earlier text. A text is
    not compared with earlier texts that are themselves duplicates, or with texts that contain different numbers or signs.

    The threshold, above 0 and at most 1, is a Jaccard similarity of word 5-grams. MinHash LSH proposes candidates, and those with the
    highest estimated similarity are compared exactly, so every reported pair reaches the threshold. Some pairs are missed, but nearly all
    of these are close to the threshold. The result is deterministic. Besides the texts themselves, the function needs about 4 kB of
    memory per text.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` is {threshold}; a Jaccard similarity must be above 0 and at most 1.")
    index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=bands_and_rows(threshold), hashfunc=_short)
    sketches = np.zeros((len(texts), NUM_PERMUTATIONS), dtype=np.uint32)
    numbers: dict[tuple, int] = {}
    names = zip(groups or [""] * len(texts), map(quantities, texts), strict=True)
    group = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    duplicates = {}
    for position, text in enumerate(tqdm(texts, desc="Comparing", disable=None)):
        grams = shingles(text)
        sketch = _EMPTY.copy()
        sketch.update_batch(gram.encode() for gram in grams)
        sketches[position] = sketch.hashvalues
        for candidate in _likeliest(cast(list[int], index.query(sketch)), sketches, position, threshold, group):
            similarity = jaccard(grams, shingles(texts[candidate]))
            if similarity >= threshold:
                duplicates[position] = Duplicate(candidate, similarity)
                break
        else:
            index.insert(position, sketch, check_duplication=False)
    return duplicates


def _likeliest(
    found: Iterable[int], sketches: np.ndarray, position: int, threshold: float, group: np.ndarray
) -> list[int]:
    """Return up to `MOST_COMPARED` candidates from the same group that may reach the threshold, the most similar first."""
    candidates = np.array(sorted(found), dtype=np.int64)
    candidates = candidates[group[candidates] == group[position]]
    estimates = (sketches[candidates] == sketches[position]).mean(axis=1)
    likely = estimates >= threshold - ESTIMATE_ERROR
    order = np.argsort(-estimates[likely], kind="stable")[:MOST_COMPARED]
    return candidates[likely][order].tolist()


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """
    Return the number of bands, and of permutations per band, for the most selective LSH index that still finds a pair at the
    threshold with a probability of at least `RECALL`. Prompts of the same task share much of their wording, and a less selective index
    would propose all of them as candidates.
    """
    found = (
        rows
        for rows in range(NUM_PERMUTATIONS // 2, 1, -1)
        if 1 - (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows) >= RECALL
    )
    rows = next(found, 1)
    return NUM_PERMUTATIONS // rows, rows


def shingles(text: str) -> set[str]:
    """Return the word 5-grams of a text, ignoring case. A text of fewer than five words is a single n-gram, so the set is never empty."""
    return set(ngrams(words_and_marks(text) or [text], NGRAM))


def jaccard(one: set[str], other: set[str]) -> float:
    """Return the Jaccard similarity of two sets, at least one of which must not be empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _short(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=8).digest()


# Copied for each text, because constructing a new `MinHash` would sample the permutations again
_EMPTY = MinHash(NUM_PERMUTATIONS)


class EvaluationNGrams:
    """
    Word n-grams of evaluation sets, for finding texts that overlap with them.

    Case, punctuation and white space are ignored. A text of fewer than n words overlaps only with texts that consist of exactly the same
    words in the same order. A text without words overlaps with nothing.

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
            raise ValueError(f"`n` is {n}; it must be at least 1.")
        self.n = n
        self._sets: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, texts: Iterable[str]):
        """Add the texts of an evaluation set. N-grams do not span two texts."""
        for text in texts:
            for ngram in ngrams(words(text), self.n):
                names = self._sets.get(ngram, ())
                if name not in names:
                    self._sets[ngram] = (*names, name)

    def find(self, text: str) -> dict[str, str]:
        """Map the name of each evaluation set that overlaps with a text to the first n-gram they share."""
        found: dict[str, str] = {}
        for ngram in ngrams(words(text), self.n):
            for name in self._sets.get(ngram, ()):
                found.setdefault(name, ngram)
        return found
