"""Handle responses whose text is partly hidden by a reward model's chat template."""

import logging
from collections.abc import Sequence

from cloud_hf.scores import Score


logger = logging.getLogger(__name__)


def check_policy(name: str, policy: str):
    """Raise `ValueError` unless the option `name` is `"warn"` or `"error"`."""
    if policy not in ("warn", "error"):
        raise ValueError(f'`{name}` is {policy!r}; it must be "warn" or "error".')


def report_hidden_text(scores: Sequence[Score], policy: str):
    """Log how many responses the chat template did not show in full or, if the policy is `"error"`, raise `ValueError` instead."""
    if changed := sum(score.response_changed for score in scores):
        message = (
            f"The reward model's chat template hides or changes text in {changed} of {len(scores)} responses (thinking blocks, or "
            "text before a `</think>`). To show this text to the model, load the model with `keep_thinking=True`."
        )
        if policy == "error":
            raise ValueError(message)
        logger.warning(message)
