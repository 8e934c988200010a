"""Scorers that use vLLM or a server. Names are imported on first use: importing vLLM takes seconds."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .chat_client import CLoudChatClient
    from .client import CLoudClient
    from .vllm.scorer import CLoudVLLM


__all__ = ["CLoudChatClient", "CLoudClient", "CLoudVLLM"]


def __getattr__(name: str):
    if name == "CLoudVLLM":
        from .vllm.scorer import CLoudVLLM

        return CLoudVLLM
    if name == "CLoudChatClient":
        from .chat_client import CLoudChatClient

        return CLoudChatClient
    if name == "CLoudClient":
        from .client import CLoudClient

        return CLoudClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
