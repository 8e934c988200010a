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

from dataclasses import dataclass, field, fields
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import TrlParser

from cloud_hf import CLoudConfig, CLoudForRewardModeling, CritiqueFormat
from cloud_hf.configuration_cloud import read_config
from cloud_hf.data.builder_arguments import BuilderArguments, describe_rows
from cloud_hf.data.building import Run, check_rows, run_builder
from cloud_hf.data.dataset_folder import JOURNAL, DatasetFolder
from cloud_hf.data.journal import Journal
from cloud_hf.data.model_identity import identify_model
from cloud_hf.data.ray_critiques import RayCritic, RayEngines, connect, reserved_tokens
from cloud_hf.data.schemas import PAIR_COLUMNS, response_of
from cloud_hf.data.self_critiques import SIDES, CritiqueBuilder, CritiqueOptions, features_with_critiques
from cloud_hf.loading import refuse_adapter
from cloud_hf.scoring import context_length
from cloud_hf.serving.backends import BackendArguments


@dataclass(kw_only=True)
class RayCritiqueArguments(BuilderArguments):
    """
    Which model criticises what, and where. The arguments of [`BuilderArguments`], and

    Parameters:
        model_name_or_path (`str`):
            The model of stage 1 (a language model), or a CLoud model.
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
        critique_prompt, critique_role, keep_thinking, format:
            How a critique is asked for; use the values of stage 1. A CLoud model knows its own.
        num_critiques, temperature, max_new_tokens, longer_tries, truncated, overlong_policy, seed:
            See `build_self_critiques.py`.
    """

    model_name_or_path: str = field(metadata={"help": "The model of stage 1, or a CLoud model."})
    ray_address: str | None = field(default=None, metadata={"help": "The cluster: auto, local or an address."})
    num_replicas: int = field(default=1, metadata={"help": "vLLM engines."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs of each."})
    batch_size: int = field(default=32, metadata={"help": "Requests that travel together."})
    use_cpu: bool = field(default=False, metadata={"help": "Whether the nodes have no GPUs."})
    vllm_options: str | None = field(default=None, metadata={"help": "Options of vLLM's engine, as JSON."})
    critique_prompt: str | None = field(default=None, metadata={"help": "Text that opens the critique turn."})
    critique_role: str = field(default="user", metadata={"help": "Role of the critique turn: user or assistant."})
    keep_thinking: bool = field(default=False, metadata={"help": "Show <think> blocks the template would drop."})
    format: str = field(default="cloud", metadata={"help": "Spelling of conversations: cloud or reference."})
    num_critiques: int = field(default=1, metadata={"help": "Critiques per response."})
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest critique in tokens."})
    longer_tries: int = field(default=2, metadata={"help": "How often a critique that was cut may be twice as long."})
    truncated: str = field(default="drop", metadata={"help": "Critiques that stay cut: drop or keep."})
    overlong_policy: str = field(default="error", metadata={"help": "Over-long rows: error, drop or truncate_prompt."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})

    def __post_init__(self):
        super().__post_init__()
        if min(self.num_replicas, self.tensor_parallel_size, self.batch_size) < 1:
            raise ValueError("`num_replicas`, `tensor_parallel_size` and `batch_size` must be at least 1.")
        self.critique_options()
        self.parsed_vllm_options()

    def critique_options(self) -> CritiqueOptions:
        """What critiques are asked for. Raises `ValueError` if it makes no sense."""
        return CritiqueOptions(**{each.name: getattr(self, each.name) for each in fields(CritiqueOptions)})

    def parsed_vllm_options(self) -> dict[str, Any]:
        """`vllm_options` as a dictionary. Raises `ValueError` if they are none."""
        return BackendArguments(backend="vllm", vllm_options=self.vllm_options).parsed_vllm_options()


ARGUMENTS = (RayCritiqueArguments,)


def main(args: RayCritiqueArguments):
    config, is_reward_model = read_critic(args)
    rows = args.load(*PAIR_COLUMNS)
    check_rows(rows, lambda row: [response_of(row, side) for side in SIDES])
    folder = DatasetFolder(args.output_dir, "Self critiques", settings_of(args, rows, config))
    run_builder(write_with_ray(args, rows, config, is_reward_model, folder), folder)
    if args.push_to_hub:
        folder.push(args.push_to_hub)


def read_critic(args: RayCritiqueArguments) -> tuple[CLoudConfig, bool]:
    """The config that says how the critic is asked, and whether the critic is a CLoud model."""
    name = args.model_name_or_path
    refuse_adapter(name)
    config = read_config(name)
    asked = {"critique_prompt": None, "critique_role": "user", "keep_thinking": False, "format": "cloud"}
    if not isinstance(config, CLoudConfig):
        return CLoudForRewardModeling.config_from_base(
            name, **{option: getattr(args, option) for option in asked}
        ), False
    if not config.critique:
        raise ValueError(f"{name} is a classic reward model: it writes no critiques.")
    if any(getattr(args, option) != default for option, default in asked.items()):
        raise ValueError("A CLoud model knows how it is asked for critiques: leave those options out.")
    return config, True


def settings_of(args: RayCritiqueArguments, rows: Dataset, config: CLoudConfig) -> dict[str, Any]:
    """All that the critiques depend on: neither the cluster nor the batches are part of it."""
    return {
        "builder": "self critiques with Ray",
        "dataset": args.dataset_name,
        "split": args.dataset_split,
        "shard": args.shard,
        **describe_rows(rows, tuple(name for name in (*PAIR_COLUMNS, "tools") if name in rows.column_names)),
        **identify_model(args.model_name_or_path),
        "vllm_options": args.parsed_vllm_options(),
        "critique_prompt": config.critique_prompt,
        "critique_role": config.critique_role,
        "keep_thinking": config.keep_thinking,
        "format": config.format,
        "chat_template_kwargs": config.chat_template_kwargs,
        **vars(args.critique_options()),
    }


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
    with Journal(folder.path / JOURNAL, folder.settings) as journal:
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
