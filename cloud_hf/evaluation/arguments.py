"""Command-line arguments of everything that scores."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from datasets import Dataset

from ..critique_format import CritiqueFormat
from ..data.rows import check_columns, check_policy, load_rows
from ..loading import check_reward_model, read_model_config
from ..scoring import Scorer
from ..serving.backends import BackendArguments, open_backend
from .tables import file_name as file_name
from .tables import picture_name as picture_name


@dataclass(kw_only=True)
class ScoringArguments(BackendArguments):
    """
    Which models score which data, and how. The arguments of [`BackendArguments`], and

    Parameters:
        models (`list[str]`):
            Hub ids or folders of CLoud or classic models, or of LoRA adapters.
        server_url (`list[str]`, *optional*):
            Addresses of the models' reward servers, in the order of `models`.
        dataset_name (`list[str]`):
            Hub ids, JSONL or Parquet files, or `save_to_disk` folders.
        output_dir (`str`):
            Folder for the results.
        dataset_config (`str`, *optional*):
            Configuration of the Hub datasets.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split to score; a single file is scored whole.
        limit (`int`, *optional*):
            Score the first rows only.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response, whose rewards are averaged.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            What happens to rows that do not fit the model's context: error, drop or truncate_prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
    """

    models: list[str] = field(metadata={"help": "Hub ids or folders of reward models or adapters."})
    dataset_name: list[str] = field(metadata={"help": "Hub ids, files, or save_to_disk folders."})
    output_dir: str = field(metadata={"help": "Folder for the results."})
    server_url: list[str] | None = field(
        default=None, metadata={"help": "The models' reward servers, in their order."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub datasets."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to score."})
    limit: int | None = field(default=None, metadata={"help": "Score the first rows only."})
    num_critiques: int = field(default=1, metadata={"help": "Critiques per response."})
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest critique in tokens."})
    overlong_policy: str = field(default="error", metadata={"help": "Over-long rows: error, drop or truncate_prompt."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})

    def __post_init__(self):
        super().__post_init__()
        self._check_scoring()
        check_named_once("models", self.models)
        check_named_once("dataset_name", self.dataset_name)
        if self.server_url is not None and len(self.server_url) != len(self.models):
            raise ValueError(
                f"`server_url` has {len(self.server_url)} addresses and `models` {len(self.models)} models: a server has "
                "one model. Give one address for each, in the same order."
            )

    def _check_scoring(self):
        """What the scorer would say too, but only when the model is loaded."""
        check_policy(self.overlong_policy)
        for name, least in (("batch_size", 1), ("num_critiques", 1), ("max_new_tokens", 1), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"`temperature` is {self.temperature}; it must be a finite number from 0 up.")
        if self.num_critiques > 1 and self.temperature == 0:
            raise ValueError("`num_critiques` above 1 needs `temperature` above 0: greedy critiques are all the same.")

    def backend_of(self, name: str) -> BackendArguments:
        """The backend of one of `models`, with its own server."""
        options = {option.name: getattr(self, option.name) for option in fields(BackendArguments)}
        if self.server_url is not None:
            options["server_url"] = self.server_url[self.models.index(name)]
        return BackendArguments(**options)


def load_datasets(
    args: ScoringArguments, columns: tuple[str, ...], names: list[str] | None = None
) -> dict[str, Dataset]:
    """Datasets by name, by default those of `dataset_name`, checked and cut to `limit` rows; and a check of the models."""
    names = args.dataset_name if names is None else names
    datasets = {name: load_rows(name, args.dataset_test_split, args.dataset_config) for name in names}
    for name, rows in datasets.items():
        check_columns(rows.column_names, columns, name)
        if not len(rows):
            raise ValueError(f"{name} holds no rows.")
        datasets[name] = rows.select(range(min(args.limit or len(rows), len(rows))))
    for name in args.models:
        check_reward_model(name, read_model_config(name))
    return datasets


def check_named_once(option: str, names: list[str]):
    """Raise `ValueError` if a folder, file or Hub id stands twice, however it is spelt."""
    seen: dict[Path, str] = {}
    for name in names:
        if (path := Path(name)) in seen:
            raise ValueError(f"`{option}` names {seen[path]} twice. Name it once.")
        seen[path] = name


def short_names(names: list[str]) -> dict[str, str]:
    """For each path or Hub id its last part, or as many parts as tell it from the others."""
    parts = {name: Path(name).parts for name in names}
    length = {
        name: next(n for n in range(1, 100) if sum(p[-n:] == own[-n:] for p in set(parts.values())) == 1)
        for name, own in parts.items()
    }
    return {name: "/".join(own[-length[name] :]).strip("/") for name, own in parts.items()}


@contextmanager
def open_scorer(
    name: str, args: ScoringArguments, show_progress: bool = True
) -> Iterator[tuple[Scorer, CritiqueFormat, dict]]:
    """A model's scorer, its format, and the options that `evaluate_pairs` and `evaluate_best_of_n` take."""
    with open_backend(name, args.backend_of(name), show_progress) as (scorer, critique_format, context):
        options = {
            "context_length": context,
            "overlong_policy": args.overlong_policy,
            "max_new_tokens": args.max_new_tokens,
        }
        if critique_format.critique:
            options |= {"num_critiques": args.num_critiques, "temperature": args.temperature, "seed": args.seed}
        yield scorer, critique_format, options
