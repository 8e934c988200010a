"""Scorers over vLLM and over HTTP. Names are imported on first use: importing vLLM takes seconds."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .client import CLoudClient
    from .vllm.scorer import CLoudVLLM


__all__ = ["CLoudClient", "CLoudVLLM"]


def __getattr__(name: str):
    if name == "CLoudVLLM":
        from .vllm.scorer import CLoudVLLM

        return CLoudVLLM
    if name == "CLoudClient":
        from .client import CLoudClient

        return CLoudClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
