"""Build preference pairs: a generator writes responses, and a judge compares them in both orders."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, List, Value

from ...argument_help import check_bounds, documented
from ...prompts import read_prompt
from ..bad_rows import without
from ..build_run import (
    Dropped,
    JournaledClient,
    all_of,
    build_dataset,
    check_rows,
    check_truncated,
    run_builder,
    seed_of,
    why_incomplete,
)
from ..completions import Answer
from ..dataset_folder import DatasetFolder
from ..judge import RETRY_TEMPERATURE, Comparison, Judge, PreferenceStatistics, read_judge_prompt
from ..row_values import prompt_of
from ..rows import check_columns
from .arguments import BuilderArguments, ServerArguments


# Indices of two responses to a prompt
Pair = tuple[int, int]
# Columns that this builder adds; it writes prompt_id only if a prompt may have several rows
NEW_COLUMNS = ("prompt_id", "chosen", "rejected", "margin", "judgements")
# Options that affect the rows
SETTINGS = (
    "num_responses", "gen_temperature", "gen_top_p", "gen_max_tokens", "longer_tries", "truncated", "pairs", "margin",
    "judge_temperature", "judge_max_tokens", "judge_tries", "seed",
)  # fmt: skip
JUDGEMENTS = List(
    {"first": Value("string"), "verdict": Value("string"), "text": Value("string"), "tries": Value("int64")}
)


@documented
@dataclass(kw_only=True)
class PreferenceArguments(BuilderArguments, ServerArguments):
    """
    Options for the generator, the judge and the selection of pairs. Includes [`BuilderArguments`] and [`ServerArguments`]. The limit
    `max_concurrency` applies separately to the generator and to the judge.

    Parameters:
        gen_base_url (`list[str]`):
            Addresses of the generator's servers, for example `http://127.0.0.1:8000/v1`.
        judge_base_url (`list[str]`):
            Addresses of the judge's servers.
        gen_model (`str`, *optional*):
            Name of the generator on its servers. Optional if they serve only one model.
        judge_model (`str`, *optional*):
            Name of the judge on its servers. Optional if they serve only one model.
        gen_api_key_env (`str`, *optional*):
            Environment variable that contains the API key for the generator's servers. Defaults to `api_key_env`.
        judge_api_key_env (`str`, *optional*):
            Environment variable that contains the API key for the judge's servers. Defaults to `api_key_env`.
        num_responses (`int`, *optional*, defaults to `2`):
            Responses per prompt.
        gen_temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature of the responses.
        gen_top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling probability of the responses.
        gen_max_tokens (`int`, *optional*, defaults to `2048`):
            Token limit of a response.
        longer_tries (`int`, *optional*, defaults to `1`):
            Maximum number of retries of a truncated response. Each retry doubles the token limit, as long as the generator's context has
            room.
        truncated (`str`, *optional*, defaults to `"drop"`):
            What to do with responses that remain truncated. `"drop"` drops their pairs, and `"keep"` keeps the responses. `"retry"`
            ignores `longer_tries`: it keeps doubling the token limit as long as the generator's context has room, and then drops the
            pairs. The card counts what was dropped or kept. Dropping favours short responses.
        pairs (`str`, *optional*, defaults to `"all"`):
            Rows to write if there are more than two responses; the judge compares all pairs in any case. `"all"` writes one row for each
            pair with a winner. Its id, such as `prompt7/0-2`, ends with the numbers of the two responses, and the column `prompt_id`
            contains the prompt's id; if you split the data, keep all rows of a prompt in the same split. `"best_worst"` writes one row per
            prompt, for the pair whose responses differ most in their total points over all pairs with a winner (the first such pair in
            case of a tie).
        margin (`bool`, *optional*, defaults to `False`):
            Write the column `margin`: the chosen response's lead in points, averaged over both orders (0.5, 1.0, 1.5 or 2.0). The trainers
            of TRL and of this package subtract it from the difference between the two rewards.
        keep_columns (`list[str]`, *optional*):
            Columns of the prompt dataset to keep, in addition to `id` and `prompt`.
        judge_prompt_file (`str`, *optional*):
            File that replaces the judge's instructions; it must contain `{conversation}`, `{response_a}` and `{response_b}`, and
            mention the verdicts.
        judge_temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature of the judge's first try.
        judge_max_tokens (`int`, *optional*, defaults to `2048`):
            Token limit of a judgement. If a judgement is truncated, its retries get twice this limit. If the judge's context has no room
            for that, there is no verdict.
        judge_tries (`int`, *optional*, defaults to `3`):
            Maximum number of tries to get a readable verdict. All tries except the first sample at a temperature of at least 0.5.
        seed (`int`, *optional*):
            Seed from which each request's seed is derived. By default, requests have no seed.
    """

    gen_base_url: list[str]
    judge_base_url: list[str]
    gen_model: str | None = None
    judge_model: str | None = None
    gen_api_key_env: str | None = None
    judge_api_key_env: str | None = None
    num_responses: int = 2
    gen_temperature: float = 1.0
    gen_top_p: float = 1.0
    gen_max_tokens: int = 2048
    longer_tries: int = 1
    truncated: str = "drop"
    pairs: str = "all"
    margin: bool = False
    keep_columns: list[str] = field(default_factory=list)
    judge_prompt_file: str | None = None
    judge_temperature: float = 0.0
    judge_max_tokens: int = 2048
    judge_tries: int = 3
    seed: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.num_responses < 2:
            raise ValueError(f"`num_responses` is {self.num_responses}; a pair needs at least 2.")
        if not self.gen_temperature > 0.0:
            raise ValueError("`gen_temperature` must be above 0, otherwise all responses to a prompt are identical.")
        check_bounds(self, gen_max_tokens=1, judge_max_tokens=1, judge_tries=1, longer_tries=0)
        check_truncated(self.truncated)
        if self.pairs not in ("all", "best_worst"):
            raise ValueError(f"`pairs` is {self.pairs!r}; use 'all' or 'best_worst'.")
        if clash := sorted({"id", "prompt", *NEW_COLUMNS} & set(self.keep_columns)):
            raise ValueError(
                f"`keep_columns` names {', '.join(clash)}, but the builder's own column names are reserved. Omit or rename such columns."
            )

    @property
    def several_rows(self) -> bool:
        """Whether a prompt may have several output rows."""
        return self.pairs == "all" and self.num_responses > 2


ARGUMENTS = (PreferenceArguments,)


def main(args: PreferenceArguments):
    template = read_judge_prompt(args.judge_prompt_file)
    rows = args.load_prompts()
    check_columns(rows.column_names, tuple(args.keep_columns), "`keep_columns`")
    tools = ["tools"] if "tools" in rows.column_names else []
    rows = rows.select_columns(list(dict.fromkeys(["id", "prompt", *tools, *args.keep_columns])))
    rows = without(rows, check_rows(rows, messages_for_generator, args.bad_rows))
    settings = {
        "builder": "preferences",
        **args.describe(rows, ("prompt", *args.keep_columns)),
        **{name: getattr(args, name) for name in SETTINGS},
        "judge_prompt": template,
        "judge_retry_temperature": max(args.judge_temperature, RETRY_TEMPERATURE),
    }
    folder = DatasetFolder(args.output_dir, "Preferences", settings, [args.dataset_name])
    clients = {
        "gen": args.client(args.gen_base_url, args.gen_model, args.gen_api_key_env),
        "judge": args.client(args.judge_base_url, args.judge_model, args.judge_api_key_env),
    }

    def make_work(gen: JournaledClient, judge: JournaledClient):
        asked = Judge(judge, template, args.judge_temperature, args.judge_max_tokens, args.judge_tries, args.seed)
        return lambda row: prefer(row, gen, asked, args)

    build = build_dataset(folder, rows, new_features(rows, args), clients, make_work, PreferenceStatistics())
    following = "cloud-hf oracle-critiques --base_url CRITIC --dataset_name {} --output_dir oracle-critiques"
    run_builder(build, folder, following, args.push_to_hub)


def messages_for_generator(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the prompt as chat messages. Raises `ValueError` if it has tools, because the response might not be text."""
    prompt = read_prompt(prompt_of(row))
    if prompt.tools:
        raise ValueError(
            "`tools` are given, but the response to a prompt with tools may be a tool call instead of text. Remove the row."
        )
    return prompt.messages


