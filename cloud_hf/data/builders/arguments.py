"""Command-line arguments shared by the data builders."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ...argument_help import check_bounds, documented
from ..bad_rows import check_bad_rows
from ..completions import CompletionClient
from ..critiques import CritiqueOptions
from ..journal import key_of
from ..preference_rows import PAIR_COLUMNS, SIDES, read_preferences, read_prompts
from ..rows import check_columns, dataset_label, hash_of_rows, load_rows, row_name


if TYPE_CHECKING:
    from ...configuration_cloud import CLoudConfig


@documented
@dataclass(kw_only=True)
class SourceArguments:
    """
    Input and output of a command that creates a dataset from another one.

    Parameters:
        dataset_name (`str`):
            Hub id, JSONL or Parquet file, or `save_to_disk` folder (for example, the output of another builder).
        output_dir (`str`):
            Folder for the dataset, its card, `rejects.jsonl`, `build.json` and the journal. Run the same command again to resume.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split to read.
        limit (`int`, *optional*):
            Read only the first rows.
        push_to_hub (`str`, *optional*):
            Hub id to upload the dataset to.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            Handling of rows that cannot be used: `error` stops the command, and `drop` leaves the rows out and reports their number.
    """

    dataset_name: str
    output_dir: str
    dataset_config: str | None = None
    dataset_split: str = "train"
    limit: int | None = None
    push_to_hub: str | None = None
    bad_rows: str = "error"

    def __post_init__(self):
        check_bounds(self, limit=1)
        check_bad_rows(self.bad_rows)
        output, dataset = Path(self.output_dir).resolve(), Path(self.dataset_name).resolve()
        if dataset == output or dataset in output.parents:
            raise ValueError(
                f"`output_dir` is the dataset folder or a folder inside it ({self.output_dir}); choose another folder."
            )

    def load_source(self) -> Dataset:
        """Load the first `limit` rows unchanged. Raises `ValueError` if the dataset has no rows."""
        rows = load_rows(self.dataset_name, self.dataset_split, self.dataset_config)
        if not len(rows):
            raise ValueError(f"{self.dataset_name} has no rows.")
        return rows.select(range(min(self.limit or len(rows), len(rows))))


@documented
@dataclass(kw_only=True)
class BuilderArguments(SourceArguments):
    """
    [`SourceArguments`] of a builder, plus an option to process only part of the rows.

    Parameters:
        shard (`str`, *optional*, defaults to `"0/1"`):
            Part of the rows to process, as `i/n`: part i of n, with i from 0 to n - 1. `merge_shards.py` joins the outputs.
    """

    shard: str = "0/1"

    def __post_init__(self):
        super().__post_init__()
        self.parsed_shard()

    def parsed_shard(self) -> tuple[int, int]:
        """Return `(i, n)`. Raises `ValueError` if `shard` is malformed."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError(f"`shard` is {self.shard!r}; give i/n with i from 0 to n - 1, for example 0/4.")
        return int(match[1]), int(match[2])

    def load_prompts(self) -> Dataset:
        """Load this shard's rows, whose prompts may have any form that [`read_prompts`] accepts; see [`BuilderArguments.load_pairs`]."""
        return self._load(read_prompts, ("prompt",))

    def load_pairs(self) -> Dataset:
        """
        Load this shard's preference rows, which may have any form that [`read_preferences`] accepts. If there is no column `id`, each row's
        position before sharding becomes its id.

        Raises `ValueError` if a column is missing, rows cannot be used, an id is repeated, or a shard would be empty.
        """
        return self._load(read_preferences, SIDES)

    def _load(self, read: Callable, columns: tuple[str, ...]) -> Dataset:
        rows = self.load_source()
        title = f"Building from {self.dataset_name}"
        check_columns(rows.column_names, columns, title, (self.dataset_name, self.dataset_split, self.dataset_config))
        rows = read(rows, title, bad_rows=self.bad_rows)
        if "id" not in rows.column_names:
            rows = rows.add_column("id", [str(index) for index in range(len(rows))])
        check_ids(rows)
        self._all_shards = {"rows_of_all_shards": len(rows), "ids_of_all_shards": key_of(*rows["id"])}
        self._rows_of_all_shards = rows
        index, count = self.parsed_shard()
        if len(rows) < count:
            raise ValueError(
                f"`shard` is {self.shard}, but {len(rows)} row(s) would leave some shards empty; use fewer shards."
            )
        # Contiguous, so that merged shards have the same row order as a single run
        return rows.shard(count, index, contiguous=True)

    def describe(self, rows: Dataset, columns: tuple[str, ...]) -> dict[str, Any]:
        """
        Describe loaded rows for the settings of a journal: their origin, their number, and a hash of `id`, `tools` and the columns named
        in `columns`. With several shards, the description also contains a hash of all columns in all shards, because the output keeps
        all columns.
        """
        names = [name for name in ("id", *columns, "tools") if name in rows.column_names]
        shared = dict(self._all_shards)
        if self.parsed_shard()[1] > 1:
            # Shards built from two versions of a file must not be merged. Their ids may be equal, so hash the contents as well
            shared["contents_of_all_shards"] = hash_of_rows(self._rows_of_all_shards.select_columns(rows.column_names))
        return {
            "dataset": dataset_label(self.dataset_name),
            "split": self.dataset_split,
            "shard": self.shard,
            **shared,
            "rows": len(rows),
            "hash": hash_of_rows(rows.select_columns(names)),
        }


