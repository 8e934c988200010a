"""Command-line arguments of ArenaHard: questions, who answers them, and who judges."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...data.completions import CompletionClient
from ..metrics.best_of_n_curve import Problem, load_problems
from .judge import Judging, files_by_category, files_of, read_texts
from .servers import Generation, write_candidates
from .win_rate import Question, load_answers, load_questions


@dataclass(kw_only=True)
class ArenaHardArguments:
    """
    What is asked of whom.

    Parameters:
        arena_hard (`str`, *optional*):
            ArenaHard's questions: a Hub id or file.
        candidates (`str`, *optional*):
            Candidates for them that exist already: a file or Hub id with `id` (the question's), `prompt` and `responses`, instead
            of a generator.
        gen_base_url (`list[str]`, *optional*):
            Addresses of OpenAI-compatible servers that write the candidates.
        gen_model (`str`, *optional*):
            The model there; may be left out if they have only one.
        num_candidates (`int`, *optional*, defaults to `16`):
            Candidates of each question. More may be asked for later.
        gen_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the candidates.
        gen_top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of their sampling.
        gen_max_tokens (`int`, *optional*, defaults to `4096`):
            Longest candidate in tokens; longer ones are cut.
        judge_base_url (`list[str]`, *optional*):
            Addresses of the judge's servers. Without a judge, candidates are only chosen.
        judge_model (`str`, *optional*):
            The judge there.
        baseline_answers (`list[str]`, *optional*):
            Files or Hub ids with the baseline's answers; `CATEGORY=FILE` for the questions of one category: version 2.0 has a
            baseline for each.
        baseline_model (`str`, *optional*):
            Whose answers, where a file holds those of several.
        judge_all (`bool`, *optional*, defaults to `False`):
            Judge all candidates, and draw the mean over all draws of N of them. By default only those are judged that are the best
            of the first N for some N (3.4 of 16, where rewards are in random order), and the curve is that of the first N.
        judge_prompt_file (`str`, *optional*):
            Another text for the judge, in the user's turn; it holds `{conversation}`, `{response_a}` and `{response_b}`. Without
            `judge_system_file` it says everything and names the verdicts.
        judge_system_file (`list[str]`, *optional*):
            Other instructions for the judge, in a system message as Arena-Hard has it; `CATEGORY=FILE` for the questions of one
            category.
        judge_system_role (`bool`, *optional*, defaults to `True`):
            Whether the judge's chat template has a system role. Without one, the instructions stand in the user's turn.
        judge_temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of the judge's first try.
        judge_max_tokens (`int`, *optional*, defaults to `4096`):
            Longest judgement in tokens.
        judge_tries (`int`, *optional*, defaults to `3`):
            How often the judge is asked until a verdict can be read.
        gen_api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable with the key of the generator's servers.
        judge_api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            That of the judge's.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Requests under way at once.
        max_retries (`int`, *optional*, defaults to `8`):
            Tries after the first, for each request.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Seconds one try may take.
    """

    arena_hard: str | None = field(default=None, metadata={"help": "ArenaHard's questions: Hub id or file."})
    candidates: str | None = field(default=None, metadata={"help": "Candidates that exist already."})
    gen_base_url: list[str] = field(default_factory=list, metadata={"help": "Servers that write candidates."})
    gen_model: str | None = field(default=None, metadata={"help": "The model there."})
    num_candidates: int = field(default=16, metadata={"help": "Candidates of each question."})
    gen_temperature: float = field(default=1.0, metadata={"help": "Temperature of the candidates."})
    gen_top_p: float = field(default=1.0, metadata={"help": "Nucleus of their sampling."})
    gen_max_tokens: int = field(default=4096, metadata={"help": "Longest candidate in tokens."})
    judge_base_url: list[str] = field(default_factory=list, metadata={"help": "Servers of the judge."})
    judge_model: str | None = field(default=None, metadata={"help": "The judge there."})
    baseline_answers: list[str] = field(default_factory=list, metadata={"help": "[CATEGORY=]FILE of the baseline."})
    baseline_model: str | None = field(default=None, metadata={"help": "Whose answers, where there are several."})
    judge_all: bool = field(default=False, metadata={"help": "Judge all candidates, not only chosen ones."})
    judge_prompt_file: str | None = field(default=None, metadata={"help": "Another text for the judge."})
    judge_system_file: list[str] = field(default_factory=list, metadata={"help": "Another system message for it."})
    judge_system_role: bool = field(default=True, metadata={"help": "Whether the judge has a system role."})
    judge_temperature: float = field(default=0.0, metadata={"help": "Temperature of the judge's first try."})
    judge_max_tokens: int = field(default=4096, metadata={"help": "Longest judgement in tokens."})
    judge_tries: int = field(default=3, metadata={"help": "Tries until a verdict can be read."})
    gen_api_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "Variable with the generator's key."})
    judge_api_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "Variable with the judge's key."})
    max_concurrency: int = field(default=64, metadata={"help": "Requests under way at once."})
    max_retries: int = field(default=8, metadata={"help": "Tries after the first, for each request."})
    request_timeout: float = field(default=600.0, metadata={"help": "Seconds one try may take."})

    def check_arena_hard(self):
        """Raise `ValueError` if the arguments do not go together."""
        for name in ("num_candidates", "gen_max_tokens", "judge_max_tokens", "judge_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        for name in ("gen_base_url", "candidates", "judge_base_url", "baseline_answers"):
            if getattr(self, name) and not self.arena_hard:
                raise ValueError(f"`{name}` is for `arena_hard`, which is not given.")
        if self.arena_hard and bool(self.gen_base_url) == bool(self.candidates):
            raise ValueError("`arena_hard` needs `gen_base_url` or `candidates`, one of the two.")
        if bool(self.judge_base_url) != bool(self.baseline_answers):
            raise ValueError("`judge_base_url` and `baseline_answers` go together: give both or neither.")
        for name in ("judge_model", "judge_all", "judge_prompt_file", "judge_system_file", "baseline_model"):
            if getattr(self, name) and not self.judge_base_url:
                raise ValueError(f"`{name}` is for a judge: give `judge_base_url` and `baseline_answers` too.")
        if not self.judge_system_role and not self.judge_base_url:
            raise ValueError("`judge_system_role` is for a judge: give `judge_base_url` and `baseline_answers` too.")
        if not self.judge_system_role and self.judge_prompt_file and not self.judge_system_file:
            raise ValueError(
                "`judge_prompt_file` alone is all that the judge is told, in the user's turn: `judge_system_role` changes "
                "nothing, leave it out."
            )
        if self.gen_base_url and self.num_candidates > 1 and not self.gen_temperature > 0:
            raise ValueError("`gen_temperature` must be above 0, or the candidates of a question are all the same.")

    def client(self, role: str) -> CompletionClient:
        """A client of the servers of `"gen"` or `"judge"`. Raises `ValueError` if its settings make no sense."""
        return CompletionClient(
            getattr(self, f"{role}_base_url"),
            getattr(self, f"{role}_model"),
            api_key_env=getattr(self, f"{role}_api_key_env"),
            max_concurrency=self.max_concurrency,
            max_retries=self.max_retries,
            request_timeout=self.request_timeout,
        )


@dataclass(frozen=True)
class Arena:
    """The questions by id, the baseline's answers to them, and how the judge is asked; the latter two only with a judge."""

    questions: dict[str, Question]
    baselines: dict[str, str]
    judging: Judging | None


def load_arena(args: ArenaHardArguments, limit: int | None, seed: int) -> Arena:
    """
    Read all that ArenaHard needs before anything is paid for.

    Raises:
        `ValueError`, `OSError`: If a question, an answer or the judge's text is missing or wrong, naming it.
    """
    questions = load_questions(args.arena_hard)
    categories = list(dict.fromkeys(question.category for question in questions))
    questions = questions[:limit]
    by_id = {question.id: question for question in questions}
    if not args.judge_base_url:
        return Arena(by_id, {}, None)
    args.client("judge")
    template, systems = read_texts(args.judge_prompt_file, args.judge_system_file, args.judge_system_role, categories)
    judging = Judging(
        template,
        args.judge_temperature,
        args.judge_max_tokens,
        args.judge_tries,
        seed,
        systems,
        args.judge_system_role,
    )
    return Arena(by_id, _load_baselines(args, questions, categories), judging)


def _load_baselines(
    args: ArenaHardArguments, questions: Sequence[Question], categories: Sequence[str]
) -> dict[str, str]:
    found, answers = files_by_category(args.baseline_answers, categories), {}
    for category in dict.fromkeys(question.category for question in questions):
        own = [question for question in questions if question.category == category]
        answers |= load_answers(files_of("baseline_answers", found, category), own, args.baseline_model)
    return answers


def gather_candidates(
    args: ArenaHardArguments, arena: Arena, seed: int, folder: Path
) -> tuple[list[Problem], dict[str, int]]:
    """
    The candidates of all questions, from a file or a server.

    Args:
        args ([`ArenaHardArguments`]):
            Where they come from.
        arena ([`Arena`]):
            The questions.
        seed (`int`):
            Seed of the generator.
        folder (`Path`):
            Where a generator's candidates are kept.

    Returns:
        `tuple[list[Problem], dict[str, int]]`: See [`~arena_hard_servers.write_candidates`].

    Raises:
        `ValueError`: If a file lacks the candidates of a question.
        `SystemExit`: If the server is of no use, or no question has all its candidates.
    """
    if args.candidates is None:
        sampling = (args.gen_temperature, args.gen_top_p, args.gen_max_tokens)
        generation = Generation(args.num_candidates, *sampling, seed)
        problems, counts = write_candidates(list(arena.questions.values()), args.client("gen"), generation, folder)
        if not problems:
            raise SystemExit(f"No question has all its candidates; {folder / 'rejects.jsonl'} says why.")
        return problems, counts
    found = {problem.id: problem for problem in load_problems(args.candidates, judged=False)}
    if missing := [name for name in arena.questions if name not in found]:
        raise ValueError(
            f"{args.candidates} has no candidates for {len(missing)} of {len(arena.questions)} questions, the first "
            f"{missing[0]!r}. Add them, or name fewer questions."
        )
    return [found[name] for name in arena.questions], {"failed": 0, "candidates_cut": 0}
