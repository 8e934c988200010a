"""Compare: two to eight responses to one prompt, ranked."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from cloud_hf.scores import Score

from . import Problem
from .backend import Backend, preference, rank_of
from .judging import answers, check_texts, describe_score, judge, read_prompt, read_sampling, read_sliders, read_texts
from .score_html import show_ranking, status
from .tab_parts import QUIET, Controls, judging_options, prompt_box, updates_of, visitor_of


TAB, TITLE = "compare", "Compare"
FEWEST, MOST = 2, 8


def check_responses(backend: Backend, responses: list[str]) -> list[str]:
    """Check the responses. Raises `Problem` if they are too few, too many, empty or too long."""
    if not FEWEST <= len(responses) <= MOST:
        raise Problem(f"Give {FEWEST} to {MOST} responses; there are {len(responses)}.")
    for place, response in enumerate(responses, start=1):
        if not response.strip():
            raise Problem(f"Response {place} is empty.")
    check_texts(backend, {f"text of response {place}": text for place, text in enumerate(responses, start=1)})
    return responses


# ----------------------------------------------------------------------------------------------------- response boxes


def show(count: int) -> list:
    """Return the number of boxes, and updates that show that many."""
    return [count, *(gr.update(visible=place < count) for place in range(MOST))]


def remove_last(count: int) -> list:
    """As `show`, with one box fewer but at least two. Hidden boxes are emptied, so that no link carries their text."""
    left = max(count - 1, FEWEST)
    hidden = gr.update(value="", visible=False)
    return [left, *(gr.update(visible=True) if place < left else hidden for place in range(MOST))]


def show_filled(count: int, *values: str) -> list:
    """As `show`, with all boxes that a link has filled."""
    filled = max((place for place, value in enumerate(values, start=1) if value), default=0)
    return show(max(count, filled, FEWEST))


def show_example(prompt: str, responses: list[str]) -> list:
    """Return the prompt, followed by the values of `show` with the responses filled in."""
    values = [*responses, *[""] * MOST][:MOST]
    count = max(FEWEST, len(responses))
    return [prompt, count, *(gr.update(value=text, visible=i < count) for i, text in enumerate(values))]


def _response_boxes() -> tuple[list[gr.Textbox], gr.State]:
    """Make the boxes, and the state that holds how many are shown."""
    boxes = [
        gr.Textbox(
            value="",
            label=f"Response {place}",
            lines=2,
            max_lines=8,
            visible=place <= FEWEST,
            placeholder="Shift + Enter: compare",
        )
        for place in range(1, MOST + 1)
    ]
    shown = gr.State(FEWEST)
    with gr.Row():
        more = gr.Button("Add a response", size="sm", elem_classes="narrow")
        fewer = gr.Button("Remove the last", size="sm", elem_classes="narrow")
    more.click(lambda count: show(min(count + 1, MOST)), shown, [shown, *boxes], queue=False, **QUIET)
    fewer.click(remove_last, shown, [shown, *boxes], queue=False, **QUIET)
    boxes[FEWEST].change(show_filled, [shown, *boxes], [shown, *boxes], queue=False, **QUIET)
    return boxes, shown


# --------------------------------------------------------------------------------------------------- tab and endpoint


def build(backend: Backend) -> dict[str, gr.Textbox]:
    """Make the tab's content. Returns the texts that a link to it carries."""
    controls = Controls(backend, "compare")
    with gr.Row():
        with gr.Column():
            prompt = prompt_box()
            boxes, shown = _response_boxes()
            options = judging_options(backend)
            run = controls.run_button("Compare")
            texts = {"prompt": prompt} | {f"response {place}": box for place, box in enumerate(boxes, start=1)}
            controls.example_and_link(TAB, texts, show_example, [prompt, shown, *boxes])
        with gr.Column():
            controls.show_results()

    async def run_compare(request: gr.Request, prompt, count, num_critiques, temperature, max_new_tokens, *responses):
        sampling = read_sliders(backend, num_critiques, temperature, max_new_tokens)
        asked = read_prompt(backend, prompt)
        given = check_responses(backend, list(responses[:count]))
        names = [f"Response {place}" for place in range(1, len(given) + 1)]
        yield status("Asking the model…"), ""
        steps = judge(backend, visitor_of(request), asked, given, sampling)
        async for update in updates_of(steps, lambda scores: show_ranking(names, given, scores)):
            yield update

    triggers = [run.click, prompt.submit, *(box.submit for box in boxes)]
    controls.start_on(triggers, run_compare, [prompt, shown, *options, *boxes])
    return texts


def endpoints(backend: Backend) -> list[Callable]:
    """Make the endpoint `/compare`."""

    async def compare(
        request: gr.Request,
        prompt: str,
        responses: list[str],
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = backend.args.max_new_tokens,
        seed: int | None = None,
    ) -> dict:
        """
        Compare 2 to 8 responses. Returns scores, ranks (from 1; equal rewards share one), and preferences: in row i and
        column j the Bradley-Terry probability that response i is preferred to response j.
        """
        sampling = read_sampling(backend, num_critiques, temperature, max_new_tokens, seed)
        asked = read_prompt(backend, prompt)
        check_responses(backend, read_texts("responses", responses))
        steps = judge(backend, visitor_of(request), asked, responses, sampling)
        async for answer in answers(steps, lambda scores: _describe_ranking(backend, scores)):
            yield answer

    return [compare]


def _describe_ranking(backend: Backend, scores: Sequence[Score]) -> dict[str, Any]:
    rewards = [score.reward for score in scores]
    return {
        "scores": [describe_score(backend, score) for score in scores],
        "ranks": [rank_of(rewards, index) for index in range(len(rewards))],
        "preferences": [[preference(reward, other) for other in rewards] for reward in rewards],
    }
