"""Make untrusted text safe to print, because terminals interpret control characters."""

_LONGEST = 500


def printable(text: str, longest: int = _LONGEST) -> str:
    """Return text as a single line of limited length, with control characters and other unprintable characters escaped."""
    # Truncate before escaping, because escaping takes time and a server may send text of any length
    line = " ".join(text[: 2 * longest].split())[:longest]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
