"""Preference pairs: a generator writes responses, and a judge compares them in both orders."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, List, Value

from ...conversation import read_prompt
from ..folder import DatasetFolder
from ..judge import RETRY_TEMPERATURE, Comparison, Judge, PreferenceStatistics, read_judge_prompt
from ..rows import check_columns
from ..run import Dropped, JournaledClient, all_of, build_dataset, check_rows, run_builder, seed_of
from .arguments import BuilderArguments, ServerArguments


# The new columns; prompt_id only where a prompt may have several rows
NEW_COLUMNS = ("prompt_id", "chosen", "rejected", "margin", "judgements")
JUDGEMENTS = List(
    {"first": Value("string"), "verdict": Value("string"), "text": Value("string"), "tries": Value("int64")}
)


@dataclass(kw_only=True)
class PreferenceArguments(BuilderArguments, ServerArguments):
    """
    Who answers, who judges, and what becomes a row. The arguments of [`BuilderArguments`] and [`ServerArguments`]
    (`max_concurrency` holds for each of the two models), and

    Parameters:
        gen_base_url (`list[str]`):
            Addresses of the generator's servers, such as `http://127.0.0.1:8000/v1`.
        judge_base_url (`list[str]`):
            Addresses of the judge's servers.
        gen_model (`str`, *optional*):
            The generator's name there; may be left out if the servers have only one model.
        judge_model (`str`, *optional*):
            The judge's name there, likewise.
        gen_api_key_env (`str`, *optional*):
            Environment variable with the key of the generator's servers; `api_key_env` by default.
        judge_api_key_env (`str`, *optional*):
            That of the judge's servers.
        num_responses (`int`, *optional*, defaults to `2`):
            Responses per prompt.
        gen_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the responses.
        gen_top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of their sampling.
        gen_max_tokens (`int`, *optional*, defaults to `2048`):
            Longest response in tokens.
        longer_tries (`int`, *optional*, defaults to `1`):
            How often a response that was cut is asked for again, with twice the tokens each time: they and the prompt must
            fit the generator's context. The pairs of a response that is still cut are dropped, and counted.
        pairs (`str`, *optional*, defaults to `"all"`):
            What more than two responses become. All pairs are judged; `"all"`: a row for each with a winner, as reward models are
            trained, with ids such as `prompt7/0-2` from the responses' numbers, and the column `prompt_id`: keep the rows of a
            prompt on one side of a split. `"best_worst"`: one row per prompt, the pair with a winner whose responses are
            furthest apart in the points of all pairs with a winner (the first of several).
        margin (`bool`, *optional*, defaults to `False`):
            Write the column `margin`, which TRL's and this package's trainers subtract from the difference of the rewards: the
            points of the chosen response over the rejected one in both games, divided by 2; so 0.5, 1.0, 1.5 or 2.0.
        keep_columns (`list[str]`, *optional*):
            Columns of the prompts, besides `id` and `prompt`, that the rows keep.
        judge_prompt_file (`str`, *optional*):
            File with another text for the judge; it holds `{conversation}`, `{response_a}` and `{response_b}`, and names the
            verdicts.
        judge_temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of the judge's first try.
        judge_max_tokens (`int`, *optional*, defaults to `2048`):
            Longest judgement in tokens; after one that was cut, tries may be twice as long.
        judge_tries (`int`, *optional*, defaults to `3`):
            How often the judge is asked until a verdict can be read. Tries after the first sample, at a temperature of at least 0.5.
        seed (`int`, *optional*):
            Seed from which every request gets its own. Without one, none is sent.
    """

    gen_base_url: list[str] = field(metadata={"help": "Addresses of the generator's servers."})
    judge_base_url: list[str] = field(metadata={"help": "Addresses of the judge's servers."})
    gen_model: str | None = field(default=None, metadata={"help": "The generator's name there."})
    judge_model: str | None = field(default=None, metadata={"help": "The judge's name there."})
    gen_api_key_env: str | None = field(default=None, metadata={"help": "Variable with the generator's key."})
    judge_api_key_env: str | None = field(default=None, metadata={"help": "Variable with the judge's key."})
    num_responses: int = field(default=2, metadata={"help": "Responses per prompt."})
    gen_temperature: float = field(default=1.0, metadata={"help": "Temperature of the responses."})
    gen_top_p: float = field(default=1.0, metadata={"help": "Nucleus of their sampling."})
    gen_max_tokens: int = field(default=2048, metadata={"help": "Longest response in tokens."})
    longer_tries: int = field(default=1, metadata={"help": "Tries with twice the tokens for a response that was cut."})
    pairs: str = field(default="all", metadata={"help": "What several responses become: all or best_worst."})
    margin: bool = field(default=False, metadata={"help": "Write the column `margin`."})
    keep_columns: list[str] = field(default_factory=list, metadata={"help": "Other columns of the prompts to keep."})
    judge_prompt_file: str | None = field(default=None, metadata={"help": "File with another text for the judge."})
    judge_temperature: float = field(default=0.0, metadata={"help": "Temperature of the judge's first try."})
    judge_max_tokens: int = field(default=2048, metadata={"help": "Longest judgement in tokens."})
    judge_tries: int = field(default=3, metadata={"help": "Tries until a verdict can be read."})
    seed: int | None = field(default=None, metadata={"help": "Seed from which every request gets its own."})

    def __post_init__(self):
        super().__post_init__()
        if self.num_responses < 2:
            raise ValueError(f"`num_responses` is {self.num_responses}; a pair needs at least 2.")
        if not self.gen_temperature > 0.0:
            raise ValueError("`gen_temperature` must be above 0, or the responses of a prompt are all the same.")
        if min(self.gen_max_tokens, self.judge_max_tokens, self.judge_tries) < 1 or self.longer_tries < 0:
            raise ValueError(
                "`gen_max_tokens`, `judge_max_tokens` and `judge_tries` must be at least 1, `longer_tries` at least 0."
            )
        if self.pairs not in ("all", "best_worst"):
            raise ValueError(f"`pairs` is {self.pairs!r}; use 'all' or 'best_worst'.")
        if clash := sorted({"id", "prompt", *NEW_COLUMNS} & set(self.keep_columns)):
            raise ValueError(f"`keep_columns` names {', '.join(clash)}, which this script writes.")

    @property
    def several_rows(self) -> bool:
        """Whether a prompt may have several rows."""
        return self.pairs == "all" and self.num_responses > 2


ARGUMENTS = (PreferenceArguments,)


def main(args: PreferenceArguments):
    template = read_judge_prompt(args.judge_prompt_file)
    rows = args.load("prompt")
    check_columns(rows.column_names, tuple(args.keep_columns), "`keep_columns`")
    tools = ["tools"] if "tools" in rows.column_names else []
    rows = rows.select_columns(list(dict.fromkeys(["id", "prompt", *tools, *args.keep_columns])))
    check_rows(rows, messages_for_generator)
    settings = {
        "builder": "preferences",
        **args.describe(rows, ("prompt", *args.keep_columns)),
        "num_responses": args.num_responses,
        "gen_temperature": args.gen_temperature,
        "gen_top_p": args.gen_top_p,
        "gen_max_tokens": args.gen_max_tokens,
        "longer_tries": args.longer_tries,
        "pairs": args.pairs,
        "margin": args.margin,
        "judge_prompt": template,
        "judge_temperature": args.judge_temperature,
        "judge_retry_temperature": max(args.judge_temperature, RETRY_TEMPERATURE),
        "judge_max_tokens": args.judge_max_tokens,
        "judge_tries": args.judge_tries,
        "seed": args.seed,
    }
    folder = DatasetFolder(args.output_dir, "Preferences", settings)
    clients = {
        "gen": args.client(args.gen_base_url, args.gen_model, args.gen_api_key_env),
        "judge": args.client(args.judge_base_url, args.judge_model, args.judge_api_key_env),
    }

    def make_work(gen: JournaledClient, judge: JournaledClient):
        asked = Judge(judge, template, args.judge_temperature, args.judge_max_tokens, args.judge_tries, args.seed)
        return lambda row: prefer(row, gen, asked, args)

    run_builder(
        build_dataset(folder, rows, new_features(rows, args), clients, make_work, PreferenceStatistics()), folder
    )
    if args.push_to_hub:
        folder.push(args.push_to_hub)


def messages_for_generator(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The prompt as chat messages. Raises `ValueError` if there is no answering it with text."""
    if row.get("tools"):
        raise ValueError(
            "`tools` are given, but the answer to such a prompt may be a call and no text. Leave the row out."
        )
    return read_prompt(row["prompt"]).messages


