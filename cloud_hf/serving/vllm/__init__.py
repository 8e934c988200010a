"""CLoud models in vLLM: the plugin, the scorer for this process, and the reward server's engine."""

import vllm
from packaging.version import parse


# The plugin uses members that vLLM may change in any release; tests/test_upstream_contracts.py lists them
_FROM, _BEFORE = "0.32", "0.33"

if not parse(_FROM) <= parse(parse(vllm.__version__).base_version) < parse(_BEFORE):
    raise ImportError(
        f"vLLM {vllm.__version__} is installed, but CLoud models need vLLM {_FROM}: "
        f"`pip install 'vllm>={_FROM},<{_BEFORE}'`."
    )