def new_features(rows: Dataset, args: PreferenceArguments) -> Features:
    """Return the columns of the output dataset."""
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
    """Return an output row for each pair of responses to the prompt, or a [`Dropped`] if the pair is left out."""
    responses = await all_of(*(respond(row, number, gen, args) for number in range(args.num_responses)))
    # All pairs are judged even for "best_worst", because a response's points are summed over all pairs it is part of
    pairs = list(itertools.combinations(range(args.num_responses), 2))
    compared = await all_of(
        *(compare(row, pair, [responses[number] for number in pair], judge, args) for pair in pairs)
    )
    comparisons: dict[Pair, Comparison | str] = dict(zip(pairs, compared, strict=True))
    decided = {pair: each for pair, each in comparisons.items() if not isinstance(each, str) and not each.undecided}
    if args.pairs == "best_worst" and decided:
        furthest = furthest_apart(decided)
        decided = {furthest: decided[furthest]}
    return [
        new_row(row, pair, decided[pair], args) if pair in decided else left_out(row, pair, comparison, args)
        for pair, comparison in comparisons.items()
    ]


async def respond(row: dict, number: int, gen: JournaledClient, args: PreferenceArguments) -> Answer:
    """Request a response, retrying with more tokens if it is truncated."""
    seed = {} if args.seed is None else {"seed": seed_of(args.seed, "gen", row["id"], number)}
    return await gen.chat_until_complete(
        [row["id"], number],
        messages_for_generator(row),
        max_tokens=args.gen_max_tokens,
        longer_tries=args.longer_tries,
        truncated=args.truncated,
        temperature=args.gen_temperature,
        top_p=args.gen_top_p,
        **seed,
    )


