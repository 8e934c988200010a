"""Read a judge's verdict, and decide the winner of two games between which the responses swap places."""

import re


# Points for response A. Both games are added, so a strong verdict outweighs a slight one against it.
_POINTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}

_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
# Matches upper-cased text, like ArenaHard 2.0. Single brackets count only in texts without double ones
_SPELLINGS = (re.compile(r"\[\[([AB][<>=]+[AB])\]\]"), re.compile(r"\[([AB][<>=]+[AB])\]"))
# A label in another spelling after a verdict, such as `[[B]]`, `[[B > A]]` or `[[TIE]]`; not a citation or a link
_OTHER_LABEL = re.compile(r"\[\[[^\[\]\d]{1,20}\]\](?!\()")
_OTHER_SPELLING = {"A<B": "B>A", "A<<B": "B>>A", "B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B"}


def read_verdict(judgement: str | None, rule: str = "last") -> str | None:
    """
    Find the verdict, `[[A>>B]]` to `[[B>>A]]`, in a judgement. `None` means that there is none and the judge should be asked again.

    `rule` `"last"`: the last verdict, in any spelling of ArenaHard 2.0 (`[[b>a]]`, `[[A<B]]`, `[B>A]`). If the last one has an
    unknown spelling, there is no verdict. `"agreed"`: like the reference implementation, the only label in the text, even an
    unknown one (`[[A<B]]`). Two different labels give no verdict.

    Examples:

    ```python
    >>> read_verdict("At first [[A>B]], but then: [[B>A]]")
    'B>A'
    >>> read_verdict("At first [[A>B]], but then: [[B>A]]", rule="agreed") is None
    True
    ```
    """
    if rule == "agreed":
        labels = _LABEL.findall(judgement or "")
        return labels[0] if len(set(labels)) == 1 else None
    if rule != "last":
        raise ValueError(f"`rule` is {rule!r}; use 'last' or 'agreed'.")
    text = re.sub(r"\\([\[\]])", r"\1", (judgement or "").upper())  # Markdown escapes brackets
    labels = next(filter(None, ([*spelling.finditer(text)] for spelling in _SPELLINGS)), None)
    if labels is None or _OTHER_LABEL.search(text, labels[-1].end()):
        return None
    last = _OTHER_SPELLING.get(labels[-1][1], labels[-1][1])
    return last if last in _POINTS else None


def points(game: str | None, swapped_game: str | None) -> int:
    """
    Return the lead of response 1, from -4 to 4, after two games: it is A in the first game and B in the second. A slight verdict
    counts 1, a strong one 2, `None` and unknown labels 0.
    """
    return _POINTS.get(game or "", 0) - _POINTS.get(swapped_game or "", 0)


def winner(game: str | None, swapped_game: str | None) -> str:
    """Return the winner of two games by [`points`]: `"response_1"`, `"response_2"` or `"tie"`."""
    ahead = points(game, swapped_game)
    return "tie" if ahead == 0 else "response_1" if ahead > 0 else "response_2"
