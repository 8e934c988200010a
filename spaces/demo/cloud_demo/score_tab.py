"""Score: one response, its critique as it is written, its reward and where that falls."""

import random

import gradio as gr

from .backend import Backend
from .choices import example_prompts, judging_options
from .judgements import show_judgement, show_writing
from .judging import Options, Waiting, Writing, check_lengths, read_prompt, write
from .markup import status
from .problems import Problem, in_words
from .share_link import share_button
from .stopping import Runs


_EARLIER_TURNS = 3
_OPEN_IF_FILLED = '(text) => text ? {open: true, __type__: "update"} : {__type__: "update"}'


def build(backend: Backend) -> dict[str, gr.Textbox]:
    """The tab's content. Returns the texts that a link to it carries."""
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox("", label="Prompt", lines=3, max_lines=12, placeholder="What the user asked")
            response = gr.Textbox(
                value="",
                label="Response",
                lines=3,
                max_lines=12,
                placeholder="The answer to judge. Shift + Enter: judge it",
            )
            with gr.Accordion("Chat: system message and earlier turns", open=False) as chat:
                system = gr.Textbox("", label="System message", lines=1, max_lines=6)
                names = [f"turn {i}: {role}" for i in range(1, _EARLIER_TURNS + 1) for role in ("user", "assistant")]
                turns = {name: gr.Textbox("", label=name.capitalize(), lines=1, max_lines=6) for name in names}
            options = judging_options(backend)
            with gr.Row():
                run = gr.Button("Judge", variant="primary", elem_id="score-run")
                stop = gr.Button("Stop", elem_id="score-stop")
            with gr.Row():
                example = gr.Button("Example", size="sm", elem_classes="narrow")
                texts = {"prompt": prompt, "response": response, "system": system} | turns
                said = gr.HTML(elem_id="score-status", elem_classes="said", render=False)
                share_button("score", texts, said)
        with gr.Column():
            said.render()
            result = gr.HTML(elem_id="score-result", elem_classes="result")

    async def run_score(
        request: gr.Request, prompt, response, system, num_critiques, temperature, max_new_tokens, *earlier
    ):
        options = Options.of_page(backend, num_critiques, temperature, max_new_tokens)
        asked = read_prompt(backend, prompt, system, list(zip(earlier[::2], earlier[1::2], strict=True)))
        if not response.strip():
            raise Problem("The response is empty.")
        check_lengths(backend, {"response": response})
        yield status("Asking the model…"), ""
        async for step in write(backend, request.session_hash, asked, response, options):
            if isinstance(step, Waiting):
                yield status(step.words), gr.skip()
            elif isinstance(step, Writing):
                yield status("The model writes…"), show_writing(step.critique)
            else:
                judgement = show_judgement(step, backend.distribution, backend.models.cloud.critique)
                yield status(f"Done: the reward is {step.reward:+.3f}."), judgement

    def fill_in():
        asked, responses = random.choice(example_prompts(backend))
        return asked, random.choice(responses)

    runs = Runs(said)
    gr.on(
        [run.click, prompt.submit, response.submit],
        in_words(runs.stoppable(run_score), said),
        [prompt, response, system, *options, *turns.values()],
        [said, result],
        show_progress="hidden",
        trigger_mode="once",
        api_visibility="private",
    )
    stop.click(runs.stop, queue=False, api_visibility="private")
    # What a link fills in is judged, so it must be seen
    for box in (system, *turns.values()):
        box.change(None, box, chat, js=_OPEN_IF_FILLED, show_progress="hidden", api_visibility="private")
    example.click(fill_in, None, [prompt, response], queue=False, show_progress="hidden", api_visibility="private")
    return texts
