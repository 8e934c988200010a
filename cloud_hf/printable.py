"""Make untrusted text safe to print, because terminals interpret control characters, and check keys without printing them."""

_LONGEST = 500


def printable(text: str, longest: int = _LONGEST) -> str:
    """Return text as a single line of limited length, with control characters and other unprintable characters escaped."""
    # Truncate before escaping, because escaping takes time and a server may send text of any length
    line = " ".join(text[: 2 * longest].split())[:longest]
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def read_key(key: str, name: str) -> str:
    """Return an API key without surrounding white space. Raises a `ValueError` that does not quote it if a header cannot contain it."""
    key = key.strip()
    if not key or not (key.isascii() and key.isprintable()):
        what = "contains characters that an API key cannot have" if key else "is empty"
        raise ValueError(f"{name} {what}; keys are printable ASCII.")
    return key
