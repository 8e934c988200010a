"""Write critiques on a Ray cluster: Ray Data sends token ids to vLLM engines, and this process journals the outputs."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from datasets import Dataset
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import AutoTokenizer

from ...argument_help import check_bounds, documented
from ...configuration_cloud import CLoudConfig, check_name, reward_token_in_vllm
from ...critique_format import CritiqueFormat
from ...generation import row_seed
from ...interrupts import deferred_interrupts
from ...loading import is_adapter
from ...scoring import context_length
from ...serving.backends import BackendArguments
from ..build_run import Dropped, check_rows, run_builder
from ..critiques import Critique, CritiqueBuilder, CritiqueTask, write_rows
from ..dataset_folder import DatasetFolder
from ..journal import Journal, key_of
from ..rows import Rows
from .arguments import CriticArguments


# Batches that an engine processes concurrently; this is Ray's default
_BATCHES_IN_PROGRESS = 8
# If each task needed a full CPU, Ray on a small node would copy all requests before returning the first answer
_LIGHT_TASKS = {"num_cpus": 0.1, "concurrency": 1}
# Columns copied from a request to its answer
_PASSED_ON = ("row", "key", "max_new_tokens")


def connect(address: str | None = None):
    """
    Connect to a Ray cluster, or start one on this machine only, without a dashboard or usage statistics.

    `address` is `"auto"` or an address such as `"head:6379"`; `"local"` starts a new cluster. By default, Ray connects to the cluster at
    `RAY_ADDRESS` or to one that runs on this machine, and starts a new cluster if it finds neither.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(  # pyright: ignore[reportAttributeAccessIssue]  # without Ray, pyright resolves `ray` to this file
        address=address, include_dashboard=False, ignore_reinit_error=True
    )


