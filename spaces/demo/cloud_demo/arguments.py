"""Demo options, from the command line or, on a Space, from environment variables."""

import argparse
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn, get_args

from cloud_hf.argument_help import check_bounds, documented
from cloud_hf.cli import UsageError


_VARIABLE_PREFIX = "DEMO_"
# The quickstart's models and held-out rows, so that a copy of this folder works on its own
SHIPPED = Path(__file__).parents[1] / "model"


def on_zero_gpu() -> bool:
    """Return whether this is a ZeroGPU Space, whose requests borrow a GPU."""
    return os.environ.get("SPACES_ZERO_GPU") == "true"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise an exception instead of printing the message and exiting, so that a Space can show the message on its page."""
        raise UsageError(message)


@documented
@dataclass
class DemoArguments:
    """
    Demo options. Each can also be set as an environment variable, for example `DEMO_MODEL`.

    Parameters:
        model (`str`, *optional*):
            Hub id or folder of a CLoud model, a classic model, a LoRA adapter or, with transformers, a third-party scalar model
            (`*ForSequenceClassification` with one label). Without it, and unless `backend` is `"server"`, the
            demo opens the small models in its own folder, with their rows.
        classic_model (`str`, *optional*):
            Hub id or folder of a model to compare with: a classic model or any other kind that `model` accepts.
        backend (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"` or `"vllm"` to run models in this process, or `"server"` to call a reward server.
        server_url (`str`, *optional*):
            Address of the reward server.
        classic_server_url (`str`, *optional*):
            Address of the classic model's reward server.
        api_key_env (`str`, *optional*, defaults to `"CLOUD_API_KEY"`):
            Environment variable that contains the API key of the reward servers.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of sequences per batch, with transformers.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        vllm_options (`str`, *optional*):
            Additional options for vLLM's engine as JSON, for example `{"max_model_len": 4096}`.
        rows (`str`, *optional*):
            Preference pairs for the examples, the comparison of both models and the reward distribution: a benchmark
            of pairs (`reward_bench`, `llm_bar`, …, or `NAME=FILES`), or a file, folder or Hub id with the columns prompt,
            chosen and rejected.
        rows_split (`str`, *optional*, defaults to `"test"`):
            Split of `rows`, unless it is a benchmark or has no splits.
        results (`str`, *optional*):
            Output folder of `examples/evaluate_rewards.py` with the scores of the demo's models, one CLoud and one classic, on `rows`. The
            demo shows these scores instead of judging the rows.
        reference_rows (`int`, *optional*, defaults to `200`):
            Number of rows to judge while the demo is idle, for the comparison of both models and the reward distribution.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Maximum critique length in tokens.
        max_characters (`int`, *optional*, defaults to `20000`):
            Maximum number of characters per field.
        max_waiting (`int`, *optional*, defaults to `64`):
            Maximum number of waiting requests.
        max_waiting_per_user (`int`, *optional*, defaults to `2`):
            Maximum number of waiting or running requests from one browser tab or client.
        max_waiting_per_address (`int`, *optional*, defaults to `8`):
            Maximum number of waiting or running requests from one network address (for IPv6, from one /64 network). Behind a proxy, set
            the environment variable FORWARDED_ALLOW_IPS to the proxy's address; otherwise all visitors appear to have that address.
        concurrency (`int`, *optional*):
            Maximum number of concurrently running requests. Defaults to 1 with transformers, otherwise to 16.
        policy_url (`str`, *optional*):
            Address of an OpenAI-compatible server that writes candidates for best-of-N.
        policy_model (`str`, *optional*):
            Name of the model on that server.
        policy_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that contains that server's API key, if it needs one.
        host (`str`, *optional*):
            Address to listen on. By default, the demo is reachable only from this machine or, on a Space, at the Space's public address.
        port (`int`, *optional*):
            Port to listen on. Defaults to the first free port, starting at 7860.
        analytics (`bool`, *optional*, defaults to `False`):
            Let Gradio send usage statistics.
    """

    model: str | None = None
    classic_model: str | None = None
    backend: str = "transformers"
    server_url: str | None = None
    classic_server_url: str | None = None
    api_key_env: str = "CLOUD_API_KEY"
    batch_size: int = 16
    dtype: str = "auto"
    vllm_options: str | None = None
    rows: str | None = None
    rows_split: str = "test"
    results: str | None = None
    reference_rows: int = 200
    max_new_tokens: int = 512
    max_characters: int = 20_000
    max_waiting: int = 64
    max_waiting_per_user: int = 2
    max_waiting_per_address: int = 8
    concurrency: int | None = None
    policy_url: str | None = None
    policy_model: str | None = None
    policy_key_env: str = "OPENAI_API_KEY"
    host: str | None = None
    port: int | None = None
    analytics: bool = False

    def __post_init__(self):
        if self.backend not in ("transformers", "vllm", "server"):
            raise ValueError(f"`backend` is {self.backend!r}; use transformers, vllm or server.")
        if self.backend == "server":
            if self.server_url is None:
                raise ValueError("`backend` 'server' needs `server_url`.")
            if self.model or self.classic_model:
                raise ValueError(
                    "With `backend` 'server', the servers load the models: drop `model` and `classic_model`."
                )
        else:
            if self.model is None:
                self._open_shipped()
            if self.server_url or self.classic_server_url:
                raise ValueError("`server_url` and `classic_server_url` require `backend` 'server'.")
        if self.results is not None and self.rows is None:
            raise ValueError("`results` requires `rows`: set `rows` to the rows that were scored.")
        if self.vllm_options is not None and self.backend != "vllm":
            raise ValueError("`vllm_options` require `backend` 'vllm'.")
        if (self.policy_url is None) != (self.policy_model is None):
            raise ValueError("`policy_url` and `policy_model` go together: set both or neither.")
        limits = ("max_characters", "max_waiting", "max_waiting_per_user", "max_waiting_per_address")
        at_least_one = ("batch_size", "max_new_tokens", *limits)
        check_bounds(self, reference_rows=0, concurrency=1, **dict.fromkeys(at_least_one, 1))
        if self.concurrency is None:
            self.concurrency = 1 if self.backend == "transformers" else 16

    @property
    def is_shipped(self) -> bool:
        """Whether the models are those in the demo's folder."""
        return self.model == str(SHIPPED / "cloud")

    def _open_shipped(self):
        if not SHIPPED.is_dir():
            raise ValueError(
                "The demo's `model` folder is missing. Set `--model` (on a Space: `DEMO_MODEL`) to a reward model, such as "
                "org/my-cloud-rm."
            )
        self.model = str(SHIPPED / "cloud")
        self.classic_model = self.classic_model or str(SHIPPED / "classic")
        self.rows = self.rows or str(SHIPPED / "shell-game.jsonl")


def check_folders(args: DemoArguments):
    """Raise `ValueError` if the path of a model or of the results does not exist. Hub ids are checked when the models are loaded."""
    if args.results is not None and not Path(args.results).is_dir():
        raise ValueError(f"`results` is {args.results!r}, but there is no such folder.")
    for name in ("model", "classic_model"):
        value: str = getattr(args, name) or ""
        is_path = value.startswith(("/", ".", "~")) or value.count("/") > 1
        if is_path and not Path(value).exists():
            raise ValueError(f"`{name}` is {value!r}, but there is no such folder.")


def public_name(name: str) -> str:
    """Return a Hub id or address unchanged, but only the last part of a path, because the page must not reveal the machine's folders."""
    return Path(name).name if Path(name).exists() or name.startswith(("/", ".", "~")) else name


def parse_arguments(
    arguments: list[str] | None = None, environment: Mapping[str, str] = os.environ, description: str | None = None
) -> DemoArguments:
    """
    Parse the command line. Options that it omits are read from environment variables. Does not use TRL's parser, which takes seconds to
    import.

    Raises [`UsageError`] if an option is unknown, missing or unusable. `description` comes first in the `--help` text.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for argument in fields(DemoArguments):
        # argparse also parses defaults that are strings
        default = environment.get(_VARIABLE_PREFIX + argument.name.upper()) or argument.default
        help_text = argument.metadata.get("help")
        parser.add_argument(f"--{argument.name}", type=_kind_of(argument.type), default=default, help=help_text)
    try:
        args = DemoArguments(**vars(parser.parse_args(arguments)))
        check_folders(args)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return args


def _kind_of(annotation):
    if isinstance(annotation, types.UnionType):
        [annotation] = [kind for kind in get_args(annotation) if kind is not types.NoneType]
    return _read_bool if annotation is bool else annotation


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"
