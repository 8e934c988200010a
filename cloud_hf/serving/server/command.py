"""
The reward server: critiques and rewards over HTTP.

python -m cloud_hf.serving.server runs/quickstart/cloud --port 8000
python -m cloud_hf.serving.server org/my-cloud-rm --backend vllm --vllm_options '{"max_model_len": 4096}'

By default, the server listens on this machine only. If `--host` opens it to others, set a key (`CLOUD_API_KEY`). The page `/docs`
describes the server's routes: our `/v1/rewards`, OpenRLHF's `/get_reward`, LLaMA-Factory's `/v1/score/evaluation`, `/health` and
`/metrics`.
"""

import argparse
import json
import os
from dataclasses import fields

from ...argument_help import check_data_type, check_vllm_files
from ...cli import ArgumentParser
from ...printable import read_key
from .limits import Limits


_PARALLEL = ("tensor_parallel_size", "data_parallel_size")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a CLoud or classic model, or of a LoRA adapter.")
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--api_key",
        default=os.environ.get("CLOUD_API_KEY"),
        help="Key that clients must send. The environment variable CLOUD_API_KEY is safer.",
    )
    parser.add_argument(
        "--allowed_hosts", nargs="*", default=[], help="Host names with dots that clients without a key may use."
    )
    for limit in fields(Limits):
        kind = type(limit.default)
        parser.add_argument(f"--{limit.name}", type=kind, default=limit.default, help=limit.metadata["help"])
    parser.add_argument(
        "--shutdown_grace", type=float, default=30.0, help="Seconds that running requests get to finish at shutdown."
    )
    parser.add_argument(
        "--policy_tokenizer", help="Policy whose chat template OpenRLHF or LLaMA-Factory uses to render texts."
    )
    parser.add_argument("--batch_size", type=int, default=16, help="Sequences per forward pass (transformers).")
    parser.add_argument("--dtype", default="auto", help="Data type of the weights.")
    parser.add_argument("--vllm_options", type=_json_object, default={}, help="Options for vLLM's engine, as JSON.")
    parser.add_argument(
        "--tensor_parallel_size", type=int, default=1, help="GPUs that share one copy of the model (vLLM)."
    )
    parser.add_argument(
        "--data_parallel_size", type=int, default=1, help="Copies of the model behind this server (vLLM)."
    )
    args = parser.parse_args(arguments)
    _check_sizes(parser, args)
    # Pass these on only if requested, because data parallelism changes how vLLM starts
    args.vllm_options = {
        name: getattr(args, name) for name in _PARALLEL if getattr(args, name) > 1
    } | args.vllm_options
    if args.vllm_options and args.backend != "vllm":
        parser.error("--vllm_options needs --backend vllm")
    check_data_type(args.dtype)
    check_vllm_files(args.vllm_options)
    if args.api_key is not None:
        args.api_key = read_key(args.api_key, "The key (`--api_key` or CLOUD_API_KEY)")
    if not 0 <= args.port < 65_536:
        parser.error(f"--port is {args.port}; it must be between 0 and 65535")
    return args


def _check_sizes(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Reject parallelism options that the backend does not support, or that are given twice."""
    for name in _PARALLEL:
        size = getattr(args, name)
        if size < 1:
            parser.error(f"--{name} is {size}; it must be at least 1")
        if size > 1 and args.backend != "vllm":
            parser.error(
                f"--{name} needs --backend vllm; with transformers, start several servers and give clients all addresses"
            )
        if size > 1 and name in args.vllm_options:
            parser.error(f"--{name} is also in --vllm_options; set it only once")


def _json_object(text: str) -> dict:
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a JSON object")
    return options


def main(arguments: list[str] | None = None):
    """Serve the model specified on the command line."""
    args = parse_arguments(arguments)
    # Imported only here, because it imports torch, which takes seconds and is not needed for `--help` or to report mistakes
    from .app import serve

    serve(args)
