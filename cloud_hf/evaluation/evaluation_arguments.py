"""Command-line arguments of an evaluation: datasets, benchmarks and analyses."""

import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from ..argument_help import check_bounds, documented
from ..configuration_cloud import CLoudConfig
from .cascade_results import Cascade, read_cascades, read_goal
from .generative_judges import JudgeServerArguments
from .probes import check_probes
from .scoring_arguments import ScoringArguments, check_named_once


# Scores depend on the model and on these settings; a journal written with other values is rejected
SETTINGS = ("backend", "dtype", "vllm_options", "num_critiques", "temperature", "max_new_tokens", "seed")


@documented
@dataclass(kw_only=True)
class EvaluationArguments(JudgeServerArguments, ScoringArguments):
    """
    Datasets, benchmarks and analyses. Extends [`ScoringArguments`].

    Parameters:
        models (`list[str]`):
            Hub ids or folders of CLoud models, classic models, LoRA adapters, or scalar models (`*ForSequenceClassification`).
        output_dir (`str`):
            Folder for the results.
        compare (`list[str]`, *optional*):
            Compare the output folders of two earlier runs row by row, instead of scoring. Folders written by `best_of_n.py` also work.
            The only other option allowed is `output_dir`.
        dataset_name (`list[str]`, *optional*):
            Preference sets: Hub ids, JSONL or Parquet files, or `save_to_disk` folders.
        benchmarks (`list[str]`, *optional*):
            reward_bench, reward_bench_with_prior_sets, reward_bench_2, rm_bench, judge_bench_gpt, judge_bench_claude, llm_bar;
            `NAME=FILES` loads files (comma-separated paths, folders or glob patterns) instead of the official dataset. `limit`
            applies to each subset of a benchmark.
        best_of_n (`list[str]`, *optional*):
            Datasets with the columns `prompt`, `responses` and `correct`.
        reference_critiques (`list[str]`, *optional*):
            Datasets with reference critiques, to compare with the model's critiques. They either have the columns `prompt`, `response` and
            `critique`, or are preference sets with `chosen_feedback` and `rejected_feedback`. Skipped for classic models.
        group_column (`str`, *optional*):
            Column of `dataset_name` to break accuracy down by, for example `subset`.
        self_consistency (`int`, *optional*):
            Number of critiques to sample per response; accuracy is reported for 1, 2, … of them. Skipped for classic
            models.
        self_consistency_temperatures (`list[float]`, *optional*):
            Sampling temperatures, each evaluated separately. Defaults to `temperature`.
        length_column (`str`, *optional*):
            Numeric column of `dataset_name` to split self-consistency by, such as the number of reasoning steps. Defaults to the
            length of the sampled critiques in tokens, which benchmarks always use.
        probes (`list[str]`, *optional*):
            length, style, special_tokens, forged_critiques, trivial_answers, empty_and_refusals, paraphrases, batch, or all.
        probe_rows (`int`, *optional*, defaults to `200`):
            Maximum number of rows to alter in each set for the probes. These rows are sampled with `seed`.
        paraphrase_column (`str`, *optional*):
            Column of `dataset_name` with paraphrases of the prompt's last user message: text, a list, or null.
        cascade (`list[str]`, *optional*):
            Cascades of `models`, each with the cheapest stage first: `A,B`, or `A,B,B@4`. `B@4` is the mean reward of
            the first four critiques that `self_consistency` samples. The threshold and the weights are fitted on each half of a set's rows
            and evaluated on the other half.
        cascade_goal (`str`, *optional*, defaults to `"loss=0.01"`):
            Goal for choosing the threshold: `accuracy=` (minimum), `loss=` (maximum loss in accuracy compared with the last stage alone or
            with all stages on all responses, whichever is less accurate), `tokens=` (maximum mean number of tokens per row), or
            `threshold=` (the threshold itself).
        cascade_one_at_a_time (`bool`, *optional*, defaults to `False`):
            After the first stage, score one contender of a row at a time. A single critique may then decide a pair.
        chunk_size (`int`, *optional*):
            Number of responses passed to the backend per call; a killed run loses at most one chunk. Defaults to eight batches with
            transformers, otherwise to 4096.
        judge_mode (`str`, *optional*, defaults to `"pairwise"`):
            `"pairwise"` compares right with wrong responses, in both orders; `"pointwise"` rates each response, including the candidates of
            `best_of_n`.
        judge_price (`list[float]`, *optional*):
            The judge's prices for a million prompt tokens and for a million completion tokens.
        update_card (`bool`, *optional*, defaults to `False`):
            Write the headline metrics to the metadata of the model cards. Requires that all models are local folders and that all rows are
            scored.
    """

    models: list[str] = field(default_factory=list)
    output_dir: str = ""
    compare: list[str] = field(default_factory=list)
    dataset_name: list[str] = field(default_factory=list)
    benchmarks: list[str] = field(default_factory=list)
    best_of_n: list[str] = field(default_factory=list)
    reference_critiques: list[str] = field(default_factory=list)
    group_column: str | None = None
    self_consistency: int | None = None
    self_consistency_temperatures: list[float] = field(default_factory=list)
    length_column: str | None = None
    probes: list[str] = field(default_factory=list)
    probe_rows: int = 200
    paraphrase_column: str | None = None
    cascade: list[str] = field(default_factory=list)
    cascade_goal: str = "loss=0.01"
    cascade_one_at_a_time: bool = False
    chunk_size: int | None = None
    judge_mode: str = "pairwise"
    judge_price: list[float] = field(default_factory=list)
    update_card: bool = False

    def __post_init__(self):
        if self.compare:
            self._check_compare()
            return
        for name in ("models", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is missing: set it, or compare two finished runs with `compare`.")
        super().__post_init__()
        check_named_once("best_of_n", self.best_of_n)
        check_named_once("reference_critiques", self.reference_critiques)
        self.check_judge()
        if not (self.dataset_name or self.benchmarks or self.best_of_n or self.reference_critiques):
            raise ValueError(
                "There is nothing to score: set `benchmarks`, `dataset_name`, `best_of_n` or `reference_critiques`."
            )
        if self.reference_critiques and not self._any_critic():
            raise ValueError("`reference_critiques` requires a CLoud model; none of `models` writes critiques.")
        self.probes = check_probes(self.probes, self.combine)
        for name in ("group_column", "length_column", "paraphrase_column"):
            if getattr(self, name) and not self.dataset_name:
                raise ValueError(f"`{name}` names a column of `dataset_name`: set `dataset_name` as well.")
        check_bounds(self, chunk_size=1, probe_rows=1, self_consistency=2)
        self._check_probes()
        if self.self_consistency is not None:
            self._check_self_consistency()
        self.read_cascades()
        self.check_means("cascade")
        if self.best_of_n and self.combine == "vote":
            raise ValueError(
                "`combine` 'vote' compares each candidate with all others, so it cannot measure the choices among only N of them in `best_of_n`: "
                "run `cloud-hf best-of-n` with `--largest_n 1` on these sets, or choose another combination."
            )
        if self.update_card:
            self._check_cards()

    def read_cascades(self) -> list[Cascade]:
        """Return the cascades. Raises `ValueError` if a cascade or the goal is invalid."""
        goal = read_goal(self.cascade_goal)
        return read_cascades(self.cascade, self.models, goal, self.cascade_one_at_a_time, self.self_consistency)

    def _check_compare(self):
        check_named_once("compare", self.compare)
        if len(self.compare) != 2:
            raise ValueError(f"`compare` has {len(self.compare)} folder(s); pass two, one for each run to compare.")
        for option in fields(self):
            default = option.default if option.default_factory is MISSING else option.default_factory()
            if option.name not in ("compare", "output_dir") and getattr(self, option.name) != default:
                raise ValueError(f"`compare` only reads the scores of finished runs: omit `{option.name}`.")

    def check_judge(self):
        super().check_judge()
        of_judge = self.judge_model or self.judge_prompt_file or self.judge_price or self.judge_mode != "pairwise"
        if of_judge and not self.judge_base_url:
            raise ValueError(
                "`judge_model`, `judge_mode`, `judge_price` and `judge_prompt_file` require a judge: set `judge_base_url` as well."
            )
        if self.judge_mode not in ("pairwise", "pointwise"):
            raise ValueError(f"`judge_mode` is {self.judge_mode!r}; use pairwise or pointwise.")
        if self.judge_price and (
            len(self.judge_price) != 2 or not all(0 <= one < math.inf for one in self.judge_price)
        ):
            raise ValueError(
                f"`judge_price` is {self.judge_price}; pass two prices of at least 0: per million prompt tokens and per million "
                "completion tokens."
            )
        is_pairwise = self.judge_base_url and self.judge_mode == "pairwise"
        if is_pairwise and (self.best_of_n or not (self.dataset_name or self.benchmarks)):
            raise ValueError(
                "A pairwise judge compares right with wrong responses: either set `dataset_name` or `benchmarks` and omit `best_of_n`, "
                "or use `--judge_mode pointwise`."
            )

    def _check_cards(self):
        if self.limit is not None:
            raise ValueError("`update_card` needs metrics over all rows; omit `limit`.")
        for name in self.models:
            if not (Path(name) / "README.md").is_file():
                raise ValueError(f"{name} is not a folder with a README.md, so `update_card` has no card to update.")

    def _any_critic(self) -> bool:
        configs = map(self.read_config, self.models)
        return any(isinstance(config, CLoudConfig) and config.critique for config in configs)

    def _check_probes(self):
        if (self.self_consistency or self.probes) and not (self.dataset_name or self.benchmarks):
            raise ValueError(
                "`self_consistency` and `probes` need rows with right and wrong responses: set `dataset_name` or "
                "`benchmarks`."
            )
        for name in ("length_column", "self_consistency_temperatures"):
            if getattr(self, name) and self.self_consistency is None:
                raise ValueError(f"`{name}` has no effect without `self_consistency`: set both.")
        if self.paraphrase_column and "paraphrases" not in self.probes:
            raise ValueError("`paraphrase_column` requires the probe 'paraphrases': list it in `probes`.")

    def _check_self_consistency(self):
        self.self_consistency_temperatures = self.self_consistency_temperatures or [self.temperature]
        for temperature in self.self_consistency_temperatures:
            if not 0 < temperature < math.inf:
                raise ValueError(
                    f"Self-consistency cannot sample at temperature {temperature}: greedy critiques are identical. Set "
                    "`self_consistency_temperatures` to values above 0."
                )
            self.check_temperature(temperature, "self_consistency_temperatures")
        if not self._any_critic():
            raise ValueError("`self_consistency` requires a CLoud model; none of `models` writes critiques.")