@dataclass(frozen=True)
class RayEngines:
    """
    vLLM engines on the nodes of the connected Ray cluster. Every node must be able to read `model`. `vllm_options` are options for
    `vllm.AsyncEngineArgs`.

    All answers in a batch arrive together, and an engine processes eight batches concurrently, so a killed run loses up to eight batches
    per engine. With `use_cpu`, each worker reserves one CPU of the cluster.
    """

    model: str
    num_replicas: int = 1
    tensor_parallel_size: int = 1
    batch_size: int = 32
    use_cpu: bool = False
    vllm_options: dict[str, Any] = field(default_factory=dict)

    def generate(self, requests: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """
        Generate tokens, and yield the answers to each batch as soon as the batch is complete.

        A request contains `tokenized_prompt` and `sampling_params`, and also `row`, `key` and `max_new_tokens`, which are copied to its
        answer. All requests are read before an engine starts, and are kept in Ray's object store. An answer contains `row`, `key`,
        `max_new_tokens` and `generated_tokens`; if the request failed, `__inference_error__` contains the reason.
        """
        blocks = [ray.put(table) for table in _tables(requests, self.batch_size)]  # pyright: ignore[reportAttributeAccessIssue]
        if not blocks:
            return
        kept = (*_PASSED_ON, "generated_tokens")
        # A lambda is sent to the workers by value, so the workers need not import this package
        processor = build_processor(
            self._config(),
            postprocess=lambda answer: {name: answer[name] for name in kept},
            preprocess_map_kwargs=_LIGHT_TASKS,
            postprocess_map_kwargs=_LIGHT_TASKS,
        )
        answers = processor(ray.data.from_arrow_refs(cast(Any, blocks)))
        # Do not prefetch: if the run stopped between batches, prefetched answers would be lost
        for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield cast(Any, table).to_pylist()

    def _config(self) -> vLLMEngineProcessorConfig:
        on_cpu = {
            "distributed_executor_backend": "mp",
            # On a CPU, vLLM 0.32 crashes when the prefill of a request with a seed is split into chunks
            "enable_chunked_prefill": False,
        }
        return vLLMEngineProcessorConfig(
            model_source=self.model,
            engine_kwargs={
                "tensor_parallel_size": self.tensor_parallel_size,
                **(on_cpu if self.use_cpu else {}),
                **self.vllm_options,
            },
            placement_group_config={"bundle_per_worker": {"CPU": 1}} if self.use_cpu else None,
            concurrency=(self.num_replicas, self.num_replicas),
            batch_size=self.batch_size,
            runtime_env={"env_vars": {"VLLM_NO_USAGE_STATS": "1"}},
            log_engine_metrics=False,
            # A request that an engine rejects must not stop the others
            should_continue_on_error=True,
            # Prompts and answers are token ids
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )


def _tables(requests: Iterable[dict[str, Any]], size: int) -> Iterator[pa.Table]:
    """Split requests into small blocks, because Ray Data returns the results of a block together."""
    requests = iter(requests)
    while block := list(islice(requests, size)):
        yield pa.Table.from_pylist(block)


class RayCritic:
    """
    Critic that runs on [`RayEngines`]: a language model, or a CLoud model (`is_reward_model`).

    The critic requests each critique only once, with the token limit that [`CritiqueOptions`] allows for the last try. A retry would have
    to restart the engines and generate the tokens of the truncated critique again.
    """

    def __init__(self, builder: CritiqueBuilder, config: CLoudConfig, journal: Journal, is_reward_model: bool):
        self.builder = builder
        self.config = config
        self.journal = journal
        critique_format = builder.critique_format
        self._sampling: dict[str, Any] = {
            "temperature": builder.options.temperature,
            "repetition_penalty": critique_format.repetition_penalty,
            "detokenize": False,
        }
        if is_reward_model:  # the plugin closes a critique with the reward token, followed by the end of turn
            self._end_ids = {reward_token_in_vllm(config)}
        else:
            self._end_ids = {critique_format.end_token_id, *critique_format.stop_ids(config)}
            self._sampling |= {"stop_token_ids": sorted(self._end_ids), "ignore_eos": True}
        self._reserved_tokens = reserved_tokens(is_reward_model)

    async def ask(self, task: CritiqueTask, side: str, number: int, max_new_tokens: int) -> Critique:
        """Read a critique from the journal; see [`Ask`]."""
        ids, finish_reason = self.journal[self._key(task.row, side, number)]
        if self.config.reward_token_id in ids:
            raise Dropped(f"the critique contains token {self.config.reward_token_id}, which is reserved")
        if len(ids) > max_new_tokens:
            return Critique(tuple(ids[:max_new_tokens]), "length")
        return Critique(tuple(ids), finish_reason)

    def write_all(self, engines: RayEngines, rows: Rows) -> dict[int, str]:
        """
        Write all critiques that are missing from the journal. Returns the reason for each failed row, keyed by the row's position.

        All rows are checked before any engine starts, as by [`ScorerCritic.write_all`]. After the first Ctrl-C, the batches in progress are
        finished before `KeyboardInterrupt` is raised.
        """
        check_rows(rows, lambda row: self.builder.needed(self.builder.lengths(row)))
        failures: dict[int, str] = {}
        in_progress = _BATCHES_IN_PROGRESS * engines.num_replicas
        with deferred_interrupts() as interrupts:
            for batch in engines.generate(self._requests(rows)):
                for answer in batch:
                    if answer["__inference_error__"]:
                        failures[answer["row"]] = answer["__inference_error__"]
                    else:
                        ids = self._read(answer["generated_tokens"], answer["max_new_tokens"])
                        self.journal.add(answer["key"], ids)
                in_progress -= interrupts.pending
                if in_progress == 0:
                    interrupts.check()
        return failures

    def _requests(self, rows: Rows) -> Iterator[dict[str, Any]]:
        options = self.builder.options
        for index, row in enumerate(rows):
            try:
                task = self.builder.fit(row)
            except Dropped:
                continue
            for side, prefix in task.prefixes.items():
                *_, max_new_tokens = self.builder.token_limits(len(prefix.input_ids))
                for number in range(options.num_critiques):
                    if (key := self._key(row, side, number)) in self.journal:
                        continue
                    sampling = {**self._sampling, "max_tokens": max_new_tokens + self._reserved_tokens}
                    if options.temperature > 0:
                        sampling["seed"] = row_seed(options.seed, number, prefix.input_ids) % 2**62
                    yield {
                        "row": index,
                        "key": key,
                        "max_new_tokens": max_new_tokens,
                        "tokenized_prompt": np.array(prefix.input_ids, dtype=np.int32),
                        "sampling_params": sampling,
                    }

    def _read(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], str]:
        """Return the ids without the end token, and the finish reason."""
        length = next((place for place, token_id in enumerate(ids) if token_id in self._end_ids), len(ids))
        return ids[: min(length, max_new_tokens)], "length" if length > max_new_tokens else "stop"

    @staticmethod
    def _key(row: dict[str, Any], side: str, number: int) -> str:
        return key_of(row["id"], side, number)


