"""Write a builder's output folder: the dataset, its card, the rejected rows with reasons, and the record of settings and counts."""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, Features, load_from_disk
from datasets.arrow_writer import ArrowWriter
from huggingface_hub import DatasetCard

from .card import dataset_card
from .journal import Journal, JournalError


RECORD = "build.json"
REJECTS = "rejects.jsonl"
JOURNAL = "journal.jsonl"
VERSION = 1


@dataclass(frozen=True)
class Reject:
    """
    A row that was left out of the dataset. `index` is the row's position among the input rows.

    `kind` is `"dropped"` for a row that was skipped by design, such as a tie, and `"failed"` for a row that could not be processed.
    `details` contains the row's content or a description of its problem, as JSON values.
    """

    index: int
    id: str | int | None
    kind: str
    reason: str
    details: dict[str, Any] = field(default_factory=dict, kw_only=True)


class Statistics(Protocol):
    """Statistics about a dataset, collected row by row."""

    def add(self, result: dict[str, Any] | Reject):
        """Add the next row or reject."""

    def report(self) -> dict[str, Any]:
        """Return the statistics by name, as JSON values."""
        ...


class DatasetFolder:
    """
    Output folder of a builder: a `save_to_disk` dataset, its card `README.md`, `rejects.jsonl` and `build.json`.

    Rows are streamed to a staging folder, so that the dataset can be larger than memory and appears only once it is complete.

    Args:
        output_dir (`str`):
            The folder.
        title (`str`):
            Heading of the card.
        settings (`dict[str, Any]`):
            Everything that affects the rows, as JSON values: sources, models, prompts and sampling.
        sources (`Sequence[str]`, *optional*):
            Hub ids or paths of the datasets from which the rows are built. The card lists them with their licences.
    """

    def __init__(self, output_dir: str, title: str, settings: dict[str, Any], sources: Sequence[str] = ()):
        self.path = Path(output_dir)
        self.title = title
        self.settings = settings
        self.sources = sources

    def open_journal(self) -> Journal:
        """
        Open the folder's journal, which also locks the folder.

        Raises:
            `JournalError`: As for [`Journal`], and also if the folder contains files but no journal.
        """
        journal = self.path / JOURNAL
        if self.path.exists() and any(self.path.iterdir()) and not journal.exists():
            raise JournalError(f"`output_dir` {self.path} already contains other files; choose another folder.")
        return Journal(journal, self.settings, may_restart=not (self.path / RECORD).exists())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Hold the journal open, to lock out a second writer and to reject different settings. A journal or file error ends the command with
        its message.
        """
        try:
            with self.open_journal():
                yield
        except (JournalError, OSError) as error:
            raise SystemExit(str(error)) from None

    async def write(
        self,
        results: AsyncIterator[dict[str, Any] | Reject],
        features: Features,
        counts: dict[str, Any],
        statistics: Statistics | None = None,
    ) -> dict[str, Any]:
        """
        Write the dataset and `rejects.jsonl`.

        Args:
            results (`AsyncIterator[dict | Reject]`):
                Rows and rejects, in the order in which to write them.
            features (`Features`):
                Columns of the rows.
            counts (`dict[str, Any]`):
                Other counts from the run.
            statistics ([`Statistics`], *optional*):
                Collects statistics about the rows and rejects.

        Returns:
            `dict[str, Any]`: `counts` with `rows`, `dropped`, `failed`, `reasons` and any `statistics` added.
        """
        staging = self.path / ".writing"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            counts = {**counts, **await self._stream(results, features, staging, statistics)}
            # A folder without a record counts as unfinished, regardless of what else it contains
            (self.path / RECORD).unlink(missing_ok=True)
            self._move_in(staging)
            (staging / REJECTS).replace(self.path / REJECTS)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return counts

    def write_record(self, counts: dict[str, Any]):
        """Write `build.json` and the card."""
        record = {"version": VERSION, "settings": self.settings, "counts": counts}
        dataset_card(self.title, self.path, self.settings, counts, self.sources).save(self.path / "README.md")
        # Renaming is atomic: the record is either complete or absent
        unfinished = self.path / f".{RECORD}"
        unfinished.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(self.path / RECORD)

    def push(self, repo_id: str):
        """Upload the dataset and its card to the Hub."""
        load_from_disk(str(self.path)).push_to_hub(repo_id)
        card = DatasetCard.load(repo_id)  # its metadata lists the data files that were just pushed
        own = DatasetCard((self.path / "README.md").read_text(encoding="utf-8"))
        card.text = own.text
        for key, value in own.data.to_dict().items():
            card.data[key] = value
        card.push_to_hub(repo_id)

    async def _stream(
        self, results, features: Features, staging: Path, statistics: Statistics | None
    ) -> dict[str, Any]:
        kinds: Counter = Counter()
        reasons: Counter = Counter()
        rows = 0
        with (
            ArrowWriter(features=features, path=str(staging / "rows.arrow")) as writer,
            (staging / REJECTS).open("w", encoding="utf-8", newline="\n") as rejects,
        ):
            async for result in results:
                await asyncio.sleep(0)  # lets Ctrl-C cancel the task; reading from a journal never suspends it
                if statistics is not None:
                    statistics.add(result)
                if isinstance(result, Reject):
                    kinds[result.kind] += 1
                    reasons[f"{result.kind}: {result.reason:.80}"] += 1
                    rejects.write(json.dumps(vars(result), ensure_ascii=False) + "\n")
                else:
                    writer.write(result)
                    rows += 1
            writer.finalize()
        if rows:
            Dataset.from_file(str(staging / "rows.arrow")).save_to_disk(str(staging / "dataset"))
        else:  # an empty shard, for which `datasets` would by default write a folder that it cannot load
            empty = Dataset.from_dict({name: [] for name in features}, features)
            empty.save_to_disk(str(staging / "dataset"), num_shards=1)
        return {
            "rows": rows,
            "dropped": kinds["dropped"],
            "failed": kinds["failed"],
            "reasons": dict(reasons.most_common(20)),
            **({} if statistics is None else {"statistics": statistics.report()}),
        }

    def _move_in(self, staging: Path):
        """
        Replace the dataset. The files that mark a folder as a dataset are removed first and written last, so that a killed run never leaves
        a loadable mix of two datasets.
        """
        marks = ("state.json", "dataset_info.json")
        for name in marks:
            (self.path / name).unlink(missing_ok=True)
        for old in self.path.glob("data-*.arrow"):
            old.unlink()
        for file in sorted((staging / "dataset").iterdir(), key=lambda file: file.name in marks):
            file.replace(self.path / file.name)


def read_record(folder: str | Path) -> dict[str, Any]:
    """Read the `build.json` of a folder. Raises `ValueError` if there is none, or if it has another version."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise ValueError(f"{folder} has no {RECORD}: it is not a builder's output, or its run has not finished.")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["version"] != VERSION:
        raise ValueError(f"{path} has version {record['version']}; this code reads version {VERSION}.")
    return record
