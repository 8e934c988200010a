"""Extract a judge's verdicts, and determine the winner of two games. In the second game, the responses are swapped."""

import re


# Points for response A. The points of the two games are added up, so a strong verdict outweighs an opposing slight one.
_POINTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}

_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
# Matched against upper-cased text, as in ArenaHard 2.0. Labels in single brackets count only if there are none in double brackets
_SPELLINGS = (re.compile(r"\[\[([AB][<>=]+[AB])\]\]"), re.compile(r"\[([AB][<>=]+[AB])\]"))
# Searched for after a verdict: a label in an unknown form, such as `[[B]]`, `[[B > A]]` or `[[TIE]]`, but not a citation or a link
_OTHER_LABEL = re.compile(r"\[\[[^\[\]\d]{1,20}\]\](?!\()")
_OTHER_SPELLING = {"A<B": "B>A", "A<<B": "B>>A", "B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B"}


def read_verdict(judgement: str | None, rule: str = "last") -> str | None:
    """
    Find the verdict, `[[A>>B]]` to `[[B>>A]]`, in a judgement. `None` means that there is no verdict and the judge should be asked again.

    With the `rule` `"last"`, return the last verdict, in any form that ArenaHard 2.0 accepts (`[[b>a]]`, `[[A<B]]`, `[B>A]`). If the last
    label has an unknown form, there is no verdict. With `"agreed"`, follow the reference implementation: if all labels in the text are the
    same, return that label, even if its form is unknown (`[[A<B]]`). If the text contains no label or different labels, there is no
    verdict.

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
    Return the lead of response 1, from -4 to 4, after two games. Response 1 is A in the first game and B in the second. A slight verdict
    counts as 1 point, a strong one as 2, and `None` and unknown labels as 0.
    """
    return _POINTS.get(game or "", 0) - _POINTS.get(swapped_game or "", 0)


def winner(game: str | None, swapped_game: str | None) -> str:
    """Return the winner of two games according to [`points`]: `"response_1"`, `"response_2"` or `"tie"`."""
    ahead = points(game, swapped_game)
    return "tie" if ahead == 0 else "response_1" if ahead > 0 else "response_2"
