"""Open the backend that a script's options select: transformers or vLLM in this process, or a reward server."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from ..argument_help import check_data_type, check_vllm_files, documented
from ..critique_format import CritiqueFormat, format_class
from ..loading import check_reward_model, load_reward_model, read_model_config
from ..model_identity import identify_model
from ..scalar_models import (
    ScalarFormat,
    ScalarScorer,
    is_scalar_model,
    load_scalar_model,
    parse_label_weights,
    read_label_weights,
)
from ..scores import Sampling, Scorer
from ..scoring import TransformersScorer, context_length


if TYPE_CHECKING:
    from .client import CLoudClient, ServedModel


# The lowest and highest temperature that each backend supports besides 0. vLLM raises lower temperatures to 0.01, and rejects higher ones
# only after its engine has started.
_TEMPERATURES = {"transformers": (0.0, math.inf), "vllm": (0.01, 2.0), "server": (0.001, 100.0)}


@documented
@dataclass
class BackendArguments:
    """
    Backend options.

    Parameters:
        backend (`str`, *optional*, defaults to `"transformers"`):
            `"transformers"` or `"vllm"` in this process, or a reward `"server"`.
        batch_size (`int`, *optional*, defaults to `16`):
            Sequences per forward pass (transformers only).
        dtype (`str`, *optional*, defaults to `"auto"`):
            Data type of the weights (transformers and vLLM). `"auto"` uses the checkpoint's.
        vllm_options (`str`, *optional*):
            Options for `vllm.LLM` as JSON, such as `{"max_model_len": 4096}`. On a CPU, `kv_cache_memory_bytes` defaults to the memory
            for 16 sequences of `max_model_len` tokens, or to half of the free memory if that is less; see [`CLoudVLLM`].
        server_url (`str`, *optional*):
            Address of the reward server, or the addresses of its replicas, separated by commas. The servers must serve the model that is
            passed to the script; its tokenizer is loaded locally.
        api_key_env (`str`, *optional*, defaults to `"CLOUD_API_KEY"`):
            Environment variable that contains the server's key, if any.
    """

    backend: str = "transformers"
    batch_size: int = 16
    dtype: str = "auto"
    vllm_options: str | None = None
    server_url: str | None = None
    api_key_env: str = "CLOUD_API_KEY"

    def __post_init__(self):
        if self.backend not in ("transformers", "vllm", "server"):
            raise ValueError(f"`backend` is {self.backend!r}; use transformers, vllm or server.")
        check_data_type(self.dtype)
        if (self.backend == "server") != (self.server_url is not None):
            raise ValueError("`backend` 'server' and `server_url` go together: set both or neither.")
        if self.vllm_options is not None and self.backend != "vllm":
            raise ValueError("`vllm_options` are for `backend` 'vllm'.")
        self.parsed_vllm_options()

    def check_temperature(self, temperature: float, option: str = "temperature"):
        """Raise `ValueError` if the backend cannot sample at this temperature."""
        if not 0 <= temperature < math.inf:
            raise ValueError(f"`{option}` is {temperature}; it must be a finite number of at least 0.")
        low, high = _TEMPERATURES[self.backend]
        if temperature and not low <= temperature <= high:
            raise ValueError(
                f"`{option}` is {temperature:g}; `backend` {self.backend!r} accepts 0 (greedy) or {low:g} to {high:g}."
            )

    def parsed_vllm_options(self) -> dict:
        """Parse `vllm_options`. Raises `ValueError` if they are not a JSON object or name files other than the model's."""
        try:
            options = json.loads(self.vllm_options or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"`vllm_options` are not JSON: {error}") from error
        if not isinstance(options, dict):
            raise ValueError(f"`vllm_options` are {options!r:.60}; they must be a JSON object.")
        check_vllm_files(options)
        return options


