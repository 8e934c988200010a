"""Command-line arguments shared by the commands that score datasets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from datasets import Dataset

from ..argument_help import check_bounds, documented
from ..combine_critiques import check_combination
from ..critique_format import CritiqueFormat
from ..data.bad_rows import check_bad_rows
from ..data.fit_to_context import check_policy
from ..data.rows import check_columns, load_rows, short_names  # noqa: F401 (re-exported: `short_names` was here in version 0.1)
from ..scoring import Scorer
from ..serving.backends import AnyModelArguments, open_any_model
from .ensembles import read_ensembles
from .formatting import file_name, picture_name  # noqa: F401 (re-exported: they were here in version 0.1)


@documented
@dataclass(kw_only=True)
class ScoringArguments(AnyModelArguments):
    """
    Models, datasets and sampling options. Extends [`AnyModelArguments`].

    Parameters:
        models (`list[str]`):
            Hub ids or folders of CLoud models, classic models, LoRA adapters, or scalar models (`*ForSequenceClassification`).
        server_url (`list[str]`, *optional*):
            One reward server per model, in the order of `models`; replicas of one model are separated by commas.
        ensembles (`list[str]`, *optional*):
            Ensembles of `models` to evaluate as well: `mean:A,B` or `lowest:A,B`. An ensemble's reward is the mean or the lowest of its
            models' rewards, each standardised over a set.
        dataset_name (`list[str]`):
            Hub ids, JSONL or Parquet files, or `save_to_disk` folders.
        output_dir (`str`):
            Folder for the results.
        dataset_config (`str`, *optional*):
            Configuration of the Hub datasets.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split to score. Files have no splits.
        limit (`int`, *optional*):
            Score only the first `limit` rows of each dataset.
        num_critiques (`int`, *optional*, defaults to `1`):
            Number of critiques per response; `combine` sets how their rewards are combined.
        combine (`str`, *optional*, defaults to `"mean"`):
            How to combine the rewards of several critiques: mean, median, trimmed_mean, vote or likelihood.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Token limit of a critique.
        overlong_policy (`str`, *optional*, defaults to `"error"`):
            Handling of over-long rows: `error`, `drop` or `truncate_prompt`.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            Handling of rows that cannot be used: `error` or `drop`. The number of dropped rows is reported.
        seed (`int`, *optional*, defaults to `0`):
            Sampling seed.
        read_every (`int`, *optional*):
            Also read rewards at every `read_every`-th token of a critique.
        stop_when_stable (`float`, *optional*):
            End a critique once its last three rewards from `read_every` differ by less than this value. Not available with vLLM.
    """

    models: list[str]
    dataset_name: list[str]
    output_dir: str
    server_url: list[str] | None = None
    ensembles: list[str] = field(default_factory=list)
    dataset_config: str | None = None
    dataset_test_split: str = "test"
    limit: int | None = None
    num_critiques: int = 1
    combine: str = "mean"
    temperature: float = 0.0
    max_new_tokens: int = 1024
    overlong_policy: str = "error"
    bad_rows: str = "error"
    seed: int = 0
    read_every: int | None = None
    stop_when_stable: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_policy(self.overlong_policy)
        check_bad_rows(self.bad_rows)
        check_bounds(self, batch_size=1, num_critiques=1, max_new_tokens=1, limit=1, seed=0)
        # The scorer checks these too, but only after the model is loaded
        self.check_temperature(self.temperature)
        self.check_partial_rewards(self.models, self.read_every, self.stop_when_stable)
        if self.num_critiques > 1 and self.temperature == 0:
            raise ValueError("`num_critiques` above 1 needs `temperature` above 0: greedy critiques are identical.")
        self._check_combination()
        check_named_once("models", self.models)
        check_named_once("dataset_name", self.dataset_name)
        if self.server_url is not None and len(self.server_url) != len(self.models):
            raise ValueError(
                f"`server_url` has {len(self.server_url)} addresses, but `models` has {len(self.models)} models, and a server serves "
                "only one. Pass one address per model, in the same order."
            )
        # Ensembles are recorded by short names, which reveal nothing about this machine
        self.ensembles = [f"{one.kind}:{','.join(one.members)}" for one in read_ensembles(self.ensembles, self.models)]

    def _check_combination(self):
        check_combination(self.combine)
        if self.combine != "mean" and self.num_critiques < 2:
            raise ValueError(f"`combine` {self.combine!r} needs several critiques: set `num_critiques` above 1.")
        if self.combine == "likelihood" and self.backend == "server":
            raise ValueError(
                "`combine` 'likelihood' needs the likelihoods of critiques, which a server does not return: choose another "
                "combination, or use the transformers or vllm backend."
            )

    def check_means(self, option: str):
        """Raise `ValueError` if `option`, which decides by mean rewards, is set but `combine` is not `"mean"`."""
        if getattr(self, option) and self.combine != "mean":
            raise ValueError(
                f"`{option}` decides by the mean reward of several critiques, but `combine` is {self.combine!r}: omit `combine`, or use "
                f"`{option}` in a separate run."
            )

    def backend_of(self, name: str) -> AnyModelArguments:
        """Return the backend arguments for one of `models`, with its server."""
        options = {option.name: getattr(self, option.name) for option in fields(AnyModelArguments)}
        if self.server_url is not None:
            options["server_url"] = self.server_url[self.models.index(name)]
        return AnyModelArguments(**options)


def load_datasets(
    args: ScoringArguments, columns: tuple[str, ...], names: list[str] | None = None
) -> dict[str, Dataset]:
    """
    Load the first `limit` rows of datasets (by default `args.dataset_name`). Check the datasets' columns, and that all models are reward
    models.
    """
    names = args.dataset_name if names is None else names
    datasets = {name: load_rows(name, args.dataset_test_split, args.dataset_config) for name in names}
    for name, rows in datasets.items():
        check_columns(rows.column_names, columns, name, (name, args.dataset_test_split, args.dataset_config))
        if not len(rows):
            raise ValueError(f"{name} has no rows.")
        datasets[name] = rows.select(range(min(args.limit or len(rows), len(rows))))
    args.check_models(args.models)
    return datasets


def check_named_once(option: str, names: list[str]):
    """Raise `ValueError` if a folder, file or Hub id is listed twice, even with different spellings (`a/` and `a`)."""
    seen: dict[Path, str] = {}
    for name in names:
        if (path := Path(name)) in seen:
            raise ValueError(f"`{option}` lists {seen[path]} twice. List it once.")
        seen[path] = name


@contextmanager
def open_scorer(
    name: str, args: ScoringArguments, show_progress: bool = True
) -> Iterator[tuple[Scorer, CritiqueFormat, dict, dict]]:
    """Open a model's scorer. Yields the scorer, its critique format, the limits for [`~context_fitting.fit_rows`], and the scorer's options."""
    with open_any_model(name, args.backend_of(name), show_progress) as (scorer, critique_format, context):
        options = {"max_new_tokens": args.max_new_tokens}
        limits = {
            "context_length": context,
            "overlong_policy": args.overlong_policy,
            "bad_rows": args.bad_rows,
            **options,
        }
        if critique_format.critique:
            options |= {"num_critiques": args.num_critiques, "temperature": args.temperature, "seed": args.seed}
            # Leave these out if they are unset, because the journal's keys contain all options that are passed
            partial = {"read_every": args.read_every, "stop_when_stable": args.stop_when_stable}
            options |= {name: value for name, value in partial.items() if value is not None}
        yield scorer, critique_format, limits, options
