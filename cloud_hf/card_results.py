"""Held-out results in model cards: the `model-index` metadata and the Evaluation section."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .markdown import in_code, table


# Markers around the results that `add_results` replaces
_RESULTS = "<!-- results: written by cloud-hf -->", "<!-- end of results -->"


def results_section(results: Sequence[EvalResult], notes: str = "") -> str:
    """Return the section with held-out results, between the markers by which [`add_results`] finds it."""
    rows = [
        (
            in_code(result.dataset_name)
            + (f", split {in_code(result.dataset_split)}" if result.dataset_split else ""),
            in_code(result.metric_name or result.metric_type),
            f"{result.metric_value:.1%}" if isinstance(result.metric_value, float) else in_code(result.metric_value),
            _interval(result.metric_args),
            str((result.dataset_args or {}).get("rows", "")),
            ", ".join(
                f"{key} {in_code(value) if isinstance(value, str) else value}"
                for key, value in (result.metric_args or {}).items()
                if key != "ci95"
            ),
        )
        for result in results
    ]
    shown = table(rows, ("rows", "metric", "value", "95% interval", "n", "settings")) if rows else ""
    text = "\n\n".join(filter(None, (shown, notes))) or (
        "Not evaluated on held-out rows. `cloud-hf evaluate --update_card` adds results here."
    )
    return f"{_RESULTS[0]}\n{text}\n{_RESULTS[1]}"


def _interval(settings: Mapping[str, Any] | None) -> str:
    ends = (settings or {}).get("ci95")
    return f"{ends[0]:.1%} to {ends[1]:.1%}" if ends else ""


def add_results(folder: Path, results: list[EvalResult]):
    """
    Add results to a model card, both to its `model-index` metadata and to its Evaluation section. New results replace earlier ones for the
    same dataset, split, revision, metric and settings (`metric_args` except for the interval, `ci95`).
    """
    card = ModelCard.load(folder / "README.md")
    data: Any = card.data
    new = set(map(_key_of, results))
    kept = [result for result in data.eval_results or [] if _key_of(result) not in new]
    data.model_name = data.model_name or folder.resolve().name
    data.eval_results = kept + results
    before, start, rest = card.text.partition(_RESULTS[0])
    _, end, after = rest.partition(_RESULTS[1])
    heading = "" if start else "\n\n## Evaluation\n\n"
    card.text = f"{before if start else card.text.rstrip()}{heading}{results_section(data.eval_results)}{after if end else chr(10)}"
    card.save(folder / "README.md")


def _key_of(result: EvalResult) -> tuple:
    dataset = (result.dataset_type, result.dataset_name, result.dataset_split, result.dataset_revision)
    settings = {key: value for key, value in (result.metric_args or {}).items() if key != "ci95"}
    return *dataset, result.metric_name, json.dumps(settings, sort_keys=True)
