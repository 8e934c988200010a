"""Best-of-N: candidates that were pasted or generated, the best of them, and what more of them would bring."""

import random
import re

import gradio as gr

from .backend import Backend
from .charts import curve
from .choices import example_prompts, judging_options
from .judgements import show_ranking
from .judging import Judging, Options, Waiting, check_lengths, judge, read_prompt
from .markup import note, paragraph, status
from .policy import generate
from .problems import Problem, in_words
from .share_link import share_button
from .stopping import Runs


MOST = 32
# Not dashes, which answers use as rules
_SEPARATOR = re.compile(r"^={5,}\s*$", re.MULTILINE)
_JOINT = "\n=====\n"


def split_candidates(text: str) -> list[str]:
    """Candidates with lines of five or more equals signs between them."""
    return [part.strip() for part in _SEPARATOR.split(text) if part.strip()]


def check_candidates(backend: Backend, candidates: list[str]) -> list[str]:
    """The candidates. Raises `Problem` if they are too few, too many or too long."""
    if not 2 <= len(candidates) <= MOST:
        raise Problem(f"Give 2 to {MOST} candidates, with a line ===== between each two; there are {len(candidates)}.")
    check_lengths(backend, {f"text of candidate {place}": text for place, text in enumerate(candidates, start=1)})
    return candidates


def build(backend: Backend) -> dict[str, gr.Textbox]:
    """The tab's content. Returns the texts that a link to it carries."""
    args = backend.args
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox("", label="Prompt", lines=3, max_lines=12, placeholder="What the user asked")
            candidates = gr.Textbox(
                value="",
                label="Candidates",
                info="With a line ===== between each two",
                lines=8,
                max_lines=24,
                placeholder="The first candidate\n=====\nThe second",
            )
            with gr.Row(visible=args.policy_url is not None):
                count = gr.Slider(2, MOST, value=8, step=1, label="Candidates to generate")
                write = gr.Button("Generate candidates", elem_id="best-generate")
            options = judging_options(backend)
            with gr.Row():
                run = gr.Button("Pick the best", variant="primary", elem_id="best-run")
                stop = gr.Button("Stop", elem_id="best-stop")
            with gr.Row():
                example = gr.Button("Example", size="sm", elem_classes="narrow")
                texts = {"prompt": prompt, "candidates": candidates}
                said = gr.HTML(elem_id="best-status", elem_classes="said", render=False)
                share_button("best-of-n", texts, said)
        with gr.Column():
            said.render()
            result = gr.HTML(elem_id="best-result", elem_classes="result")

    async def run_best(request: gr.Request, prompt, candidates, num_critiques, temperature, max_new_tokens):
        options = Options.of_page(backend, num_critiques, temperature, max_new_tokens)
        asked = read_prompt(backend, prompt)
        candidates = check_candidates(backend, split_candidates(candidates))
        yield status("Asking the model…"), ""
        async for step in judge(backend, request.session_hash, asked, candidates, options):
            if isinstance(step, Waiting):
                yield status(step.words), gr.skip()
            elif isinstance(step, Judging):
                yield status(f"The model judges: {step.done} of {step.of} done…"), gr.skip()
            else:
                yield status("Done."), _show_best(candidates, step)

    async def run_generate(request: gr.Request, prompt, count):
        asked = read_prompt(backend, prompt)
        yield status(f"{args.policy_model} writes {int(count)} candidates…"), gr.skip()
        written = await generate(args, backend.policy_turns, asked, int(count))
        yield status(f"{len(written)} candidates were written."), _JOINT.join(written)

    def fill_in():
        asked, responses = random.choice(example_prompts(backend))
        return asked, _JOINT.join(responses)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    runs = Runs(said)
    gr.on(
        [run.click, candidates.submit],
        in_words(runs.stoppable(run_best), said),
        [prompt, candidates, *options],
        [said, result],
        trigger_mode="once",
        **quiet,
    )
    generating = in_words(runs.stoppable(run_generate), said)
    write.click(generating, [prompt, count], [said, candidates], **quiet)
    stop.click(runs.stop, queue=False, api_visibility="private")
    example.click(fill_in, None, [prompt, candidates], queue=False, **quiet)
    return texts


def _show_best(candidates, scores) -> str:
    from .models import expected_highest

    rewards = [score.reward for score in scores]
    best = max(range(len(rewards)), key=rewards.__getitem__)
    values = expected_highest(rewards)
    words = "The highest reward that is to be expected when n of the candidates are drawn. It says what more candidates bring in reward, not in quality: a reward model can be fooled."
    return (
        f"<h3>Best: candidate {best + 1} of {len(candidates)}, {rewards[best]:+.3f}</h3>"
        f"{paragraph(candidates[best])}"
        f"<h3>Best of n</h3>{note(words)}{curve(values, 'Expected highest reward by number of candidates')}"
        f"{show_ranking([f'Candidate {place}' for place in range(1, len(scores) + 1)], candidates, scores)}"
    )
