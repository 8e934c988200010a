"""Make text of others safe to print: a terminal obeys control characters."""

_LONGEST = 500


def printable(text: str, longest: int = _LONGEST) -> str:
    """Return a text as one line, shortened, with characters escaped that control a terminal or cannot be written to a file."""
    # Cut first: escaping costs time, and a server chooses the length
    line = " ".join(text[: 2 * longest].split())[:longest]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
