"""What the demo is told: on the command line, or on a Space by environment variables."""

import argparse
import os
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import get_args


_VARIABLE_PREFIX = "DEMO_"


class UnusableSettings(Exception):
    """What is wrong with the variables of a Space."""


class _Parser(argparse.ArgumentParser):
    """Ends the process where something is wrong. On a Space nobody would see why: there the error is for its page."""

    on_space = False

    def error(self, message: str):
        """Raises [`UnusableSettings`] on a Space."""
        if self.on_space:
            raise UnusableSettings(message)
        super().error(message)


@dataclass
class DemoArguments:
    """
    Arguments of the demo. Each can also be given as an environment variable, such as `DEMO_MODEL`.

    Parameters:
        model (`str`, *optional*):
            Hub id or folder of a CLoud or classic model, or of a LoRA adapter. Not needed with `backend` `"server"`.
        classic_model (`str`, *optional*):
            The classic model it is compared with.
        backend (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"` or `"vllm"` in this process, or `"server"`: a reward server that runs elsewhere.
        server_url (`str`, *optional*):
            Address of the reward server.
        classic_server_url (`str`, *optional*):
            Address of the classic model's reward server.
        api_key_env (`str`, *optional*, defaults to `"CLOUD_API_KEY"`):
            Environment variable with the reward servers' key.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences computed at once, with transformers.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights.
        vllm_options (`str`, *optional*):
            More options of vLLM's engine as JSON, such as `{"max_model_len": 4096}`.
        rows (`str`, *optional*):
            Preference pairs for examples, for the tab that compares both models, and for the reward distribution: a
            benchmark of pairs (`reward_bench`, `llm_bar`, …, or `NAME=FILES`), or a file, folder or Hub id with the columns
            prompt, chosen, rejected.
        rows_split (`str`, *optional*, defaults to `"test"`):
            Split of `rows`, where it is no benchmark and has splits.
        reference_rows (`int`, *optional*, defaults to `24`):
            Rows whose responses are judged after the start, while nobody waits, to know the model's reward distribution.
            With fewer than 4 it is not measured.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest critique in tokens.
        max_characters (`int`, *optional*, defaults to `20000`):
            Longest text of a field.
        max_waiting (`int`, *optional*, defaults to `64`):
            Requests that may wait.
        max_waiting_per_user (`int`, *optional*, defaults to `2`):
            Requests of one browser tab or client that may wait or run.
        concurrency (`int`, *optional*):
            Requests that run at once. Defaults to 1 with transformers, else to 16.
        policy_url (`str`, *optional*):
            Address of an OpenAI-compatible server that writes candidates for best-of-N.
        policy_model (`str`, *optional*):
            The model to ask there.
        policy_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable with its key, if it wants one.
        host (`str`, *optional*):
            Address to listen on. Defaults to this machine only, and on a Space to what the Space says.
        port (`int`, *optional*):
            Port to listen on. Defaults to the first free one from 7860.
        analytics (`bool`, *optional*, defaults to `False`):
            Let Gradio send its usage statistics.
    """

    model: str | None = field(default=None, metadata={"help": "Hub id or folder of the reward model or adapter."})
    classic_model: str | None = field(default=None, metadata={"help": "The classic model it is compared with."})
    backend: str = field(default="transformers", metadata={"help": "transformers, vllm or server."})
    server_url: str | None = field(default=None, metadata={"help": "Address of the reward server."})
    classic_server_url: str | None = field(default=None, metadata={"help": "Address of the classic model's server."})
    api_key_env: str = field(default="CLOUD_API_KEY", metadata={"help": "Variable with the reward servers' key."})
    batch_size: int = field(default=16, metadata={"help": "Sequences computed at once, with transformers."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights."})
    vllm_options: str | None = field(default=None, metadata={"help": "More options of vLLM's engine, as JSON."})
    rows: str | None = field(default=None, metadata={"help": "Preference pairs: benchmark, file, folder or Hub id."})
    rows_split: str = field(default="test", metadata={"help": "Split of the rows."})
    reference_rows: int = field(default=24, metadata={"help": "Rows judged to know the reward distribution."})
    max_new_tokens: int = field(default=512, metadata={"help": "Longest critique in tokens."})
    max_characters: int = field(default=20_000, metadata={"help": "Longest text of a field."})
    max_waiting: int = field(default=64, metadata={"help": "Requests that may wait."})
    max_waiting_per_user: int = field(default=2, metadata={"help": "Requests of one tab that may wait or run."})
    concurrency: int | None = field(default=None, metadata={"help": "Requests that run at once."})
    policy_url: str | None = field(default=None, metadata={"help": "OpenAI-compatible server that writes candidates."})
    policy_model: str | None = field(default=None, metadata={"help": "The model to ask there."})
    policy_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "Variable with that server's key."})
    host: str | None = field(default=None, metadata={"help": "Address to listen on."})
    port: int | None = field(default=None, metadata={"help": "Port to listen on."})
    analytics: bool = field(default=False, metadata={"help": "Let Gradio send its usage statistics."})

    def __post_init__(self):
        if self.backend not in ("transformers", "vllm", "server"):
            raise ValueError(f"`backend` is {self.backend!r}; use transformers, vllm or server.")
        if self.backend == "server":
            if self.server_url is None:
                raise ValueError("`backend` 'server' needs `server_url`.")
            if self.model or self.classic_model:
                raise ValueError(
                    "With `backend` 'server' the servers have the models: drop `model` and `classic_model`."
                )
        else:
            if self.model is None:
                raise ValueError(
                    "Name a reward model with `--model` (on a Space: `DEMO_MODEL`), such as org/my-cloud-rm."
                )
            if self.server_url or self.classic_server_url:
                raise ValueError("`server_url` and `classic_server_url` are for `backend` 'server'.")
        if self.vllm_options is not None and self.backend != "vllm":
            raise ValueError("`vllm_options` are for `backend` 'vllm'.")
        if (self.policy_url is None) != (self.policy_model is None):
            raise ValueError("`policy_url` and `policy_model` go together: give both or neither.")
        for name in ("batch_size", "max_new_tokens", "max_characters", "max_waiting", "max_waiting_per_user"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.reference_rows < 0:
            raise ValueError(f"`reference_rows` is {self.reference_rows}; it must be at least 0.")
        if self.concurrency is None:
            self.concurrency = 1 if self.backend == "transformers" else 16
        if self.concurrency < 1:
            raise ValueError(f"`concurrency` is {self.concurrency}; it must be at least 1.")


def parse_arguments(
    arguments: list[str] | None = None, environment: Mapping[str, str] = os.environ, description: str | None = None
) -> DemoArguments:
    """
    Read the command line over the environment. (TRL's parser would take seconds to import.)

    Args:
        arguments (`list[str]`, *optional*):
            The command line. Defaults to that of the process.
        environment (`Mapping[str, str]`, *optional*):
            The environment variables.
        description (`str`, *optional*):
            What `--help` says first.

    Returns:
        [`DemoArguments`]

    Raises:
        [`UnusableSettings`]: On a Space, if a setting is missing or not usable. Elsewhere the process ends with a message.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.on_space = "SPACE_ID" in environment
    for argument in fields(DemoArguments):
        assert argument.default is not MISSING
        kind = _kind_of(argument.type)
        default = argument.default
        variable = _VARIABLE_PREFIX + argument.name.upper()
        if environment.get(variable):
            default = environment[variable]  # argparse reads a text as it reads the command line
        parser.add_argument(f"--{argument.name}", type=kind, default=default, help=argument.metadata["help"])
    try:
        return DemoArguments(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.error(str(error))


def _kind_of(annotation):
    if isinstance(annotation, types.UnionType):
        [annotation] = [kind for kind in get_args(annotation) if kind is not types.NoneType]
    return _read_bool if annotation is bool else annotation


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"
