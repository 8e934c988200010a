"""
Stage 2 over a cluster: what build_self_critiques.py does, with vLLM engines on the nodes of a Ray cluster (`ray.data.llm`).

The dataset is the same: the old columns, with chosen_feedback, chosen_feedback_ids, chosen_finish_reason and so on, in the
order of the rows. A run that was killed goes on when the same command is given again: answers are journaled in the output
folder as they arrive, and rows whose requests failed are in rejects.jsonl and tried again. Every node needs this environment
and sees the model under the same name.

On a cluster, started with `ray start` (--ray_address also takes the address of another one):

python examples/build_critiques_with_ray.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --ray_address auto --num_replicas 16 --tensor_parallel_size 1

On this machine alone, without a GPU:

python examples/build_critiques_with_ray.py --model_name_or_path critic-sft --dataset_name pairs.jsonl \
    --output_dir self-critiques --ray_address local --use_cpu --vllm_options '{"max_model_len": 4096}'
"""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import TrlParser

from cloud_hf import CLoudConfig, CritiqueFormat
from cloud_hf.data.builders.arguments import CriticArguments
from cloud_hf.data.builders.ray import RayCritic, RayEngines, connect, reserved_tokens
from cloud_hf.data.builders.self_critiques import CritiqueBuilder, features_with_critiques
from cloud_hf.data.folder import DatasetFolder
from cloud_hf.data.run import Run, run_builder
from cloud_hf.loading import is_adapter
from cloud_hf.scoring import context_length
from cloud_hf.serving.backends import BackendArguments


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


if __name__ == "__main__":
    main(*TrlParser(ARGUMENTS).parse_args_and_config())
