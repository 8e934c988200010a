"""CLoud vs classic: both models on the rows of a benchmark, with the running accuracy."""

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import gradio as gr

from cloud_hf.scores import Sampling, Score
from cloud_hf.spaces_ui import as_text

from . import Problem
from .backend import Backend, Visitor
from .judging import Progress, answers, describe_score, is_integer, judge_pair
from .score_html import card, note, paragraph, show_critiques, side_by_side, status
from .tab_parts import Controls, visitor_of


if TYPE_CHECKING:
    from cloud_hf.evaluation.rows import BenchmarkRow


PairOfScores = tuple[list[Score], list[Score]]

TAB, TITLE = "versus", "CLoud vs classic"


def row_at(backend: Backend, index: int) -> "BenchmarkRow":
    """Return a row by its index. Raises `Problem` if there is none."""
    models = backend.models
    if models.rows_problem is not None:
        raise Problem(models.rows_problem)
    if not models.rows:
        raise Problem("There are no rows; start the demo with --rows, such as runs/quickstart/data/pairs.")
    if not 0 <= index < len(models.rows):
        raise Problem(f"There is no row {index + 1}; there are {len(models.rows)}.")
    return models.rows[index]


def is_right(scores: Sequence[Score]) -> bool:
    """Check that the chosen response has the strictly higher reward."""
    return scores[0].reward > scores[1].reward


def judge_row(backend: Backend, user: Visitor, row: "BenchmarkRow") -> AsyncGenerator[Progress | PairOfScores, None]:
    """Score both responses of a row with both models, one critique each at temperature 0."""
    sampling = Sampling(max_new_tokens=backend.args.max_new_tokens)
    return judge_pair(backend, user, row.prompt, row.responses, sampling)


def build(backend: Backend) -> dict[str, gr.Textbox]:
    """Make the tab's content. No link leads to it."""
    gr.Markdown("Both models judge the two responses of a benchmark row. The chosen one must get the higher reward.")
    controls = Controls(backend, "versus")
    with gr.Row():
        previous = gr.Button("Previous", elem_id="versus-previous")
        following = gr.Button("Next", variant="primary", elem_id="versus-next")
        anyone = gr.Button("Random", elem_id="versus-random")
        controls.stop_button()
    controls.said.render()
    tally = gr.HTML(elem_id="versus-tally")
    controls.result.render()
    # The index of the shown row, and for each judged row which models were right
    place, outcomes = gr.State(-1), gr.State({})
    outputs = [controls.said, tally, controls.result, place, outcomes]

    def go_to(index_of: Callable[[int, int], int]) -> Callable[..., AsyncGenerator]:
        async def go(request: gr.Request, place, outcomes):
            count = len((await backend.loaded()).rows)
            index = index_of(place, count) if count else 0
            row = row_at(backend, index)
            yield status("Asking the models…"), gr.skip(), _show_row(row, index, count), index, outcomes
            async with aclosing(judge_row(backend, visitor_of(request), row)) as steps:
                async for step in steps:
                    if isinstance(step, Progress):
                        yield status(step.words), *[gr.skip()] * 4
                    else:
                        known = outcomes | {index: tuple(map(is_right, step))}
                        yield status("Done."), _show_tally(known), _show_row(row, index, count, step), index, known

        return go

    for button, index_of in (
        (previous, lambda place, count: (max(place, 0) - 1) % count),
        (following, lambda place, count: (place + 1) % count),
        (anyone, lambda place, count: random.randrange(count)),
    ):
        controls.start_on([button.click], go_to(index_of), [place, outcomes], outputs)
    return {}


def endpoints(backend: Backend) -> list[Callable]:
    """Make the endpoint `/versus`."""

    async def versus(request: gr.Request, row: int = 1) -> dict:
        """
        Judge a row of the benchmark, from 1, with both models. Returns its id, prompt and responses (the chosen one first),
        and for cloud and classic the scores and whether they are right.
        """
        if not is_integer(row):
            raise Problem("`row` must be a whole number, from 1.")
        await backend.loaded()
        shown = row_at(backend, int(row) - 1)
        known = {"id": shown.id, "prompt": shown.prompt, "responses": list(shown.responses)}
        steps = judge_row(backend, visitor_of(request), shown)
        async for answer in answers(steps, lambda found: known | _describe_pair(backend, found)):
            yield answer

    return [versus]


def _describe_pair(backend: Backend, found: PairOfScores) -> dict[str, Any]:
    # The distribution is that of the first model
    return {
        name: {
            "right": is_right(scores),
            "scores": [describe_score(backend, score, name == "cloud") for score in scores],
        }
        for name, scores in zip(("cloud", "classic"), found, strict=True)
    }


# -------------------------------------------------------------------------------------------------------------- HTML


def _show_row(row: "BenchmarkRow", index: int, count: int, found: PairOfScores | None = None) -> str:
    responses = [
        card(side, paragraph(response) if response else note("(empty)"))
        for side, response in zip(("Chosen", "Rejected"), row.responses, strict=True)
    ]
    judged = "" if found is None else side_by_side(map(_show_model, ("CLoud", "Classic"), found))
    title = f"Row {index + 1} of {count} · {as_text(row.id)}"
    return f"<h3>{title}</h3>{_show_prompt(row.prompt)}{side_by_side(responses)}{judged}"


def _show_model(name: str, scores: Sequence[Score]) -> str:
    parts = [
        f"<h4>{side}: {score.reward:+.3f}</h4>{show_critiques(score) if score.critique else ''}"
        for side, score in zip(("Chosen", "Rejected"), scores, strict=True)
    ]
    return card(f"{name}: {_mark(scores)}", "".join(parts))


def _show_prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return paragraph(prompt)
    messages = prompt["messages"] if isinstance(prompt, dict) else prompt
    return "".join(f"<h4>{as_text(turn['role'])}</h4>{paragraph(str(turn.get('content') or ''))}" for turn in messages)


def _mark(scores: Sequence[Score]) -> str:
    if is_right(scores):
        return '<span class="good">✓ right</span>'
    tie = " (a tie)" if scores[0].reward == scores[1].reward else ""
    return f'<span class="bad">✗ wrong{tie}</span>'


def _show_tally(outcomes: dict[int, tuple[bool, bool]]) -> str:
    count = len(outcomes)
    shares = [
        f"{name} {right} of {count} ({100 * right / count:.0f} %)"
        for name, right in zip(("CLoud", "classic"), map(sum, zip(*outcomes.values(), strict=True)), strict=True)
    ]
    return note(f"Right so far, over the rows you have seen: {', '.join(shares)}.")
