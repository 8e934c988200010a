"""The reward server: critiques and rewards over HTTP. Run it with `python -m cloud_hf.serving.server MODEL`."""

from importlib import import_module
from typing import Any


__all__ = ["make_app", "make_server"]  # pyright: ignore[reportUnsupportedDunderAll]

# Version 0.1 had a single module, which also contained these names
_MODULES = dict.fromkeys((*__all__, "RewardServer", "load_chats", "load_engine"), ".app") | {
    "EventStream": ".routes",
    "main": ".command",
    "parse_arguments": ".command",
}


def __getattr__(name: str) -> Any:
    # Import these on first use, so that the vLLM engine can share modules of this package without FastAPI and uvicorn
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
