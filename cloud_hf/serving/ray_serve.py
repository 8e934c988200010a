"""
Run the reward server on a Ray cluster: replicas on its nodes, behind one address on each node.

serve run cloud_hf.serving.ray_serve:application model=runs/quickstart/cloud backend=vllm num_replicas=4

The arguments are the options of `python -m cloud_hf.serving.server`, except `host` and `port`, which Ray Serve sets.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from .server.app import load_app, log_as_json
from .server.command import parse_arguments


@serve.deployment
@serve.ingress()
class RewardReplica:
    """One copy of the reward server. Ray replaces it when its engine has stopped."""

    def __init__(self, args: argparse.Namespace):
        log_as_json()
        self._served = load_app(args)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._served

    def check_health(self):
        """Raise `RuntimeError` if the engine has stopped."""
        if self._served.state.lifecycle.engine_dead:
            raise RuntimeError("The engine has stopped.")


def application(args: dict[str, Any]) -> Application:
    r"""
    Create the application that `serve run` and `serve deploy` start.

    Args:
        args (`dict[str, Any]`):
            `model` and options of the reward server; `num_replicas`, the number of copies of the server (by default 1); and `num_gpus`, the
            number of GPUs per copy (by default `tensor_parallel_size` times `data_parallel_size`). On a cluster without GPUs, set
            `num_gpus` to 0; otherwise Ray would wait for a GPU. If `model` is a relative path to a folder, it is resolved against the
            command's working directory.

    Raises:
        `ValueError`: If `model` is missing, an argument is an option of Ray Serve itself, or `num_replicas` or `num_gpus` is not a valid
            number.
        `UsageError`: If an option is unknown or malformed.
    """
    options = dict(args)
    if "model" not in options:
        raise ValueError(
            "`model` is missing; set it to the folder or Hub id of a reward model, as in `model=my-cloud-rm`."
        )
    if own := sorted({"host", "port"} & options.keys()):
        raise ValueError(
            f"`{own[0]}` is an option of Ray Serve, not of the replicas: set it under `http_options` in Ray Serve's config file."
        )
    model = options.pop("model")
    replicas, gpus = _number(options, "num_replicas", int, least=1), _number(options, "num_gpus", float, least=0)
    # Make the path absolute, because replicas start in the folder where Ray was started on their node
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    spelled = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    server = parse_arguments([model, *(f"--{name}={value}" for name, value in spelled.items())])
    if gpus is None:
        gpus = server.tensor_parallel_size * server.data_parallel_size
    return RewardReplica.options(
        num_replicas=int(replicas or 1),
        ray_actor_options={"num_gpus": float(gpus)},
        # With a lower limit, further requests would wait in Ray's proxy, where the server cannot batch them
        max_ongoing_requests=server.max_queue,
    ).bind(server)


def _number(options: dict[str, Any], name: str, kind: type[int] | type[float], least: int) -> float | None:
    """Remove a number from the arguments and return it, or return `None` if it is absent. On the command line, arguments are strings."""
    given = options.pop(name, None)
    if given is None:
        return None
    try:
        number = kind(str(given))
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        what = "an integer" if kind is int else "a number"
        raise ValueError(
            f"`{name}` is {given!r}; it must be {what} of at least {least}, as in `{name}={max(least, 1)}`."
        )
    return number
