"""Finished cells of the study on disk. Each cell is computed once, and a killed run leaves no half-written cell."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


RECORD = "cell.json"
# Increase this number when a code change affects the contents of cells
VERSION = 1


@dataclass(frozen=True)
class Cell:
    """A folder of computed files, and its record: settings, result, cost and the time at which it was finished."""

    folder: Path
    record: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        return self.record["result"]


def cell(folder: Path, settings: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> Cell:
    """
    Return the cell in `folder`, and compute it first unless it is finished and has the same settings.

    `work` writes its files into the folder that it receives, which gets its final name only once everything is written.
    """
    settings = json.loads(json.dumps({"version": VERSION, **settings}))
    if (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_text())
        if record["settings"] == settings:
            return Cell(folder, record)
        shutil.rmtree(folder)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    wall, cpu = time.monotonic(), time.process_time()
    result = work(part)
    record = {
        "settings": settings,
        "result": result,
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.monotonic() - wall, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (part / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    part.rename(folder)
    return Cell(folder, record)
