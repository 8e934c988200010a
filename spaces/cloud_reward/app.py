"""
CLoud reward in a browser: prompts and predictions in; the mean reward, each reward, its spread and its critiques out.

python spaces/cloud_reward/app.py --model runs/quickstart/cloud
python spaces/cloud_reward/app.py --model runs/quickstart/cloud --backend server --server_url http://127.0.0.1:8000

Each option can also be an environment variable, as a Space wants it: CLOUD_MODEL, CLOUD_BACKEND, CLOUD_SERVER_URL, ...
"""

import json
import math
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import evaluate
import gradio as gr
import httpx
import pandas as pd
from transformers import HfArgumentParser

from cloud_hf.scoring import Scorer
from cloud_hf.serving.backends import BackendArguments, open_backend
from cloud_hf.spaces_ui import (
    analytics_wanted,
    as_text,
    in_our_words,
    launch_options,
    make_table,
    read_table,
    read_text,
)


# By its file: a Space's folder has another name than its module
MODULE = str(Path(__file__).with_name("cloud_reward.py"))
TITLE = "CLoud reward"
INTRODUCTION = """
# CLoud reward

What a reward model thinks of responses: it writes a critique of each, and reads the reward at the critique's end. With several
critiques their rewards are averaged, and their spread says how sure the model is.
"""
EXAMPLES = [
    'prompt,prediction\nWhat is 2+2?,4\nWhat is 2+2?,5\nName a river in Egypt.,"The Nile, which flows north."',
    '{"prompt": "The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?", '
    '"prediction": "The answer is B."}\n'
    '{"prompt": "The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?", '
    '"prediction": "The answer is A."}',
]


@dataclass
class SpaceArguments:
    """
    What the Space shows.

    Args:
        model (`str`, *optional*):
            Hub id or folder of a CLoud or classic model.
        max_rows (`int`, *optional*, defaults to `200`):
            Most rows that one run may have.
    """

    model: str | None = field(default=None, metadata={"help": "Hub id or folder of a CLoud or classic model."})
    max_rows: int = field(default=200, metadata={"help": "Most rows that one run may have."})


ARGUMENTS = (SpaceArguments, BackendArguments)


def read_arguments(command_line: list[str]) -> tuple[SpaceArguments, BackendArguments]:
    """The options of the command line and, behind them, of the environment."""
    names = [option.name for arguments in ARGUMENTS for option in fields(arguments)]
    given = {name: os.environ.get(f"CLOUD_{name.upper()}") for name in names}
    environment = [part for name, value in given.items() if value for part in (f"--{name}", value)]
    return HfArgumentParser(ARGUMENTS).parse_args_into_dataclasses([*environment, *command_line])


# ------------------------------------------------------------------------------------------------------- the numbers


