"""Parts shared by the tabs: sliders, examples, buttons and result, links to the texts, one-sentence errors."""

import asyncio
import functools
import json
import logging
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from ipaddress import ip_address, ip_network
from typing import Any

import gradio as gr

from cloud_hf.spaces_ui import is_out_of_memory, user_error

from . import Problem
from .backend import Backend, Visitor
from .judging import SAMPLING_TEMPERATURE, Progress
from .score_html import failure, status


logger = logging.getLogger(__name__)

# Options of page handlers: no endpoint, and no progress bar over their outputs
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def visitor_of(request: gr.Request) -> Visitor:
    """Return whose request it is. Behind a proxy, uvicorn reads the address from `X-Forwarded-For` if FORWARDED_ALLOW_IPS names the proxy."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ip_address(host)
    except ValueError:
        return Visitor(str(request.session_hash), host)
    # Whoever has one IPv6 address has 2**64
    group = ip_network((address, 64), strict=False) if address.version == 6 else address
    return Visitor(str(request.session_hash), str(group))


# ------------------------------------------------------------------------------------------------- input and examples


def prompt_box() -> gr.Textbox:
    """Make the box of the user's message."""
    return gr.Textbox("", label="Prompt", lines=3, max_lines=12, placeholder="What the user asked")


def judging_options(backend: Backend, most_critiques: int = 8) -> list[gr.Slider]:
    """Make sliders for critiques, temperature and length, in the order of `read_sliders`."""
    limit = backend.args.max_new_tokens
    with gr.Accordion("Options", open=False):
        critiques = gr.Slider(1, most_critiques, value=1, step=1, label="Critiques per response")
        temperature = gr.Slider(
            minimum=0,
            maximum=2,
            value=0,
            step=0.05,
            label="Temperature",
            info=f"At 0 one critique has the likeliest words, and several are sampled at {SAMPLING_TEMPERATURE}",
        )
        length = gr.Slider(min(8, limit), limit, value=limit, step=1, label="Longest critique in tokens")
    return [critiques, temperature, length]


def example_prompts(backend: Backend) -> list[tuple[str, list[str]]]:
    """Return prompts with responses: those of the rows if there are any, otherwise a few of the demo's own."""
    if backend.is_usable and (rows := [row for row in backend.models.rows if isinstance(row.prompt, str)]):
        return [(row.prompt, list(row.responses)) for row in rows]
    return _EXAMPLES


_EXAMPLES = [
    (
        "What is 17 + 25? Show how you get there.",
        ["17 + 25 = 10 + 20 + 7 + 5 = 30 + 12 = 42.", "17 + 25 is 43.", "It is 42."],
    ),
    (
        "Name a river in Egypt, and say how long it is.",
        ["The Nile. It is about 6,650 km long.", "The Amazon, about 6,400 km.", "The Nile."],
    ),
    (
        "My train leaves in ten minutes, and the station is a walk of fifteen. What should I do?",
        [
            "Run or take a taxi now; if you cannot, look for the next train on the way.",
            "Walk faster.",
            "Trains are fun.",
        ],
    ),
]


# ------------------------------------------------------------------------------------------------ buttons and result


class Controls:
    """
    Status line, buttons and result of one tab.

    Stop ends a run from within, so that "Stopped." is the last update. Gradio's own `cancels` would still show updates that
    arrived earlier, and overwrite it. `tab` is the prefix of the elements' ids.
    """

    def __init__(self, backend: Backend, tab: str):
        self.backend = backend
        self.tab = tab
        self.said = gr.HTML(elem_id=f"{tab}-status", elem_classes="said", render=False)
        self.result = gr.HTML(elem_id=f"{tab}-result", elem_classes="result", render=False)
        self._stops: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def run_button(self, label: str) -> gr.Button:
        """Make a row with the button that starts a run and the one that stops it. Returns the first."""
        with gr.Row():
            run = gr.Button(label, variant="primary", elem_id=f"{self.tab}-run")
            self.stop_button()
        return run

    def stop_button(self):
        """Make the button that stops the visitor's runs in the tab."""
        button = gr.Button("Stop", elem_id=f"{self.tab}-stop")
        button.click(self.stop, queue=False, api_visibility="private")

    def example_and_link(self, link: str, texts: dict[str, gr.Textbox], fill_in: Callable, outputs: list):
        """
        Make a row with the button that fills in an example and the one that makes a link to the texts.

        `link` is the tab's id in links. `fill_in` makes values for `outputs` from an example's prompt and responses.
        """
        script = (
            _MAKE_LINK.replace("TAB", json.dumps(link))
            .replace("NAMES", json.dumps(list(texts)))
            .replace("IN_ADDRESS_BAR", json.dumps(status("The address bar holds a link to these texts.")))
            .replace("IN_BOTH", json.dumps(status("The address bar and the clipboard hold a link to these texts.")))
        )
        with gr.Row():
            example = gr.Button("Example", size="sm", elem_classes="narrow")
            button = gr.Button("Link to this", size="sm", variant="secondary", elem_classes="narrow")
        example.click(
            lambda: fill_in(*random.choice(example_prompts(self.backend))), None, outputs, queue=False, **QUIET
        )
        button.click(None, list(texts.values()), self.said, js=script, api_visibility="private")

    def show_results(self):
        """Put status line and result here."""
        self.said.render()
        self.result.render()

    def start_on(
        self, triggers: Sequence, handler: Callable[..., AsyncGenerator], inputs: list, outputs: list | None = None
    ):
        """
        Run an event handler that Stop ends and whose errors become sentences.

        It is an async generator; its first argument is the `gr.Request`. `outputs` default to status line and result.
        """
        run = in_words(self.stoppable(handler), self.said)
        outputs = [self.said, self.result] if outputs is None else outputs
        gr.on(triggers, run, inputs, outputs, trigger_mode="once", **QUIET)

    def stoppable(self, handler: Callable[..., AsyncGenerator]) -> Callable[..., AsyncGenerator]:
        """Make [`Controls.stop`] end an event handler, an async generator whose first argument is the `gr.Request`."""

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
    """Pass updates on, and end immediately when `stop` is set."""
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


