"""Parts shared by the tabs: sliders, examples, buttons, results that can be copied, and one-sentence errors."""

import asyncio
import functools
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import gradio as gr

from cloud_hf.spaces_ui import is_out_of_memory, user_error

from . import Problem
from .backend import Backend, Visitor
from .judging import SAMPLING_TEMPERATURE
from .score_html import failure, note, status
from .sharing import Result


logger = logging.getLogger(__name__)

# Options for the page's event handlers: no API endpoint, and no progress bar over their outputs
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def visitor_of(request: gr.Request) -> Visitor:
    """Return a request's sender. Behind a proxy that FORWARDED_ALLOW_IPS names, uvicorn takes the address from `X-Forwarded-For`."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ip_address(host)
    except ValueError:
        return Visitor(str(request.session_hash), host)
    # A client with one IPv6 address usually controls all 2**64 addresses of its /64 network
    group = ip_network((address, 64), strict=False) if address.version == 6 else address
    return Visitor(str(request.session_hash), str(group))


# ------------------------------------------------------------------------------------------------- input and examples


def prompt_box(value: str = "") -> gr.Textbox:
    """Create the text box for the prompt."""
    return gr.Textbox(value, label="Prompt", lines=3, max_lines=12, placeholder="What the user asked")


def judging_options(backend: Backend, most_critiques: int = 8) -> list[gr.Slider]:
    """Create sliders for critiques, temperature and length, in the order that `read_sliders` expects."""
    limit = backend.args.max_new_tokens
    with gr.Accordion("Options", open=False):
        critiques = gr.Slider(1, most_critiques, value=1, step=1, label="Critiques per response")
        temperature = gr.Slider(
            minimum=0,
            maximum=2,
            value=0,
            step=0.05,
            label="Temperature",
            info=f"At 0, a single critique is greedy, and several critiques are sampled at {SAMPLING_TEMPERATURE}",
        )
        length = gr.Slider(min(8, limit), limit, value=limit, step=1, label="Maximum critique length in tokens")
    return [critiques, temperature, length]


def example_prompts(backend: Backend) -> dict[str, tuple[str, list[str]]]:
    """Return example prompts with responses, by name: the first rows with a text prompt or, if none are loaded, built-in examples."""
    if backend.is_usable and (rows := [row for row in backend.models.rows if isinstance(row.prompt, str)]):
        return {
            row.id.removeprefix(f"{row.subset}/"): (row.prompt, list(row.responses)) for row in rows[:_EXAMPLE_ROWS]
        }
    return _EXAMPLES


_EXAMPLE_ROWS = 12
_EXAMPLES = {
    "A sum, shown or guessed": (
        "What is 17 + 25? Show how you get there.",
        ["17 + 25 = 10 + 20 + 7 + 5 = 30 + 12 = 42.", "17 + 25 is 43.", "It is 42."],
    ),
    "The wrong river": (
        "Name a river in Egypt, and say how long it is.",
        ["The Nile. It is about 6,650 km long.", "The Amazon, about 6,400 km.", "The Nile."],
    ),
    "Advice that does not help": (
        "My train leaves in ten minutes, and the station is a walk of fifteen. What should I do?",
        [
            "Run or take a taxi now; if you cannot, look for the next train on the way.",
            "Walk faster.",
            "Trains are fun.",
        ],
    ),
}


# ------------------------------------------------------------------------------------------------ buttons and result


@dataclass(frozen=True)
class TabParts:
    """
    What the page needs from a tab. `texts` are the boxes whose contents go into a link. `examples` is the drop-down list of examples, if
    the tab has one, and `example_names` returns their names. `show` returns updates, keyed by component, that display a link's result;
    `outputs` lists the components that these updates may change. `on_select` attaches the handler that runs when the tab is opened.
    """

    texts: dict[str, gr.Textbox]
    examples: gr.Dropdown | None
    example_names: Callable[[], list[str]]
    outputs: list
    show: Callable[[Result], dict]
    on_select: Callable[[gr.Tab], Any] = lambda tab: None


class Controls:
    """
    Status line, buttons and result of one tab.

    The Stop button ends a run from within, so that "Stopped." is the last update. With Gradio's own `cancels`, updates that were already
    under way would overwrite it. `tab` is the prefix of the elements' ids, and `link` is the tab's id in links.
    """

    def __init__(self, backend: Backend, tab: str, link: str = ""):
        self.backend = backend
        self.tab = tab
        self.link = link
        self.said = gr.HTML(status(""), elem_id=f"{tab}-status", elem_classes="said", render=False)
        self.result = gr.HTML(note(_EMPTY), elem_id=f"{tab}-result", elem_classes="result", render=False)
        # The shown result, for copying
        self.kept = gr.State(None, render=False)
        self._stops: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def run_button(self, label: str) -> gr.Button:
        """Create a row with the buttons that start and stop a run. Returns the start button."""
        with gr.Row():
            run = gr.Button(label, variant="primary", elem_id=f"{self.tab}-run")
            stop = gr.Button("Stop", elem_id=f"{self.tab}-stop")
        stop.click(self.stop, queue=False, api_visibility="private")
        return run

    def example_list(self) -> gr.Dropdown:
        """Create the list of examples, which stays empty until the page fills it."""
        return gr.Dropdown([], value=None, label="Examples", elem_id=f"{self.tab}-examples")

    def fill_in(self, examples: gr.Dropdown, fill_in: Callable[[str], Any], outputs: list):
        """Fill `outputs` with the values that `fill_in` returns for the chosen example's name."""
        examples.input(fill_in, examples, outputs, queue=False, **QUIET)

    def copy_buttons(self, texts: dict[str, gr.Textbox]):
        """Create the buttons that copy a link to the texts and the result, or the result as Markdown."""
        with gr.Row():
            link = gr.Button("Copy link", size="sm", elem_id=f"{self.tab}-link", elem_classes="narrow")
            markdown = gr.Button("Copy as Markdown", size="sm", elem_id=f"{self.tab}-markdown", elem_classes="narrow")
        copied = gr.Textbox(visible="hidden", elem_id=f"{self.tab}-copied", label="Copied")

        def current(kept: Result | None, values: Sequence[str]) -> Result:
            shown = dict(zip(texts, values, strict=True))
            if not texts:
                return kept or Result(self.link)
            # Once the texts have been edited, the result no longer belongs to them
            return kept if kept is not None and _filled(kept.texts) == _filled(shown) else Result(self.link, shown)

        def make_link(kept, *values):
            try:
                text, words = current(kept, values).link()
            except Problem as problem:
                return failure(str(problem)), ""
            return status(f"Copied a link with {words}. It is also in the address bar."), f"#{text}"

        def make_markdown(kept, *values):
            return status("Copied as Markdown."), current(kept, values).markdown("Judged by a CLoud reward model")

        for button, make, is_link in ((link, make_link, "true"), (markdown, make_markdown, "false")):
            made = button.click(make, [self.kept, *texts.values()], [self.said, copied], queue=False, **QUIET)
            made.then(None, copied, js=_COPY.replace("IS_LINK", is_link), api_visibility="private")

    def show_results(self):
        """Place the status line and the result here."""
        self.kept.render()
        self.said.render()
        self.result.render()

    def start_on(
        self, triggers: Sequence, handler: Callable[..., AsyncGenerator], inputs: list, outputs: list | None = None
    ):
        """
        Run an event handler on any of `triggers`. The Stop button ends the handler, and the handler's errors are shown as sentences.

        The handler is an async generator whose first argument is the `gr.Request`. `outputs` defaults to the status line and the result.
        """
        run = in_words(self.stoppable(handler), self.said)
        outputs = [self.said, self.result, self.kept] if outputs is None else outputs
        # On a narrow page, the result is below the boxes, so scroll to it
        come = _COME_INTO_VIEW.replace("ID", f"{self.tab}-status")
        gr.on(triggers, None, js=come, **QUIET)
        gr.on(triggers, run, inputs, outputs, trigger_mode="once", **QUIET)

    def stoppable(self, handler: Callable[..., AsyncGenerator]) -> Callable[..., AsyncGenerator]:
        """Let [`Controls.stop`] end an event handler, which is an async generator whose first argument is the `gr.Request`."""

        @functools.wraps(handler)
        async def run(request: gr.Request, *args):
            visitor, stop = str(request.session_hash), asyncio.Event()
            self._stops[visitor].add(stop)
            try:
                async with aclosing(_until(stop, handler(request, *args))) as updates:
                    async for update in updates:
                        yield update
                if stop.is_set():
                    yield {self.said: status("Stopped.")}
            finally:
                self._stops[visitor].remove(stop)
                if not self._stops[visitor]:
                    del self._stops[visitor]

        return run

    async def stop(self, request: gr.Request):
        """Stop a visitor's runs."""
        for stop in self._stops.get(str(request.session_hash), ()):
            stop.set()


