"""Evaluate a generative judge, which compares the right response of each row with the wrong ones in both orders, or rates each response."""

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ..argument_help import check_bounds, documented
from ..data.build_run import Dropped, JournaledClient, build_dataset, check_rows, complete_build
from ..data.completions import CompletionClient
from ..data.critique_prompt import messages_for_critic
from ..data.dataset_folder import DatasetFolder
from ..data.journal import key_of
from ..data.judge import Judge, Judgement, messages_for_judge, read_judge_prompt
from ..data.rating_rubric import read_rubric
from ..data.row_values import judged_chat
from ..data.verdicts import points, read_verdict
from ..scores import Sample, Score
from .context_fitting import FittedRow, FittedRows, RowScores, SetKey
from .stats import Summarised


@documented
@dataclass(kw_only=True)
class JudgeServerArguments:
    """
    Options for a judge and its servers.

    Parameters:
        judge_base_url (`list[str]`, *optional*):
            Addresses of the judge's OpenAI-compatible servers, such as `http://127.0.0.1:8001/v1`.
        judge_model (`str`, *optional*):
            Model name on the judge's servers. Optional if they serve only one model.
        judge_prompt_file (`str`, *optional*):
            File with a prompt that replaces the judge's own. For comparisons, it must contain the placeholders `{conversation}`,
            `{response_a}` and `{response_b}`, and name the verdicts. For ratings, it must contain `{conversation}` and `{response}`; a
            header between two `---` lines may set the `pattern` that matches a rating, and the `lowest` and `highest` rating.
        judge_temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature for the judge's first try.
        judge_max_tokens (`int`, *optional*, defaults to `4096`):
            Token limit of a judgement.
        judge_tries (`int`, *optional*, defaults to `3`):
            Maximum number of tries to get a readable verdict.
        judge_api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that contains the judge's API key.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Maximum number of concurrent requests.
        max_retries (`int`, *optional*, defaults to `8`):
            Maximum number of retries per request.
        request_timeout (`float`, *optional*, defaults to `600.0`):
            Time limit of each try in seconds.
    """

    judge_base_url: list[str] = field(default_factory=list)
    judge_model: str | None = None
    judge_prompt_file: str | None = None
    judge_temperature: float = 0.0
    judge_max_tokens: int = 4096
    judge_tries: int = 3
    judge_api_key_env: str = "OPENAI_API_KEY"
    max_concurrency: int = 64
    max_retries: int = 8
    request_timeout: float = 600.0

    def check_judge(self):
        """Raise `ValueError` for values out of range."""
        check_bounds(self, judge_max_tokens=1, judge_tries=1)

    def client(self, role: str = "judge") -> CompletionClient:
        """Create a client for the servers of a role. Raises `ValueError` for invalid settings."""
        return CompletionClient(
            getattr(self, f"{role}_base_url"),
            getattr(self, f"{role}_model"),
            api_key_env=getattr(self, f"{role}_api_key_env"),
            max_concurrency=self.max_concurrency,
            max_retries=self.max_retries,
            request_timeout=self.request_timeout,
        )

    @property
    def judge_name(self) -> str:
        """The judge's name in reports."""
        return f"judge {self.judge_model}" if self.judge_model else "judge"


_GAMES = List({"verdict": Value("string"), "text": Value("string"), "tries": Value("int64")})
# Asks the judge for a row's games
Ask = Callable[[JournaledClient, dict[str, Any]], Awaitable[list[Judgement]]]


