"""Which backend a script scores with: transformers or vLLM in this process, or a reward server."""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from transformers import AutoTokenizer

from ..critique_format import CritiqueFormat
from ..loading import check_reward_model, load_reward_model, read_model_config
from ..scoring import Scorer, TransformersScorer, context_length


@dataclass
class BackendArguments:
    """
    How a model is run.

    Parameters:
        backend (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"`, `"vllm"` (in this process), or `"server"` (a reward server that runs elsewhere).
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences scored at once, with transformers.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights, with transformers or vLLM.
        vllm_options (`str`, *optional*):
            More options of `vllm.LLM` as JSON, such as `{"max_model_len": 4096}`.
        server_url (`str`, *optional*):
            Address of the reward server. It must serve the model that is named: its tokenizer is read here.
        api_key_env (`str`, *optional*, defaults to `"CLOUD_API_KEY"`):
            Environment variable with the server's key, if it wants one.
    """

    backend: str = field(default="transformers", metadata={"help": "transformers, vllm or server."})
    batch_size: int = field(default=16, metadata={"help": "Sequences scored at once, with transformers."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights."})
    vllm_options: str | None = field(default=None, metadata={"help": "More options of vllm.LLM, as JSON."})
    server_url: str | None = field(default=None, metadata={"help": "Address of the reward server."})
    api_key_env: str = field(default="CLOUD_API_KEY", metadata={"help": "Variable with the server's key."})

    def __post_init__(self):
        if self.backend not in ("transformers", "vllm", "server"):
            raise ValueError(f"`backend` is {self.backend!r}; use transformers, vllm or server.")
        if (self.backend == "server") != (self.server_url is not None):
            raise ValueError("`backend` 'server' and `server_url` go together: give both or neither.")
        if self.vllm_options is not None and self.backend != "vllm":
            raise ValueError("`vllm_options` are for `backend` 'vllm'.")
        self.parsed_vllm_options()

    def parsed_vllm_options(self) -> dict:
        """`vllm_options` as a dictionary. Raises `ValueError` if they are none."""
        try:
            options = json.loads(self.vllm_options or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"`vllm_options` are not JSON: {error}") from error
        if not isinstance(options, dict):
            raise ValueError(f"`vllm_options` are {options!r:.60}; give a JSON object.")
        return options


@contextmanager
def open_backend(
    name: str, args: BackendArguments, show_progress: bool = True
) -> Iterator[tuple[Scorer, CritiqueFormat, int | None]]:
    """
    Load a reward model into the backend of `args`, and free it afterwards.

    Args:
        name (`str`):
            Hub id or folder of a model or adapter.
        args ([`BackendArguments`]):
            The backend.
        show_progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar for each call, with transformers or vLLM.

    Yields:
        `tuple`: The scorer, the model's format, and the tokens that its context holds, critique included.

    Raises:
        `ValueError`: If `name` is no reward model, or the server has one of the other kind.
        `RewardServerError`: If the server cannot be reached.
    """
    if args.backend == "vllm":
        from .vllm.scorer import CLoudVLLM

        scorer = CLoudVLLM(name, show_progress=show_progress, **{"dtype": args.dtype, **args.parsed_vllm_options()})
        with closing(scorer):
            yield scorer, scorer.critique_format, scorer.context_length
    elif args.backend == "server":
        from .client import CLoudClient

        config = read_model_config(name)
        check_reward_model(name, config)
        critique_format = CritiqueFormat.from_config(config, AutoTokenizer.from_pretrained(name))
        client = CLoudClient(args.server_url, api_key=os.environ.get(args.api_key_env))
        served = client.served_model()
        if served.critique != config.critique:
            kinds = {True: "a CLoud model", False: "a classic model"}
            raise ValueError(
                f"{args.server_url} serves {served.name}, {kinds[served.critique]}, but {name} is {kinds[config.critique]}. Name the "
                "model that the server has; with several, give the addresses in the order of the models."
            )
        yield client, critique_format, served.context_length
    else:
        model, tokenizer = load_reward_model(name, dtype=args.dtype)
        scorer = TransformersScorer(model, tokenizer, args.batch_size, show_progress=show_progress)
        yield scorer, CritiqueFormat.from_config(model.config, tokenizer), context_length(model.config)
