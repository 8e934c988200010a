"""Best-of-N: pasted or generated candidates, the best of them, and how the expected reward grows with their number."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from cloud_hf.scores import Score

from . import Problem, judging
from .backend import Backend
from .score_html import curve, note, paragraph, show_made, show_ranking, status
from .sharing import Result
from .tab_parts import Controls, TabParts, example_prompts, judging_options, opened, prompt_box, visitor_of


TAB, TITLE = "best-of-n", "Best-of-N"
MOST = 32
# No dashes, because responses use them as horizontal rules
_SEPARATOR = re.compile(r"^={5,}\s*$", re.MULTILINE)
_JOINT = "\n=====\n"
_WORDS = (
    "The expected highest reward when n of the candidates are sampled. It shows how more candidates raise the reward, which need not "
    "mean better quality: a reward model can be fooled."
)


def split_candidates(text: str) -> list[str]:
    """Split text at lines of at least five equals signs."""
    return [part.strip() for part in _SEPARATOR.split(text) if part.strip()]


def check_candidates(backend: Backend, candidates: list[str]) -> list[str]:
    """Check the candidates. Raises `Problem` if there are too few or too many, or if one is too long."""
    if not 2 <= len(candidates) <= MOST:
        raise Problem(f"Give 2 to {MOST} candidates, separated by lines of =====; there are {len(candidates)}.")
    judging.check_texts(
        backend, {f"text of candidate {place}": text for place, text in enumerate(candidates, start=1)}
    )
    return candidates


# --------------------------------------------------------------------------------------------------------- candidates


async def write_candidates(backend: Backend, prompt: Any, count: int) -> list[str]:
    """
    Let the policy server write candidates, eight at a time.

    Returns fewer than `count` if requests fail or responses are empty. Raises `Problem` if fewer than two remain.
    """
    from cloud_hf.data.completions import CompletionClient, RequestFailed, ServerUnusable  # needs the extra `data`

    args = backend.args
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    options = {"api_key_env": args.policy_key_env, "max_concurrency": 8, "max_retries": 1, "request_timeout": 300.0}
    async with CompletionClient([str(args.policy_url).rstrip("/")], args.policy_model, **options) as client:
        asked = [client.chat(messages, temperature=1.0, max_tokens=1024) for _ in range(count)]
        found = await asyncio.gather(*asked, return_exceptions=True)
    failures = [answer for answer in found if isinstance(answer, BaseException)]
    for failure in failures:
        if not isinstance(failure, RequestFailed | ServerUnusable):
            raise failure
    written = [text for answer in found if not isinstance(answer, BaseException) and (text := answer.text.strip())]
    if len(written) < 2:
        why = failures[0] if failures else f"{len(written)} of {count} responses have text; at least 2 are needed."
        raise Problem(f"The server that writes candidates could not be reached or failed: {why}")
    return written


# --------------------------------------------------------------------------------------------------- tab and endpoints


def build(backend: Backend) -> TabParts:
    """Build the tab's content."""
    controls = Controls(backend, "best", TAB)
    with gr.Row():
        with gr.Column():
            examples = controls.example_list()
            prompt = prompt_box()
            candidates = gr.Textbox(
                value="",
                label="Candidates",
                info="Separate candidates with a line of =====",
                lines=8,
                max_lines=24,
                placeholder="The first candidate\n=====\nThe second",
            )
            _generation_row(backend, controls, prompt, candidates)
            options = judging_options(backend)
            run = controls.run_button("Pick the best")
            texts = {"prompt": prompt, "candidates": candidates}
            controls.fill_in(examples, lambda name: _example(backend, name), [prompt, candidates])
        with gr.Column(elem_classes="outcome"):
            controls.show_results()
            controls.copy_buttons(texts)

    async def run_best(request: gr.Request, prompt, candidates, num_critiques, temperature, max_new_tokens):
        sampling = judging.read_sliders(backend, num_critiques, temperature, max_new_tokens)
        asked = judging.read_prompt(backend, prompt)
        given = check_candidates(backend, split_candidates(candidates))
        yield status("Asking the model…"), "", None
        async for step in judging.judge(backend, visitor_of(request), asked, given, sampling):
            if isinstance(step, judging.Progress):
                yield status(step.words), gr.skip(), gr.skip()
            else:
                made, kept = backend.made(sampling), {"prompt": prompt, "candidates": candidates}
                yield (
                    status("Done."),
                    _show_best(backend, given, step, made),
                    Result(TAB, kept, sampling, step, None, made),
                )

    controls.start_on([run.click, candidates.submit], run_best, [prompt, candidates, *options])

    def show_link(result: Result) -> dict:
        given = split_candidates(result.texts.get("candidates", ""))
        if len(given) != len(result.scores):
            raise Problem("This link is damaged: its scores do not match its candidates.")
        shown = {controls.result: _show_best(backend, given, result.scores, result.made), controls.kept: result}
        return shown | opened(result, controls, options, run)

    outputs = [controls.said, controls.result, controls.kept, *options, run]
    return TabParts(texts, examples, lambda: list(example_prompts(backend)), outputs, show_link)