@dataclass(frozen=True)
class Judge:
    """
    A model that is open, and the limits of this Space.

    Args:
        name (`str`):
            Hub id or folder.
        scorer ([`~cloud_hf.scoring.Scorer`]):
            Any backend.
        writes_critiques (`bool`):
            Whether it is a CLoud model, not a classic one.
        context (`int`, *optional*):
            Tokens it may read, critique included.
        server_url (`str`, *optional*):
            The reward server behind the scorer.
        max_rows (`int`):
            Most rows of a run.
    """

    name: str
    scorer: Scorer
    writes_critiques: bool
    context: int | None
    server_url: str | None
    max_rows: int

    @property
    def usual_tokens(self) -> int:
        """The longest critique that the page proposes."""
        return 1024 if self.context is None else min(1024, self.context // 2)

    def compute(
        self,
        prompts: list,
        predictions: list,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int | None = None,
        seed: int | None = None,
    ) -> dict[str, object]:
        """
        All that the module cloud_reward gives. prompts: strings, or chats of messages with role and content; predictions: one
        response for each; num_critiques above 1 needs a temperature above 0; max_new_tokens: longest critique; seed
        (optional): makes sampling repeatable.
        """
        with in_our_words(RuntimeError):
            check_columns(prompts, predictions, self.max_rows)
            if seed is not None and not isinstance(seed, int):
                raise ValueError(f"`seed` is {seed!r:.60}; it is a whole number, or left out.")
            if self.server_url is not None:
                check_server(self.server_url)
            module = evaluate.load(MODULE, model=self.scorer, keep_in_memory=True)
            return module.compute(
                prompts=prompts,
                predictions=predictions,
                num_critiques=num_critiques,
                temperature=temperature,
                max_new_tokens=self.usual_tokens if max_new_tokens is None else max_new_tokens,
                seed=seed,
            )


def check_columns(prompts: list, predictions: list, max_rows: int):
    """Refuse what this Space does not take; the module checks each row."""
    for name, values in (("prompts", prompts), ("predictions", predictions)):
        if not isinstance(values, list) or not values:
            raise ValueError(f"`{name}` is {values!r:.60}; give a list with one entry per response to judge.")
    if len(prompts) != len(predictions):
        raise ValueError(f"{len(prompts)} prompts but {len(predictions)} predictions; give as many of each.")
    if len(predictions) > max_rows:
        raise ValueError(
            f"These are {len(predictions)} rows; this Space takes up to {max_rows} at a time (`max_rows`)."
        )


def check_server(url: str):
    """Say at once that a server is down, before its client tries again and again."""
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise ValueError(f"The reward server at {url} does not answer. Start it, or try again later.") from error


# ------------------------------------------------------------------------------------------------------- on the page


def show(
    judge: Judge,
    downloads: Path,
    text: str,
    file: str | None,
    num_critiques: int,
    temperature: float,
    max_new_tokens: int,
    seed: int | None,
):
    """What the button does: mean, table, histogram and download."""
    with in_our_words():
        columns = read_table(text if file is None else read_text(file), ("prompt", "prediction"))
    prompts, predictions = columns["prompt"], columns["prediction"]
    results = judge.compute(prompts, predictions, num_critiques, temperature, max_new_tokens, seed)
    return (
        gr.Column(visible=True),
        list_rewards(prompts, predictions, results),
        plot_rewards(results["rewards"]),
        write_download(downloads, prompts, predictions, results),
    )


def list_rewards(prompts: list, predictions: list[str], results: dict) -> str:
    """The mean, and a table with a row for each response."""
    rows = [
        (
            row,
            reward_text(reward),
            reward_text(spread),
            critiques_text(critiques),
            ends_text(ends),
            prompt_text(prompt),
            prediction,
        )
        for row, (prompt, prediction, reward, spread, critiques, ends) in enumerate(
            zip(
                prompts,
                predictions,
                results["rewards"],
                results["reward_stds"],
                results["critiques"],
                results["finish_reasons"],
                strict=True,
            )
        )
    ]
    header = ("Row", "Reward", "Spread", "Critique", "Ended", "Prompt", "Prediction")
    responses = "1 response" if len(rows) == 1 else f"{len(rows)} responses"
    return f"<p>Mean reward of {responses}: <strong>{reward_text(results['mean_reward'])}</strong></p>" + make_table(
        "Rewards and critiques", header, rows
    )


def reward_text(reward: float) -> str:
    return f"{reward:.4g}".replace("-", "−")


def prompt_text(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def critiques_text(critiques: list[str]) -> str:
    more = f"\n(and {len(critiques) - 1} more, in the download)" if len(critiques) > 1 else ""
    return f"{critiques[0]}{more}"


def ends_text(finish_reasons: list[str]) -> str:
    """Whether critiques were cut at the token budget."""
    cut = finish_reasons.count("length")
    return f"{cut} of {len(finish_reasons)} cut" if cut else "by itself"


def plot_rewards(rewards: list[float]) -> gr.BarPlot:
    """A histogram of about ten bars."""
    finite = [reward for reward in rewards if math.isfinite(reward)]
    spread = max(finite, default=0.0) - min(finite, default=0.0)
    table = pd.DataFrame({"reward": finite, "responses": 1})
    return gr.BarPlot(table, x_bin=spread / 10 if spread > 0 else 1.0, y_lim=[0, None])


def write_download(downloads: Path, prompts: list, predictions: list[str], results: dict) -> str:
    """All rows with all their critiques, as JSON lines; the path of the file."""
    names = {
        "rewards": "reward",
        "reward_stds": "reward_std",
        "critiques": "critiques",
        "finish_reasons": "finish_reasons",
    }
    path = Path(mkdtemp(dir=downloads)) / "cloud_reward.jsonl"
    with path.open("w", encoding="utf8") as file:
        for row, (prompt, prediction) in enumerate(zip(prompts, predictions, strict=True)):
            values = {name: results[column][row] for column, name in names.items()}
            file.write(json.dumps({"prompt": prompt, "prediction": prediction, **values}, ensure_ascii=False) + "\n")
    return str(path)


def build(judge: Judge, downloads: Path) -> gr.Blocks:
    """The page; `downloads` is the folder of files that are offered."""
    with gr.Blocks(title=TITLE, analytics_enabled=analytics_wanted()) as page:
        gr.Markdown(INTRODUCTION)
        kind = "a CLoud model" if judge.writes_critiques else "a classic model, which writes no critiques"
        gr.HTML(f"<p>The judge: <strong>{as_text(judge.name)}</strong>, {kind}.</p>", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                text = gr.Textbox(
                    label="Prompts and predictions",
                    info="CSV, JSON lines or JSON with the columns prompt and prediction. Shift + Enter computes.",
                    placeholder="prompt,prediction\nWhat is 2+2?,4",
                    lines=8,
                    max_lines=20,
                )
                gr.Examples(EXAMPLES, [text], label="Examples")
            with gr.Column(scale=1, min_width=300):
                file = gr.File(
                    label="Or a file, which is then read instead",
                    file_types=[".csv", ".tsv", ".txt", ".json", ".jsonl"],
                    height=150,
                )
                with gr.Group(visible=judge.writes_critiques):
                    num_critiques = gr.Slider(1, 16, value=1, step=1, label="Critiques per response")
                    temperature = gr.Slider(
                        0, 2, value=0, step=0.1, label="Temperature", info="Several critiques need one above 0."
                    )
                    longest = judge.context or 8192
                    max_new_tokens = gr.Slider(
                        1, longest, value=judge.usual_tokens, step=1, label="Longest critique in tokens"
                    )
                    seed = gr.Number(0, label="Seed", precision=0)
                button = gr.Button("Compute", variant="primary")
        status = gr.HTML(min_height=40)
        with gr.Column(visible=False) as results:
            rewards = gr.HTML(label="Rewards", padding=False)
            histogram = gr.BarPlot(
                x="reward", y="responses", y_aggregate="sum", x_title="reward", y_title="responses", height=260
            )
            download = gr.DownloadButton("Download rewards and critiques (JSON lines)")
        # What an earlier run found must not stand beside the error of this one
        gr.on(
            [button.click, text.submit],
            lambda: gr.Column(visible=False),
            None,
            results,
            queue=False,
            api_visibility="private",
        ).then(
            lambda *values: show(judge, downloads, *values),
            [text, file, num_critiques, temperature, max_new_tokens, seed],
            [results, rewards, histogram, download],
            show_progress_on=status,
            concurrency_id="judge",
            api_visibility="private",
        )
        gr.api(judge.compute, api_name="compute", concurrency_id="judge")
    return page


def build_refusal(reason: str) -> gr.Blocks:
    """A page that says why there is no judge."""
    with gr.Blocks(title=TITLE, analytics_enabled=analytics_wanted()) as page:
        gr.Markdown(INTRODUCTION)
        gr.HTML(
            f'<p role="alert"><strong>There is no judge.</strong> {as_text(reason)}</p><p>Start this app with another '
            "<code>--model</code>, or set the Space's variable <code>CLOUD_MODEL</code>.</p>"
        )
    return page


def open_page(stack: ExitStack, space: SpaceArguments, backend: BackendArguments) -> gr.Blocks:
    """The page of the model that is asked for, or one that says why it cannot be had."""
    downloads = Path(stack.enter_context(TemporaryDirectory()))
    if space.model is None:
        return build_refusal("No model is named.")
    try:
        scorer, critique_format, context = stack.enter_context(open_backend(space.model, backend, show_progress=False))
    except (ValueError, OSError, RuntimeError) as error:
        return build_refusal(str(error))
    judge = Judge(space.model, scorer, critique_format.critique, context, backend.server_url, space.max_rows)
    return build(judge, downloads)


if __name__ == "__main__":
    with ExitStack() as stack:
        open_page(stack, *read_arguments(sys.argv[1:])).queue(max_size=20).launch(**launch_options())
