"""End-of-sequence ids, which models list in their config, in their generation config, or in both."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from .published import has_file


def join_ids(*given: int | list[int] | None) -> list[int]:
    """Join token ids, each given as one id, as a list or as `None`, and drop repeats."""
    lists = [[ids] if isinstance(ids, int) else ids or [] for ids in given]
    return list(dict.fromkeys(token_id for ids in lists for token_id in ids))


def add_end_ids(text_config: Any, name: str | Path, **hub_kwargs):
    """Add the end-of-sequence ids that only a model's `generation_config.json` lists (Qwen 2.5) to those of its language model's config."""
    # As transformers does, take a Hub that cannot be reached for one without the file
    if has_file(name, "generation_config.json", **hub_kwargs, _raise_exceptions_for_connection_errors=False):
        more = GenerationConfig.from_pretrained(name, **hub_kwargs).eos_token_id
        if len(ids := join_ids(text_config.eos_token_id, more)) > len(join_ids(text_config.eos_token_id)):
            text_config.eos_token_id = ids
