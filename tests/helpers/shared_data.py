"""Real preference data, read from `../shared/data` next to the checkout; tests that need it skip where it is absent."""

import functools
import gzip
import json
from pathlib import Path

import pytest


SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the real preference data in ../shared/data, which is not part of the product")
    return SHARED


def read_rows(path: Path) -> list[dict]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf8") as file:
        return [json.loads(line) for line in file]


@functools.cache
@functools.cache
def real_texts(count: int) -> list[str]:
    """Prompts, responses and critiques in turn, from every evaluation file and the critique pairs."""
    texts = []
    files = [*sorted((shared_data() / "eval").iterdir()), shared_data() / "train/cloud_pairs_arenabench_gpt4.jsonl.gz"]
    for path in files:
        rows = read_rows(path)
        for row in rows[:: max(1, len(rows) // 12)]:
            values = [row.get("prompt"), row.get("chosen"), row.get("rejected"), row.get("chosen_feedback")]
            texts += [value[:3000] for value in values if isinstance(value, str) and value.strip()]
    assert len(texts) >= count
    return texts[:: len(texts) // count][:count]
