"""The journal of a long run: every answer that was paid for, so that a killed run goes on where it was."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any


FORMAT = "cloud_hf.journal"
VERSION = 1
# How the first line begins
_HEADER = b'{"format":"cloud_hf.journal"'


class JournalError(RuntimeError):
    """The journal cannot be used: other settings, another writer, or damage."""


class Journal:
    """
    Append-only file of finished work, one JSON line per entry, in the order in which entries were finished.

    An entry is in the file before [`Journal.add`] returns, so a killed process loses none; a line torn by a crash is
    removed when the file is opened next, with a message. Only keys and offsets are held in memory, about 150 bytes an
    entry.

    Args:
        path (`str` or `Path`):
            The file; it is made if it does not exist.
        settings (`dict[str, Any]`):
            All that answers depend on, as JSON. A journal with other settings is refused.
        may_begin_anew (`bool`, *optional*, defaults to `True`):
            Take other settings if there are no entries.

    Raises:
        `JournalError`: If another process writes to the file, if it was begun with other settings, or if it is damaged
            elsewhere than at its end.

    Examples:

    ```python
    >>> with Journal("runs/journal.jsonl", {"model": "judge"}) as journal:
    ...     if "key" not in journal:
    ...         journal.add("key", {"text": "..."})
    ...     journal["key"]
    ```
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], may_begin_anew: bool = True):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._offsets: dict[bytes, int] = {}
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._open(json.loads(json.dumps(settings)), may_begin_anew)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._offsets

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._read_line(self._offsets[bytes.fromhex(key)]))["value"]

    def add(self, key: str, value: Any):
        """
        Record a finished entry.

        Args:
            key (`str`):
                A key of [`key_of`].
            value (`Any`):
                What JSON can hold.

        Raises:
            `OSError`: If the disk is full. What was recorded before stays whole.
        """
        offset = self._size
        self._write({"key": key, "value": value})
        self._offsets[bytes.fromhex(key)] = offset

    def close(self):
        """Bring the entries to the disk and let other processes write."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    # ------------------------------------------------------------------------------------------------------ the file

    def _lock(self):
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"Another process writes to {self.path}. Wait for it, or choose another output folder."
            ) from error

    def _open(self, settings: dict[str, Any], may_begin_anew: bool):
        self._size = os.fstat(self._file).st_size
        # A copy of the descriptor, since closing the reader closes what it reads
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            number, whole, before = 0, 0, settings
            for number, line in enumerate(lines, 1):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None:
                    if number == 1 and not _HEADER.startswith(line[: len(_HEADER)]):
                        raise self._foreign()
                    self._heal(number, whole, is_last=whole + len(line) == self._size)
                    break
                if number == 1:
                    before = self._settings_of(entry)
                else:
                    self._offsets[bytes.fromhex(entry["key"])] = whole
                whole += len(line)
        if before != settings:
            # Nothing depends on the settings of a run that ended, over a mistake in them perhaps, before its first answer
            if self._offsets or not may_begin_anew:
                raise self._begun_otherwise(before, settings)
            self._cut(0)
        if self._size == 0:
            self._write({"format": FORMAT, "version": VERSION, "settings": settings})
        elif number > 1:
            print(f"{self.path}: going on with {len(self)} entries of an earlier run.", flush=True)

    def _heal(self, number: int, whole: int, is_last: bool):
        if not is_last:
            raise JournalError(
                f"{self.path}, line {number} is damaged, and lines follow it. Move the file away to begin anew, or remove "
                "that line to keep the rest."
            )
        print(
            f"{self.path}: line {number}, torn when an earlier run ended, was removed ({self._size - whole} bytes).",
            flush=True,
        )
        self._cut(whole)

    def _settings_of(self, header: Any) -> dict[str, Any]:
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise self._foreign()
        if header["version"] != VERSION:
            raise JournalError(f"{self.path} has version {header['version']}; this code reads version {VERSION}.")
        return header["settings"]

    def _begun_otherwise(self, before: dict[str, Any], settings: dict[str, Any]) -> JournalError:
        changed = sorted(name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name))
        differences = "; ".join(
            f"`{name}` was {_short(before.get(name))} and is {_short(settings.get(name))}" for name in changed
        )
        return JournalError(
            f"{self.path} was begun with other settings: {differences}. Use the same ones to go on, or choose another "
            "output folder."
        )

    def _foreign(self) -> JournalError:
        return JournalError(f"{self.path} is no journal of this package. Choose another output folder.")

    def _write(self, entry: dict[str, Any]):
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            rest = line
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            self._cut(self._size)
            raise
        self._size += len(line)

    def _cut(self, size: int):
        os.ftruncate(self._file, size)
        self._size = size

    def _read_line(self, offset: int) -> bytes:
        size = 4096
        while (end := (piece := os.pread(self._file, size, offset)).find(b"\n")) < 0:
            size *= 4
        return piece[:end]


def key_of(*parts: Any) -> str:
    """
    The key of a piece of work: a hash of all that makes it what it is.

    Args:
        *parts (`Any`):
            What JSON can hold.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
