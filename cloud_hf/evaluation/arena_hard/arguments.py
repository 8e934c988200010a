"""Command-line arguments of ArenaHard, and loading of its data."""

from dataclasses import dataclass, field
from pathlib import Path

from ...argument_help import check_bounds, documented
from ...prompts import read_prompt
from ..generative_judges import JudgeServerArguments
from ..metrics.best_of_n import Problem, load_problems
from .judge import Generation, JudgeSettings, files_by_category, files_of, read_texts, write_candidates
from .win_rate import Question, load_answers, load_questions


@documented
@dataclass(kw_only=True)
class ArenaHardArguments(JudgeServerArguments):
    """
    Options for ArenaHard's questions, generator and judge. Extends [`JudgeServerArguments`].

    Parameters:
        arena_hard (`str`, *optional*):
            ArenaHard's questions: a Hub id or file.
        candidates (`str`, *optional*):
            Existing candidates to use instead of a generator: a file or Hub id with the columns `id` (the question's id), `prompt` and
            `responses`.
        gen_base_url (`list[str]`, *optional*):
            Addresses of OpenAI-compatible servers that write the candidates.
        gen_model (`str`, *optional*):
            Model name on the generator's servers. Optional if they serve only one model.
        num_candidates (`int`, *optional*, defaults to `16`):
            Candidates per question. A later run may request more.
        gen_temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of the candidates.
        gen_top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling probability of the candidates.
        gen_max_tokens (`int`, *optional*, defaults to `4096`):
            Token limit of a candidate; longer ones are truncated.
        baseline_answers (`list[str]`, *optional*):
            Files or Hub ids with the baseline's answers; `CATEGORY=FILE` applies to the questions of one category, because
            version 2.0 has one baseline per category.
        baseline_model (`str`, *optional*):
            Name of the baseline model, for files that contain answers from several models.
        judge_all (`bool`, *optional*, defaults to `False`):
            Judge all candidates. The curve is then a mean over all ways to draw N candidates. By default the curve uses the first N
            candidates, and the judge sees only those that are the best of the first N for some N (3.4 of 16 on average if rewards are in
            random order).
        judge_prompt_file (`str`, *optional*):
            File with a prompt that replaces the judge's user turn. It must contain the placeholders `{conversation}`, `{response_a}`
            and `{response_b}`. Without `judge_system_file`, the judge sees only this prompt, so it must name the verdicts.
        judge_system_file (`list[str]`, *optional*):
            Files with instructions that replace the judge's own, sent as a system message like ArenaHard's; `CATEGORY=FILE`
            applies to the questions of one category.
        judge_system_role (`bool`, *optional*, defaults to `True`):
            Whether the judge's chat template has a system role. If not, the instructions go into the user's turn.
        gen_api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that contains the generator's API key.
    """

    arena_hard: str | None = None
    candidates: str | None = None
    gen_base_url: list[str] = field(default_factory=list)
    gen_model: str | None = None
    num_candidates: int = 16
    gen_temperature: float = 1.0
    gen_top_p: float = 1.0
    gen_max_tokens: int = 4096
    baseline_answers: list[str] = field(default_factory=list)
    baseline_model: str | None = None
    judge_all: bool = False
    judge_system_file: list[str] = field(default_factory=list)
    judge_system_role: bool = True
    gen_api_key_env: str = "OPENAI_API_KEY"

    def check_arena_hard(self):
        """Raise `ValueError` if arguments conflict."""
        self.check_judge()
        check_bounds(self, num_candidates=1, gen_max_tokens=1)
        for name in ("gen_base_url", "candidates", "judge_base_url", "baseline_answers"):
            if getattr(self, name) and not self.arena_hard:
                raise ValueError(f"`{name}` requires `arena_hard`: set it as well.")
        if self.arena_hard and bool(self.gen_base_url) == bool(self.candidates):
            raise ValueError("`arena_hard` needs either `gen_base_url` or `candidates`.")
        if bool(self.judge_base_url) != bool(self.baseline_answers):
            raise ValueError("`judge_base_url` and `baseline_answers` go together: set both or neither.")
        of_judge = ("judge_model", "judge_all", "judge_prompt_file", "judge_system_file", "baseline_model")
        given = {name: getattr(self, name) for name in of_judge} | {"judge_system_role": not self.judge_system_role}
        for name, is_given in given.items():
            if is_given and not self.judge_base_url:
                raise ValueError(f"`{name}` requires a judge: set `judge_base_url` and `baseline_answers` as well.")
        if not self.judge_system_role and self.judge_prompt_file and not self.judge_system_file:
            raise ValueError(
                "The judge sees only `judge_prompt_file`, in the user's turn, so `judge_system_role` has no effect: "
                "omit it."
            )
        if self.gen_base_url and self.num_candidates > 1 and not self.gen_temperature > 0:
            raise ValueError(
                "`gen_temperature` must be above 0; otherwise, all candidates for a question are identical."
            )


