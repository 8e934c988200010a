"""Let a generator write ArenaHard candidates and a judge compare them; journals keep every answer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ...conversation import read_prompt
from ...data.completions import CompletionClient
from ...data.folder import DatasetFolder
from ...data.journal import key_of
from ...data.judge import messages_for_judge
from ...data.run import (
    Dropped,
    JournaledClient,
    RowRefused,
    all_of,
    build_dataset,
    check_rows,
    complete_build,
    seed_of,
)
from ..metrics.best_of_n import Problem
from .judge import JudgeSettings
from .win_rate import Question, Votes


_CANDIDATES = Features(
    {
        "id": Value("string"),
        "category": Value("string"),
        "prompt": Value("string"),
        "responses": List(Value("string")),
        "finish_reasons": List(Value("string")),
    }
)
_JUDGEMENTS = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "candidate": Value("int64"),
        "response": Value("string"),
        "games": List({"verdict": Value("string"), "text": Value("string"), "tries": Value("int64")}),
    }
)


@dataclass(frozen=True)
class Generation:
    """Sampling settings of the candidates."""

    num_candidates: int
    temperature: float
    top_p: float
    max_tokens: int  # a longer candidate is cut and remains one
    seed: int  # each request derives its own seed from it


def write_candidates(
    questions: Sequence[Question], client: CompletionClient, generation: Generation, folder: Path
) -> tuple[list[Problem], dict[str, int]]:
    """
    Sample several answers to each question, and keep them with their journal in a folder. A later call may ask for more.

    Returns the questions that have all their candidates, and counts: `failed` questions, and `candidates_cut` at `max_tokens`.
    Raises `SystemExit` if the server is unusable; what it answered is kept.
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
                raise RowRefused("a candidate is empty: it was cut or filtered before its first word")
            reasons = [found.finish_reason for found in answers]
            return [{**row, "responses": [found.text for found in answers], "finish_reasons": reasons}]

        return work

    counts = complete_build(build_dataset(output, rows, _CANDIDATES, {"gen": client}, make_work), output)
    found = Dataset.load_from_disk(str(folder)).to_list()
    problems = [Problem(row["id"], row["prompt"], tuple(row["responses"])) for row in found]
    return problems, {"failed": counts["failed"], "candidates_cut": counts["gen_answers_cut"]}


@dataclass(frozen=True)
class Judged:
    """The judge's votes."""

    votes: dict[tuple[str, str], Votes]  # by question and response
    # `judged`, `like_the_baseline` (ties without a judge), `without_verdict` and `failed` responses
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

    `chosen` holds for each question the places of the candidates to judge. Equal texts are judged once; the baseline's text
    ties without a judge. `folder` keeps the judgements and their journal. Raises `SystemExit` if the server is unusable; what
    it answered is kept.
    """
    pairs = _pairs_to_judge(problems, chosen, questions, baselines)
    alike = {(row["question"], row["response"]) for row in pairs if row["response"].strip() == row["baseline"].strip()}
    rows = [row for row in pairs if (row["question"], row["response"]) not in alike]
    votes, failed = dict.fromkeys(alike, Votes.of("A=B", "A=B")), 0
    if rows:
        failed = _ask_judge(rows, client, judging, folder)["failed"]
        votes |= _read_votes(folder)
    unreadable = sum(not found.number for found in votes.values())
    counts = {"judged": len(votes), "like_the_baseline": len(alike), "without_verdict": unreadable, "failed": failed}
    return Judged(votes, counts)


def _pairs_to_judge(
    problems: Sequence[Problem],
    chosen: Sequence[Sequence[int]],
    questions: Mapping[str, Question],
    baselines: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return one row for each distinct text to judge, with the baseline's answer."""
    return [
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


def _ask_judge(
    rows: list[dict[str, Any]], client: CompletionClient, judging: JudgeSettings, folder: Path
) -> dict[str, int]:
    """Ask for the verdicts that the journal lacks, and write the judgements of all rows. Returns the builder's counts."""
    check_rows(rows, lambda row: messages_for_judge(row["prompt"], row["response"], row["baseline"]))
    settings = {"builder": "arena_hard_judgements", **judging.settings()}
    output = DatasetFolder(str(folder), "ArenaHard judgements", settings)

    def make_work(judge: JournaledClient):
        async def work(row: dict[str, Any]) -> list[dict[str, Any] | Dropped]:
            # Keyed by the text, since another run may have another candidate in this place
            key = [row["question"], key_of(row["response"])]
            asked = judging.judge(judge, row["category"])
            games = await asked.compare(key, row["prompt"], row["baseline"], row["response"])
            kept = {name: row[name] for name in ("id", "question", "candidate", "response")}
            return [{**kept, "games": [asdict(game) for game in games]}]

        return work

    return complete_build(build_dataset(output, rows, _JUDGEMENTS, {"judge": client}, make_work), output)


def _read_votes(folder: Path) -> dict[tuple[str, str], Votes]:
    """Read the votes by question and response."""
    return {
        (row["question"], row["response"]): Votes.of(*(game["verdict"] for game in row["games"]))
        for row in Dataset.load_from_disk(str(folder)).to_list()
    }