async def _until(stop: asyncio.Event, updates: AsyncGenerator) -> AsyncGenerator:
    """Forward updates until `stop` is set, then end immediately."""
    stopped, step, end = asyncio.ensure_future(stop.wait()), None, object()
    async with aclosing(updates):
        try:
            while True:
                step = asyncio.ensure_future(anext(updates, end))
                await asyncio.wait({step, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done() or step.result() is end:
                    break
                yield step.result()
        finally:
            for task in (step, stopped):
                task.cancel()
            await asyncio.gather(step, stopped, return_exceptions=True)


_EMPTY = "The result appears here. Fill in the boxes, or choose an example."
_COME_INTO_VIEW = "() => { if (window.innerWidth < 768) document.getElementById('ID').scrollIntoView(); }"
_COPY = """
async (text) => {
    if (!text) return;
    if (IS_LINK) {
        window.history.replaceState(null, "", text);
        text = window.location.href;
    }
    try {
        await navigator.clipboard.writeText(text);
    } catch {  // only pages from https or localhost have a clipboard
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
}
"""


def opened(result: Result, controls: Controls, options: Sequence[gr.Slider], run: gr.Button) -> dict:
    """Return updates that announce a result from a link, and set the sliders to the options with which it was computed."""
    words = "Opened from a link: this result was not computed here, and whoever shared the link may have changed it."
    updates: dict = {controls.said: status(words), run: gr.update(value="Judge again")}
    if (made := result.sampling) is not None:
        updates |= zip(options, (made.num_critiques, made.temperature, made.max_new_tokens), strict=True)
    return updates


def _filled(texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text}


# ------------------------------------------------------------------------------------------------------------ errors


def in_words(handler: Callable[..., AsyncGenerator], said: gr.HTML | None = None) -> Callable[..., AsyncGenerator]:
    """
    Wrap an event handler (an async generator) so that a failure is shown as one sentence. Unexpected errors are logged.

    `said`, a status line among the outputs, also shows the sentence until the next event.
    """

    @functools.wraps(handler)
    async def speak(*args, **kwargs):
        try:
            async with aclosing(handler(*args, **kwargs)) as updates:
                async for update in updates:
                    yield update
        except Exception as error:
            sentence = sentence_of(error)
            if said is not None:
                yield {said: failure(sentence)}
            raise user_error(sentence, duration=10) from None

    return speak


def sentence_of(error: Exception) -> str:
    """Return a sentence that explains an error to the visitor."""
    if isinstance(error, Problem):
        return str(error)
    if is_out_of_memory(error):
        logger.error("Out of memory", exc_info=error)
        return "The model ran out of memory. Try shorter texts, or fewer or shorter critiques."
    logger.error("An event failed", exc_info=error)
    return "Something unexpected went wrong; the log of the demo has the details. Your texts are still here."
