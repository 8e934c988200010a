"""What a judge who compared two responses said, and who won over two games with swapped places."""

import re


# From response A's side. Both games add up, so a strong verdict outweighs a weak one for the other side.
_POINTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}

_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")


def read_verdict(judgement: str | None, rule: str = "last") -> str | None:
    """
    Find the verdict, `[[A>>B]]` to `[[B>>A]]`, in what a judge wrote.

    Args:
        judgement (`str`, *optional*):
            The judge's text; `None`, as servers answer where it was empty, holds no verdict.
        rule (`str`, *optional*, defaults to `"last"`):
            `"last"`: the last of the five verdicts in the text. `"agreed"`: what the reference implementation reads, the
            one label that occurs, which may be one it does not know (`[[A<B]]`); two different ones are none.

    Returns:
        `str` or `None`: `None` if there is no verdict, and the judge should be asked again.

    Examples:

    ```python
    >>> read_verdict("At first [[A>B]], but then: [[B>A]]")
    'B>A'
    >>> read_verdict("At first [[A>B]], but then: [[B>A]]", rule="agreed") is None
    True
    ```
    """
    labels = _LABEL.findall(judgement or "")
    if rule == "agreed":
        return labels[0] if len(set(labels)) == 1 else None
    if rule != "last":
        raise ValueError(f"`rule` is {rule!r}; use 'last' or 'agreed'.")
    return next((label for label in reversed(labels) if label in _POINTS), None)


def points(game: str | None, swapped_game: str | None) -> int:
    """
    How far response 1 is ahead after two games: it was A in the first and B in the second.

    Args:
        game (`str`, *optional*):
            Verdict of the first game. `None` and labels other than the five count nothing.
        swapped_game (`str`, *optional*):
            Verdict of the second.

    Returns:
        `int`: From -4 to 4; a slight verdict counts 1, a strong one 2.
    """
    return _POINTS.get(game, 0) - _POINTS.get(swapped_game, 0)


def winner(game: str | None, swapped_game: str | None) -> str:
    """
    Who won two games, by [`points`].

    Args:
        game (`str`, *optional*):
            Verdict of the first game, where response 1 was A.
        swapped_game (`str`, *optional*):
            Verdict of the second, where it was B.

    Returns:
        `str`: `"response_1"`, `"response_2"` or `"tie"`.
    """
    ahead = points(game, swapped_game)
    return "tie" if ahead == 0 else "response_1" if ahead > 0 else "response_2"