async def updates_of(steps: AsyncGenerator, show: Callable[[Any], str]) -> AsyncGenerator[tuple[str, Any], None]:
    """Convert steps to updates of status line and result: progress first, then `show` of the scores."""
    async with aclosing(steps):
        async for step in steps:
            yield (status(step.words), gr.skip()) if isinstance(step, Progress) else (status("Done."), show(step))


# ------------------------------------------------------------------------------------------------------------ errors


def in_words(handler: Callable[..., AsyncGenerator], said: gr.HTML | None = None) -> Callable[..., AsyncGenerator]:
    """
    Make an event handler (an async generator) fail with one sentence. Unexpected errors are logged.

    The status line `said`, if it is one of the outputs, shows the sentence too, until the next event.
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
    """Explain an error to the visitor."""
    if isinstance(error, Problem):
        return str(error)
    if is_out_of_memory(error):
        logger.error("Out of memory", exc_info=error)
        return "The model ran out of memory. Try a shorter text, fewer critiques, or shorter ones."
    logger.error("An event failed", exc_info=error)
    return "Something unexpected went wrong; the log of the demo has the details. Your texts are still here."


# ------------------------------------------------------------------------------------------------------------- links

# A link holds the texts in its part after the #, which browsers do not send to any server

_MAKE_LINK = """
(...values) => {
    const tab = TAB, names = NAMES;
    const content = {tab};
    names.forEach((name, place) => { content[name] = values[place]; });
    const bytes = new TextEncoder().encode(JSON.stringify(content));
    const packed = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    window.history.replaceState(null, "", "#" + packed);
    // Only pages from https or this machine have a clipboard
    if (!navigator.clipboard) return IN_ADDRESS_BAR;
    navigator.clipboard.writeText(window.location.href).catch(() => {});
    return IN_BOTH;
}
"""
_OPEN_LINK = """
(...values) => {
    const tabs = TABS;
    // Opening a link to the page that is already open changes nothing but the part after the #
    window.onhashchange = () => window.location.reload();
    // What the link does not hold stays as it is: the visitor may have begun to type
    const updates = values.map(() => ({__type__: "update"}));
    let content;
    try {
        const bytes = Uint8Array.from(atob(window.location.hash.slice(1)), (sign) => sign.charCodeAt(0));
        content = JSON.parse(new TextDecoder().decode(bytes));
    } catch {
        return updates;
    }
    if (!content || typeof content !== "object" || !(content.tab in tabs)) return updates;
    const [place, names] = tabs[content.tab];
    updates[0].selected = content.tab;
    names.forEach((name, index) => {
        if (typeof content[name] === "string") updates[place + index].value = content[name];
    });
    return updates;
}
"""


def open_links(page: gr.Blocks, tabs: gr.Tabs, texts_of_tabs: dict[str, dict[str, gr.Textbox]]):
    """Fill in the texts of the link with which the page is opened."""
    boxes, places = [], {}
    for tab, texts in texts_of_tabs.items():
        places[tab] = (1 + len(boxes), list(texts))
        boxes += texts.values()
    script = _OPEN_LINK.replace("TABS", json.dumps(places))
    page.load(None, [tabs, *boxes], [tabs, *boxes], js=script, api_visibility="private")
