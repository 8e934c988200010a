"""Handle responses whose text a reward model's chat template partly hides."""

import logging
from collections.abc import Sequence

from cloud_hf.scores import Score


logger = logging.getLogger(__name__)


def check_policy(name: str, policy: str):
    """Raise `ValueError` unless the option `name` is `"warn"` or `"error"`."""
    if policy not in ("warn", "error"):
        raise ValueError(f'`{name}` is {policy!r}; it must be "warn" or "error".')


def tell_of_hidden_text(scores: Sequence[Score], policy: str):
    """Log, or with the policy `"error"` raise as `ValueError`, how many responses the chat template did not show in full."""
    if changed := sum(score.response_changed for score in scores):
        told = (
            f"The reward model's chat template hides or changes text of {changed} of {len(scores)} responses (thinking blocks, or "
            "what precedes a `</think>`). To show this text to the model, load the model with `keep_thinking=True`."
        )
        if policy == "error":
            raise ValueError(told)
        logger.warning(told)
