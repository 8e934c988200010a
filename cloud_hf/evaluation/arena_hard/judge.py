"""
Prompts and settings of ArenaHard's judge.

Like the official code of both versions, send the judge a system message with its instructions, and a user message with the question
and the two answers. Like version 2.0, use another system message for creative writing, where the judge does not answer the question
first. The wording is our own, so win rates are not comparable with the leaderboard's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...data.critique_prompt import read_template
from ...data.judge import (
    ANSWER,
    JUDGE_PROMPT,
    JUDGED_TEXTS,
    MANNERS,
    OWN_ANSWER,
    PLACEHOLDERS,
    RETRY_TEMPERATURE,
    Judge,
    check_verdicts,
    read_judge_prompt,
)
from ...data.run import JournaledClient


# Key of the system message of all categories that have none
ANY = ""
CREATIVE_WRITING = "creative_writing"

_ART = """\
- Check both responses against what was asked: whether the instructions were followed and everything is there, whether it holds \
together, and how original and how well written it is. Harm that a response would do counts against it."""

_SYSTEM = """\
You are shown a conversation and two possible next responses of the assistant, A and B. Decide which of them serves the person \
who asked better.

Give your reasons before you decide:
{criteria}
{manners}

{answer}"""

SYSTEMS = {
    category: _SYSTEM.format(criteria=criteria, manners=MANNERS, answer=ANSWER)
    for category, criteria in ((ANY, OWN_ANSWER), (CREATIVE_WRITING, _ART))
}


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of the judge; see [`~cloud_hf.data.judge.Judge`]."""

    template: str  # of the user's turn
    temperature: float  # of the first try
    max_tokens: int  # of a judgement
    tries: int  # per verdict
    seed: int  # each request derives its own seed from it
    # Instructions by category, "" for all others; empty if the template holds everything
    systems: dict[str, str] = field(default_factory=dict)
    system_role: bool = True  # send them as a system message instead of before the template

    def texts(self, category: str) -> tuple[str, str | None]:
        """Return the template of the user's turn and the system message, if any, for questions of a category."""
        if not self.systems:
            return self.template, None
        system = self.systems[category if category in self.systems else ANY]
        return (self.template, system) if self.system_role else (f"{system}\n\n{self.template}", None)

    def judge(self, client: JournaledClient, category: str) -> Judge:
        """Return the judge for questions of a category."""
        template, system = self.texts(category)
        return Judge(client, template, self.temperature, self.max_tokens, self.tries, self.seed, system)

    def settings(self) -> dict[str, Any]:
        """Return all settings that verdicts depend on, for a journal."""
        settings = asdict(self) | {"retry_temperature": max(self.temperature, RETRY_TEMPERATURE)}
        if not self.systems:
            del settings["systems"], settings["system_role"]
        return settings


Judging = JudgeSettings  # its name in version 0.1


def read_texts(
    prompt_file: str | None, system_files: Sequence[str], system_role: bool, categories: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """
    Read the judge's prompts, by default this package's: [`JudgeSettings`]'s `template` and `systems`.

    Without `system_files` (`CATEGORY=FILE` for those of one category) `prompt_file` holds everything; without `system_role` the
    default is a single text. Raises `ValueError` or `OSError` if a text lacks a verdict or a placeholder, a category has no
    file or two, or a file is unreadable.
    """
    if prompt_file and not system_files:
        return read_judge_prompt(prompt_file), {}
    if not system_files:
        return (JUDGED_TEXTS, SYSTEMS) if system_role else (JUDGE_PROMPT, {})
    template = read_template(prompt_file, JUDGED_TEXTS, PLACEHOLDERS)
    found, systems = files_by_category(system_files, categories), {}
    for category in categories:
        files_of("judge_system_file", found, category)
    for category, files in found.items():
        if len(files) > 1:
            raise ValueError(f"`judge_system_file` names {', '.join(files)} for the same questions; give one of them.")
        systems[category] = _read_system(files[0])
        check_verdicts(systems[category] + template, files[0])
    return template, systems


def _read_system(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        text = file.read().strip()
    if mark := next((mark for mark in PLACEHOLDERS if mark in text), None):
        raise ValueError(f"{path} holds {mark}, but the texts belong in the user's turn: see `judge_prompt_file`.")
    if not text:
        raise ValueError(f"{path} is empty; write the judge's instructions into it, or leave `judge_system_file` out.")
    return text


def files_by_category(names: Iterable[str], categories: Sequence[str]) -> dict[str, list[str]]:
    """
    Group files by category; those without `CATEGORY=` are for all others, under `""`. Only a known category before `=` counts,
    since file names may contain `=`.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        category, separator, path = name.partition("=")
        known = bool(separator) and category in categories
        found.setdefault(category if known else ANY, []).append(path if known else name)
    return found


def files_of(option: str, found: Mapping[str, list[str]], category: str) -> list[str]:
    """Return the files of a category. Raises `ValueError` if there are none."""
    names = found.get(category) or found.get(ANY)
    if not names:
        raise ValueError(f"`{option}` names no file for the questions of the category {category!r}.")
    return names