def new_features(rows: Dataset, args: PreferenceArguments) -> Features:
    """The columns of the new dataset."""
    several = {"id": Value("string"), "prompt_id": rows.features["id"]} if args.several_rows else {}
    return Features(
        {
            "id": rows.features["id"],
            **several,
            "prompt": rows.features["prompt"],
            "chosen": Value("string"),
            "rejected": Value("string"),
            **({"margin": Value("float64")} if args.margin else {}),
            "judgements": JUDGEMENTS,
            **{name: rows.features[name] for name in args.keep_columns},
        }
    )


async def prefer(row: dict, gen: JournaledClient, judge: Judge, args: PreferenceArguments) -> list[dict | Dropped]:
    """The rows of a prompt's pairs, and what is left out."""
    responses = await all_of(*(respond(row, number, gen, args) for number in range(args.num_responses)))
    numbers = list(itertools.combinations(range(args.num_responses), 2))
    compared = await all_of(*(compare(row, pair, [responses[number] for number in pair], judge) for pair in numbers))
    comparisons = dict(zip(numbers, compared, strict=True))
    kept = {pair for pair, comparison in comparisons.items() if comparison is not None and not comparison.undecided}
    if args.pairs == "best_worst" and kept:
        kept = {furthest_apart(comparisons, kept)}
    return [
        new_row(row, pair, comparison, args) if pair in kept else left_out(row, pair, comparison, args)
        for pair, comparison in comparisons.items()
    ]


