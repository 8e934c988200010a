"""Merge the outputs of a builder's shards into the dataset that a single run would have written."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, load_from_disk

from ..argument_help import documented
from .dataset_folder import RECORD, REJECTS, DatasetFolder, Reject, read_record
from .judge import PreferenceStatistics


# Settings that differ between the shards of one run
_OF_A_SHARD = ("shard", "rows", "hash")
# Counts that are recomputed from all rows
_RECOMPUTED = ("rows", "dropped", "failed", "reasons", "statistics")


@dataclass(frozen=True)
class Shard:
    """Folder of one shard, with the contents of its `build.json`."""

    path: Path
    index: int
    count: int
    settings: dict[str, Any]
    counts: dict[str, Any]

    @classmethod
    def read(cls, folder: str) -> "Shard":
        """Read a shard from its folder. Raises `ValueError` if the folder is not a shard, or if its run has not finished."""
        record = read_record(folder)
        settings = record["settings"]
        if "shard" not in settings:
            raise ValueError(f"{folder}: its {RECORD} has no `shard`. Only builder outputs can be merged.")
        index, count = map(int, settings["shard"].split("/"))
        return cls(Path(folder), index, count, settings, record["counts"])

    def check(self):
        """Raise `ValueError` if the number of rows or rejects differs from `build.json`."""
        rejects = self.counts["dropped"] + self.counts["failed"]
        if len(self.dataset()) != self.counts["rows"] or len(self.rejects()) != rejects:
            raise ValueError(
                f"{self.path}: the number of rows or rejects differs from its {RECORD}. Run this shard again."
            )

    def dataset(self) -> Dataset:
        return cast(Dataset, load_from_disk(str(self.path)))

    def rejects(self) -> list[dict[str, Any]]:
        # Do not use `splitlines`, which also splits at characters such as U+2028 inside a JSON string
        lines = (self.path / REJECTS).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]


def read_shards(folders: Sequence[str]) -> list[Shard]:
    """
    Read the shards of one run and return them in order.

    Raises `ValueError` if the folders are not shards of the same run, if a shard is missing or repeated, or if an id is repeated.
    """
    shards = sorted((Shard.read(folder) for folder in folders), key=lambda shard: shard.index)
    first = shards[0]
    for shard in shards[1:]:
        names = sorted((first.settings.keys() | shard.settings.keys()) - set(_OF_A_SHARD))
        differences = [name for name in names if first.settings.get(name) != shard.settings.get(name)]
        if differences or shard.count != first.count:
            what = ", ".join(f"`{name}`" for name in differences) or f"`shard` ({first.count} and {shard.count} parts)"
            raise ValueError(f"{first.path} and {shard.path} are not from the same run: they differ in {what}.")
    for shard in shards:
        shard.check()
    indices = [shard.index for shard in shards]
    missing = sorted(set(range(first.count)) - set(indices))
    if missing:
        raise ValueError(f"{len(missing)} of {first.count} shards are missing: {', '.join(map(str, missing[:20]))}.")
    for one, other in pairwise(shards):
        if one.index == other.index:
            raise ValueError(f"{one.path} and {other.path} are both shard {one.index} of {one.count}.")
        if one.dataset().features != other.dataset().features:
            raise ValueError(f"{one.path} and {other.path} have different columns.")
    _check_ids(shards)
    return shards


async def merge(shards: Sequence[Shard], output_dir: str) -> dict[str, Any]:
    """
    Merge the shards returned by [`read_shards`] into one folder, with rows and rejects in the same order as in a single run, and return
    the summed counts.
    """
    settings = {**shards[0].settings, "shard": "0/1", "rows": sum(shard.settings["rows"] for shard in shards)}
    # A hash of all rows would require the input dataset, but the shards' hashes identify the rows just as well
    del settings["hash"]
    settings["merged_from"] = {"shards": len(shards), "hashes": [shard.settings["hash"] for shard in shards]}
    folder = DatasetFolder(
        output_dir, settings["builder"].capitalize(), settings, [str(shard.path) for shard in shards]
    )
    with folder.locked():
        counts = add_counts([shard.counts for shard in shards])
        counts = {name: value for name, value in counts.items() if name not in _RECOMPUTED}
        statistics = PreferenceStatistics() if "statistics" in shards[0].counts else None
        counts = await folder.write(_results(shards), shards[0].dataset().features, counts, statistics)
        folder.write_record(counts)
    return counts


def add_counts(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up the counts from several runs, recursively. Values that cannot be added up, such as shares, become lists."""
    added = {}
    for name in dict.fromkeys(name for each in counts for name in each):
        values = [each[name] for each in counts if name in each]
        if all(isinstance(value, dict) for value in values):
            added[name] = add_counts(values)
        elif all(isinstance(value, int) for value in values):
            added[name] = sum(values)
        else:
            added[name] = values
    return added


async def _results(shards: Sequence[Shard]) -> AsyncIterator[dict[str, Any] | Reject]:
    rows_before = 0
    for shard in shards:
        for row in shard.dataset():
            yield cast(dict[str, Any], row)
        for reject in shard.rejects():
            yield Reject(**{**reject, "index": reject["index"] + rows_before})
        rows_before += shard.counts["rows_read"]


def _check_ids(shards: Sequence[Shard]):
    seen: dict[Any, Path] = {}
    for shard in shards:
        for name in shard.dataset()["id"]:
            if name in seen:
                raise ValueError(f"{shard.path}: the id {name!r} is also in {seen[name]}.")
            seen[name] = shard.path


@documented
@dataclass(kw_only=True)
class MergeArguments:
    """
    Shards to merge.

    Parameters:
        shards (`list[str]`):
            Output folders of all shards, in any order.
        output_dir (`str`):
            Folder for the merged dataset, its card, `rejects.jsonl` and `build.json`.
    """

    shards: list[str]
    output_dir: str

    def __post_init__(self):
        if os.path.realpath(self.output_dir) in map(os.path.realpath, self.shards):
            raise ValueError(f"`output_dir` is one of the shards ({self.output_dir}); choose another folder.")


ARGUMENTS = (MergeArguments,)


def main(args: MergeArguments):
    shards = read_shards(args.shards)
    counts = asyncio.run(merge(shards, args.output_dir))
    print(f"{counts['rows']} rows from {len(shards)} shards ({counts['dropped']} dropped, {counts['failed']} failed).")
    if counts["failed"]:
        failed = [str(shard.path) for shard in shards if shard.counts["failed"]]
        print(
            f"{counts['failed']} row(s) failed in {', '.join(failed)}: see {REJECTS}. Run these shards again to retry them, "
            "then merge again."
        )
        raise SystemExit(3)
    print(
        f"Wrote {counts['rows']} rows to {args.output_dir}. Next: run the next stage with --dataset_name {args.output_dir}"
    )
