"""Critiques of preference pairs by a strong model behind an OpenAI-compatible server."""

from dataclasses import dataclass, field

from datasets import Features, List, Value

from ..critique_prompt import CRITIC_PROMPT, PLACEHOLDERS, messages_for_critic, read_template
from ..folder import DatasetFolder
from ..rows import FEEDBACK_COLUMNS, PAIR_COLUMNS, prompt_of, response_of
from ..run import Dropped, JournaledClient, all_of, build_dataset, check_rows, run_builder, seed_of
from .arguments import BuilderArguments, ServerArguments


SIDES = ("chosen", "rejected")


@dataclass(kw_only=True)
class OracleCritiqueArguments(BuilderArguments, ServerArguments):
    """
    Who criticises what. The arguments of [`BuilderArguments`] and [`ServerArguments`], and

    Parameters:
        base_url (`list[str]`):
            Addresses of the critic's servers, such as `http://127.0.0.1:8000/v1`.
        model (`str`, *optional*):
            The critic's name there; may be left out if the servers have only one model.
        critic_prompt_file (`str`, *optional*):
            File with another text for the critic; it holds `{conversation}` and `{response}`.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response, for self-consistency training; with several, the columns hold lists.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of the sampling.
        max_tokens (`int`, *optional*, defaults to `1024`):
            Longest critique in tokens.
        longer_tries (`int`, *optional*, defaults to `2`):
            How often a critique that was cut is asked for again, with twice the tokens each time. A row whose critique is still
            cut is dropped, and counted.
        seed (`int`, *optional*):
            Seed from which each request gets its own. Without it none is sent.
    """

    base_url: list[str] = field(metadata={"help": "Addresses of the critic's servers."})
    model: str | None = field(default=None, metadata={"help": "The critic's name there."})
    critic_prompt_file: str | None = field(default=None, metadata={"help": "File with another text for the critic."})
    num_critiques: int = field(default=1, metadata={"help": "Critiques per response."})
    temperature: float = field(default=0.0, metadata={"help": "Sampling temperature; 0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the sampling."})
    max_tokens: int = field(default=1024, metadata={"help": "Longest critique in tokens."})
    longer_tries: int = field(default=2, metadata={"help": "Tries with twice the tokens for a critique that was cut."})
    seed: int | None = field(
        default=None, metadata={"help": "Seed from which each request gets its own. Without it none is sent."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.num_critiques < 1 or self.max_tokens < 1 or self.longer_tries < 0:
            raise ValueError("`num_critiques` and `max_tokens` must be at least 1, `longer_tries` at least 0.")
        if self.num_critiques > 1 and self.temperature == 0.0:
            raise ValueError("`num_critiques` above 1 needs a `temperature` above 0, or all are the same.")


ARGUMENTS = (OracleCritiqueArguments,)


def main(args: OracleCritiqueArguments):
    template = read_template(args.critic_prompt_file, CRITIC_PROMPT, PLACEHOLDERS)
    rows = args.load(*PAIR_COLUMNS)
    check_rows(rows, lambda row: [messages_for_critic(prompt_of(row), response_of(row, side)) for side in SIDES])
    replaced = [name for name in FEEDBACK_COLUMNS if name in rows.column_names]
    if replaced:
        print(f"The new critiques replace the dataset's {' and '.join(replaced)}.")
    sampling = {"temperature": args.temperature, "top_p": args.top_p}
    settings = {
        "builder": "oracle critiques",
        **args.describe(rows, PAIR_COLUMNS),
        "critic_prompt": template,
        **sampling,
        "max_tokens": args.max_tokens,
        "longer_tries": args.longer_tries,
        "num_critiques": args.num_critiques,
        "seed": args.seed,
    }
    folder = DatasetFolder(args.output_dir, "Oracle critiques", settings)
    kind = Value("string") if args.num_critiques == 1 else List(Value("string"))
    features = Features({**rows.features, **{f"{side}_feedback": kind for side in SIDES}})

    def make_work(critic: JournaledClient):
        return lambda row: criticise(row, critic, template, sampling, args)

    run_builder(
        build_dataset(folder, rows, features, {"critic": args.client(args.base_url, args.model)}, make_work), folder
    )
    if args.push_to_hub:
        folder.push(args.push_to_hub)


async def criticise(row: dict, critic: JournaledClient, template: str, sampling: dict, args) -> list[dict]:
    """The row with critiques of both responses."""

    async def critique(side: str, number: int) -> str:
        key = [row["id"], side, number]
        messages = messages_for_critic(prompt_of(row), response_of(row, side), template)
        seed = {} if args.seed is None else {"seed": seed_of(args.seed, *key)}
        options = {"max_tokens": args.max_tokens, "longer_tries": args.longer_tries, **sampling, **seed}
        answer = await critic.chat_whole(key, messages, **options)
        if answer.finish_reason in ("length", "no room"):
            raise Dropped(f"a critique is cut, after {args.longer_tries} longer tries")
        return answer.text.strip()

    critiques = await all_of(*(critique(side, number) for side in SIDES for number in range(args.num_critiques)))
    texts = {"chosen": critiques[: args.num_critiques], "rejected": critiques[args.num_critiques :]}
    several = args.num_critiques > 1
    return [{**row, **{f"{side}_feedback": texts[side] if several else texts[side][0] for side in SIDES}}]
