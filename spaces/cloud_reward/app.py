"""
CLoud reward in a browser: score predictions for prompts, and show the mean reward and each reward with its spread and critiques.

python spaces/cloud_reward/app.py --model runs/quickstart/cloud
python spaces/cloud_reward/app.py --model runs/quickstart/cloud --backend server --server_url http://127.0.0.1:8000

On a Space, set the options as environment variables: CLOUD_MODEL, CLOUD_BACKEND, CLOUD_SERVER_URL, ...
"""

import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import evaluate
import gradio as gr
import pandas as pd

from cloud_hf import spaces_ui as ui
from cloud_hf.argument_help import documented
from cloud_hf.cli import parse, run
from cloud_hf.scoring import Scorer
from cloud_hf.serving.backends import BackendArguments, open_backend
from cloud_hf.serving.client import CLoudClient, RewardServerError


# Load the module from its file: given a folder, `evaluate` looks for a module with the folder's name, but a Space's folder may have
# another name
MODULE = str(Path(__file__).with_name("cloud_reward.py"))
TITLE = "CLoud reward"
INTRODUCTION = """
# CLoud reward

A CLoud reward model writes a critique of each response and computes the reward at the end of the critique. With several critiques
per response, the rewards are averaged, and their spread shows how much the reward depends on the critique.
"""
EXAMPLES = [
    'prompt,prediction\nWhat is 2+2?,4\nWhat is 2+2?,5\nName a river in Egypt.,"The Nile, which flows north."',
    '{"prompt": "The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?", '
    '"prediction": "The answer is B."}\n'
    '{"prompt": "The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?", '
    '"prediction": "The answer is A."}',
]


@documented
@dataclass
class SpaceArguments:
    """
    Space options.

    Parameters:
        model (`str`, *optional*):
            Hub id or folder of a CLoud or classic model.
        max_rows (`int`, *optional*, defaults to `200`):
            Maximum number of rows per run.
    """

    model: str | None = None
    max_rows: int = 200


OPTIONS = (SpaceArguments, BackendArguments)


def read_arguments(command_line: Sequence[str]) -> tuple[SpaceArguments, BackendArguments]:
    """Parse the command line. Options that it omits are read from environment variables."""
    names = [option.name for arguments in OPTIONS for option in fields(arguments)]
    given = {name: os.environ.get(f"CLOUD_{name.upper()}") for name in names}
    environment = [part for name, value in given.items() if value for part in (f"--{name}", value)]
    space, backend = parse(OPTIONS, [*environment, *command_line], description=__doc__)
    return space, backend


