"""Compare two finished runs on the rows that both scored."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from pyarrow import parquet

from ..evaluation_arguments import SETTINGS, EvaluationArguments
from ..formatting import POINTS, Section, file_name, render
from ..scoring_arguments import short_names
from ..set_results import Difference, difference, outcome
from .files import BEST_OF_N_VERSION, VERSION, write_json
from .tables import DIFFERENCE, difference_table


COMPARED = """\
{folders} are compared on the rows that both runs scored. Rows are identified by a hash of their prompt and responses."""
CHOICES = "Value of the candidate with the highest reward among all candidates"
BEST_OF_N = "Best-of-N, "  # prefix of the names of candidate sets
_PAGES = {"report.json": VERSION, "best_of_n.json": BEST_OF_N_VERSION}
# Settings that rewards may depend on, in addition to `SETTINGS`
_OTHER_SETTINGS = (
    "combine", "read_every", "stop_when_stable", "label_weights", "overlong_policy", "bad_rows", "limit",
)  # fmt: skip
_JUDGE_AND_CASCADE_SETTINGS = (  # these are only in report.json
    "judge_model", "judge_mode", "judge_prompt_file", "judge_temperature", "judge_max_tokens", "judge_tries",
    "cascade_goal", "cascade_one_at_a_time",
)  # fmt: skip
_DEFAULTS = {option.name: option.default for option in fields(EvaluationArguments)}
_COLUMNS = ("benchmark", "row_hash", "row", "subset", "is_chosen", "reward")

# Outcome of each row, by set and model
Outcomes = dict[str, dict[str, dict[tuple[str, int], float]]]


@dataclass(frozen=True)
class Results:
    """
    The results of finished runs in a folder. `name` is the folder's name, `pages` contains its report.json and best_of_n.json, and `scores`
    lists the candidate sets in which the value of a candidate is a score, not a share between 0 and 1.
    """

    name: str
    pages: dict[str, dict[str, Any]]
    outcomes: Outcomes
    scores: set[str]

    def settings(self) -> dict[str, Any]:
        """Return the settings that rewards may depend on, by name."""
        found = {}
        for file, page in self.pages.items():
            arguments, run, is_report = page["arguments"], page["environment"], file == "report.json"
            names = (*SETTINGS, *_OTHER_SETTINGS, *(_JUDGE_AND_CASCADE_SETTINGS if is_report else ["num_seeds"]))
            # Reports from earlier releases lack later options, which then had no effect
            values = {name: arguments.get(name, _DEFAULTS.get(name)) for name in names} | {"device": run["device"]}
            values |= {f"version of {name}": value for name, value in run["versions"].items()}
            values |= {f"revision of {name}": value for name, value in run["models"].items()}
            found |= values if is_report else {f"{name} (best-of-N)": value for name, value in values.items()}
        return found


def read_results(folder: str, name: str) -> Results:
    """
    Load the results of `evaluate_rewards.py` and `best_of_n.py` from a folder. Raises `ValueError` if there are none, or if their format
    version is not the current one.
    """
    pages, outcomes = {}, {}
    for file, version in _PAGES.items():
        path = Path(folder) / file
        if path.is_file():
            page = pages[file] = json.loads(path.read_text(encoding="utf-8"))
            if page["version"] != version:
                raise ValueError(f"{path} has version {page['version']}; this code reads version {version}.")
            outcomes |= (_read_report if file == "report.json" else _read_choices)(folder, page)
    if not pages:
        raise ValueError(
            f"{folder} has no report.json or best_of_n.json: it does not contain results of evaluate_rewards.py or best_of_n.py."
        )
    if not outcomes:
        raise ValueError(
            f"{folder} contains no scores of benchmarks, preference sets or judged candidates to compare."
        )
    results = pages.get("best_of_n.json", {"results": []})["results"]
    scores = {BEST_OF_N + result["title"] for result in results if result["quality"] != "correctness"}
    return Results(name, pages, outcomes, scores)


def _read_choices(folder: str, page: dict[str, Any]) -> Outcomes:
    """Load, from best_of_n.json, the value of the candidate chosen for each problem, by set and model."""
    models, outcomes = _short_names(page), {}
    for result in page["results"]:
        if "win_rate" in result:  # a judge's votes, which depend on the candidates that other models chose
            continue
        if "choices" not in result:
            raise ValueError(
                f"{Path(folder) / 'best_of_n.json'} was written by an earlier version that did not record each problem's choice. Rerun the "
                "command that wrote it; the scores are taken from its journal."
            )
        of_set = outcomes.setdefault(BEST_OF_N + result["title"], {})
        of_set[models.get(result["model"], result["model"])] = _by_content(result["choices"])
    return outcomes


def _short_names(page: dict[str, Any]) -> dict[str, str]:
    """Map the models of a run, as the page names them, to the short names in the names of its files."""
    # The page may already have short names instead of paths, and shortening a name again could change it. Early reports have no styles
    names = page["arguments"]["models"]
    return dict(zip(names, page.get("styles") or short_names(names).values(), strict=False))


def _by_content(rows: Iterable[tuple[str, float]]) -> dict[tuple[str, int], float]:
    """Key each value by its row's hash and a number. Rows with identical contents have the same hash and are numbered in order."""
    seen: Counter = Counter()
    found = {}
    for row_hash, value in rows:
        found[row_hash, seen[row_hash]] = value
        seen[row_hash] += 1
    return found