@documented
@dataclass(kw_only=True)
class ServerArguments:
    """
    Options for requests to servers.

    Parameters:
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that contains the servers' API key, if they need one.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Maximum number of requests in flight.
        max_retries (`int`, *optional*, defaults to `8`):
            Retries per request.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Timeout per attempt, in seconds.
    """

    api_key_env: str = "OPENAI_API_KEY"
    max_concurrency: int = 64
    max_retries: int = 8
    request_timeout: float = 600.0

    def client(self, base_urls: list[str], model: str | None, api_key_env: str | None = None) -> CompletionClient:
        """Create a client with these settings, optionally with another API key. Raises `ValueError` if a setting is invalid."""
        return CompletionClient(
            base_urls,
            model,
            api_key_env=api_key_env or self.api_key_env,
            max_concurrency=self.max_concurrency,
            max_retries=self.max_retries,
            request_timeout=self.request_timeout,
        )


def check_ids(rows: Dataset):
    """Raise `ValueError` if an id is repeated, or is neither a string nor an integer."""
    seen: dict[Any, int] = {}
    for index, name in enumerate(rows["id"]):
        if not isinstance(name, str | int):
            raise ValueError(
                f"row {index}: `id` is {name!r:.60}. Give every row a string or an integer id, or remove the column."
            )
        if name in seen:
            raise ValueError(
                f"{row_name(index, {'id': name})}: row {seen[name]} has the same id. Give every row a unique id."
            )
        seen[name] = index


# Options that are needed only for a language model, because a CLoud model's config already sets them
_PROMPT_OPTIONS = {"critique_prompt": None, "critique_role": "user", "keep_thinking": False, "format": "cloud"}


@documented
@dataclass(kw_only=True)
class CriticArguments(CritiqueOptions, BuilderArguments):
    """
    Options for the model that writes critiques. Includes [`BuilderArguments`] and options for the number, length and sampling of critiques.

    Parameters:
        model_name_or_path (`str`):
            Stage 1 model (a language model or a LoRA adapter), or a CLoud model.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn; use the same text as in stage 1. The config of a CLoud model already contains its text.
        critique_role (`str`, *optional*, defaults to `"user"`):
            Role of the critique turn, `user` or `assistant`; use the same role as in stage 1.
        keep_thinking (`bool`, *optional*, defaults to `False`):
            Keep `<think>` blocks that the chat template would drop; use the same value as in stage 1.
        format (`str`, *optional*, defaults to `"cloud"`):
            Conversation format, `cloud` or `reference`; use the same format as in stage 1.
    """

    model_name_or_path: str
    critique_prompt: str | None = None
    critique_role: str = "user"
    keep_thinking: bool = False
    format: str = "cloud"

    def __post_init__(self):
        BuilderArguments.__post_init__(self)
        CritiqueOptions.__post_init__(self)

    def is_reward_model(self) -> bool:
        """Return whether the critic is already a CLoud model."""
        from ...configuration_cloud import CLoudConfig
        from ...loading import read_model_config

        return isinstance(read_model_config(self.model_name_or_path), CLoudConfig)

    def read_critic(self) -> "CLoudConfig":
        """
        Load the config of a CLoud model, or create a config for a language model.

        Raises `ValueError` if the model is a classic reward model, or if it is a CLoud model and options for language models were given.
        """
        from transformers import AutoTokenizer

        from ...configuration_cloud import CLoudConfig
        from ...loading import adapter_base, is_adapter, read_model_config, tokenizer_source
        from ...modeling_cloud import CLoudForRewardModeling

        name = self.model_name_or_path
        config = read_model_config(name)
        if not isinstance(config, CLoudConfig):
            base, revision = adapter_base(name) if is_adapter(name) else (name, None)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name))
            options = {option: getattr(self, option) for option in _PROMPT_OPTIONS}
            return CLoudForRewardModeling.config_from_base(base, tokenizer, revision=revision, **options)
        if not config.critique:
            raise ValueError(f"{name} is a classic reward model: it does not write critiques.")
        if any(getattr(self, option) != default for option, default in _PROMPT_OPTIONS.items()):
            raise ValueError(
                f"{name} is a CLoud model, and its config already sets {', '.join(_PROMPT_OPTIONS)}: omit these options."
            )
        return config

    def settings(self, builder: str, rows: Dataset, config: "CLoudConfig", **engine: Any) -> dict[str, Any]:
        """Return all settings that affect the critiques; `engine` describes how the model runs."""
        from ...model_identity import identify_model

        return {
            "builder": builder,
            **self.describe(rows, PAIR_COLUMNS),
            **identify_model(self.model_name_or_path),
            **engine,
            **{option: getattr(config, option) for option in (*_PROMPT_OPTIONS, "chat_template_kwargs")},
            **{option.name: getattr(self, option.name) for option in fields(CritiqueOptions)},
        }
