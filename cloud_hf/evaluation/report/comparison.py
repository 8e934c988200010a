"""Compare two runs, perhaps made at different times, on the rows that both scored."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pyarrow import parquet

from ..evaluation_arguments import SETTINGS
from ..formatting import Section, file_name, render
from ..outcomes import Difference, difference, outcome
from ..scoring_arguments import short_names
from ..stats import json_safe
from .files import VERSION, write_json
from .tables import difference_table


COMPARED = """\
Rows are those that both runs scored, known by a hash of their prompt and responses: {folders}."""
_COLUMNS = ("benchmark", "row_hash", "row", "subset", "is_chosen", "reward")

# By set and model, the outcome of each row
Outcomes = dict[str, dict[str, dict[tuple[str, int], float]]]


@dataclass(frozen=True)
class Results:
    """The results of a finished run: `name` is that of its folder, `page` its report.json."""

    name: str
    page: dict[str, Any]
    outcomes: Outcomes

    def settings(self) -> dict[str, Any]:
        """Return what rewards may depend on, by name."""
        arguments, run = self.page["arguments"], self.page["environment"]
        found = {name: arguments.get(name) for name in (*SETTINGS, "overlong_policy", "bad_rows", "limit")}
        found |= {"device": run["device"]} | {f"version of {name}": value for name, value in run["versions"].items()}
        return found | {f"revision of {name}": value for name, value in run["models"].items()}


def read_results(folder: str, name: str) -> Results:
    """Read the results of `evaluate_rewards.py` in a folder. Raises `ValueError` if it holds none, or of an earlier version."""
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no report.json: it does not hold results of evaluate_rewards.py.")
    page = json.loads(path.read_text(encoding="utf-8"))
    if page["version"] != VERSION:
        raise ValueError(f"{path} has version {page['version']}; this code reads version {VERSION}.")
    outcomes: Outcomes = {}
    for model, short in short_names(page["arguments"]["models"]).items():
        unknown = {part["name"]: part["unknown"] for part in page["benchmarks"] if part["model"] == model}
        if unknown:  # otherwise the run ended before this model
            scores = Path(folder) / file_name("scores", short, "parquet")
            for benchmark, rows in _read_outcomes(scores, unknown).items():
                outcomes.setdefault(benchmark, {})[short] = rows
    if not outcomes:
        raise ValueError(f"{folder} holds no scores of benchmarks or preference sets to compare.")
    return Results(name, page, outcomes)


def _read_outcomes(path: Path, unknown: Mapping[str, Mapping[str, int]]) -> dict[str, dict[tuple[str, int], float]]:
    """Read the outcome of each known row by set; `unknown` has the subsets that are not part of each set."""
    if not path.is_file() or "row_hash" not in parquet.read_schema(path).names:
        raise ValueError(
            f"{path} is missing, or of an earlier version that did not record what rows hold. Run the command that wrote it again: the "
            "scores come from its journal."
        )
    rewards: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for row in parquet.read_table(path, columns=list(_COLUMNS)).to_pylist():
        if row["subset"] not in unknown.get(row["benchmark"], {}):
            sides = rewards.setdefault((row["benchmark"], row["row"], row["row_hash"]), ([], []))
            sides[not row["is_chosen"]].append(row["reward"])
    outcomes: dict[str, dict[tuple[str, int], float]] = {name: {} for name in unknown}
    seen: Counter = Counter()
    for (benchmark, _, row_hash), (chosen, rejected) in rewards.items():
        # Rows with equal contents are told apart by their order
        key = row_hash, seen[benchmark, row_hash]
        seen[benchmark, row_hash] += 1
        outcomes[benchmark][key] = outcome([right - wrong for right in chosen for wrong in rejected])
    return outcomes


@dataclass(frozen=True)
class Comparison:
    """Differences between each model of one run and each of another, and notes on what differs besides the models."""

    differences: list[Difference]
    notes: list[str]

    def section(self, folders: Sequence[str]) -> Section:
        """Make the section of a report."""
        text = COMPARED.format(folders=" and ".join(folders))
        return Section("Runs on the same rows", text, [difference_table(self.differences)], self.notes, level=1)


def compare_results(first: Results, second: Results) -> Comparison:
    """
    Compare two runs row by row. Raises `ValueError` if they have no rows in common.

    Rows and sets of one run only are counted in the notes, and settings that differ are named.
    """
    runs, differences, notes = (first, second), [], []
    for name in dict.fromkeys((*first.outcomes, *second.outcomes)):
        if missing := [run.name for run in runs if name not in run.outcomes]:
            notes.append(f"{name}: not in {missing[0]}.")
            continue
        for ours, theirs in product(first.outcomes[name], second.outcomes[name]):
            rows, other_rows = first.outcomes[name][ours], second.outcomes[name][theirs]
            labels = f"{first.name}: {ours}", f"{second.name}: {theirs}"
            found = difference(name, labels, rows, other_rows)
            differences += [] if found is None else [found]
            only = len(rows.keys() - other_rows.keys()), len(other_rows.keys() - rows.keys())
            if any(only):
                notes.append(f"{name}: rows of {labels[0]} alone: {only[0]}, of {labels[1]} alone: {only[1]}.")
    if not differences:
        raise ValueError(f"{first.name} and {second.name} have no rows in common. {' '.join(notes)}")
    ours, theirs = first.settings(), second.settings()
    notes += [
        f"Settings differ: {key} is {ours[key]!r} in {first.name} and {theirs[key]!r} in {second.name}."
        for key in ours
        if key in theirs and ours[key] != theirs[key]
    ]
    return Comparison(differences, notes)


def write_comparison(folders: Sequence[str], output_dir: str | None):
    """Compare two folders of results, print the differences, and write comparison.md and comparison.json to `output_dir`, if given."""
    names = short_names([str(Path(folder).resolve()) for folder in folders])
    first, second = (read_results(folder, name) for folder, name in zip(folders, names.values(), strict=True))
    found = compare_results(first, second)
    text = render([found.section([first.name, second.name])])
    print(text)
    if output_dir:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        (Path(output_dir) / "comparison.md").write_text(text, encoding="utf-8")
        write_json({"version": VERSION, **json_safe(found)}, Path(output_dir) / "comparison.json")
