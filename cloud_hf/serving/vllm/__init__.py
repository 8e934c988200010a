"""CLoud models in vLLM: the plugin, the scorer for this process, and the engine behind the reward server."""
