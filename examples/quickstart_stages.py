"""
Run scripts one after another in one folder, as the stages of a run. Stages that have already finished with the same settings are kept.

A stage counts as finished once its record, `stages/NAME.json`, has been written. The record contains everything that the stage's output
depends on (command, recipe, code, packages, output of earlier stages) and a hash of each output file, except for model cards, to
which an evaluation adds its results. A stage runs again, from an empty folder, if any of these has changed or if it was interrupted.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cloud_hf.openmp_threads


EXAMPLES = Path(__file__).parent
RECIPES = EXAMPLES / "configs"
RECORDS = "stages"
CARD = "README.md"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers")


@dataclass(frozen=True)
class Stage:
    """One run of a script."""

    name: str  # key in the report
    title: str  # heading that is printed when the stage starts
    script: str  # path relative to `examples/`
    recipe: str  # path relative to `examples/configs/`
    options: tuple[str, ...]  # command-line options; `{run}` stands for the folder of the run
    folders: tuple[str, ...]  # folders of the run that the stage writes to
    inputs: tuple[str, ...] = ()  # names of the stages whose output this stage reads

    def command(self, run: Path) -> list[str]:
        options = [option.replace("{run}", str(run)) for option in self.options]
        return [sys.executable, str(EXAMPLES / self.script), "--config", str(RECIPES / self.recipe), *options]

    def settings(self, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Return everything that the stage's output depends on, as JSON. `records` are those of the earlier stages."""
        return {
            "command": [self.script, *self.options],
            "script": hash_file(EXAMPLES / self.script),
            "recipe": hash_file(RECIPES / self.recipe),
            "code": hash_code(),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "inputs": {name: hash_text(json.dumps(records[name]["outputs"])) for name in self.inputs},
        }


def run_stages(
    run: Path, stages: list[Stage], held: int, heading: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """
    Run the unfinished stages, in order. `held` is the file descriptor of the folder's lock, from [`lock`]; `heading` prints a heading for
    each stage. Returns `wall_s`, `cpu_s` and `peak_gb` for each stage, as measured when it ran; `peak_gb` is the peak memory use of any
    stage up to and including this one.
    """
    # Unlike the signal alone, SystemExit also makes `subprocess` stop the running stage
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    records: dict[str, dict[str, Any]] = {}
    for stage in stages:
        path = run / RECORDS / f"{stage.name}.json"
        settings = stage.settings(records)
        record = json.loads(path.read_text()) if path.is_file() else None
        again = why_again(run, record, settings) if record else None
        if record is None or again:
            heading(f"{stage.title} (again: {again})" if again else stage.title)
            path.unlink(missing_ok=True)
            record = run_one(stage, run, settings, records, held)
            write_json(path, record)
        else:
            heading(f"{stage.title} (kept from an earlier run)")
        records[stage.name] = record
    return {name: record["usage"] for name, record in records.items()}


def run_one(
    stage: Stage, run: Path, settings: dict[str, Any], records: dict[str, dict[str, Any]], held: int
) -> dict[str, Any]:
    """Run a stage from the beginning, and return its record."""
    of_others = {name for record in records.values() for name in record["outputs"]}
    empty(run, stage, of_others)
    usage = execute(stage, run, held)
    usage["peak_gb"] = max([usage["peak_gb"], *(record["usage"]["peak_gb"] for record in records.values())])
    print(f"   done in {usage['wall_s']:.0f} s", flush=True)
    written = [name for name in files(run, stage) if name not in of_others and Path(name).name != CARD]
    outputs = {name: hash_file(run / name) for name in written}
    return {"version": 1, "settings": settings, "outputs": outputs, "usage": usage}


def claim(run: Path, stages: list[Stage], seed: int):
    """Mark a folder as belonging to a run with this seed. Raises `ValueError` if it belongs to another run or contains other files."""
    mark = run / RECORDS / "run.json"
    if mark.is_file():
        written = json.loads(mark.read_text())["seed"]
        if written != seed:
            raise ValueError(
                f"{run} contains a run with seed {written}, not {seed}: choose another --output_dir, or delete the folder."
            )
        return
    found = [name for stage in stages for name in stage.folders if (run / name).exists()]
    if found:
        raise ValueError(
            f"{run} contains {found[0]}, but not {mark.relative_to(run)}, which records how it was created: choose another "
            "--output_dir, or delete the folder."
        )
    write_json(mark, {"version": 1, "seed": seed})


def why_again(run: Path, record: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """Return the reason for running a finished stage again: what has changed since then, or `None`."""
    changed = [name for name, value in settings.items() if record["settings"].get(name) != value]
    if changed:
        return f"{' and '.join(changed)} changed"
    for name, written in record["outputs"].items():
        if not (run / name).is_file() or hash_file(run / name) != written:
            return f"{name} changed"
    return None


def empty(run: Path, stage: Stage, of_others: set[str]):
    """Delete the output that an earlier or interrupted run of the stage has left in its folders."""
    for name in files(run, stage):
        if name not in of_others:
            (run / name).unlink()
    for folder in stage.folders:
        if not any(name.startswith(f"{folder}/") for name in of_others):
            shutil.rmtree(run / folder, ignore_errors=True)


def files(run: Path, stage: Stage) -> list[str]:
    found = [path for folder in stage.folders for path in (run / folder).rglob("*") if path.is_file()]
    return sorted(path.relative_to(run).as_posix() for path in found)


def execute(stage: Stage, run: Path, held: int) -> dict[str, float]:
    """Run a stage to completion. Returns its wall-clock and CPU seconds, and the peak memory use of any stage run by this process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    # The number of threads is chosen separately for each stage, because the load on the machine varies
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **cloud_hf.openmp_threads.thread_environment()}
    # At most one GPU: the Trainer would split its batches across all GPUs that it sees
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # A stage that outlives this process keeps the folder's lock
    done = subprocess.run(stage.command(run), env=environment, pass_fds=[held])
    if done.returncode != 0:
        sys.exit(f"{stage.script} failed with exit status {done.returncode}; see its messages above.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": time.monotonic() - start, "cpu_s": cpu, "peak_gb": after.ru_maxrss / 2**20}


@contextmanager
def lock(run: Path) -> Iterator[int]:
    """Wait until no other process is using this folder, including stages that a killed run has left behind; then lock the folder."""
    (run / RECORDS).mkdir(parents=True, exist_ok=True)
    with (run / RECORDS / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is using {run}; waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def write_json(path: Path, value: dict[str, Any]):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@cache
def hash_code() -> str:
    """Hash the library and the scripts, except those that only display results."""
    library = Path(cloud_hf.openmp_threads.__file__).parent
    scripts = {*EXAMPLES.glob("*.py")} - {*EXAMPLES.glob("quickstart*.py"), EXAMPLES / "shell_game_report.py"}
    paths = [*sorted(library.rglob("*.py")), *sorted(scripts)]
    return hash_text("".join(hash_file(path) for path in paths))
