"""Score a single response given on the command line, or many responses from a JSON-lines file."""

import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..argument_help import check_bounds, documented
from ..critique_format import CritiqueFormat
from ..data.column_forms import WITH_TOOLS, read_column
from ..data.row_values import judged_chat, prompt_of, response_of
from ..loading import tokenizer_source
from ..prompts import read_prompt
from ..scalar_models import ScalarFormat, is_scalar_model, stand_in_config
from ..scores import Sampling, Score
from ..scoring import read_request
from ..serving.backends import AnyModelArguments, open_any_model


# Keys of the output; a row that was scored before may already have them
_RESULTS = ("reward", "critique", "finish_reason", "rewards", "critiques", "partial_rewards")
# Control characters that JSON does not escape, but that terminals interpret
_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


@documented
@dataclass(kw_only=True)
class ScoreArguments(AnyModelArguments):
    """
    Model, responses and sampling options. Extends [`AnyModelArguments`].

    Parameters:
        model (`str`):
            Hub id or folder of a CLoud model, a classic model, a LoRA adapter, or a scalar model (`*ForSequenceClassification`).
        prompt (`str`, *optional*):
            The user's message. Needs `response`.
        response (`str`, *optional*):
            The response to score.
        input (`str`, *optional*):
            JSON-lines file with the keys `prompt` and `response`, in any form that preference sets may have; `-` reads standard input.
        output (`str`, *optional*, defaults to `"-"`):
            JSON-lines file to write the rows to, with their `reward` and `critique`, which replace those of an earlier scoring; `-` writes
            to standard output.
        num_critiques (`int`, *optional*, defaults to `1`):
            Critiques per response; their rewards are averaged. More than one needs a `temperature` above 0.
        temperature (`float`, *optional*, defaults to `0.0`):
            Sampling temperature; 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Maximum length of a critique in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Sampling seed.
        read_every (`int`, *optional*):
            Also read the reward at every `read_every`-th token of a critique; the output then has `partial_rewards`.
        stop_when_stable (`float`, *optional*):
            End a critique once its last three partial rewards differ by less than this. Needs `read_every`; not
            available with vLLM.
    """

    model: str
    prompt: str | None = None
    response: str | None = None
    input: str | None = None
    output: str = "-"
    num_critiques: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 1024
    seed: int = 0
    read_every: int | None = None
    stop_when_stable: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_bounds(self, batch_size=1, num_critiques=1, max_new_tokens=1, seed=0)
        if (self.prompt is None) != (self.response is None) or (self.prompt is None) == (self.input is None):
            raise ValueError("Set `prompt` and `response`, or `input`.")
        self.check_temperature(self.temperature)
        self.check_partial_rewards([self.model], self.read_every, self.stop_when_stable)


ARGUMENTS = (ScoreArguments,)


def main(args: ScoreArguments):
    name = "the command line" if args.input is None else "standard input" if args.input == "-" else args.input
    rows: list[dict[str, Any]] = [{"prompt": args.prompt, "response": args.response}]
    if args.input is not None:
        rows = read_rows(args.input, name)
    if args.output != "-" and not Path(args.output).absolute().parent.is_dir():
        raise ValueError(f"`output` is {args.output}, but its folder does not exist.")
    if Path(args.output).is_dir():
        raise ValueError(f"`output` is {args.output}, which is a folder; give the name of a file.")
    sampling = Sampling(**{option.name: getattr(args, option.name) for option in fields(Sampling)})
    prompts, responses = zip(*map(read_chat, rows), strict=True)
    has_critique = check_chats(list(prompts), list(responses), name, args, sampling)
    # Standard output is reserved for the scores
    with contextlib.redirect_stdout(sys.stderr), open_any_model(args.model, args) as (scorer, *_):
        scores = scorer.score(list(prompts), list(responses), **asdict(sampling))
    given = [{}] if args.input is None else [{key: row[key] for key in row if key not in _RESULTS} for row in rows]
    results = [summary(score, has_critique) for score in scores]
    write_rows(args.output, [row | result for row, result in zip(given, results, strict=True)])
    if args.output != "-":
        print(f"Wrote {len(rows)} rows with their rewards to {args.output}.", file=sys.stderr)


def read_rows(path: str, name: str) -> list[dict[str, Any]]:
    """
    Read rows from JSON lines. Raises `ValueError` if a line is not a JSON object with a usable `prompt` and `response`. The message names
    the row, counting from 0 and skipping blank lines.
    """
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf8") as file:
        lines = [line for line in file if line.strip()]
    rows = [_read_row(line, f"{name}: Row {index}") for index, line in enumerate(lines)]
    if not rows:
        raise ValueError(f"{name} has no rows.")
    return rows


def _read_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} is {line.strip():.60}; give an object with the keys `prompt` and `response`.")
    for key in ("prompt", "response"):
        if key not in row:
            raise ValueError(f"{place} has no `{key}`.")
    try:
        read_prompt(read_chat(row)[0])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return row


def read_chat(row: dict[str, Any]) -> tuple[Any, Any]:
    """Return the prompt and the response of a row in the form that [`Scorer`] accepts."""
    kind, prompt = read_column(row["prompt"], "prompt")
    given = prompt_of(row if kind == WITH_TOOLS else {**row, "prompt": prompt})
    return judged_chat(given, response_of(row, "response", allow_empty=True))


def check_chats(prompts: list, responses: list, name: str, args: ScoreArguments, sampling: Sampling) -> bool:
    """
    Check the model, chats and options, using only the config and the tokenizer, which is much faster than loading the weights. Return
    whether the model writes critiques.
    """
    args.check_models([args.model])
    config = args.read_config(args.model)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_source(args.model), trust_remote_code=args.trust_remote_code)
    if is_scalar_model(config):
        config, critique_format = stand_in_config(config), ScalarFormat(tokenizer, args.model)
    else:
        critique_format = CritiqueFormat.from_config(config, tokenizer)
    try:
        read_request(critique_format, config, prompts, responses, sampling)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return critique_format.critique


def summary(score: Score, has_critique: bool) -> dict[str, Any]:
    """Return a score in JSON form. `rewards` and `critiques` are included only if there are several critiques."""
    found: dict[str, Any] = {"reward": score.reward}
    if has_critique:
        found |= {"critique": score.critique, "finish_reason": score.finish_reasons[0]}
    if len(score.rewards) > 1:
        found |= {"rewards": list(score.rewards), "critiques": list(score.critiques)}
    if score.partial_rewards:
        found["partial_rewards"] = [list(rewards) for rewards in score.partial_rewards]
    return found


def write_rows(path: str, rows: Iterable[dict[str, Any]]):
    """Write JSON lines to a file, or to standard output if `path` is `-`."""
    with contextlib.nullcontext(sys.stdout) if path == "-" else open(path, "w", encoding="utf8") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False).translate(_CONTROLS)
            # A surrogate without its partner, which UTF-8 lacks, becomes JSON's escape for it
            file.write(line.encode("utf8", "backslashreplace").decode() + "\n")
