"""Dataset cards, which show the columns, a row, the sources with their licences, the settings and the counts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_from_disk
from huggingface_hub import DatasetCard, DatasetCardData

from ..cards import assemble, hub_id, read_metadata, shown_name
from ..markdown import block, in_code, settings_table, table


_COLUMNS = {
    "id": "name of the row",
    "prompt": "what the responses answer: text, or chat messages",
    "chosen": "the better response",
    "rejected": "the worse response",
    "chosen_feedback": "critique of `chosen`",
    "rejected_feedback": "critique of `rejected`",
    "margin": "how much better `chosen` is; subtracted from the difference of rewards in training",
    "chosen_rating": "rating of `chosen`",
    "rejected_rating": "rating of `rejected`",
    "tools": "tools that the assistant may call, as JSON",
}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def dataset_card(
    title: str, folder: Path, settings: Mapping[str, Any], counts: Mapping[str, Any], sources: Sequence[str] = ()
) -> DatasetCard:
    """
    Build the card of a `save_to_disk` dataset. It shows the columns, the first row, the sources (Hub ids or paths) with their licences, the
    settings and the counts. If `counts` contains `statistics`, they get a section of their own.
    """
    loaded = load_from_disk(str(folder))
    splits = (
        {str(split): rows for split, rows in loaded.items()} if isinstance(loaded, DatasetDict) else {"train": loaded}
    )
    rows = next(iter(splits.values()))
    of_sources = {name: read_metadata(name, DatasetCard) for name in sources}
    described = [
        (in_code(name), in_code(getattr(kind, "dtype", None) or str(kind)), _COLUMNS.get(name, ""))
        for name, kind in rows.features.items()
    ]
    listed = [
        (in_code(shown_name(name) or ""), in_code(of.get("license", "unknown"))) for name, of in of_sources.items()
    ]
    path = folder.resolve().name
    load = f"from datasets import load_from_disk\n\nrows = load_from_disk({path!r})  # from the Hub: load_dataset(ID)"
    row = json.dumps(_shortened(rows[0]), indent=2, ensure_ascii=False, default=str) if len(rows) else ""
    about = (
        f"{', '.join(f'{len(part)} rows ({split})' for split, part in splits.items())}, in the folder {in_code(path)}."
    )
    sections = {
        "Load": block(load, "python"),
        "Columns": table(described, ("column", "type", "meaning")),
        "A row": block(row, "json") if row else "",
        "Sources": table(listed, ("source", "licence")) if listed else "",
        "How it was made": settings_table(settings),
        "Counts": settings_table({name: value for name, value in counts.items() if name != "statistics"}),
        "Statistics": settings_table(counts.get("statistics", {})),
    }
    data = _metadata(of_sources, sum(map(len, splits.values())), {"chosen", "rejected"} <= set(rows.features))
    return assemble(DatasetCard, data, title, about, sections)


def _metadata(of_sources: Mapping[str, Mapping[str, Any]], total: int, has_pairs: bool) -> DatasetCardData:
    """Return the card's metadata. The licence, the languages and the original sources are copied from the cards of the sources."""
    on_hub = [
        found
        for name, of in of_sources.items()
        for found in ([name] if hub_id(name) else of.get("source_datasets", []))
    ]
    languages = [code for of in of_sources.values() for code in of.get("language", [])]
    licences = {of.get("license", "unknown") for of in of_sources.values()} or {"unknown"}
    mixed = "unknown" if "unknown" in licences else "other"
    return DatasetCardData(
        license=licences.pop() if len(licences) == 1 else mixed,
        language=list(dict.fromkeys(languages)) or None,
        source_datasets=list(dict.fromkeys(on_hub)) or None,
        task_categories=["text-generation"],
        size_categories=[next((name for limit, name in _SIZES if total < limit), "n>10M")],
        tags=["cloud_hf", *(["preference"] if has_pairs else [])],
    )


def _shortened(value: Any) -> Any:
    """Return a row with long texts and lists shortened."""
    if isinstance(value, str):
        return value if len(value) <= 400 else f"{value[:399]}…"
    if isinstance(value, Mapping):
        return {key: _shortened(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(part) for part in value[:8]] + (["…"] if len(value) > 8 else [])
    return value
