"""
ArenaHard's judge and generator: prompts, settings, and journaled requests to their servers.

As in the official code of both versions, the judge gets a system message with its instructions, and a user message with the question and
the two answers. As in version 2.0, creative writing has a different system message, which does not ask the judge to answer the question
first. The wording differs from the official one, so win rates are not comparable with the leaderboard's.
"""

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ...data.build_run import (
    Dropped,
    JournaledClient,
    RowRefused,
    all_of,
    build_dataset,
    check_rows,
    complete_build,
    seed_of,
)
from ...data.completions import CompletionClient
from ...data.critique_prompt import read_template
from ...data.dataset_folder import DatasetFolder
from ...data.journal import key_of
from ...data.judge import (
    ANSWER,
    JUDGE_PROMPT,
    JUDGED_TEXTS,
    MANNERS,
    OWN_ANSWER,
    PLACEHOLDERS,
    RETRY_TEMPERATURE,
    Judge,
    Judgement,
    check_verdicts,
    messages_for_judge,
    read_judge_prompt,
)
from ...prompts import read_prompt
from ..generative_judges import judge_dataset
from ..metrics.best_of_n import Problem
from .win_rate import Question, Votes


# Key of the default system message and the default files, for categories without their own
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
    # Instructions by category, with the key "" for all other categories; empty if the template already contains the instructions
    systems: dict[str, str] = field(default_factory=dict)
    system_role: bool = True  # send the instructions as a system message instead of before the template

    def texts(self, category: str) -> tuple[str, str | None]:
        """Return the template of the user's turn and the system message, if any, for questions in a category."""
        if not self.systems:
            return self.template, None
        system = self.systems[category if category in self.systems else ANY]
        return (self.template, system) if self.system_role else (f"{system}\n\n{self.template}", None)

    def judge(self, client: JournaledClient, category: str) -> Judge:
        """Return the judge for questions in a category."""
        template, system = self.texts(category)
        return Judge(client, template, self.temperature, self.max_tokens, self.tries, self.seed, system)

    def settings(self) -> dict[str, Any]:
        """Return all settings that affect verdicts, for a journal."""
        settings = asdict(self) | {"retry_temperature": max(self.temperature, RETRY_TEMPERATURE)}
        if not self.systems:
            del settings["systems"], settings["system_role"]
        return settings


Judging = JudgeSettings  # its name in version 0.1


