"""Scorers that use vLLM or a server. Names are imported on first use, because importing vLLM takes seconds."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .chat_client import CLoudChatClient
    from .client import CLoudClient
    from .vllm.scorer import CLoudVLLM


__all__ = ["CLoudChatClient", "CLoudClient", "CLoudVLLM"]


_MODULES = {"CLoudChatClient": ".chat_client", "CLoudClient": ".client", "CLoudVLLM": ".vllm.scorer"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