def judge_dataset(
    rows: list[dict[str, Any]], client: CompletionClient, output: DatasetFolder, columns: Mapping[str, Any], ask: Ask
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Request the judgements that are missing from the journal of `output`, and write those of all rows. Returns the judged rows, with their
    `columns` and their `games`, and the counts from [`build_dataset`].
    """

    def make_work(judge: JournaledClient):
        async def work(row: dict[str, Any]) -> list[dict[str, Any] | Dropped]:
            games = await ask(judge, row)
            return [{name: row[name] for name in columns} | {"games": [asdict(game) for game in games]}]

        return work

    features = Features({**columns, "games": _GAMES})
    counts = complete_build(build_dataset(output, rows, features, {"judge": client}, make_work), output)
    return Dataset.load_from_disk(str(output.path)).to_list(), counts


@dataclass(frozen=True)
class JudgeReport(Summarised):
    """Behaviour of the judge over all distinct pairs in the run; unknown values are `None`."""

    pairs: int  # distinct pairs of a right and a wrong response, each judged in both orders
    right: int  # pairs in which the right response wins
    ties: int
    unreadable: int  # pairs without a readable verdict in at least one order; they count as ties in the metrics
    orders_agree: float | None  # share of pairs in which both orders prefer the same response
    first_shown_wins: float | None  # share of decided verdicts that favour the response shown first
    tokens_per_verdict: float | None  # prompt and completion tokens over all tries, as counted by the server
    cost_per_verdict: float | None = None
    cost: float | None = None


@dataclass(frozen=True)
class RatingReport(Summarised):
    """A pointwise judge's ratings of all distinct responses in the run; unknown values are `None`."""

    responses: int  # distinct responses that were rated
    unreadable: int  # responses without a readable rating, which get the middle of the scale
    mean: float  # of the readable ratings
    std: float
    distinct: int  # number of different ratings; if there are few, many pairs tie
    tokens_per_verdict: float | None  # per rating; see `JudgeReport`
    cost_per_verdict: float | None = None
    cost: float | None = None


def rate_rows(
    parts: Mapping[SetKey, FittedRows],
    args: JudgeServerArguments,
    seed: int,
    folder: Path,
    price: Sequence[float] = (),
) -> tuple[dict[SetKey, RowScores], RatingReport]:
    """
    Rate every response on its own, and use the rating as its reward. Identical responses to the same prompt are rated once. If
    a response has several turns, only the last one is rated, and the others are moved to the prompt.

    `parts` contains the rows of each set by kind and name; for the other arguments and the return values see [`judge_rows`]. Raises
    `ValueError` if no judgement contains a rating, and `SystemExit` if the server is unusable or some responses could not be rated; the
    judgements received so far are kept.
    """
    rubric = read_rubric(args.judge_prompt_file)
    rows: dict[str, dict[str, Any]] = {}
    for fitted in parts.values():
        for row in fitted.rows:
            for answer in row.responses:
                prompt, response = judged_chat(row.prompt, answer)
                key = key_of(prompt, response)
                rows.setdefault(key, {"id": key, "prompt": prompt, "response": response})
    check_rows(list(rows.values()), lambda row: messages_for_critic(row["prompt"], row["response"], rubric.template))

    def rate(judge: Judge, row: dict[str, Any]) -> Awaitable[list[Judgement]]:
        return judge.rate([row["id"]], row["prompt"], row["response"])

    scale = {"mode": "pointwise", "pattern": rubric.pattern, "lowest": rubric.lowest, "highest": rubric.highest}
    games, counts = _ask(list(rows.values()), args, rubric.template, seed, folder, rate, rubric.read, scale)
    ratings = {key: rubric.middle if rating is None else float(rating) for key, (rating,) in games.items()}
    scores = {
        name: [
            [Score.of([Sample(ratings[key_of(*judged_chat(row.prompt, response))])]) for response in row.responses]
            for row in fitted.rows
        ]
        for name, fitted in parts.items()
    }
    readable = [float(rating) for (rating,) in games.values() if rating is not None]
    return scores, RatingReport(
        responses=len(games),
        unreadable=len(games) - len(readable),
        mean=statistics.fmean(readable),
        std=statistics.pstdev(readable),
        distinct=len(set(readable)),
        **_spent(counts, len(games), price),
    )


def judge_rows(
    parts: Mapping[SetKey, tuple[FittedRows, int]],
    args: JudgeServerArguments,
    seed: int,
    folder: Path,
    price: Sequence[float] = (),
) -> tuple[dict[SetKey, RowScores], JudgeReport]:
    """
    Compare the right response of every row with each wrong one.

    The right response gets the reward 0. A wrong response gets a reward from -2 to 2: half its own lead in points, which is negative if the
    right response leads (see `points`). If, for example, both verdicts slightly favour the right response, the wrong one gets -1. Identical
    pairs are judged once; identical responses are not judged and count as a tie.

    Args:
        parts (`dict`):
            Maps the kind and name of each set to its rows and to the number of right responses in each row, where they come first.
        args ([`JudgeServerArguments`]):
            Options for the judge.
        seed (`int`):
            Seed from which each request's seed is derived.
        folder (`Path`):
            Folder for judgements and their journal.
        price (`Sequence[float]`, *optional*):
            Price of a million prompt tokens, and of a million completion tokens.

    Returns:
        `tuple`: The scores of each set's rows, and the report on the judge.

    Raises:
        `ValueError`: Before the first request, if rows have several right responses or responses that are not text; afterwards, if no
            judgement contains a verdict.
        `SystemExit`: If the server is unusable or some pairs could not be judged; the judgements received so far are kept.
    """
    template = read_judge_prompt(args.judge_prompt_file)
    pairs: dict[str, dict[str, Any]] = {}
    for name, (fitted, num_chosen) in parts.items():
        if num_chosen != 1:
            raise ValueError(
                f"{name[1]}: a judge compares one right response with wrong ones, but rows have {num_chosen} right "
                f"responses. Omit the set or the judge."
            )
        for row in fitted.rows:
            for place in range(1, len(row.responses)):
                pair = _pair(name, row, place)
                pairs.setdefault(pair["id"], pair)
    rows = [pair for pair in pairs.values() if pair["chosen"].strip() != pair["rejected"].strip()]
    check_rows(rows, lambda row: messages_for_judge(row["prompt"], row["chosen"], row["rejected"], template))

    def compare(judge: Judge, row: dict[str, Any]) -> Awaitable[list[Judgement]]:
        return judge.compare([row["id"]], row["prompt"], row["chosen"], row["rejected"])

    games, counts = _ask(rows, args, template, seed, folder, compare, read_verdict)

    def score(name: SetKey, row: FittedRow, place: int) -> Score:
        found = games.get(_pair(name, row, place)["id"], (None, None))
        return Score.of([Sample(-(points(*found) if None not in found else 0) / 2)])

    scores = {
        name: [
            [Score.of([Sample(0.0)]), *(score(name, row, place) for place in range(1, len(row.responses)))]
            for row in fitted.rows
        ]
        for name, (fitted, _) in parts.items()
    }
    return scores, _report(list(games.values()), counts, price)


def _pair(name: SetKey, row: FittedRow, place: int) -> dict[str, Any]:
    """Return the pair of a row's right response and one wrong response, with an id derived from their texts."""
    chosen, rejected = row.responses[0], row.responses[place]
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise ValueError(
            f"{name[1]}, row {row.row.get('id', row.index)!r}: a judge reads only text, but a response is not plain text."
        )
    return {"id": key_of(row.prompt, chosen, rejected), "prompt": row.prompt, "chosen": chosen, "rejected": rejected}


def _ask(
    rows: list[dict[str, Any]],
    args: JudgeServerArguments,
    template: str,
    seed: int,
    folder: Path,
    ask: Callable[[Judge, dict[str, Any]], Awaitable[list[Judgement]]],
    read: Callable[[str], str | None],
    settings: Mapping[str, Any] | None = None,
) -> tuple[dict[str, tuple[str | None, ...]], dict[str, Any]]:
    """Ask the judge, and return each row's rating or its verdicts in both orders, together with the counts from [`build_dataset`]."""
    asked = {
        "temperature": args.judge_temperature,
        "max_tokens": args.judge_max_tokens,
        "tries": args.judge_tries,
        "seed": seed,
    }
    if not rows:
        return {}, {}
    recorded = {"builder": "judgements", "template": template, **asked, **(settings or {})}
    output = DatasetFolder(str(folder), "Judgements", recorded)

    def ask_with(client: JournaledClient, row: dict[str, Any]) -> Awaitable[list[Judgement]]:
        return ask(Judge(client, template, **asked, read=read), row)

    found, counts = judge_dataset(rows, args.client(), output, {"id": Value("string")}, ask_with)
    if counts["failed"]:
        raise SystemExit(
            f"{counts['failed']} of {len(rows)} {'responses' if settings else 'pairs'} could not be judged; see "
            f"{folder / 'rejects.jsonl'}. Run the same command again to retry them."
        )
    if all(game["verdict"] is None for row in found for game in row["games"]):
        raise ValueError(
            f"No judgement contains a verdict; the first one is {found[0]['games'][0]['text']!r:.200}. Use a judge that follows the output "
            "format in its prompt, or another `judge_prompt_file`."
        )
    return {row["id"]: tuple(game["verdict"] for game in row["games"]) for row in found}, counts


def _spent(counts: Mapping[str, Any], verdicts: int, price: Sequence[float]) -> dict[str, float | None]:
    """Return tokens and cost, which are `None` if the server does not count tokens."""
    tokens, completion = counts.get("judge_tokens"), counts.get("judge_completion_tokens")
    cost = None
    if price and tokens is not None and completion is not None:
        cost = ((tokens - completion) * price[0] + completion * price[1]) / 1e6
    return {
        "tokens_per_verdict": None if tokens is None else tokens / verdicts,
        "cost_per_verdict": None if cost is None else cost / verdicts,
        "cost": cost,
    }


def _report(games: Sequence[tuple[str | None, ...]], counts: Mapping[str, Any], price: Sequence[float]) -> JudgeReport:
    readable = [pair for pair in games if None not in pair]
    leads = [points(*pair) for pair in readable]
    # Each sign is 1 if the response shown first wins; the second game shows the wrong response first
    signs = [tuple((points(game, None) > 0) - (points(game, None) < 0) for game in pair) for pair in readable]
    decided = [sign for pair in signs for sign in pair if sign]
    return JudgeReport(
        pairs=len(games),
        right=sum(lead > 0 for lead in leads),
        ties=sum(lead == 0 for lead in leads),
        unreadable=len(games) - len(readable),
        orders_agree=sum(one == -other for one, other in signs) / len(signs) if signs else None,
        first_shown_wins=decided.count(1) / len(decided) if decided else None,
        **_spent(counts, 2 * len(games), price),
    )