@dataclass(frozen=True)
class Arena:
    """The questions by id; with a judge, also the baseline's answers by question id, and the judge's settings."""

    questions: dict[str, Question]
    baselines: dict[str, str]
    judging: JudgeSettings | None


def load_arena(args: ArenaHardArguments, limit: int | None, seed: int) -> Arena:
    """Load and check everything before any paid request. Raises `ValueError` or `OSError` naming what is missing or wrong."""
    assert args.arena_hard is not None
    questions = load_questions(args.arena_hard)
    categories = list(dict.fromkeys(question.category for question in questions))
    questions = questions[:limit]
    by_id = {question.id: question for question in questions}
    if not args.judge_base_url:
        return Arena(by_id, {}, None)
    args.client("judge")
    template, systems = read_texts(args.judge_prompt_file, args.judge_system_file, args.judge_system_role, categories)
    sampling = (args.judge_temperature, args.judge_max_tokens, args.judge_tries)
    judging = JudgeSettings(template, *sampling, seed, systems, args.judge_system_role)
    files, baselines = files_by_category(args.baseline_answers, categories), {}
    for category in dict.fromkeys(question.category for question in questions):
        own = [question for question in questions if question.category == category]
        baselines |= load_answers(files_of("baseline_answers", files, category), own, args.baseline_model)
    return Arena(by_id, baselines, judging)


def gather_candidates(
    args: ArenaHardArguments, arena: Arena, seed: int, folder: Path
) -> tuple[list[Problem], dict[str, int]]:
    """
    Load the candidates for all questions from a file, or let a server generate them into `folder`; see [`~judge.write_candidates`].

    Raises `ValueError` if the file lacks candidates for a question or has another prompt for it, and `SystemExit` if the server is
    unusable or no question has all its candidates.
    """
    if args.candidates is None:
        sampling = (args.gen_temperature, args.gen_top_p, args.gen_max_tokens)
        generation = Generation(args.num_candidates, *sampling, seed)
        problems, counts = write_candidates(list(arena.questions.values()), args.client("gen"), generation, folder)
        if not problems:
            raise SystemExit(f"No question has all its candidates; {folder / 'rejects.jsonl'} lists the reasons.")
        return problems, counts
    found = {problem.id: problem for problem in load_problems(args.candidates, judged=False)}
    if missing := [name for name in arena.questions if name not in found]:
        raise ValueError(
            f"{args.candidates} has no candidates for {len(missing)} of {len(arena.questions)} questions (first: "
            f"{missing[0]!r}). Add them, or use fewer questions."
        )
    for name, question in arena.questions.items():
        asked = read_prompt(found[name].prompt).messages[-1]["content"]
        if asked.strip() != question.prompt.strip():
            raise ValueError(
                f"{args.candidates} has another prompt for question {name!r}: {found[name].prompt!r:.60} instead of "
                f"{question.prompt!r:.60}. Use candidates for these questions."
            )
    return [found[name] for name in arena.questions], {"failed": 0, "candidates_cut": 0}
