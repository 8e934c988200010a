"""CLoud models in vLLM: the plugin, the scorer for this process, and the reward server's engine."""
