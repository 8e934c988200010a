"""Command-line arguments that the builders share, and what they mean. Command-line arguments of everything that lets a model write its own critiques."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from ...configuration_cloud import CLoudConfig
from ...loading import adapter_base, is_adapter, read_model_config, tokenizer_source
from ...model_identity import identify_model
from ...modeling_cloud import CLoudForRewardModeling
from ..completions import CompletionClient
from ..critiques import SIDES, CritiqueOptions
from ..journal import key_of
from ..rows import PAIR_COLUMNS, check_columns, load_rows, response_of, row_name
from ..run import check_rows


@dataclass(kw_only=True)
class BuilderArguments:
    """
    What is built from what.

    Parameters:
        dataset_name (`str`):
            Hub id, JSONL or Parquet file, or `save_to_disk` folder, such as another builder's output.
        output_dir (`str`):
            Folder for the dataset, its card, `rejects.jsonl`, `build.json` and the journal. A run that was killed goes on when the
            same command is given again.
        dataset_config (`str`, *optional*):
            Configuration of a Hub dataset.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split to read.
        limit (`int`, *optional*):
            Read only so many rows.
        shard (`str`, *optional*, defaults to `"0/1"`):
            `i/n` with i from 0 to n - 1: work on the i-th of n parts only. `merge_shards.py` joins the outputs.
        push_to_hub (`str`, *optional*):
            Hub id to upload the dataset to.
    """

    dataset_name: str = field(metadata={"help": "Hub id, JSONL or Parquet file, or save_to_disk folder."})
    output_dir: str = field(metadata={"help": "Folder for everything that is written."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to read."})
    limit: int | None = field(default=None, metadata={"help": "Read only so many rows."})
    shard: str = field(default="0/1", metadata={"help": "i/n: work on the i-th (from 0) of n parts."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Hub id to upload the dataset to."})

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`limit` is {self.limit}; it must be at least 1.")
        self.parsed_shard()
        output, dataset = Path(self.output_dir).resolve(), Path(self.dataset_name).resolve()
        if dataset == output or dataset in output.parents:
            raise ValueError(
                f"`output_dir` is the dataset itself or inside it ({self.output_dir}); name another folder."
            )

    def parsed_shard(self) -> tuple[int, int]:
        """`(i, n)`. Raises `ValueError` if `shard` is none."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not match or not int(match[1]) < int(match[2]):
            raise ValueError(f"`shard` is {self.shard!r}; give i/n with i from 0 to n - 1, such as 0/4.")
        return int(match[1]), int(match[2])

    def load(self, *columns: str) -> Dataset:
        """
        The rows of this shard, with ids.

        Args:
            *columns (`str`):
                Columns that must be there. Where there is no `id`, the position among all rows is one.

        Raises:
            `ValueError`: If a column is missing, an id comes twice, or the shard is empty.
        """
        rows = load_rows(self.dataset_name, self.dataset_split, self.dataset_config)
        check_columns(rows.column_names, columns, f"Building from {self.dataset_name}")
        if not len(rows):
            raise ValueError(f"{self.dataset_name} holds no rows.")
        if self.limit is not None:
            rows = rows.select(range(min(self.limit, len(rows))))
        if "id" not in rows.column_names:
            rows = rows.add_column("id", [str(index) for index in range(len(rows))])
        check_ids(rows)
        self._whole = {"rows_of_all_shards": len(rows), "ids_of_all_shards": key_of(*rows["id"])}
        index, count = self.parsed_shard()
        if len(rows) < count:
            raise ValueError(f"`shard` {self.shard} of {len(rows)} row(s) leaves empty shards; use fewer.")
        return rows.shard(count, index, contiguous=True)

    def describe(self, rows: Dataset, columns: tuple[str, ...]) -> dict[str, Any]:
        """
        What tells these rows from others, for the settings of a journal: where they are from, how many, and hashes.

        Args:
            rows (`Dataset`):
                The rows of [`BuilderArguments.load`].
            columns (`tuple[str, ...]`):
                The columns that matter; `tools` do where they are there.
        """
        digest = ""
        names = [name for name in ("id", *columns, "tools") if name in rows.column_names]
        for row in rows.select_columns(names):
            digest = key_of(digest, row)
        path = Path(self.dataset_name)
        return {
            # Not its place, which may change from machine to machine
            "dataset": path.resolve().name if path.exists() else self.dataset_name,
            "split": self.dataset_split,
            "shard": self.shard,
            **self._whole,
            "rows": len(rows),
            "hash": digest,
        }


@dataclass(kw_only=True)
class ServerArguments:
    """
    How servers are asked.

    Parameters:
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable with the servers' key, if they want one.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Requests under way at once.
        max_retries (`int`, *optional*, defaults to `8`):
            Tries after the first, for each request.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Seconds one try may take.
    """

    api_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "Variable with the servers' key."})
    max_concurrency: int = field(default=64, metadata={"help": "Requests under way at once."})
    max_retries: int = field(default=8, metadata={"help": "Tries after the first, for each request."})
    request_timeout: float = field(default=600.0, metadata={"help": "Seconds one try may take."})

    def client(self, base_urls: list[str], model: str | None, api_key_env: str | None = None) -> CompletionClient:
        """A client with these settings, or another key. Raises `ValueError` if they make no sense."""
        return CompletionClient(
            base_urls,
            model,
            api_key_env=api_key_env or self.api_key_env,
            max_concurrency=self.max_concurrency,
            max_retries=self.max_retries,
            request_timeout=self.request_timeout,
        )