def _example(backend: Backend, name: str) -> tuple[str, str]:
    prompt, responses = example_prompts(backend)[name]
    return prompt, _JOINT.join(responses)


def _generation_row(backend: Backend, controls: Controls, prompt: gr.Textbox, candidates: gr.Textbox):
    """Create the slider and button that generate candidates; they are hidden without a policy server."""
    with gr.Row(visible=backend.args.policy_url is not None):
        count = gr.Slider(2, MOST, value=8, step=1, label="Candidates to generate")
        write = gr.Button("Generate candidates", elem_id="best-generate")

    async def run_generate(request: gr.Request, prompt, count):
        asked = judging.read_prompt(backend, prompt)
        if not judging.is_integer(count) or not 2 <= count <= MOST:
            raise Problem(f"Generate 2 to {MOST} candidates.")
        with backend.policy_line.join(visitor_of(request)) as ticket:
            async for position, length in ticket.positions():
                yield status(f"In the queue: number {position} of {length}…"), gr.skip()
            yield status(f"{backend.args.policy_model} is writing {int(count)} candidates…"), gr.skip()
            written = await write_candidates(backend, asked, int(count))
        yield status(f"{len(written)} candidates were written."), _JOINT.join(written)

    controls.start_on([write.click], run_generate, [prompt, count], [controls.said, candidates])


def _show_best(backend: Backend, candidates: Sequence[str], scores: Sequence[Score], made: str) -> str:
    noise = backend.models.noise if backend.is_usable else 0.0
    rewards = [score.reward for score in scores]
    best = _best_of(rewards)
    drawing = curve(_best_of_n_curve(rewards), "Expected highest reward by number of candidates", "candidates sampled")
    return (
        f"<h2>Best: candidate {best + 1} of {len(candidates)}, {rewards[best]:+.3f}</h2>"
        f"{paragraph(candidates[best])}"
        f"<h2>Best of n</h2>{note(_WORDS)}{drawing}"
        f"{show_ranking([f'Candidate {place}' for place in range(1, len(scores) + 1)], candidates, scores, noise)}"
        f"{show_made(made, backend.warnings)}"
    )


def endpoints(backend: Backend) -> list[Callable]:
    """Create the endpoint `/best_of_n` and, with a policy server, `/generate`."""

    async def best_of_n(
        request: gr.Request,
        prompt: str,
        candidates: list[str],
        num_critiques: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = backend.args.max_new_tokens,
        seed: int | None = None,
    ) -> dict:
        """
        Judge 2 to 32 candidates. Returns best (the index of the highest reward, from 0), scores, and curve (for n = 1, 2, …,
        the expected highest reward among n of the candidates).
        """
        sampling = judging.read_sampling(backend, num_critiques, temperature, max_new_tokens, seed)
        asked = judging.read_prompt(backend, prompt)
        check_candidates(backend, judging.read_texts("candidates", candidates))
        steps = judging.judge(backend, visitor_of(request), asked, candidates, sampling)
        async for answer in judging.answers(steps, lambda scores: _describe_best(backend, scores)):
            yield answer

    async def generate(prompt: str, count: int = 8) -> list[str]:
        """Let the policy server write 2 to 32 candidates."""
        if not judging.is_integer(count) or not 2 <= count <= MOST:
            raise Problem(f"Choose between 2 and {MOST} candidates.")
        yield await write_candidates(backend, judging.read_prompt(backend, prompt), int(count))

    return [best_of_n] if backend.args.policy_url is None else [best_of_n, generate]


def _describe_best(backend: Backend, scores: Sequence[Score]) -> dict[str, Any]:
    rewards = [score.reward for score in scores]
    return {
        "best": _best_of(rewards),
        "curve": _best_of_n_curve(rewards),
        "scores": [judging.describe_score(backend, score) for score in scores],
    }


def _best_of(rewards: list[float]) -> int:
    return max(range(len(rewards)), key=rewards.__getitem__)


def _best_of_n_curve(rewards: list[float]) -> list[float]:
    """Return, for each n, the expected highest reward among n of the candidates."""
    from cloud_hf.evaluation.metrics.best_of_n import expected_best_of  # already imported when the model was loaded

    return [expected_best_of(rewards, rewards, n) for n in range(1, len(rewards) + 1)]
