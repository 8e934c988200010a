"""Critiques over a Ray cluster: Ray Data hands token ids to vLLM engines on its nodes, and each answer is journaled here."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from datasets import Dataset
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from transformers import AutoTokenizer

from ...configuration_cloud import CLoudConfig
from ...critique_format import CritiqueFormat
from ...generation import row_seed
from ...loading import is_adapter
from ...scoring import context_length
from ...serving.backends import BackendArguments
from ..critiques import Critique, CritiqueBuilder, FittedRow, features_with_critiques
from ..folder import DatasetFolder
from ..journal import Journal, key_of
from ..rows import row_name
from ..run import Dropped, Run, run_builder
from .arguments import CriticArguments


# What a request says for the reader of its answer
_TOLD = ("row", "key", "max_new_tokens")


def connect(address: str | None = None):
    """
    Connect to a Ray cluster, or start one of this machine alone, which opens no dashboard and sends no usage statistics.

    Args:
        address (`str`, *optional*):
            The cluster, such as `"auto"` or `"head:6379"`; `"local"` starts a new one. Without it, Ray takes
            `RAY_ADDRESS`, a cluster that runs on this machine, or starts one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address=address, include_dashboard=False, ignore_reinit_error=True)


@dataclass(frozen=True)
class RayEngines:
    """
    vLLM engines on the nodes of the Ray cluster that this process is connected to.

    Args:
        model (`str`):
            Hub id, or a folder that every node sees.
        num_replicas (`int`, *optional*, defaults to `1`):
            Engines.
        tensor_parallel_size (`int`, *optional*, defaults to `1`):
            GPUs of each.
        batch_size (`int`, *optional*, defaults to `32`):
            Requests that travel together. An engine works on eight batches at once; the results of a batch arrive together,
            so that a kill loses about eight times as many critiques an engine.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Whether the nodes have no GPUs: a worker then takes one of Ray's CPUs instead.
        vllm_options (`dict[str, Any]`, *optional*):
            Options of `vllm.AsyncEngineArgs`.
    """

    model: str
    num_replicas: int = 1
    tensor_parallel_size: int = 1
    batch_size: int = 32
    use_cpu: bool = False
    vllm_options: dict[str, Any] = field(default_factory=dict)

    def generate(self, requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """
        Generate tokens.

        Args:
            requests (`Iterable[dict]`):
                Each with `tokenized_prompt`, `sampling_params`, and what the reader of its answer wants to know: `row`, `key` and
                `max_new_tokens`. All are read before an engine starts, and wait in Ray's object store.

        Yields:
            `dict`: These three and `generated_tokens`, or in `__inference_error__` the reason why there are none. They come
            as they are finished.
        """
        blocks = [ray.put(table) for table in _tables(requests, self.batch_size)]
        if not blocks:
            return
        kept = (*_TOLD, "generated_tokens")
        # Sent to the workers whole, because it has no name there: they need not import this package
        processor = build_processor(self._config(), postprocess=lambda answer: {name: answer[name] for name in kept})
        yield from processor(ray.data.from_arrow_refs(blocks)).iter_rows()

    def _config(self) -> vLLMEngineProcessorConfig:
        on_cpu = {
            "distributed_executor_backend": "mp",
            # Chunks of a prefill with a seed stop vLLM 0.32 on a CPU
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
            # One request that an engine refuses must not end the others
            should_continue_on_error=True,
            # Prompts are ids already, and ids are wanted
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
        )


def _tables(requests: Iterable[dict[str, Any]], size: int) -> Iterator[pa.Table]:
    """Ray Data works on whole blocks: small ones make small pieces of work, whose results arrive early."""
    requests = iter(requests)
    while block := list(islice(requests, size)):
        yield pa.Table.from_pylist(block)


class RayCritic:
    """
    Critiques of a language model, or of a CLoud model, on [`RayEngines`].

    A critique is asked for once, with as many tokens as all tries of [`CritiqueOptions`] allow together: engines start
    slowly, and a critique that was cut would begin the same way again.

    Args:
        builder ([`CritiqueBuilder`]):
            What is asked for.
        config ([`CLoudConfig`]):
            How the critic is asked.
        journal ([`Journal`]):
            Where the critiques are kept.
        is_reward_model (`bool`):
            Whether the engines run a CLoud model, and not the bare language model.
    """

    def __init__(self, builder: CritiqueBuilder, config: CLoudConfig, journal: Journal, is_reward_model: bool):
        self.builder = builder
        self.config = config
        self.journal = journal
        critique_format = builder.critique_format
        self._sampling = {
            "temperature": builder.options.temperature,
            "repetition_penalty": critique_format.repetition_penalty,
            "detokenize": False,
        }
        if is_reward_model:  # see vllm_plugin.py: the reward token closes the critique, and the end of turn follows
            self._end_ids = {config.reward_token_id}
            self._sampling["stop_token_ids"] = [critique_format.end_token_id]
        else:
            self._end_ids = {critique_format.end_token_id, *critique_format.stop_ids(config)}
            self._sampling |= {"stop_token_ids": sorted(self._end_ids), "ignore_eos": True}
        self._reserved_tokens = reserved_tokens(is_reward_model)

    async def ask(self, row: FittedRow, side: str, number: int, max_new_tokens: int) -> Critique:
        """A critique from the journal; see [`Ask`]."""
        ids, finish_reason = self.journal[self._key(row.row, side, number)]
        if self.config.reward_token_id in ids:
            raise Dropped(f"the critique holds token {self.config.reward_token_id}, which is reserved")
        if len(ids) > max_new_tokens:
            return Critique(tuple(ids[:max_new_tokens]), "length")
        return Critique(tuple(ids), finish_reason)

    def write_all(self, engines: RayEngines, rows: Sequence[dict[str, Any]]) -> dict[int, str]:
        """
        Let the engines write all critiques that are not in the journal.

        Args:
            engines ([`RayEngines`]):
                The engines.
            rows (`Sequence[dict]`):
                The rows.

        Returns:
            `dict[int, str]`: Reasons by position, of the rows that failed.

        Raises:
            `ValueError`: Before an engine starts, naming the first row that cannot be used.
        """
        failures: dict[int, str] = {}
        for answer in engines.generate(self._requests(rows)):
            if answer["__inference_error__"]:
                failures[answer["row"]] = answer["__inference_error__"]
                continue
            self.journal.add(answer["key"], self._read(answer["generated_tokens"], answer["max_new_tokens"]))
        return failures

    def _requests(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        options = self.builder.options
        for index, row in enumerate(rows):
            try:
                fitted = self.builder.fit(row)
            except Dropped:
                continue
            except ValueError as error:
                raise ValueError(f"{row_name(index, row)}: {error}") from error
            for side, prefix in fitted.prefixes.items():
                max_new_tokens = self._most_tokens(len(prefix.input_ids))
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

    def _most_tokens(self, prefix_length: int) -> int:
        """What the last try may write."""
        most = self.builder.options.max_new_tokens
        for _ in range(self.builder.options.longer_tries):
            if self.builder.has_room(prefix_length, 2 * most):
                most *= 2
        return most

    def _read(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], str]:
        """Ids without the end token, and the finish reason."""
        length = next((place for place, token_id in enumerate(ids) if token_id in self._end_ids), len(ids))
        return ids[: min(length, max_new_tokens)], "length" if length > max_new_tokens else "stop"

    @staticmethod
    def _key(row: dict[str, Any], side: str, number: int) -> str:
        return key_of(row["id"], side, number)


def reserved_tokens(is_reward_model: bool) -> int:
    """
    Tokens that must fit behind a critique of full length: one more, which shows whether it ended there, and behind the
    critique of a CLoud model those that close it.
    """
    return 3 if is_reward_model else 1


@dataclass(kw_only=True)
class RayCritiqueArguments(CriticArguments):
    """
    Which model criticises what, and where. The arguments of [`CriticArguments`], and

    Parameters:
        ray_address (`str`, *optional*):
            The cluster, such as `auto` or `head:6379`; `local` starts one of this machine alone. Without it Ray
            looks for one, and starts one if there is none.
        num_replicas (`int`, *optional*, defaults to `1`):
            vLLM engines.
        tensor_parallel_size (`int`, *optional*, defaults to `1`):
            GPUs of each.
        batch_size (`int`, *optional*, defaults to `32`):
            Requests that travel together; an engine works on eight times as many at once.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Whether the nodes have no GPUs.
        vllm_options (`str`, *optional*):
            Options of vLLM's engine as JSON, such as `{"max_model_len": 4096}`.
    """

    ray_address: str | None = field(default=None, metadata={"help": "The cluster: auto, local or an address."})
    num_replicas: int = field(default=1, metadata={"help": "vLLM engines."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs of each."})
    batch_size: int = field(default=32, metadata={"help": "Requests that travel together."})
    use_cpu: bool = field(default=False, metadata={"help": "Whether the nodes have no GPUs."})
    vllm_options: str | None = field(default=None, metadata={"help": "Options of vLLM's engine, as JSON."})

    def __post_init__(self):
        super().__post_init__()
        if min(self.num_replicas, self.tensor_parallel_size, self.batch_size) < 1:
            raise ValueError("`num_replicas`, `tensor_parallel_size` and `batch_size` must be at least 1.")
        self.parsed_vllm_options()

    def parsed_vllm_options(self) -> dict[str, Any]:
        """`vllm_options` as a dictionary. Raises `ValueError` if they are none."""
        return BackendArguments(backend="vllm", vllm_options=self.vllm_options).parsed_vllm_options()


ARGUMENTS = (RayCritiqueArguments,)


def main(args: RayCritiqueArguments):
    if is_adapter(args.model_name_or_path):
        raise ValueError(
            f"{args.model_name_or_path} is a LoRA adapter. Merge it with `examples/merge_adapter.py` into a folder that every "
            "node can read."
        )
    config = args.read_critic()
    rows = args.load_pairs()
    # Neither the cluster nor the batches change a critique
    settings = args.settings("self critiques with Ray", rows, config, vllm_options=args.parsed_vllm_options())
    folder = DatasetFolder(args.output_dir, "Self critiques", settings)
    run_builder(write_with_ray(args, rows, config, args.is_reward_model(), folder), folder)
    if args.push_to_hub:
        folder.push(args.push_to_hub)


async def write_with_ray(
    args: RayCritiqueArguments, rows: Dataset, config: CLoudConfig, is_reward_model: bool, folder: DatasetFolder
) -> dict[str, Any]:
    """Critiques by the cluster's engines into the journal, then the dataset from the journal."""
    engines = RayEngines(
        args.model_name_or_path,
        args.num_replicas,
        args.tensor_parallel_size,
        args.batch_size,
        args.use_cpu,
        args.parsed_vllm_options(),
    )
    critique_format = CritiqueFormat.from_config(config, AutoTokenizer.from_pretrained(args.model_name_or_path))
    builder = CritiqueBuilder(critique_format, context_of(args, config, is_reward_model), args.critique_options())
    with folder.open_journal() as journal:
        kept = len(journal)
        critic = RayCritic(builder, config, journal, is_reward_model)
        connect(args.ray_address)
        failures = critic.write_all(engines, rows)
        counts = {"rows_read": len(rows), "answers": len(journal), "answers_of_earlier_runs": kept, "retries": 0}
        run = Run(rows, lambda row: builder.build(row, critic.ask), [], 1, failures)
        features = features_with_critiques(rows.features, args.num_critiques)
        counts = await folder.write(run.results(), features, counts)
    counts |= {name: count for name, count in builder.counts().items() if not name.endswith("_tokens")}
    folder.write_record(counts)
    return counts


def context_of(args: RayCritiqueArguments, config: CLoudConfig, is_reward_model: bool) -> int | None:
    """Tokens of a sequence that the engines take, less those they need to close a critique; the builder counts one."""
    context = args.parsed_vllm_options().get("max_model_len", context_length(config))
    return None if context is None else context - reserved_tokens(is_reward_model) + 1