# ------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Judge:
    """A loaded model and the limits of this Space. `context` is the model's context length in tokens, which limits prompt, response
    and critique together."""

    name: str
    scorer: Scorer
    writes_critiques: bool
    context: int | None
    server_url: str | None
    max_rows: int

    @property
    def usual_tokens(self) -> int:
        """Default token limit for a critique."""
        return 1024 if self.context is None else min(1024, self.context // 2)

    def compute(
        self,
        prompts: list,
        predictions: list,
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """
        Compute rewards with the module cloud_reward. prompts: strings, or chats (lists of messages with role and content);
        predictions: one response to each prompt; num_critiques: critiques per response (more than 1 requires a temperature
        above 0); max_new_tokens: maximum critique length in tokens; seed (optional): makes sampling repeatable.
        """
        with ui.user_errors(RuntimeError):
            check_columns(prompts, predictions, self.max_rows)
            if seed is not None and not isinstance(seed, int):
                raise ValueError(f"`seed` is {seed!r:.60}; give an integer, or leave it out.")
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
    """Check the types and lengths of the columns. The module checks each row."""
    for name, values in (("prompts", prompts), ("predictions", predictions)):
        if not isinstance(values, list) or not values:
            raise ValueError(f"`{name}` is {values!r:.60}; give a list with one entry per response to judge.")
    if len(prompts) != len(predictions):
        raise ValueError(f"{len(prompts)} prompts but {len(predictions)} predictions; give the same number of each.")
    if len(predictions) > max_rows:
        raise ValueError(
            f"There are {len(predictions)} rows, but this Space accepts at most {max_rows} per run (`max_rows`)."
        )


def check_server(url: str):
    """Raise `ValueError` immediately if the server is down. The client alone would first retry for a while."""
    try:
        CLoudClient(url).served_model()
    except RewardServerError as error:
        raise ValueError(f"The reward server at {url} does not respond. Start it, or try again later.") from error


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
    """Score a table. Returns updates in the order of the page's outputs: results column, rewards, histogram and download."""
    with ui.user_errors():
        columns = ui.read_table(text if file is None else ui.read_text(file), ("prompt", "prediction"))
    prompts, predictions = columns["prompt"], columns["prediction"]
    results = judge.compute(prompts, predictions, num_critiques, temperature, max_new_tokens, seed)
    return (
        gr.Column(visible=True),
        list_rewards(prompts, predictions, results),
        plot_rewards(results["rewards"]),
        write_download(downloads, prompts, predictions, results),
    )


def list_rewards(prompts: list, predictions: list[str], results: dict) -> str:
    """Show the mean reward and a table with one row per response."""
    columns = ("rewards", "reward_stds", "critiques", "finish_reasons")
    scores = zip(*(results[column] for column in columns), strict=True)
    rows = [
        (
            row,
            reward_text(reward),
            reward_text(std),
            critiques_text(critiques),
            ends_text(ends),
            prompt_text(prompt),
            text,
        )
        for row, (prompt, text, (reward, std, critiques, ends)) in enumerate(
            zip(prompts, predictions, scores, strict=True)
        )
    ]
    header = ("Row", "Reward", "Spread", "Critique", "Ended", "Prompt", "Prediction")
    responses = "1 response" if len(rows) == 1 else f"{len(rows)} responses"
    return (
        f"<p>Mean reward of {responses}: <strong>{reward_text(results['mean_reward'])}</strong></p>"
        + ui.make_table("Rewards and critiques", header, rows)
    )


def reward_text(reward: float) -> str:
    """Format a reward with four significant digits."""
    return f"{reward:.4g}".replace("-", "−")


def prompt_text(prompt: str | list[dict]) -> str:
    """Format a prompt, with one line per message of a chat."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def critiques_text(critiques: list[str]) -> str:
    """Show the first critique, and count the others."""
    more = f"\n(and {len(critiques) - 1} more, in the download)" if len(critiques) > 1 else ""
    return f"{critiques[0]}{more}"


def ends_text(finish_reasons: list[str]) -> str:
    """Count the critiques that were truncated at the token budget."""
    cut = finish_reasons.count("length")
    return f"{cut} of {len(finish_reasons)} truncated" if cut else "on its own"


def plot_rewards(rewards: list[float]) -> gr.BarPlot:
    """Draw a histogram with about ten bars."""
    finite = [reward for reward in rewards if math.isfinite(reward)]
    spread = max(finite, default=0.0) - min(finite, default=0.0)
    table = pd.DataFrame({"reward": finite, "responses": 1})
    return gr.BarPlot(table, x_bin=spread / 10 if spread > 0 else 1.0, y_lim=[0, None])


def write_download(downloads: Path, prompts: list, predictions: list[str], results: dict) -> str:
    """Write all rows with all critiques as JSON lines. Returns the path."""
    columns = {"reward": "rewards", "reward_std": "reward_stds", "critiques": "critiques"}
    columns["finish_reasons"] = "finish_reasons"
    path = Path(mkdtemp(dir=downloads)) / "cloud_reward.jsonl"
    with path.open("w", encoding="utf8") as file:
        for row, (prompt, prediction) in enumerate(zip(prompts, predictions, strict=True)):
            values = {name: results[column][row] for name, column in columns.items()}
            file.write(json.dumps({"prompt": prompt, "prediction": prediction, **values}, ensure_ascii=False) + "\n")
    return str(path)


def build(judge: Judge, downloads: Path) -> gr.Blocks:
    """Build the page; `downloads` is the folder for downloadable files."""
    with gr.Blocks(title=TITLE, analytics_enabled=ui.analytics_wanted()) as page:
        gr.Markdown(INTRODUCTION)
        kind = "a CLoud model" if judge.writes_critiques else "a classic model, which writes no critiques"
        gr.HTML(f"<p>The judge: <strong>{ui.as_text(judge.name)}</strong>, {kind}.</p>", padding=False)
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
                file = ui.upload_box()
                sliders = sampling_options(judge)
                button = gr.Button("Compute", variant="primary")
        status = gr.HTML(min_height=40)
        with gr.Column(visible=False) as results:
            outputs = [
                results,
                gr.HTML(label="Rewards", padding=False),
                gr.BarPlot(
                    x="reward", y="responses", y_aggregate="sum", x_title="reward", y_title="responses", height=260
                ),
                gr.DownloadButton("Download rewards and critiques (JSON lines)"),
            ]
        ui.compute_on(
            [button.click, text.submit],
            lambda *values: show(judge, downloads, *values),
            [text, file, *sliders],
            outputs,
            show_progress_on=status,
            concurrency_id="judge",
        )
        gr.api(judge.compute, api_name="compute", concurrency_id="judge")
    return page


def sampling_options(judge: Judge) -> list[gr.components.Component]:
    """Create the inputs for critiques, temperature, length and seed; they are hidden for a classic model."""
    with gr.Group(visible=judge.writes_critiques):
        return [
            gr.Slider(1, 16, value=1, step=1, label="Critiques per response"),
            gr.Slider(
                0, 2, value=0, step=0.1, label="Temperature", info="Several critiques need a temperature above 0."
            ),
            gr.Slider(
                1, judge.context or 8192, value=judge.usual_tokens, step=1, label="Maximum critique length in tokens"
            ),
            gr.Number(0, label="Seed", precision=0),
        ]


def build_refusal(reason: str) -> gr.Blocks:
    """Build a page that explains why there is no judge."""
    with gr.Blocks(title=TITLE, analytics_enabled=ui.analytics_wanted()) as page:
        gr.Markdown(INTRODUCTION)
        gr.HTML(
            f'<p role="alert"><strong>There is no judge.</strong> {ui.as_text(reason)}</p><p>Start this app with another '
            "<code>--model</code>, or set the Space's variable <code>CLOUD_MODEL</code>.</p>"
        )
    return page


def open_page(stack: ExitStack, space: SpaceArguments, backend: BackendArguments) -> gr.Blocks:
    """Build the model's page, or a page that explains why the model cannot be opened."""
    downloads = Path(stack.enter_context(TemporaryDirectory()))
    if space.model is None:
        return build_refusal("No model was given.")
    try:
        scorer, critique_format, context = stack.enter_context(open_backend(space.model, backend, show_progress=False))
    except (ValueError, OSError, RuntimeError) as error:
        return build_refusal(str(error))
    judge = Judge(space.model, scorer, critique_format.critique, context, backend.server_url, space.max_rows)
    return build(judge, downloads)


def main(arguments: Sequence[str]):
    """Serve the page until the process is told to stop."""
    with ExitStack() as stack:
        open_page(stack, *read_arguments(arguments)).queue(max_size=20).launch(**ui.launch_options())


if __name__ == "__main__":
    run("app")
