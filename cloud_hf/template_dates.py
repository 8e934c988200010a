"""Pin the dates that chat templates write, so that rewards do not change from day to day."""

from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase


# The day that chat templates see as today
_DAY = date(2024, 7, 26)


def pin_date(
    tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """
    Pin the date for chat templates that would otherwise write today's date. Adds the pinned day as `strftime_now`, which
    [`CritiqueFormat`] turns into the template's clock, and as `date_string` for templates that accept it.
    """
    variables = dict(chat_template_kwargs or {})
    template = str(tokenizer.chat_template)
    if "strftime_now" in template:
        if "date_string" in template:
            variables.setdefault("date_string", f"{_DAY:%d %b %Y}")
        # Pinned even if ordinary conversations do not show the date, because some templates write it only with tools
        variables.setdefault("strftime_now", f"{_DAY:%Y-%m-%d}")
    return variables or None


def with_clock(variables: dict[str, Any]) -> dict[str, Any]:
    """Turn the day that a config stores as `strftime_now` into the function that templates call by that name: it formats the day."""
    day = variables.get("strftime_now")
    return {**variables, "strftime_now": date.fromisoformat(day).strftime} if isinstance(day, str) else variables