def read_texts(
    prompt_file: str | None, system_files: Sequence[str], system_role: bool, categories: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """
    Load the judge's prompts, and return them as the `template` and `systems` of [`JudgeSettings`]. The defaults are the prompts in this
    package; if `system_role` is `False`, the default is a single prompt for all categories.

    `system_files` contains paths, or `CATEGORY=FILE` for a single category. If `system_files` is empty and a `prompt_file` is given, that
    file must contain the complete prompt. Raises `ValueError` or `OSError` if a prompt does not mention both verdicts or lacks a
    placeholder, if a system file is empty or contains a placeholder, if a category has no file or more than one, or if a file cannot be
    read.
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
            raise ValueError(
                f"`judge_system_file` has several files for the same questions: {', '.join(files)}. Keep only one."
            )
        systems[category] = _read_system(files[0])
        check_verdicts(systems[category] + template, files[0])
    return template, systems


def _read_system(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        text = file.read().strip()
    if mark := next((mark for mark in PLACEHOLDERS if mark in text), None):
        raise ValueError(
            f"{path} contains {mark}, but placeholders belong in the user's turn: use `judge_prompt_file`."
        )
    if not text:
        raise ValueError(f"{path} is empty; write the judge's instructions into it, or omit `judge_system_file`.")
    return text


def files_by_category(names: Iterable[str], categories: Sequence[str]) -> dict[str, list[str]]:
    """
    Group files by category. Files without `CATEGORY=` go under `""`. If the text before `=` is not a category, it is part of the file name.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        category, separator, path = name.partition("=")
        known = bool(separator) and category in categories
        found.setdefault(category if known else ANY, []).append(path if known else name)
    return found


def files_of(option: str, found: Mapping[str, list[str]], category: str) -> list[str]:
    """Return the files for a category: its own, otherwise those without a category. Raises `ValueError` if there are none."""
    names = found.get(category) or found.get(ANY)
    if not names:
        raise ValueError(f"`{option}` has no file for questions in the category {category!r}.")
    return names


_CANDIDATES = Features(
    {
        "id": Value("string"),
        "category": Value("string"),
        "prompt": Value("string"),
        "responses": List(Value("string")),
        "finish_reasons": List(Value("string")),
    }
)
_JUDGED_COLUMNS = {
    "id": Value("string"),
    "question": Value("string"),
    "candidate": Value("int64"),
    "response": Value("string"),
}


@dataclass(frozen=True)
class Generation:
    """Sampling settings for the candidates."""

    num_candidates: int
    temperature: float
    top_p: float
    max_tokens: int  # longer candidates are truncated and kept
    seed: int  # each request derives its own seed from it


def write_candidates(
    questions: Sequence[Question], client: CompletionClient, generation: Generation, folder: Path
) -> tuple[list[Problem], dict[str, int]]:
    """
    Sample several answers to each question, and store them with their journal in a folder. A later call may request more answers.

    Returns the questions that have all their candidates, and two counts: `failed` (questions) and `candidates_cut` (candidates truncated at
    `max_tokens`). Raises `SystemExit` if the server is unusable; the candidates received so far are kept.
    """
    settings = {"builder": "arena_hard_candidates", **asdict(generation)}
    del settings["num_candidates"]
    output = DatasetFolder(str(folder), "ArenaHard candidates", settings)
    rows = [asdict(question) for question in questions]
    check_rows(rows, lambda row: read_prompt(row["prompt"]))

    def make_work(gen: JournaledClient):
        def answer(row: dict[str, Any], number: int):
            return gen.chat(
                [row["id"], number],
                [{"role": "user", "content": row["prompt"]}],
                max_tokens=generation.max_tokens,
                seed=seed_of(generation.seed, "gen", row["id"], number),
                temperature=generation.temperature,
                top_p=generation.top_p,
            )

        async def work(row: dict[str, Any]) -> list[dict[str, Any] | Dropped]:
            answers = await all_of(*(answer(row, number) for number in range(generation.num_candidates)))
            if any(not found.text.strip() for found in answers):
                raise RowRefused("a candidate is empty: it was truncated or filtered before its first word")
            reasons = [found.finish_reason for found in answers]
            return [{**row, "responses": [found.text for found in answers], "finish_reasons": reasons}]

        return work

    counts = complete_build(build_dataset(output, rows, _CANDIDATES, {"gen": client}, make_work), output)
    found = Dataset.load_from_disk(str(folder)).to_list()
    problems = [Problem(row["id"], row["prompt"], tuple(row["responses"])) for row in found]
    return problems, {"failed": counts["failed"], "candidates_cut": counts["gen_answers_cut"]}


@dataclass(frozen=True)
class Judged:
    """The judge's votes on all judged responses."""

    votes: dict[tuple[str, str], Votes]  # by question and response
    # Numbers of responses. `judged` includes `like_the_baseline` (ties that needed no judge) and `without_verdict`, but not `failed`
    counts: dict[str, int]


def judge_candidates(
    problems: Sequence[Problem],
    chosen: Sequence[Sequence[int]],
    questions: Mapping[str, Question],
    baselines: Mapping[str, str],
    client: CompletionClient,
    judging: JudgeSettings,
    folder: Path,
) -> Judged:
    """
    Compare candidates with the baseline's answers, in both orders. A later call may judge other candidates.

    `chosen` contains, for each question, the indices of the candidates to judge. Identical candidates are judged once; a candidate that is
    identical to the baseline's answer is not judged and counts as a tie. `folder` stores the judgements and their journal. Raises
    `SystemExit` if the server is unusable; the judgements received so far are kept.
    """
    pairs = [
        {
            "id": f"{problem.id}/{problem.responses.index(text)}",
            "question": problem.id,
            "category": questions[problem.id].category,
            "candidate": problem.responses.index(text),
            "prompt": problem.prompt,
            "response": text,
            "baseline": baselines[problem.id],
        }
        for problem, places in zip(problems, chosen, strict=True)
        for text in dict.fromkeys(problem.responses[place] for place in sorted(places))
    ]
    alike = {(row["question"], row["response"]) for row in pairs if row["response"].strip() == row["baseline"].strip()}
    rows = [row for row in pairs if (row["question"], row["response"]) not in alike]
    votes, failed = dict.fromkeys(alike, Votes.of("A=B", "A=B")), 0
    if rows:
        judged, build = _ask_judge(rows, client, judging, folder)
        failed = build["failed"]
        votes |= {
            (row["question"], row["response"]): Votes.of(*(game["verdict"] for game in row["games"])) for row in judged
        }
    unreadable = sum(not found.number for found in votes.values())
    counts = {"judged": len(votes), "like_the_baseline": len(alike), "without_verdict": unreadable, "failed": failed}
    return Judged(votes, counts)


def _ask_judge(
    rows: list[dict[str, Any]], client: CompletionClient, judging: JudgeSettings, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Check the rows, and let the judge compare them; see [`judge_dataset`]."""
    check_rows(rows, lambda row: messages_for_judge(row["prompt"], row["response"], row["baseline"]))

    def ask(judge: JournaledClient, row: dict[str, Any]) -> Awaitable[list[Judgement]]:
        # Keyed by text, because another run may have a different candidate at this index
        key = [row["question"], key_of(row["response"])]
        return judging.judge(judge, row["category"]).compare(key, row["prompt"], row["baseline"], row["response"])

    settings = {"builder": "arena_hard_judgements", **judging.settings()}
    output = DatasetFolder(str(folder), "ArenaHard judgements", settings)
    return judge_dataset(rows, client, output, _JUDGED_COLUMNS, ask)
