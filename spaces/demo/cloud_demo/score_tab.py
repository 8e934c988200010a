"""Score: one response, its critique as it is written, its reward, and where the reward falls."""

import random
from collections.abc import Callable

import gradio as gr

from .backend import Backend
from .judging import (
    Progress,
    answers,
    describe_score,
    judge,
    read_prompt,
    read_response,
    read_sampling,
    read_sliders,
    read_turns,
    write,
)
from .score_html import show_score, show_writing, status
from .tab_parts import QUIET, Controls, judging_options, prompt_box, visitor_of


TAB, TITLE = "score", "Score"
_EARLIER_TURNS = 3
_OPEN_IF_FILLED = '(text) => text ? {open: true, __type__: "update"} : {__type__: "update"}'


def build(backend: Backend) -> dict[str, gr.Textbox]:
    """Make the tab's content. Returns the texts that a link to it carries."""
    controls = Controls(backend, "score")
    with gr.Row():
        with gr.Column():
            prompt = prompt_box()
            response = gr.Textbox(
                value="",
                label="Response",
                lines=3,
                max_lines=12,
                placeholder="The answer to judge. Shift + Enter: judge it",
            )
            system, turns = _chat_boxes()
            options = judging_options(backend)
            run = controls.run_button("Judge")
            texts = {"prompt": prompt, "response": response, "system": system} | turns
            controls.example_and_link(
                TAB, texts, lambda asked, responses: (asked, random.choice(responses)), [prompt, response]
            )
        with gr.Column():
            controls.show_results()

    async def run_score(
        request: gr.Request, prompt, response, system, num_critiques, temperature, max_new_tokens, *earlier
    ):
        sampling = read_sliders(backend, num_critiques, temperature, max_new_tokens)
        asked = read_prompt(backend, prompt, system, list(zip(earlier[::2], earlier[1::2], strict=True)))
        response = read_response(backend, response)
        yield status("Asking the model…"), ""
        async for step in write(backend, visitor_of(request), asked, response, sampling):
            if not isinstance(step, Progress):
                shown = show_score(step, backend.distribution, backend.models.cloud.critique)
                yield status(f"Done: the reward is {step.reward:+.3f}."), shown
            elif step.critique is None:
                yield status(step.words), gr.skip()
            else:
                yield status(step.words), show_writing(step.critique)

    inputs = [prompt, response, system, *options, *turns.values()]
    controls.start_on([run.click, prompt.submit, response.submit], run_score, inputs)
    return texts


def _chat_boxes() -> tuple[gr.Textbox, dict[str, gr.Textbox]]:
    """Make the boxes of the system message and of earlier turns."""
    with gr.Accordion("Chat: system message and earlier turns", open=False) as chat:
        system = gr.Textbox("", label="System message", lines=1, max_lines=6)
        names = [f"turn {i}: {role}" for i in range(1, _EARLIER_TURNS + 1) for role in ("user", "assistant")]
        turns = {name: gr.Textbox("", label=name.capitalize(), lines=1, max_lines=6) for name in names}
    # The model sees what a link fills in here, so the visitor must see it too
    for box in (system, *turns.values()):
        box.change(None, box, chat, js=_OPEN_IF_FILLED, **QUIET)
    return system, turns


def endpoints(backend: Backend) -> list[Callable]:
    """Make the endpoint `/score`."""

    async def score(
        request: gr.Request,
        prompt: str,
        response: str,
        system: str = "",
        turns: list[list[str]] = [],  # noqa: B006
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = backend.args.max_new_tokens,
        seed: int | None = None,
    ) -> dict:
        """
        Judge one response. `turns` are earlier turns as pairs [user, assistant]. Returns reward, rewards, reward_std,
        critiques, finish_reasons ("length": the critique was cut), and percentile: the percentage of this model's known
        rewards that are lower, or null.
        """
        sampling = read_sampling(backend, num_critiques, temperature, max_new_tokens, seed)
        asked = read_prompt(backend, prompt, system, read_turns(turns))
        steps = judge(backend, visitor_of(request), asked, [read_response(backend, response)], sampling)
        async for answer in answers(steps, lambda scores: describe_score(backend, scores[0])):
            yield answer

    return [score]