def reserved_tokens(is_reward_model: bool) -> int:
    """
    Return the number of tokens to reserve after a critique of maximum length: one to detect whether the critique ends there and, for a
    CLoud model, the tokens that close the critique.
    """
    return 3 if is_reward_model else 1


@documented
@dataclass(kw_only=True)
class RayCritiqueArguments(CriticArguments):
    """
    Options for the Ray cluster and its engines. Includes [`CriticArguments`].

    Parameters:
        ray_address (`str`, *optional*):
            Cluster address, for example `auto` or `head:6379`; `local` starts a cluster on this machine only. By default, Ray looks for a
            running cluster and starts a new one if there is none.
        num_replicas (`int`, *optional*, defaults to `1`):
            Number of vLLM engines.
        tensor_parallel_size (`int`, *optional*, defaults to `1`):
            GPUs per engine.
        batch_size (`int`, *optional*, defaults to `32`):
            Requests per batch; an engine processes eight batches concurrently.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Run on nodes without GPUs.
        vllm_options (`str`, *optional*):
            Options for the vLLM engines as a JSON object, for example `{"max_model_len": 4096}`.
    """

    ray_address: str | None = None
    num_replicas: int = 1
    tensor_parallel_size: int = 1
    batch_size: int = 32
    use_cpu: bool = False
    vllm_options: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_bounds(self, num_replicas=1, tensor_parallel_size=1, batch_size=1)
        self.parsed_vllm_options()

    def parsed_vllm_options(self) -> dict[str, Any]:
        """Return `vllm_options` as a dictionary. Raises `ValueError` if the text is not a JSON object."""
        return BackendArguments(backend="vllm", vllm_options=self.vllm_options).parsed_vllm_options()


ARGUMENTS = (RayCritiqueArguments,)


def main(args: RayCritiqueArguments):
    check_name(args.model_name_or_path)
    if is_adapter(args.model_name_or_path):
        raise ValueError(
            f"{args.model_name_or_path} is a LoRA adapter. Merge it with `examples/merge_adapter.py`, and save the result in a folder that "
            "every node can read."
        )
    config = args.read_critic()
    rows = args.load_pairs()
    # The cluster and the batch size are not among the settings, because they do not change the critiques
    settings = args.settings("self critiques with Ray", rows, config, vllm_options=args.parsed_vllm_options())
    folder = DatasetFolder(args.output_dir, "Self critiques", settings, [args.dataset_name])
    build = partial(write_with_ray, args, rows, config, args.is_reward_model(), folder)
    following = f"cloud-hf train-cloud --model_name_or_path {args.model_name_or_path} --dataset_name {{}} --output_dir cloud-rm"
    run_builder(build, folder, following, args.push_to_hub)


def write_with_ray(
    args: RayCritiqueArguments, rows: Dataset, config: CLoudConfig, is_reward_model: bool, folder: DatasetFolder
) -> dict[str, Any]:
    """Write critiques to the journal with the cluster's engines, then build the dataset from the journal."""
    engines = RayEngines(
        args.model_name_or_path,
        args.num_replicas,
        args.tensor_parallel_size,
        args.batch_size,
        args.use_cpu,
        args.parsed_vllm_options(),
    )
    critique_format = CritiqueFormat.from_config(config, AutoTokenizer.from_pretrained(args.model_name_or_path))
    builder = CritiqueBuilder(critique_format, context_of(args, config, is_reward_model), args, args.bad_rows)
    with folder.open_journal() as journal:
        critic = RayCritic(builder, config, journal, is_reward_model)
        connect(args.ray_address)
        failures = critic.write_all(engines, rows)
        counts = write_rows(builder, critic.ask, rows, folder, journal, failures)
    counts |= {name: count for name, count in builder.counts().items() if not name.endswith("_tokens")}
    folder.write_record(counts)
    return counts


def context_of(args: RayCritiqueArguments, config: CLoudConfig, is_reward_model: bool) -> int | None:
    """
    Return the engines' context length minus the tokens reserved after a critique. One reserved token is not subtracted, because the builder
    already counts it.
    """
    context = args.parsed_vllm_options().get("max_model_len", context_length(config))
    return None if context is None else context - reserved_tokens(is_reward_model) + 1
