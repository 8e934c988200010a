"""CLoud vs classic: both models on the rows of a benchmark, with the running accuracy."""

import random
from typing import TYPE_CHECKING, Any

import gradio as gr

from .backend import Backend
from .judgements import show_critiques
from .judging import Judging, Options, Waiting, judge_pair
from .markup import escape, note, paragraph, status
from .problems import Problem, in_words
from .stopping import Runs


if TYPE_CHECKING:
    from cloud_hf.evaluation.rows import BenchmarkRow
    from cloud_hf.scoring import Score


def row_at(backend: Backend, index: int) -> "BenchmarkRow":
    """A row by its place, from 0. Raises `Problem` if it is not there."""
    models = backend.models
    if models.rows_problem is not None:
        raise Problem(models.rows_problem)
    if not models.rows:
        raise Problem("There are no rows; start the demo with --rows, such as runs/quickstart/data/pairs.")
    if not 0 <= index < len(models.rows):
        raise Problem(f"There is no row {index + 1}; there are {len(models.rows)}.")
    return models.rows[index]


def is_right(scores: list["Score"]) -> bool:
    """Whether the chosen response has the strictly higher reward."""
    return scores[0].reward > scores[1].reward


def build(backend: Backend):
    """The tab's content."""
    gr.Markdown("Both models judge the two responses of a benchmark row. The chosen one must get the higher reward.")
    with gr.Row():
        previous = gr.Button("Previous", elem_id="versus-previous")
        following = gr.Button("Next", variant="primary", elem_id="versus-next")
        anyone = gr.Button("Random", elem_id="versus-random")
        stop = gr.Button("Stop", elem_id="versus-stop")
    said = gr.HTML(elem_id="versus-status", elem_classes="said")
    tally = gr.HTML(elem_id="versus-tally")
    result = gr.HTML(elem_id="versus-result", elem_classes="result")
    # The place of the row that is shown, and for each row that was judged which models were right
    place, outcomes = gr.State(-1), gr.State({})

    async def go(request: gr.Request, place, outcomes, index):
        await backend.loaded()
        row = row_at(backend, index)
        options = Options(1, 0.0, backend.args.max_new_tokens)
        yield status("Asking the models…"), gr.skip(), _show_row(row, index, len(backend.models.rows)), index, outcomes
        async for step in judge_pair(backend, request.session_hash, row.prompt, row.responses, options):
            if isinstance(step, Waiting):
                yield status(step.words), *[gr.skip()] * 4
            elif isinstance(step, Judging):
                yield status(f"The models judge: {step.done} of {step.of} done…"), *[gr.skip()] * 4
            else:
                outcomes = outcomes | {index: tuple(map(is_right, step))}
                shown = _show_row(row, index, len(backend.models.rows), step)
                yield status("Done."), _show_tally(outcomes), shown, index, outcomes

    async def go_to_next(request: gr.Request, place, outcomes):
        count = len((await backend.loaded()).rows)
        async for update in go(request, place, outcomes, (place + 1) % count if count else 0):
            yield update

    async def go_to_previous(request: gr.Request, place, outcomes):
        count = len((await backend.loaded()).rows)
        async for update in go(request, place, outcomes, (max(place, 0) - 1) % count if count else 0):
            yield update

    async def go_anywhere(request: gr.Request, place, outcomes):
        count = len((await backend.loaded()).rows)
        async for update in go(request, place, outcomes, random.randrange(count) if count else 0):
            yield update

    runs = Runs(said)
    for button, handler in ((previous, go_to_previous), (following, go_to_next), (anyone, go_anywhere)):
        button.click(
            in_words(runs.stoppable(handler), said),
            [place, outcomes],
            [said, tally, result, place, outcomes],
            show_progress="hidden",
            trigger_mode="once",
            api_visibility="private",
        )
    stop.click(runs.stop, queue=False, api_visibility="private")


def _show_row(
    row: "BenchmarkRow", index: int, count: int, found: tuple[list["Score"], list["Score"]] | None = None
) -> str:
    judged = ""
    if found is not None:
        judged = "".join(
            f'<section class="card"><h3>{name}: {_mark(is_right(scores), scores)}</h3>'
            + "".join(
                f"<h4>{side}: {score.reward:+.3f}</h4>{show_critiques(score) if score.critique else ''}"
                for side, score in zip(("Chosen", "Rejected"), scores, strict=True)
            )
            + "</section>"
            for name, scores in zip(("CLoud", "Classic"), found, strict=True)
        )
        judged = f'<div class="cards">{judged}</div>'
    responses = "".join(
        f'<section class="card"><h3>{side}</h3>{paragraph(response) if response else note("(empty)")}</section>'
        for side, response in zip(("Chosen", "Rejected"), row.responses, strict=True)
    )
    title = f"Row {index + 1} of {count} · {escape(row.id)}"
    return f'<h3>{title}</h3>{_show_prompt(row.prompt)}<div class="cards">{responses}</div>{judged}'


def _show_prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return paragraph(prompt)
    messages = prompt["messages"] if isinstance(prompt, dict) else prompt
    return "".join(f"<h4>{escape(turn['role'])}</h4>{paragraph(str(turn.get('content') or ''))}" for turn in messages)


def _mark(right: bool, scores: list["Score"]) -> str:
    if right:
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
