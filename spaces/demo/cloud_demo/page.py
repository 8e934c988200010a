"""The demo page with its tabs and API endpoints, and the page that a Space shows instead if its variables are invalid."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from cloud_hf.spaces_ui import as_text, launch_options, user_error

from . import Problem, best_of_n_tab, compare_tab, score_tab, two_models_tab
from .arguments import public_name
from .backend import Backend
from .score_html import note, paragraph
from .sharing import read_link
from .tab_parts import QUIET, TabParts, in_words, sentence_of


if TYPE_CHECKING:
    from .engines import Models


# To add a tab, write its module and list it here. A module has `TAB` (its id in links), `TITLE`, `build`, which builds
# its content and returns its `TabParts`, and `endpoints`, which returns the functions of its API endpoints.
TABS = [score_tab, compare_tab, two_models_tab, best_of_n_tab]

TITLE = "CLoud reward model"
_ABOUT = "It reads a response, writes a critique, and then assigns a reward."
_SHIPPED = """ These two small models were trained in minutes to follow a ball under four cups: the CLoud model writes down where the
ball goes, whereas the classic one assigns a reward immediately. Press *Judge*, or see where they disagree under *Two models*."""
_FOLDER = Path(__file__).parent
# Requests wait in the demo's own queue; Gradio's queue accepts this many more events
_SPARE_EVENTS = 32
_SETUP = f"""
# {TITLE}
This Space cannot start with its current variables. Its owner can change them under *Settings*, *Variables and secrets*: each option of the
demo is a variable named `DEMO_` plus the option's name in capitals, such as `DEMO_MODEL`. The Space restarts automatically when the
variables are saved.

The problem:
"""
# Opening a link in a tab that already shows the page changes only the part after the #, so the page must reload itself
_READ_LINK = "() => { window.onhashchange = () => window.location.reload(); return window.location.hash.slice(1); }"


class Page(gr.Blocks):
    """A page whose link previews have a description and, on a Space, a picture; Gradio's template reads both from the config."""

    def get_config_file(self):
        """Return Gradio's config with the description and the picture."""
        space = os.environ.get("SPACE_ID")
        picture = f"https://huggingface.co/spaces/{space}/resolve/main/score.png" if space else ""
        return super().get_config_file() | {"simple_description": _ABOUT, "thumbnail": picture}


def build(backend: Backend) -> gr.Blocks:
    """Build the page for a backend."""
    with Page(title=TITLE, analytics_enabled=backend.args.analytics) as page:
        gr.Markdown(f"# {TITLE}\n{_ABOUT}{_SHIPPED if backend.args.is_shipped else ''}")
        about = gr.HTML(note("The model is being loaded…"), elem_id="about")
        parts = {}
        with gr.Tabs() as tabs:
            for tab in TABS:
                with gr.Tab(tab.TITLE, id=tab.TAB) as opened:
                    parts[tab.TAB] = tab.build(backend)
                parts[tab.TAB].on_select(opened)
        _open_links(page, tabs, parts)
        # API clients see the names, arguments and docstrings of the endpoints
        for endpoint in [endpoint for tab in TABS for endpoint in tab.endpoints(backend)]:
            gr.api(in_words(endpoint), api_name=endpoint.__name__)
        listed = [part for part in parts.values() if part.examples is not None]

        async def describe_models() -> AsyncGenerator[list, None]:
            backend.load_in_background()
            yield [gr.skip(), *(gr.update(choices=part.example_names()) for part in listed)]
            try:
                models = await backend.loaded()
                if models.cloud.critique is None:
                    await asyncio.to_thread(models.cloud.ask_kind)
                words = note(_describe(backend, models))
            except Exception as error:
                words = f'<p class="note bad" role="alert">{as_text(sentence_of(error))}</p>'
            yield [words, *(gr.update(choices=part.example_names()) for part in listed)]

        outputs = [about, *(part.examples for part in listed)]
        page.load(describe_models, None, outputs, show_progress="hidden", api_visibility="private")
    page.queue(default_concurrency_limit=None, max_size=backend.args.max_waiting + _SPARE_EVENTS)
    return page


def _open_links(page: gr.Blocks, tabs: gr.Tabs, parts: dict[str, TabParts]):
    """Show the contents of the link with which the page was opened."""
    link = gr.Textbox(visible="hidden", label="Link")
    boxes = [box for part in parts.values() for box in part.texts.values()]

    def open_link(text: str) -> dict:
        try:
            result = read_link(text, {tab: list(part.texts) for tab, part in parts.items()})
            if result is None:
                return {tabs: gr.skip()}
            part = parts[result.tab]
            # Boxes that the link does not fill keep their text, because the visitor may have started typing
            shown = {part.texts[name]: text for name, text in result.texts.items()}
            return (
                {tabs: gr.Tabs(selected=result.tab)}
                | shown
                | (part.show(result) if result.scores or result.row else {})
            )
        except Problem as problem:
            raise user_error(str(problem), duration=10) from None

    outputs = [tabs, *boxes, *(component for part in parts.values() for component in part.outputs)]
    page.load(open_link, link, outputs, js=_READ_LINK, queue=False, **QUIET)


def _describe(backend: Backend, models: "Models") -> str:
    words = f"{public_name(models.cloud.name)} ({models.kind_of(models.cloud)}, {backend.args.backend})"
    if models.classic is not None:
        words += f", compared with {public_name(models.classic.name)}"
    if models.rows:
        words += f"; {len(models.rows)} rows of {backend.judged.source}"
    return " ".join([f"{words}.", *models.warnings, *([models.rows_problem] if models.rows_problem else [])])


def launch_setup_page(problem: str):
    """Serve a page that explains what is wrong with a Space's variables, until the process is told to stop."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(_SETUP)
        gr.HTML(paragraph(problem), elem_id="problem")
    page.launch(footer_links=["settings"], **_look())


def launch(page: gr.Blocks, backend: Backend, prevent_thread_lock: bool = False):
    """
    Serve the page. Blocks until the process is told to stop, unless `prevent_thread_lock` is set.

    Raises:
        `OSError`: If the port is in use.
    """
    args = backend.args
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            footer_links=["api", "settings"],
            max_threads=args.max_waiting + (args.concurrency or 1) + _SPARE_EVENTS,
            prevent_thread_lock=prevent_thread_lock,
            **_look(),
        )
    except OSError as error:
        if "Cannot find empty port" not in str(error):
            raise
        taken = "No port from 7860 is free" if args.port is None else f"Port {args.port} is in use"
        raise OSError(f"{taken}; choose another with `--port`.") from error


def _look() -> dict[str, Any]:
    return {**launch_options(), "css_paths": _FOLDER / "style.css"}
