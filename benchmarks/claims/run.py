"""
Test the claims of the CLoud paper (arXiv 2408.11791), and stage 4, with several seeds, controls and costs: the project's trainers train and
score all combinations of arms, tasks and seeds on one core. Finished cells are kept, and the same command resumes a killed run.

python benchmarks/claims/run.py --output_dir runs/claims      # the complete study; two hours on one core
python benchmarks/claims/run.py --output_dir runs/claims-quick --quick     # one seed, one task, at most 15 minutes
python benchmarks/claims/report.py                            # recompute the report from the collected scores
"""

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# Use one thread: the models are too small for more, and sums then do not depend on the number of cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import torch
import transformers
import yaml
from arms import ARMS, CORE, OTHERS, OUTCOME
from cells import Cell
from study import Settings, Study


HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "claims"
SAMPLED = ("cloud",)
logger = logging.getLogger("claims")


def plan(studies: list[Study], arms: list[str]) -> Iterator[tuple[Study, str, Any]]:
    """Yield the cells in order: first the core arms of all tasks and seeds, then the other arms."""
    for group in (CORE, OUTCOME, OTHERS):
        for study in studies:
            for name in group:
                if name in arms:
                    yield study, name, lambda study=study, name=name: study.arm(name)
            if group is CORE:
                yield study, "verdict", study.verdict
    for study in studies:
        for name in SAMPLED:
            if name in arms:
                yield study, f"{name}_samples", lambda study=study, name=name: study.samples(name)


def make_studies(args: argparse.Namespace) -> list[Study]:
    """Return the studies of all tasks and seeds, with the settings from the command line."""
    values = yaml.safe_load(args.settings.read_text())
    changes = {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in args.set)}
    return [
        Study(args.output_dir, task, seed, args.split, Settings(**{**values["all"], **values[task], **changes}))
        for task in args.tasks
        for seed in args.seeds
    ]


def quiet():
    """Use one thread, and silence the libraries."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def collect(root: Path, output: Path):
    """Gather the scores and records of all finished cells in files small enough to commit."""
    output.mkdir(parents=True, exist_ok=True)
    records: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(root.glob("*/seed*/*/cell.json")):
        record = json.loads(path.read_text())
        key = path.parent.relative_to(root).as_posix()
        records[key] = {name: record[name] for name in ("result", "cpu_s", "finished")}
        records[key] |= {
            name: record["settings"][name] for name in ("passes", "lr", "split") if name in record["settings"]
        }
        if (path.parent / "scores.npz").is_file():
            with np.load(path.parent / "scores.npz") as scores:
                arrays |= {f"{key}/{name}": values for name, values in scores.items()}
    by_task: dict[str, dict[str, np.ndarray]] = {}
    for key, values in arrays.items():
        task, name = key.split("/", 1)
        by_task.setdefault(task, {})[name] = values
    for task, values in by_task.items():
        np.savez_compressed(output / f"scores_{task}.npz", **values)  # pyright: ignore[reportArgumentType]
    text = json.dumps({"version": 1, "machine": machine(), "cells": records}, indent=0)
    (output / "cells.json").write_text(text + "\n")


def machine() -> dict[str, str]:
    """Describe the machine and the package versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {module.__name__: module.__version__ for module in (torch, transformers, datasets)}
    return {"processor": names[0] if names else platform.processor(), "python": platform.python_version(), **versions}


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/claims"), help="folder for the cells")
    parser.add_argument("--tasks", nargs="+", choices=("shell", "clock", "chain"), default=["shell", "clock", "chain"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="which problems to score")
    parser.add_argument("--settings", type=Path, default=HERE / "settings.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings to replace for all tasks")
    parser.add_argument("--results", type=Path, help="folder for the scores; defaults to the committed one")
    parser.add_argument("--quick", action="store_true", help="one seed of one task; scores stay in --output_dir")
    args = parser.parse_args(arguments)
    if args.quick:
        args.tasks, args.seeds = args.tasks[:1], args.seeds[:1]
    studies = make_studies(args)
    quiet()
    for study, name, work in plan(studies, args.arms):
        done: Cell = work()
        shown = ", ".join(f"{key} {done.result[key]:.3f}" for key in ("accuracy", "exact") if key in done.result)
        print(f"{study.task} seed {study.seed} {name}: {done.record['cpu_s']:.0f} CPU-s {shown}", flush=True)
    committed = args.split == "test" and not args.quick
    collect(args.output_dir, args.results or (RESULTS if committed else args.output_dir / "results"))


if __name__ == "__main__":
    sys.exit(main())