async def respond(row: dict, number: int, gen: JournaledClient, args: PreferenceArguments) -> str | None:
    """A response, with more tokens if need be; `None` if it is still cut."""
    sampling = {"temperature": args.gen_temperature, "top_p": args.gen_top_p}
    if args.seed is not None:
        sampling["seed"] = seed_of(args.seed, "gen", row["id"], number)
    options = {"max_tokens": args.gen_max_tokens, "longer_tries": args.longer_tries, **sampling}
    answer = await gen.chat_whole([row["id"], number], messages_for_generator(row), **options)
    return None if answer.finish_reason in ("length", "no room") else answer.text


async def compare(row: dict, pair: tuple[int, int], responses: list[str | None], judge: Judge) -> Comparison | None:
    """What comes of two responses; `None` if one is cut."""
    if None in responses:
        return None
    if responses[0].strip() == responses[1].strip():
        return Comparison(tuple(responses))
    return Comparison(tuple(responses), tuple(await judge.compare([row["id"], *pair], row["prompt"], *responses)))


def furthest_apart(
    comparisons: dict[tuple[int, int], Comparison | None], kept: set[tuple[int, int]]
) -> tuple[int, int]:
    """Of the pairs with a winner, the one whose winner leads most by the points of all of them."""
    totals: Counter[int] = Counter()
    for first, second in kept:
        totals[first] += comparisons[first, second].points
        totals[second] -= comparisons[first, second].points

    def lead(pair: tuple[int, int]) -> int:
        difference = totals[pair[0]] - totals[pair[1]]
        return difference if comparisons[pair].points > 0 else -difference

    return max(sorted(kept), key=lead)


def new_row(row: dict, pair: tuple[int, int], comparison: Comparison, args: PreferenceArguments) -> dict:
    """A pair with a winner as a row."""
    new = {name: row[name] for name in ("id", "prompt", *args.keep_columns)} | comparison.record()
    if args.margin:
        new["margin"] = comparison.margin
    if args.several_rows:
        new |= {"id": pair_id(row, pair), "prompt_id": row["id"]}
    return new


def left_out(row: dict, pair: tuple[int, int], comparison: Comparison | None, args: PreferenceArguments) -> Dropped:
    """A pair that is not in the dataset."""
    name = pair_id(row, pair) if args.num_responses > 2 else row["id"]
    if comparison is None:
        return Dropped(f"a response is cut, after {args.longer_tries} longer tries", name)
    reason = comparison.undecided or "other responses to the prompt are further apart"
    return Dropped(reason, name, comparison.record())


def pair_id(row: dict, pair: tuple[int, int]) -> str:
    """Unlike all others, since the numbers end it."""
    return f"{row['id']}/{pair[0]}-{pair[1]}"
