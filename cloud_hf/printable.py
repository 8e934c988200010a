"""Make untrusted text safe to print: terminals obey control characters."""

_LONGEST = 500


def printable(text: str, longest: int = _LONGEST) -> str:
    """Return a text as one shortened line, escaping characters that control a terminal or cannot be written to a file."""
    # Cut first: escaping takes time, and a server may send any length
    line = " ".join(text[: 2 * longest].split())[:longest]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
