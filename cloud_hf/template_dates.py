"""Pin the dates that chat templates write, so that rewards do not change from day to day."""

from datetime import date
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


# The day on which such templates see every conversation
_DAY = date(2024, 7, 26)


def pin_date(
    tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """
    Pin the date for chat templates that would write today's: rewards must not change from day to day. Adds a `date_string` if
    that is enough, and otherwise the day as `strftime_now`, which [`CritiqueFormat`] makes the template's clock.
    """
    variables = dict(chat_template_kwargs or {})
    template = str(tokenizer.chat_template)
    if "strftime_now" in template:
        if "date_string" in template:
            variables.setdefault("date_string", f"{_DAY:%d %b %Y}")
        if template.count("strftime_now(") > 1 or _reads_clock(tokenizer, variables):
            variables.setdefault("strftime_now", f"{_DAY:%Y-%m-%d}")
    return variables or None


def _reads_clock(tokenizer: PreTrainedTokenizerBase, variables: dict[str, Any]) -> bool:
    """Return whether the chat template asks for the time in a usual conversation."""
    readings = []
    for roles in (("user",), ("system", "user"), ("user", "assistant", "user")):
        turns = [{"role": role, "content": "x"} for role in roles]
        try:
            clock = {"strftime_now": lambda form: readings.append(form) or "x"}
            tokenizer.apply_chat_template(turns, tokenize=False, **{**clock, **with_clock(variables)})
        except (TemplateError, TypeError, KeyError):
            continue  # the template refuses this order of turns
    return bool(readings)


def with_clock(variables: dict[str, Any]) -> dict[str, Any]:
    """Replace a day that a config stores as `strftime_now` with a function that formats it, a clock fixed on that day."""
    day = variables.get("strftime_now")
    return {**variables, "strftime_now": date.fromisoformat(day).strftime} if isinstance(day, str) else variables
