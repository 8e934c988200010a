"""Serving: vLLM, the reward server and its client, and what they share."""
