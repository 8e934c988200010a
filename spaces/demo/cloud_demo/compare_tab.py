"""Compare: two to eight responses to one prompt, ranked."""

import random

import gradio as gr

from .backend import Backend
from .choices import example_prompts, judging_options
from .judgements import show_ranking
from .judging import Judging, Options, Waiting, check_lengths, judge, read_prompt
from .markup import status
from .problems import Problem, in_words
from .share_link import share_button
from .stopping import Runs


FEWEST, MOST = 2, 8


def check_responses(backend: Backend, responses: list[str]) -> list[str]:
    """The responses. Raises `Problem` if they are too few, too many, empty or too long."""
    if not FEWEST <= len(responses) <= MOST:
        raise Problem(f"Give {FEWEST} to {MOST} responses; there are {len(responses)}.")
    for place, response in enumerate(responses, start=1):
        if not response.strip():
            raise Problem(f"Response {place} is empty.")
    check_lengths(backend, {f"text of response {place}": text for place, text in enumerate(responses, start=1)})
    return responses


def show(count: int) -> list:
    """The number of boxes, and what shows so many of them."""
    return [count, *(gr.update(visible=place < count) for place in range(MOST))]


def remove_last(count: int) -> list:
    """As `show`, with one box less, but never fewer than two. What is hidden is emptied, so that no link carries it."""
    left = max(count - 1, FEWEST)
    hidden = gr.update(value="", visible=False)
    return [left, *(gr.update(visible=True) if place < left else hidden for place in range(MOST))]


def build(backend: Backend) -> dict[str, gr.Textbox]:
    """The tab's content. Returns the texts that a link to it carries."""
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox("", label="Prompt", lines=3, max_lines=12, placeholder="What the user asked")
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
            options = judging_options(backend)
            with gr.Row():
                run = gr.Button("Compare", variant="primary", elem_id="compare-run")
                stop = gr.Button("Stop", elem_id="compare-stop")
            with gr.Row():
                example = gr.Button("Example", size="sm", elem_classes="narrow")
                texts = {"prompt": prompt} | {f"response {place}": box for place, box in enumerate(boxes, start=1)}
                said = gr.HTML(elem_id="compare-status", elem_classes="said", render=False)
                share_button("compare", texts, said)
        with gr.Column():
            said.render()
            result = gr.HTML(elem_id="compare-result", elem_classes="result")

    async def run_compare(request: gr.Request, prompt, count, num_critiques, temperature, max_new_tokens, *responses):
        options = Options.of_page(backend, num_critiques, temperature, max_new_tokens)
        asked = read_prompt(backend, prompt)
        responses = check_responses(backend, list(responses[:count]))
        yield status("Asking the model…"), ""
        async for step in judge(backend, request.session_hash, asked, responses, options):
            if isinstance(step, Waiting):
                yield status(step.words), gr.skip()
            elif isinstance(step, Judging):
                yield status(f"The model judges: {step.done} of {step.of} done…"), gr.skip()
            else:
                names = [f"Response {place}" for place in range(1, len(responses) + 1)]
                yield status("Done."), show_ranking(names, responses, step)

    def fill_in():
        asked, responses = random.choice(example_prompts(backend))
        values = [*responses, *[""] * MOST][:MOST]
        count = max(FEWEST, len(responses))
        return [asked, count, *(gr.update(value=text, visible=i < count) for i, text in enumerate(values))]

    def follow(count, *values):
        """Show the boxes that a link has filled."""
        filled = max((place for place, value in enumerate(values, start=1) if value), default=0)
        return show(max(count, filled, FEWEST))

    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    more.click(lambda count: show(min(count + 1, MOST)), shown, [shown, *boxes], **quick)
    fewer.click(remove_last, shown, [shown, *boxes], **quick)
    example.click(fill_in, None, [prompt, shown, *boxes], **quick)
    boxes[FEWEST].change(follow, [shown, *boxes], [shown, *boxes], **quick)
    runs = Runs(said)
    gr.on(
        [run.click, prompt.submit, *(box.submit for box in boxes)],
        in_words(runs.stoppable(run_compare), said),
        [prompt, shown, *options, *boxes],
        [said, result],
        show_progress="hidden",
        trigger_mode="once",
        api_visibility="private",
    )
    stop.click(runs.stop, queue=False, api_visibility="private")
    return texts
