"""Score: one response, its critique as it is written, its reward and percentile, and the effect of each critique sentence."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr

from cloud_hf.scores import Sampling, Score

from . import Problem, judging
from .backend import Backend, Visitor
from .score_html import note, show_critiques, show_effects, show_made, show_verdict, show_writing, status
from .sharing import Result
from .tab_parts import QUIET, Controls, TabParts, example_prompts, judging_options, opened, prompt_box, visitor_of


TAB, TITLE = "score", "Score"
_EARLIER_TURNS = 3
# Height in pixels of the box in which a long critique scrolls
_HEIGHT = 420
_SHIPPED_EXAMPLE = (
    "The ball starts under cup B. Swap cups 1: A and C. 2: C and B. 3: D and B. 4: D and A. Where is the ball now?",
    "The answer is C.",
)
_NO_CRITIQUES = "This model writes no critiques: it is a classic reward model."
_OPEN_IF_FILLED = '(text) => text ? {open: true, __type__: "update"} : {__type__: "update"}'


class _Outcome:
    """
    The right column: status line, verdict, critique and the rest. Each part has a fixed place, so that the critique does not move when the
    reward arrives. Create this column before the left one, whose Stop button ends this column's runs.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.controls = Controls(backend, "score", TAB)
        self.critique = gr.HTML(
            elem_id="score-critique", elem_classes="result", max_height=_HEIGHT, autoscroll=True, render=False
        )
        self.more = gr.HTML(elem_id="score-more", elem_classes="result", render=False)

    @property
    def components(self) -> list:
        return [self.controls.said, self.controls.result, self.critique, self.more, self.controls.kept]

    def place(self, texts: dict[str, gr.Textbox]):
        with gr.Column(elem_classes="outcome"):
            self.controls.show_results()
            self.critique.render()
            self.more.render()
            self.controls.copy_buttons(texts)

    def clear(self) -> dict:
        """Return updates that show the start of a run."""
        verdict = show_verdict(self.backend.judged)
        return dict(zip(self.components, (status("Asking the model…"), verdict, "", "", None), strict=True))

    def show(self, result: Result) -> dict:
        """Return updates that show a result. Raises `Problem` if it has several scores, which only a damaged link can cause."""
        if len(result.scores) != 1:
            raise Problem("This link is damaged: it contains scores of several responses.")
        score = result.scores[0]
        effects = show_effects(result.effects, len(score.rewards)) if result.effects is not None else ""
        writes = any(score.critiques)
        return {
            self.controls.result: show_verdict(self.backend.judged, score),
            self.critique: show_critiques(score, result.effects) if writes else note(_NO_CRITIQUES),
            self.more: effects + show_made(result.made, self.backend.warnings),
            self.controls.kept: result,
        }

    async def run(
        self, user: Visitor, asked: Any, given: dict[str, str], sampling: Sampling
    ) -> AsyncGenerator[dict, None]:
        """
        Judge `given["response"]`, where `given` maps the names of the boxes to their texts. Yields updates while the critique is
        written, when the reward is known, and when the effects of the critique's sentences are known.
        """
        result = None
        yield self.clear()
        async for step in judging.write(self.backend, user, asked, given["response"], sampling):
            if isinstance(step, judging.Progress):
                written = step.critique
                writing = {} if written is None else {self.critique: show_writing(written, sampling.num_critiques)}
                yield {self.controls.said: status(step.words)} | writing
                continue
            if isinstance(step, Score):
                result = Result(TAB, given, sampling, [step], None, self.backend.made(sampling))
            elif result is not None:
                result = replace(result, effects=step)
            yield self.show(result)
        yield {self.controls.said: status(f"Done: the reward is {result.scores[0].reward:+.3f}.")}


def build(backend: Backend) -> TabParts:
    """Build the tab's content."""
    outcome = _Outcome(backend)
    controls = outcome.controls
    with gr.Row():
        with gr.Column():
            examples = controls.example_list()
            first = _SHIPPED_EXAMPLE if backend.args.is_shipped else ("", "")
            prompt = prompt_box(first[0])
            response = gr.Textbox(
                value=first[1],
                label="Response",
                lines=3,
                max_lines=12,
                placeholder="The response to judge; press Shift + Enter to judge it",
            )
            system, turns = _chat_boxes()
            options = judging_options(backend)
            run = controls.run_button("Judge")
            texts = {"prompt": prompt, "response": response, "system": system} | turns
            controls.fill_in(examples, lambda name: _examples(backend)[name], [prompt, response])
        outcome.place(texts)

    async def run_score(
        request: gr.Request, prompt, response, system, num_critiques, temperature, max_new_tokens, *earlier
    ):
        sampling = judging.read_sliders(backend, num_critiques, temperature, max_new_tokens)
        asked = judging.read_prompt(backend, prompt, system, list(zip(earlier[::2], earlier[1::2], strict=True)))
        judging.read_response(backend, response)
        given = dict(zip(texts, (prompt, response, system, *earlier), strict=True))
        async with aclosing(outcome.run(visitor_of(request), asked, given, sampling)) as updates:
            async for update in updates:
                yield update

    inputs = [prompt, response, system, *options, *turns.values()]
    controls.start_on([run.click, prompt.submit, response.submit], run_score, inputs, outcome.components)
    return TabParts(
        texts,
        examples,
        lambda: list(_examples(backend)),
        [*outcome.components, *options, run],
        lambda result: outcome.show(result) | opened(result, controls, options, run),
    )


def _examples(backend: Backend) -> dict[str, tuple[str, str]]:
    """Return named pairs of prompt and response, with a right and a wrong response to each example prompt."""
    return {
        f"{name} ({side} response)": (prompt, response)
        for name, (prompt, responses) in example_prompts(backend).items()
        for side, response in zip(("right", "wrong"), responses, strict=False)
    }


def _chat_boxes() -> tuple[gr.Textbox, dict[str, gr.Textbox]]:
    with gr.Accordion("Chat: system message and earlier turns", open=False) as chat:
        system = gr.Textbox("", label="System message", lines=1, max_lines=6)
        names = [f"turn {i}: {role}" for i in range(1, _EARLIER_TURNS + 1) for role in ("user", "assistant")]
        turns = {name: gr.Textbox("", label=name.capitalize(), lines=1, max_lines=6) for name in names}
    # The model sees any text that a link fills in here, so the visitor must see it too
    for box in (system, *turns.values()):
        box.change(None, box, chat, js=_OPEN_IF_FILLED, **QUIET)
    return system, turns


def endpoints(backend: Backend) -> list[Callable]:
    """Create the endpoint `/score`."""

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
        critiques, finish_reasons ("length" if the critique was truncated), and percentile: the percentage of this model's
        known rewards that are lower (equal ones count half), or null if too few rewards are known.
        """
        sampling = judging.read_sampling(backend, num_critiques, temperature, max_new_tokens, seed)
        asked = judging.read_prompt(backend, prompt, system, judging.read_turns(turns))
        steps = judging.judge(
            backend, visitor_of(request), asked, [judging.read_response(backend, response)], sampling
        )
        async for answer in judging.answers(steps, lambda scores: judging.describe_score(backend, scores[0])):
            yield answer

    return [score]
