"""Append-only journal of finished work, so that a killed run can resume without repeating any finished work."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..safe_paths import check_links


FORMAT = "cloud_hf.journal"
VERSION = 2
# Settings that identify a model. For a model in a folder, version 1 hashed less of the folder's contents
_MODEL_SETTINGS = {"model", "model_version"}
# Settings that do not exist in version 1
_NEW_SETTINGS = {"contents_of_all_shards", "truncated"}
# Suffix of the setting that records where unset sampling fields get their values. In version 1, they always came from the server
SAMPLING_DEFAULTS = "_sampling_defaults"
SERVERS_OWN = "the server's own"
# Start of the first line, which distinguishes an incomplete journal from other files
_HEADER = b'{"format":"cloud_hf.journal"'


class JournalError(RuntimeError):
    """
    A journal cannot be used because it was started with different settings, another process is writing to it, or a line is damaged. If
    different settings are the only problem, `changed` names them.
    """

    def __init__(self, message: str, changed: Sequence[str] = ()):
        super().__init__(message)
        self.changed = tuple(changed)


class Journal:
    """
    Append-only file with one JSON line per finished entry.

    [`Journal.add`] returns once the entry is in the file, so a killed process loses no entries. If a crash leaves an incomplete last line,
    reopening the journal removes that line and prints a message. Only keys and offsets are kept in memory, about 150 bytes per entry.

    Args:
        path (`str` or `Path`):
            Path of the file, which is created if it does not exist.
        settings (`dict[str, Any]`):
            All settings that affect the entries, as JSON values. A journal with different settings is rejected.
        may_restart (`bool`, *optional*, defaults to `True`):
            Accept different settings as long as the journal has no entries.

    Raises:
        `JournalError`: If another process is writing to the file, its settings differ, or a line before the last one is damaged.

    Examples:

    ```python
    >>> with Journal("runs/journal.jsonl", {"model": "judge"}) as journal:
    ...     if "key" not in journal:
    ...         journal.add("key", {"text": "..."})
    ...     journal["key"]
    ```
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], may_restart: bool = True):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._offsets: dict[bytes, int] = {}
        check_links(self.path.parent, [self.path])
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._open(json.loads(json.dumps(settings)), may_restart)
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
                Key from [`key_of`].
            value (`Any`):
                A JSON value.

        Raises:
            `OSError`: If the disk is full. Earlier entries stay intact.
        """
        offset = self._size
        self._write({"key": key, "value": value})
        self._offsets[bytes.fromhex(key)] = offset

    def close(self):
        """Flush the entries to disk and release the lock."""
        # Sync only here: entries in the kernel's buffers survive when the process is killed, and a sync for each entry would be slow
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    # ------------------------------------------------------------------------------------------------------ the file

    def _lock(self):
        try:
            # Unlike a lock file, this lock is released by the kernel if the process dies
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"Another process is writing to {self.path}. Wait for it to finish, or choose another output folder."
            ) from error

    def _open(self, settings: dict[str, Any], may_restart: bool):
        self._size = os.fstat(self._file).st_size
        # Read through a duplicate descriptor: closing the reader would otherwise close this descriptor and thereby release the lock
        with os.fdopen(os.dup(self._file), "rb") as lines:
            lines.seek(0)
            number, end, version, before = 0, 0, VERSION, settings
            for number, line in enumerate(lines, 1):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None:
                    if number == 1 and not _HEADER.startswith(line[: len(_HEADER)]):
                        raise self._foreign()
                    self._heal(number, end, is_last=end + len(line) == self._size)
                    break
                if number == 1:
                    version, before = self._read_header(entry)
                else:
                    self._offsets[self._read_key(entry, number)] = end
                end += len(line)
        if version == 1:
            before = {name: value for name, value in settings.items() if name in _NEW_SETTINGS} | before
            before |= {name: SERVERS_OWN for name in settings if name.endswith(SAMPLING_DEFAULTS)}
        if before != settings:
            # A run that stopped before its first answer, perhaps because a setting was wrong, left no entries that depend on its settings
            if self._offsets or not may_restart:
                raise self._other_settings(before, settings, version)
            self._cut(0)
        if self._size == 0:
            self._write({"format": FORMAT, "version": VERSION, "settings": settings})
        elif number > 1:
            print(f"{self.path}: resuming with {len(self)} entries from an earlier run.", flush=True)
        self.kept = len(self)  # number of entries from earlier runs

    def _heal(self, number: int, end: int, is_last: bool):
        if not is_last:
            raise JournalError(
                f"{self.path}, line {number} is damaged, and other lines follow it. Remove that line to keep the others, or move "
                "the file away to start over."
            )
        print(
            f"{self.path}: line {number}, which an earlier run left incomplete, was removed ({self._size - end} bytes).",
            flush=True,
        )
        self._cut(end)

    def _read_header(self, header: Any) -> tuple[int, dict[str, Any]]:
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise self._foreign()
        if missing := [name for name in ("version", "settings") if name not in header]:
            raise JournalError(
                f"{self.path} is damaged: its first line lacks `{missing[0]}`. Move the file away to start over."
            )
        version = header["version"]
        if version not in (1, VERSION):
            raise JournalError(f"{self.path} has version {version}; this code reads versions 1 and {VERSION}.")
        return version, header["settings"]

    def _read_key(self, entry: Any, number: int) -> bytes:
        where = f"{self.path}, line {number}"
        if isinstance(entry, dict) and entry.get("format") == FORMAT:
            raise JournalError(
                f"{where} is the first line of another journal. Split the file, and keep one of the two journals."
            )
        if isinstance(entry, dict) and "value" in entry and re.fullmatch(r"([0-9a-fA-F]{2})+", str(entry.get("key"))):
            return bytes.fromhex(entry["key"])
        raise JournalError(f"{where} is not an entry with `key` and `value`. Remove that line to keep the others.")

    def _other_settings(self, before: dict[str, Any], settings: dict[str, Any], version: int) -> JournalError:
        changed = sorted(name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name))
        differences = "; ".join(
            f"`{name}` was {_short(before.get(name))} and is now {_short(settings.get(name))}" for name in changed
        )
        hint = ""
        if version == 1 and not _MODEL_SETTINGS.isdisjoint(changed):
            hint = (
                " The journal has version 1, which hashed model folders differently: to resume it, use cloud_hf 0.1."
            )
        return JournalError(
            f"{self.path} was started with other settings: {differences}. Use those settings to resume, or choose another "
            f"output folder.{hint}",
            () if hint else changed,
        )

    def _foreign(self) -> JournalError:
        return JournalError(f"{self.path} is not a cloud_hf journal. Choose another output folder.")

    def _write(self, entry: dict[str, Any]):
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            rest = line
            while rest:  # a write may be short
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            # Remove the partial line, which would damage the next entry
            self._cut(self._size)
            raise
        self._size += len(line)

    def _cut(self, size: int):
        os.ftruncate(self._file, size)
        self._size = size

    def _read_line(self, offset: int) -> bytes:
        size = 4096  # enough for most entries
        while (end := (piece := os.pread(self._file, size, offset)).find(b"\n")) < 0:
            size *= 4
        return piece[:end]


def key_of(*parts: Any, default: Callable[[Any], str] | None = None) -> str:
    """
    Return the key of a piece of work: a hash, in 32 hexadecimal digits, of the JSON values that define the work. `default` converts
    other values to text.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=default)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