async def compare(
    row: dict, pair: Pair, responses: list[Answer], judge: Judge, args: PreferenceArguments
) -> Comparison | str:
    """Compare two responses. If one of them is incomplete, return the reason instead."""
    for response in responses:
        if reason := why_incomplete(response, "a response", args.longer_tries):
            return reason
    first, second = (response.text for response in responses)
    # Do not ask the judge about identical responses: the verdict could only be a tie
    if first.strip() == second.strip():
        return Comparison((first, second))
    judgements = await judge.compare([row["id"], *pair], row["prompt"], first, second)
    return Comparison((first, second), tuple(judgements))


def furthest_apart(decided: dict[Pair, Comparison]) -> Pair:
    """Among the pairs with a winner, return the one whose winner has the largest lead in total points."""
    totals: Counter[int] = Counter()
    for (first, second), comparison in decided.items():
        totals[first] += comparison.points
        totals[second] -= comparison.points

    def lead(pair: Pair) -> int:
        difference = totals[pair[0]] - totals[pair[1]]
        return difference if decided[pair].points > 0 else -difference

    return max(sorted(decided), key=lead)


def new_row(row: dict, pair: Pair, comparison: Comparison, args: PreferenceArguments) -> dict:
    """Return the output row for a pair with a winner."""
    new = {name: row[name] for name in ("id", "prompt", *args.keep_columns)} | comparison.record()
    if args.margin:
        new["margin"] = comparison.margin
    if args.several_rows:
        new |= {"id": pair_id(row, pair), "prompt_id": row["id"]}
    return new


def left_out(row: dict, pair: Pair, comparison: Comparison | str, args: PreferenceArguments) -> Dropped:
    """Return a [`Dropped`] with the reason why a pair is left out of the dataset."""
    name = pair_id(row, pair) if args.num_responses > 2 else row["id"]
    if isinstance(comparison, str):
        return Dropped(comparison, name)
    reason = comparison.undecided or "other responses to the prompt are further apart"
    return Dropped(reason, name, comparison.record())


def pair_id(row: dict, pair: Pair) -> str:
    """Return the id of a pair: the prompt's id and the two response numbers, which make it unique."""
    return f"{row['id']}/{pair[0]}-{pair[1]}"
