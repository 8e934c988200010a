"""Command-line arguments of an evaluation: which sets, and what beside their figures."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..loading import read_model_config
from .arguments import ScoringArguments, check_named_once
from .probes import check_probes


# What scores depend on beside the model; a journal with others is refused
SETTINGS = ("backend", "dtype", "vllm_options", "num_critiques", "temperature", "max_new_tokens", "seed")


@dataclass(kw_only=True)
class EvaluationArguments(ScoringArguments):
    """
    Arguments of [`ScoringArguments`], of which `dataset_name` may be left out, and

    Parameters:
        benchmarks (`list[str]`, *optional*):
            Benchmarks by name; `NAME=FILES` reads files instead of the official dataset: paths, folders or patterns, with
            commas between them. `limit` takes the first rows of each of their subsets.
        best_of_n (`list[str]`, *optional*):
            Sets with the columns `prompt`, `responses` and `correct`.
        reference_critiques (`list[str]`, *optional*):
            Sets with critiques to compare the model's own with: columns `prompt`, `response`, `critique`, or preference sets with
            `chosen_feedback` and `rejected_feedback`. Classic models have none.
        group_column (`str`, *optional*):
            Column of `dataset_name` by whose values accuracy is also reported, such as `subset`.
        self_consistency (`int`, *optional*):
            Sample so many critiques of each response, and report accuracy for 1, 2, … of them. Classic models have none.
        self_consistency_temperatures (`list[float]`, *optional*):
            Temperatures to sample them at, each by itself. Defaults to `temperature`.
        length_column (`str`, *optional*):
            Column of `dataset_name` with a number by which self-consistency is split: how long the reasoning is that a row needs.
            Without, and on benchmarks, it is split by the length of the sampled critiques in tokens.
        probes (`list[str]`, *optional*):
            Probes by name, or `all`.
        probe_rows (`int`, *optional*, defaults to `200`):
            Rows of each set that probes alter at most, drawn with `seed`.
        paraphrase_column (`str`, *optional*):
            Column of `dataset_name` with other wordings of the prompt's last user message: text, a list, or nothing.
        chunk_size (`int`, *optional*):
            Responses given to the backend at once. Defaults to eight batches with transformers, where a killed run loses them
            at most, else to 4096.
        update_card (`bool`, *optional*, defaults to `False`):
            Put the headline figures into the metadata of the models' cards. Models must be folders, and all rows scored.
    """

    dataset_name: list[str] = field(default_factory=list, metadata={"help": "Preference sets."})
    benchmarks: list[str] = field(default_factory=list, metadata={"help": "Benchmarks: NAME, or NAME=FILES."})
    best_of_n: list[str] = field(default_factory=list, metadata={"help": "Sets with responses and correct."})
    reference_critiques: list[str] = field(default_factory=list, metadata={"help": "Sets with reference critiques."})
    group_column: str | None = field(default=None, metadata={"help": "Column to also report accuracy by."})
    self_consistency: int | None = field(default=None, metadata={"help": "Critiques to sample for self-consistency."})
    self_consistency_temperatures: list[float] = field(
        default_factory=list, metadata={"help": "Temperatures of these critiques; by default `temperature`."}
    )
    length_column: str | None = field(default=None, metadata={"help": "Column by which self-consistency is split."})
    probes: list[str] = field(default_factory=list, metadata={"help": "Probes by name, or all."})
    probe_rows: int = field(default=200, metadata={"help": "Rows of each set that probes alter at most."})
    paraphrase_column: str | None = field(default=None, metadata={"help": "Column with other wordings of the prompt."})
    chunk_size: int | None = field(default=None, metadata={"help": "Responses given to the backend at once."})
    update_card: bool = field(default=False, metadata={"help": "Put the figures into the models' cards."})

    def __post_init__(self):
        super().__post_init__()
        check_named_once("best_of_n", self.best_of_n)
        check_named_once("reference_critiques", self.reference_critiques)
        if not (self.dataset_name or self.benchmarks or self.best_of_n or self.reference_critiques):
            raise ValueError(
                "There is nothing to score: give `benchmarks`, `dataset_name`, `best_of_n` or `reference_critiques`."
            )
        if self.reference_critiques and not any(read_model_config(name).critique for name in self.models):
            raise ValueError("`reference_critiques` is for CLoud models; none of `models` writes critiques.")
        self.probes = check_probes(self.probes)
        for name in ("group_column", "length_column", "paraphrase_column"):
            if getattr(self, name) and not self.dataset_name:
                raise ValueError(f"`{name}` is a column of `dataset_name`: give that too.")
        self._check_robustness()
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"`chunk_size` is {self.chunk_size}; it must be at least 1.")
        if self.update_card and self.limit is not None:
            raise ValueError("`update_card` is for figures over all rows; leave `limit` out.")
        for name in self.models if self.update_card else ():
            if not (Path(name) / "README.md").is_file():
                raise ValueError(f"{name} is no folder with a README.md, so `update_card` has no card to update.")

    def _check_robustness(self):
        if (self.self_consistency or self.probes) and not (self.dataset_name or self.benchmarks):
            raise ValueError("`self_consistency` and `probes` are for rows with right and wrong responses: give some.")
        if self.probe_rows < 1:
            raise ValueError(f"`probe_rows` is {self.probe_rows}; it must be at least 1.")
        for name, needs in (
            ("length_column", "self_consistency"),
            ("self_consistency_temperatures", "self_consistency"),
        ):
            if getattr(self, name) and getattr(self, needs) is None:
                raise ValueError(f"`{name}` is for `{needs}`: give that too.")
        if self.paraphrase_column and "paraphrases" not in self.probes:
            raise ValueError("`paraphrase_column` is for the probe 'paraphrases': name it in `probes`.")
        if self.self_consistency is None:
            return
        if self.self_consistency < 2:
            raise ValueError(f"`self_consistency` is {self.self_consistency}; it must be at least 2.")
        self.self_consistency_temperatures = self.self_consistency_temperatures or [self.temperature]
        for temperature in self.self_consistency_temperatures:
            if not 0 < temperature < math.inf:
                raise ValueError(
                    f"Self-consistency cannot sample at temperature {temperature}: greedy critiques are all the same. Give "
                    "`self_consistency_temperatures` above 0."
                )
        if not any(read_model_config(name).critique for name in self.models):
            raise ValueError("`self_consistency` is for CLoud models; none of `models` writes critiques.")
