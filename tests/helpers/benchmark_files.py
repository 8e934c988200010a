"""Benchmark files written for tests."""

import gzip
import json
from pathlib import Path


def write_rows(path: Path, rows: list[dict]) -> str:
    """Write JSON lines, gzipped if the name says so, and return the path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def pair(subset: str, number: int = 0, **columns) -> dict:
    row = {"id": f"{subset}/{number}", "subset": subset, "prompt": "p", "chosen": "good", "rejected": "bad"}
    return {**row, **columns}


def lengths(rows) -> list[list[int]]:
    """The rewards of a scorer that likes long responses."""
    return [[len(response) for response in row.responses] for row in rows]
