"""Generate critiques for stage 1 with a strong model on OpenAI-compatible servers: one or more for each response in a preference pair."""

from dataclasses import dataclass
from typing import Any

from datasets import Features, List, Value

from ...argument_help import check_bounds, documented
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
from ..critique_prompt import CRITIC_PROMPT, PLACEHOLDERS, messages_for_critic, read_template
from ..dataset_folder import DatasetFolder
from ..preference_rows import PAIR_COLUMNS, SIDES
from ..row_values import CRITIQUE_DETAILS, FEEDBACK_COLUMNS, judged_chat, prompt_of, response_of
from .arguments import BuilderArguments, ServerArguments


# Options that affect the critiques
SETTINGS = ("temperature", "top_p", "max_tokens", "longer_tries", "truncated", "num_critiques", "seed")


@documented
@dataclass(kw_only=True)
class OracleCritiqueArguments(BuilderArguments, ServerArguments):
    """
    Options for the critic and for the number, length and sampling of its critiques. Includes [`BuilderArguments`] and [`ServerArguments`].

    Parameters:
        base_url (`list[str]`):
            Addresses of the critic's servers, for example `http://127.0.0.1:8000/v1`.
        model (`str`, *optional*):
            Name of the critic on its servers. Optional if they serve only one model.
        critic_prompt_file (`str`, *optional*):
            File that replaces the critic's instructions; it must contain `{conversation}` and `{response}`.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response, for self-consistency training. If there are several, the critique columns contain lists.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus sampling probability.
        max_tokens (`int`, *optional*, defaults to `1024`):
            Token limit of a critique.
        longer_tries (`int`, *optional*, defaults to `2`):
            Maximum number of retries of a truncated critique. Each retry doubles the token limit, as long as the critic's context has room.
        truncated (`str`, *optional*, defaults to `"drop"`):
            What to do with critiques that remain truncated. `"drop"` drops the row, and `"keep"` keeps the critiques. `"retry"` ignores
            `longer_tries`: it keeps doubling the token limit as long as the critic's context has room, and then drops the row. The card
            counts what was dropped or kept. Dropping favours short responses.
        seed (`int`, *optional*):
            Seed from which each request's seed is derived. By default, requests have no seed.
    """

    base_url: list[str]
    model: str | None = None
    critic_prompt_file: str | None = None
    num_critiques: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    longer_tries: int = 2
    truncated: str = "drop"
    seed: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_bounds(self, num_critiques=1, max_tokens=1, longer_tries=0)
        check_truncated(self.truncated)
        if self.num_critiques > 1 and self.temperature == 0.0:
            raise ValueError("`num_critiques` above 1 needs a `temperature` above 0; greedy critiques are identical.")


ARGUMENTS = (OracleCritiqueArguments,)


def main(args: OracleCritiqueArguments):
    template = read_template(args.critic_prompt_file, CRITIC_PROMPT, PLACEHOLDERS)
    rows = args.load_pairs()
    rows = without(rows, check_rows(rows, lambda row: [judged_messages(row, side) for side in SIDES], args.bad_rows))
    replaced = [name for name in FEEDBACK_COLUMNS if name in rows.column_names]
    if replaced:
        print(f"The new critiques replace the dataset's {' and '.join(replaced)}.")
    settings = {
        "builder": "oracle critiques",
        **args.describe(rows, PAIR_COLUMNS),
        "critic_prompt": template,
        **{name: getattr(args, name) for name in SETTINGS},
    }
    # They describe the replaced critiques
    rows = rows.remove_columns([name for name in CRITIQUE_DETAILS if name in rows.column_names])
    folder = DatasetFolder(args.output_dir, "Oracle critiques", settings, [args.dataset_name])
    kind = Value("string") if args.num_critiques == 1 else List(Value("string"))
    features = Features({**rows.features, **{f"{side}_feedback": kind for side in SIDES}})

    def make_work(critic: JournaledClient):
        return lambda row: criticise(row, critic, template, args)

    clients = {"critic": args.client(args.base_url, args.model)}
    build = build_dataset(folder, rows, features, clients, make_work)
    following = "cloud-hf train-critique-sft --model_name_or_path BASE --dataset_name {} --output_dir critic-sft"
    run_builder(build, folder, following, args.push_to_hub)


def judged_messages(row: dict[str, Any], side: str, template: str = CRITIC_PROMPT) -> list[dict[str, str]]:
    """Return the chat messages that ask the critic for a critique of a response."""
    return messages_for_critic(*judged_chat(prompt_of(row), response_of(row, side)), template)


async def criticise(
    row: dict[str, Any], critic: JournaledClient, template: str, args: OracleCritiqueArguments
) -> list[dict[str, Any]]:
    """Add critiques of both responses to a row."""

    async def critique(side: str, number: int) -> str:
        key = [row["id"], side, number]
        seed = {} if args.seed is None else {"seed": seed_of(args.seed, *key)}
        answer = await critic.chat_until_complete(
            key,
            judged_messages(row, side, template),
            max_tokens=args.max_tokens,
            longer_tries=args.longer_tries,
            truncated=args.truncated,
            temperature=args.temperature,
            top_p=args.top_p,
            **seed,
        )
        if reason := why_incomplete(answer, "a critique", args.longer_tries):
            raise Dropped(reason)
        return answer.text.strip()

    critiques = await all_of(*(critique(side, number) for side in SIDES for number in range(args.num_critiques)))
    texts = {"chosen": critiques[: args.num_critiques], "rejected": critiques[args.num_critiques :]}
    several = args.num_critiques > 1
    return [{**row, **{f"{side}_feedback": texts[side] if several else texts[side][0] for side in SIDES}}]