@documented
@dataclass
class AnyModelArguments(BackendArguments):
    """
    Backend options, including those for third-party scalar models (`*ForSequenceClassification`).

    Parameters:
        label_weights (`str`, *optional*):
            Label weights of scalar models with several labels, such as `{"helpfulness": 1}`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run the code in the repositories of scalar models.
    """

    label_weights: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        super().__post_init__()
        parse_label_weights(self.label_weights)

    def check_models(self, names: Sequence[str]):
        """Raise `ValueError` if the backend does not support one of the models, or if `label_weights` apply to none of them."""
        configs = {name: self.read_config(name) for name in names}
        if self.label_weights is not None and all(config.num_labels == 1 for config in configs.values()):
            raise ValueError(
                "`label_weights` apply only to scalar models with several labels, but none of the models is one."
            )
        for name, config in configs.items():
            if is_scalar_model(config):
                ScalarFormat(AutoTokenizer.from_pretrained(name, trust_remote_code=self.trust_remote_code), name)

    def check_partial_rewards(self, names: Sequence[str], read_every: int | None, stop_when_stable: float | None):
        """Raise `ValueError` unless the backend and the models that write critiques support these options."""
        if Sampling(read_every=read_every, stop_when_stable=stop_when_stable).read_every is None:
            return
        if stop_when_stable is not None and self.backend == "vllm":
            raise ValueError(
                "`stop_when_stable` does not work with `backend` 'vllm', because vLLM cannot end a critique based on its reward. Use "
                "'transformers'."
            )
        configs = {name: self.read_config(name) for name in names}
        formats = {name: config.format for name, config in configs.items() if getattr(config, "critique", False)}
        if not formats:
            raise ValueError(
                "`read_every` reads the reward inside critiques, but none of the models writes critiques."
            )
        for name, critique_format in formats.items():
            if format_class(critique_format).rereads_critiques:
                raise ValueError(
                    f"`read_every`: {name} (`format` {critique_format!r}) reads the reward from the critique's text once the "
                    "critique is complete, so it has no partial rewards."
                )

    def read_config(self, name: str):
        """Read a model's config. Raises `ValueError` unless the backend can score with models of this kind."""
        remote_code: dict[str, Any] = {"trust_remote_code": True} if self.trust_remote_code else {}
        config = read_model_config(name, **remote_code)
        if is_scalar_model(config) and self.backend == "transformers":
            read_label_weights(name, config, self.weights_for(config))
        else:
            check_reward_model(name, config)
        return config

    def weights_for(self, config) -> dict[str, float] | None:
        """Return the label weights if the model has several labels, otherwise `None`."""
        return parse_label_weights(self.label_weights) if config.num_labels > 1 else None


@contextmanager
def open_any_model(
    name: str, args: AnyModelArguments, show_progress: bool = True
) -> Iterator[tuple[Scorer, CritiqueFormat, int | None]]:
    """Load any reward model, including scalar ones; see [`open_backend`]."""
    config = args.read_config(name)
    if not is_scalar_model(config):
        with open_backend(name, args, show_progress) as opened:
            yield opened
        return
    model, tokenizer = load_scalar_model(name, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    scorer = ScalarScorer(model, tokenizer, args.weights_for(config), args.batch_size, show_progress)
    yield scorer, scorer.critique_format, scorer.context_length


@contextmanager
def open_backend(
    name: str, args: BackendArguments, show_progress: bool = True
) -> Iterator[tuple[Scorer, CritiqueFormat, int | None]]:
    """
    Load a CLoud or classic model into the backend that `args` selects, and free the model afterwards.

    Args:
        name (`str`):
            Hub id or folder of a model or adapter.
        args ([`BackendArguments`]):
            The backend and its options.
        show_progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar for each call (transformers and vLLM).

    Yields:
        `tuple`: The scorer, the model's critique format, and the model's maximum sequence length in tokens, including the critique.

    Raises:
        `ValueError`: If `name` is not a CLoud or classic model, or the server serves another model.
    """
    if args.backend == "vllm":
        from .vllm.scorer import CLoudVLLM

        scorer = CLoudVLLM(name, show_progress=show_progress, **{"dtype": args.dtype, **args.parsed_vllm_options()})
        with closing(scorer):
            yield scorer, scorer.critique_format, scorer.context_length
    elif args.server_url is not None:
        client, served = connect(name, args)
        critique_format = CritiqueFormat.from_config(read_model_config(name), AutoTokenizer.from_pretrained(name))
        yield client, critique_format, served.context_length
    else:
        model, tokenizer = load_reward_model(name, dtype=args.dtype)
        scorer = TransformersScorer(model, tokenizer, args.batch_size, show_progress=show_progress)
        yield scorer, CritiqueFormat.from_config(model.config, tokenizer), context_length(model.config)


def connect(name: str, args: BackendArguments) -> tuple["CLoudClient", "ServedModel"]:
    """
    Connect to the server of a model, and ask it for its model. `name` and the errors are those of [`open_backend`].

    The versions are compared only if both are hashes of folders.
    """
    from .client import CLoudClient

    config = read_model_config(name)
    check_reward_model(name, config)
    assert args.server_url is not None
    client = CLoudClient(args.server_url, api_key=os.environ.get(args.api_key_env) or None)
    served = client.served_model()
    cure = "Pass the model that the server serves; with several models, list the servers' addresses in the same order."
    if served.critique != config.critique:
        kinds = {True: "a CLoud model", False: "a classic model"}
        raise ValueError(
            f"{args.server_url} serves {served.name}, {kinds[served.critique]}, but {name} is {kinds[config.critique]}. {cure}"
        )
    version, other = _comparable_version(name), served.model_version
    # Commits on the Hub, which the server may have loaded, are longer
    if version and other and len(version) == len(other) and version != other:
        raise ValueError(
            f"{args.server_url} serves {served.name} with version {other}, but {name} has version {version}. {cure}"
        )
    return client, served


def _comparable_version(name: str) -> str | None:
    """
    Return the hash of a model's folder, or `None` if copies of the same model may differ in it: commits on the Hub also change with the
    card, an adapter's hash covers a base that the client may lack, and a client needs no weights.
    """
    folder = Path(name)
    has_weights = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return identify_model(name)["model_version"] if has_weights else None
