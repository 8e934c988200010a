"""The demo: a reward model's critique and number, for people."""