def check_ids(rows: Dataset):
    """Raise `ValueError` if two rows have one id."""
    seen: dict[Any, int] = {}
    for index, name in enumerate(rows["id"]):
        if not isinstance(name, str | int):
            raise ValueError(
                f"row {index}: `id` is {name!r:.60}. Give every row a string or a whole number, or leave the column out."
            )
        if name in seen:
            raise ValueError(
                f"{row_name(index, {'id': name})}: row {seen[name]} has the same id. Give every row its own."
            )
        seen[name] = index


# How a language model is asked; a CLoud model knows
_ASKED = {"critique_prompt": None, "critique_role": "user", "keep_thinking": False, "format": "cloud"}


@dataclass(kw_only=True)
class CriticArguments(BuilderArguments):
    """
    Which model criticises, and how much it may write. The arguments of [`BuilderArguments`], and

    Parameters:
        model_name_or_path (`str`):
            The model of stage 1 (a language model, or a LoRA adapter of one), or a CLoud model.
        critique_prompt, critique_role, keep_thinking, format:
            How a critique is asked for; use the values of stage 1. A CLoud model knows its own.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response; with several, the columns hold lists.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens.
        longer_tries (`int`, *optional*, defaults to `2`):
            How often a critique that was cut is written again, with twice the tokens each time.
        truncated (`str`, *optional*, defaults to `"drop"`):
            What becomes of critiques that are cut even then: drop (with the row, if it has no other ones), or keep.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            What happens to rows that do not fit the model's context: error, drop or truncate_prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
    """

    model_name_or_path: str = field(metadata={"help": "The model of stage 1, or a CLoud model."})
    critique_prompt: str | None = field(default=None, metadata={"help": "Text that opens the critique turn."})
    critique_role: str = field(default="user", metadata={"help": "Role of the critique turn: user or assistant."})
    keep_thinking: bool = field(default=False, metadata={"help": "Show <think> blocks the template would drop."})
    format: str = field(default="cloud", metadata={"help": "Spelling of conversations: cloud or reference."})
    num_critiques: int = field(default=1, metadata={"help": "Critiques per response."})
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest critique in tokens."})
    longer_tries: int = field(default=2, metadata={"help": "Tries with twice the tokens for a critique that was cut."})
    truncated: str = field(default="drop", metadata={"help": "Critiques that stay cut: drop or keep."})
    overlong_policy: str = field(default="error", metadata={"help": "Over-long rows: error, drop or truncate_prompt."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})

    def __post_init__(self):
        super().__post_init__()
        self.critique_options()

    def critique_options(self) -> CritiqueOptions:
        """What critiques are asked for. Raises `ValueError` if it makes no sense."""
        return CritiqueOptions(**{each.name: getattr(self, each.name) for each in fields(CritiqueOptions)})

    def is_reward_model(self) -> bool:
        """Whether the critic is a CLoud model already."""
        return isinstance(read_model_config(self.model_name_or_path), CLoudConfig)

    def read_critic(self) -> CLoudConfig:
        """
        The config that says how the critic is asked.

        Raises:
            `ValueError`: If the model writes no critiques, or knows better than the options how it is asked.
        """
        name = self.model_name_or_path
        if not self.is_reward_model():
            base, revision = adapter_base(name) if is_adapter(name) else (name, None)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name))
            asked = {option: getattr(self, option) for option in _ASKED}
            return CLoudForRewardModeling.config_from_base(base, tokenizer, revision=revision, **asked)
        config = read_model_config(name)
        if not config.critique:
            raise ValueError(f"{name} is a classic reward model: it writes no critiques.")
        if any(getattr(self, option) != default for option, default in _ASKED.items()):
            raise ValueError("A CLoud model knows how it is asked for critiques: leave those options out.")
        return config

    def load_pairs(self) -> Dataset:
        """The rows, both responses of each checked."""
        rows = self.load(*PAIR_COLUMNS)
        check_rows(rows, lambda row: [response_of(row, side) for side in SIDES])
        return rows

    def settings(self, builder: str, rows: Dataset, config: CLoudConfig, **engine: Any) -> dict[str, Any]:
        """All that the critiques depend on; `engine` is what runs the model."""
        return {
            "builder": builder,
            **self.describe(rows, PAIR_COLUMNS),
            **identify_model(self.model_name_or_path),
            **engine,
            "critique_prompt": config.critique_prompt,
            "critique_role": config.critique_role,
            "keep_thinking": config.keep_thinking,
            "format": config.format,
            "chat_template_kwargs": config.chat_template_kwargs,
            **vars(self.critique_options()),
        }