def _read_report(folder: str, page: dict[str, Any]) -> Outcomes:
    outcomes: Outcomes = {}
    models = _short_names(page)
    names: list[str] = [part["model"] for part in page["benchmarks"]]
    for model in dict.fromkeys(names):
        unknown = {part["name"]: part["unknown"] for part in page["benchmarks"] if part["model"] == model}
        short = models.get(model, model)  # ensembles have no short name
        scores = Path(folder) / file_name("scores", short, "parquet")
        for benchmark, rows in _read_outcomes(scores, unknown).items():
            outcomes.setdefault(benchmark, {})[short] = rows
    return outcomes


def _read_outcomes(path: Path, unknown: Mapping[str, Mapping[str, int]]) -> dict[str, dict[tuple[str, int], float]]:
    """
    Load the outcomes of rows, by set. For each set, `unknown` lists the subsets in its rows that are not part of the benchmark; rows of
    these subsets are left out.
    """
    if not path.is_file() or "row_hash" not in parquet.read_schema(path).names:
        raise ValueError(
            f"{path} is missing, or was written by an earlier version that did not record the contents of rows. Rerun the command that "
            "wrote it; the scores are taken from its journal."
        )
    rewards: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}
    for row in parquet.read_table(path, columns=list(_COLUMNS)).to_pylist():
        if row["subset"] not in unknown.get(row["benchmark"], {}):
            sides = rewards.setdefault((row["benchmark"], row["row"], row["row_hash"]), ([], []))
            sides[not row["is_chosen"]].append(row["reward"])
    rows: dict[str, list[tuple[str, float]]] = {name: [] for name in unknown}
    for (benchmark, _, row_hash), (chosen, rejected) in rewards.items():
        rows[benchmark].append((row_hash, outcome([right - wrong for right in chosen for wrong in rejected])))
    return {name: _by_content(of_set) for name, of_set in rows.items()}


@dataclass(frozen=True)
class Comparison:
    """Differences between each model of one run and each model of the other, and notes on other differences between the runs."""

    differences: list[Difference]
    notes: list[str]
    scores: set[str]  # see `Results`

    def section(self, folders: Sequence[str]) -> Section:
        """Build the section of a report."""
        text = COMPARED.format(folders=" and ".join(folders))
        rows, shares, scores = kinds = [], [], []
        for found in self.differences:
            kinds[found.benchmark.startswith(BEST_OF_N) + (found.benchmark in self.scores)].append(found)
        tables = [difference_table(rows)] if rows else []
        tables += [difference_table(shares, POINTS, CHOICES)] if shares else []
        tables += [difference_table(scores, DIFFERENCE, CHOICES)] if scores else []
        return Section("Runs on the same rows", text, tables, self.notes, level=1)


def compare_results(first: Results, second: Results) -> Comparison:
    """
    Compare two runs row by row. Raises `ValueError` if they have no rows in common.

    The notes count the rows that only one run has, name the sets that only one run has, and list the settings that differ.
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
                notes.append(f"{name}: rows that only one side has: {only[0]} ({labels[0]}), {only[1]} ({labels[1]}).")
    if not differences:
        raise ValueError(f"{first.name} and {second.name} have no rows in common. {' '.join(notes)}")
    ours, theirs = first.settings(), second.settings()
    notes += [
        f"Settings differ: {key} is {ours[key]!r} in {first.name} and {theirs[key]!r} in {second.name}."
        for key in ours
        if key in theirs and ours[key] != theirs[key]
    ]
    return Comparison(differences, notes, first.scores | second.scores)


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
        page = {"version": VERSION, "differences": found.differences, "notes": found.notes}
        write_json(page, Path(output_dir) / "comparison.json")
