"""Compare: two to eight responses to one prompt, ranked."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from cloud_hf.scores import Score

from . import Problem
from .backend import Backend
from .judging import answers, check_texts, describe_score, judge, read_prompt, read_sampling, read_sliders, read_texts
from .rows import preference, rank_of
from .score_html import show_made, show_ranking, status
from .sharing import Result
from .tab_parts import QUIET, Controls, TabParts, example_prompts, judging_options, opened, prompt_box, visitor_of


TAB, TITLE = "compare", "Compare"
FEWEST, MOST = 2, 8


def check_responses(backend: Backend, responses: list[str]) -> list[str]:
    """Check the responses. Raises `Problem` if there are too few or too many, or if one is empty or too long."""
    if not FEWEST <= len(responses) <= MOST:
        raise Problem(f"Give {FEWEST} to {MOST} responses; there are {len(responses)}.")
    for place, response in enumerate(responses, start=1):
        if not response.strip():
            raise Problem(f"Response {place} is empty.")
    check_texts(backend, {f"text of response {place}": text for place, text in enumerate(responses, start=1)})
    return responses


# ----------------------------------------------------------------------------------------------------- response boxes


def show(count: int) -> list:
    """Return the number of boxes, followed by updates that show that many boxes."""
    return [count, *(gr.update(visible=place < count) for place in range(MOST))]


def remove_last(count: int) -> list:
    """Like `show`, with one box fewer but at least two. Hidden boxes are emptied, so that links do not contain their text."""
    left = max(count - 1, FEWEST)
    hidden = gr.update(value="", visible=False)
    return [left, *(gr.update(visible=True) if place < left else hidden for place in range(MOST))]


def show_filled(count: int, *values: str) -> list:
    """Like `show`, but show at least the boxes that a link has filled."""
    filled = max((place for place, value in enumerate(values, start=1) if value), default=0)
    return show(max(count, filled, FEWEST))


def show_example(prompt: str, responses: list[str]) -> list:
    """Return the prompt, followed by the values of `show` with the responses filled in."""
    values = [*responses, *[""] * MOST][:MOST]
    count = max(FEWEST, len(responses))
    return [prompt, count, *(gr.update(value=text, visible=i < count) for i, text in enumerate(values))]


def _response_boxes() -> tuple[list[gr.Textbox], gr.State]:
    """Create the boxes, and the state that counts the visible ones."""
    boxes = [
        gr.Textbox(
            value="",
            label=f"Response {place}",
            lines=2,
            max_lines=8,
            visible=place <= FEWEST,
            placeholder="Press Shift + Enter to compare",
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


def build(backend: Backend) -> TabParts:
    """Build the tab's content."""
    controls = Controls(backend, "compare", TAB)
    with gr.Row():
        with gr.Column():
            examples = controls.example_list()
            prompt = prompt_box()
            boxes, shown = _response_boxes()
            options = judging_options(backend)
            run = controls.run_button("Compare")
            texts = {"prompt": prompt} | {f"response {place}": box for place, box in enumerate(boxes, start=1)}
            outputs = [prompt, shown, *boxes]
            controls.fill_in(examples, lambda name: show_example(*example_prompts(backend)[name]), outputs)
        with gr.Column(elem_classes="outcome"):
            controls.show_results()
            controls.copy_buttons(texts)

    def ranking(responses: Sequence[str], scores: Sequence[Score | None], made: str, is_final: bool = True) -> str:
        names = [f"Response {place}" for place in range(1, len(responses) + 1)]
        noise = backend.models.noise if backend.is_usable else 0.0
        return show_ranking(names, responses, scores, noise, is_final) + show_made(made, backend.warnings)

    async def run_compare(request: gr.Request, prompt, count, num_critiques, temperature, max_new_tokens, *responses):
        sampling = read_sliders(backend, num_critiques, temperature, max_new_tokens)
        asked = read_prompt(backend, prompt)
        given = check_responses(backend, list(responses[:count]))
        yield status("Asking the model…"), "", None
        known = ()
        async for step in judge(backend, visitor_of(request), asked, given, sampling, as_they_finish=True):
            made = backend.made(sampling)
            if isinstance(step, list):
                kept = Result(TAB, dict(zip(texts, (prompt, *given), strict=False)), sampling, step, None, made)
                yield status("Done."), ranking(given, step, made), kept
            else:
                shown = ranking(given, step.scores, made, is_final=False) if step.scores != known else gr.skip()
                known = step.scores
                yield status(step.words), shown, gr.skip()

    triggers = [run.click, prompt.submit, *(box.submit for box in boxes)]
    controls.start_on(triggers, run_compare, [prompt, shown, *options, *boxes])

    def show_link(result: Result) -> dict:
        responses = [text for name, text in result.texts.items() if name != "prompt"]
        if len(responses) != len(result.scores):
            raise Problem("This link is damaged: its scores do not match its responses.")
        shown = {controls.result: ranking(responses, result.scores, result.made), controls.kept: result}
        return shown | opened(result, controls, options, run)

    outputs = [controls.said, controls.result, controls.kept, *options, run]
    return TabParts(texts, examples, lambda: list(example_prompts(backend)), outputs, show_link)


def endpoints(backend: Backend) -> list[Callable]:
    """Create the endpoint `/compare`."""

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
        Compare 2 to 8 responses. Returns scores, ranks (from 1; rewards that agree to three decimals share a rank), and
        preferences, a matrix whose row i and column j contain the Bradley-Terry probability that response i is preferred to
        response j.
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
