"""The demo: a reward model's critiques and rewards in a browser. `page.py` lists the tabs."""


class Problem(Exception):
    """A failure whose message is written for the visitor."""
