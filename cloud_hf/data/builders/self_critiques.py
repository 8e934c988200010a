"""Stage 2: rewrite the critiques of a preference dataset with the stage 1 model, in this process or on servers."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from ...argument_help import check_bounds, documented
from ...configuration_cloud import CLoudConfig
from ...critique_format import CritiqueFormat
from ...loading import load_critic, tokenizer_source
from ...modeling_cloud import CLoudForRewardModeling
from ...scoring import Scorer, TransformersScorer, context_length
from ...serving.backends import BackendArguments, open_backend
from ..build_run import JournaledClient, build_dataset, check_rows, run_builder
from ..completions import ServerUnusable
from ..critiques import CritiqueBuilder, ScorerCritic, ServedCritic, features_with_critiques, write_rows
from ..dataset_folder import DatasetFolder
from .arguments import CriticArguments, ServerArguments


# Sequences per call, enough to keep vLLM or a reward server busy. Each sequence is journaled as soon as it is complete
_SEQUENCES_PER_CALL = {"vllm": 2048, "server": 512}


@documented
@dataclass(kw_only=True)
class SelfCritiqueArguments(CriticArguments, ServerArguments, BackendArguments):
    """
    Options for running the stage 1 model. Includes [`CriticArguments`], [`ServerArguments`] and [`BackendArguments`].

    Parameters:
        base_url (`list[str]`, *optional*):
            Alternative to `backend`: addresses of vLLM servers that serve the language model, such as `http://127.0.0.1:8000/v1`. The
            tokenizer and the config are still loaded from `model_name_or_path`.
        model (`str`, *optional*):
            Name of the model on the servers. Optional if they serve only one model.
        context_length (`int`, *optional*):
            Context length of the servers in tokens, if shorter than the model's.
        api_key_env (`str`, *optional*):
            Environment variable that contains the servers' API key. Defaults to `"OPENAI_API_KEY"` with `base_url`, otherwise to
            `"CLOUD_API_KEY"`.
    """

    base_url: list[str] | None = None
    model: str | None = None
    context_length: int | None = None
    api_key_env: str | None = None

    def __post_init__(self):
        CriticArguments.__post_init__(self)
        BackendArguments.__post_init__(self)
        if self.base_url and self.backend != "transformers":
            raise ValueError("`base_url` and `backend` are alternatives: set only one of them.")
        if not self.base_url and (self.model is not None or self.context_length is not None):
            raise ValueError(
                "`model` and `context_length` describe the servers at `base_url`: set `base_url` as well."
            )
        check_bounds(self, batch_size=1)
        self.check_temperature(self.temperature)
        if self.api_key_env is None:
            self.api_key_env = "OPENAI_API_KEY" if self.base_url else "CLOUD_API_KEY"

    def chunk_size(self) -> int:
        """Return the number of responses per scorer call."""
        if self.backend == "transformers":  # the smallest number of responses whose critiques fill complete batches
            return self.batch_size // math.gcd(self.batch_size, self.num_critiques)
        return max(1, _SEQUENCES_PER_CALL[self.backend] // self.num_critiques)


ARGUMENTS = (SelfCritiqueArguments,)


def main(args: SelfCritiqueArguments):
    config = args.read_critic()
    check_servers(args)
    rows = args.load_pairs()
    if args.base_url:
        engine: dict[str, Any] = {"backend": "completions", "context_length": args.context_length}
    else:
        engine = {"backend": args.backend, "dtype": args.dtype, "vllm_options": args.parsed_vllm_options()}
    settings = args.settings("self critiques", rows, config, **engine)
    folder = DatasetFolder(args.output_dir, "Self critiques", settings, [args.dataset_name])
    if args.base_url:
        build = write_with_servers(args, rows, config, folder)
    else:
        build = partial(write_with_backend, args, rows, config, folder)
    following = f"cloud-hf train-cloud --model_name_or_path {args.model_name_or_path} --dataset_name {{}} --output_dir cloud-rm"
    run_builder(build, folder, following, args.push_to_hub)


def check_servers(args: SelfCritiqueArguments):
    """Raise `ValueError` if the options name a kind of server that cannot serve the model."""
    name = args.model_name_or_path
    if args.base_url and args.is_reward_model():
        raise ValueError(f"{name} is a CLoud model, but `base_url` is for language models. Use a `backend`.")
    if args.backend == "server" and not args.is_reward_model():
        raise ValueError(
            f"{name} is a language model, but a reward server serves CLoud models. Use another `backend`, or `base_url`."
        )


def write_with_backend(args: SelfCritiqueArguments, rows: Dataset, config: CLoudConfig, folder: DatasetFolder) -> dict:
    """Write critiques with a model in this process or with a reward server."""
    with folder.open_journal() as journal:
        with open_critic(args, config) as (scorer, critique_format, context):
            builder = CritiqueBuilder(critique_format, context, args, args.bad_rows)
            critic = ScorerCritic(builder, journal)
            critic.write_all(scorer, rows, args.chunk_size(), longest_first=args.backend == "transformers")
        counts = write_rows(builder, critic.ask, rows, folder, journal)
    return report(folder, counts, builder.counts() | critic.tokens, config)


async def write_with_servers(
    args: SelfCritiqueArguments, rows: Dataset, config: CLoudConfig, folder: DatasetFolder
) -> dict:
    """Write critiques with a language model on OpenAI-compatible servers."""
    critique_format = CritiqueFormat.from_config(
        config, AutoTokenizer.from_pretrained(tokenizer_source(args.model_name_or_path))
    )
    builder = CritiqueBuilder(critique_format, args.context_length or context_length(config), args, args.bad_rows)
    check_rows(rows, lambda row: builder.needed(builder.lengths(row)))

    def make_work(critic: JournaledClient):
        served = ServedCritic(critic, critique_format, config, args)
        return lambda row: builder.build(row, served.ask)

    features = features_with_critiques(rows.features, args.num_critiques)
    clients = {"critic": args.client(args.base_url or [], args.model)}
    # The servers' chat defaults do not matter: the critic sends completion requests, which set all sampling fields
    counts = await build_dataset(folder, rows, features, clients, make_work, chats=False)
    return report(folder, counts, builder.counts(), config)


@contextmanager
def open_critic(
    args: SelfCritiqueArguments, config: CLoudConfig
) -> Iterator[tuple[Scorer, CritiqueFormat, int | None]]:
    """Open the backend. A stage 1 model gets a randomly initialized reward head, because its rewards are not used."""
    name = args.model_name_or_path
    if args.is_reward_model():
        with open_backend(name, args, show_progress=False) as opened, stopped_by_reward_server(args):
            yield opened
        return
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(name))
    device_map = "cuda" if torch.cuda.is_available() and args.backend == "transformers" else None
    model = load_critic(name, config, dtype=args.dtype, device_map=device_map)
    if args.backend == "transformers":
        scorer = TransformersScorer(model, tokenizer, args.batch_size)
        yield scorer, CritiqueFormat.from_config(config, tokenizer), context_length(config)
        return
    with tempfile.TemporaryDirectory(prefix="cloud-critic-") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        with open_backend(folder, args, show_progress=False) as opened:
            yield opened


@contextmanager
def stopped_by_reward_server(args: SelfCritiqueArguments):
    """Stop the run if a reward server fails, just as [`CompletionClient`] does when other servers fail."""
    if args.backend != "server":
        yield
        return
    from ...serving.client import RewardServerError  # needs httpx, which the other backends do not need

    try:
        yield
    except RewardServerError as error:
        raise ServerUnusable(str(error)) from None


def report(folder: DatasetFolder, counts: dict, written: dict[str, int], config: CLoudConfig) -> dict:
    """
    Write the numbers of critiques and tokens, and the FLOPs of a forward pass over these tokens (2 FLOPs per non-embedding weight per
    token), to the record and to `generation.json`. Print a summary.
    """
    weights = CLoudForRewardModeling.without_weights(config).num_parameters(exclude_embeddings=True)
    written["flops"] = 2 * weights * (written["prompt_tokens"] + written["critique_tokens"])
    (folder.path / "generation.json").write_text(json.dumps(written, indent=2))
    counts = {**counts, **written}
    folder.write_record(counts)
    print(
        f"{written['critiques']} critiques, {written['critiques_cut']} of them truncated. {written['critiques_written_longer']} were "
        f"retried with more tokens, {written['critiques_dropped_as_cut']} were dropped because they remained truncated, and "
        f"{written['prompts_shortened']} prompt(s) were shortened."
    )
    if written["responses_changed"]:
        print(
            f"The chat template changes {written['responses_changed']} response(s), perhaps by dropping thinking blocks. "
            "Set `keep_thinking` to keep them unchanged."
        )
    return counts
