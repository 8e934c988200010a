"""The page: tabs, endpoints for programs, and the page of a Space that is not set up."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import gradio as gr

from cloud_hf.spaces_ui import as_text, launch_options

from . import best_of_n_tab, compare_tab, score_tab, versus_tab
from .backend import Backend
from .score_html import note, paragraph
from .tab_parts import in_words, open_links, sentence_of


# To add a tab, write its module and list it here. A module has `TAB` (its id in links), `TITLE`, `build`, which makes its
# content and returns the texts that a link carries, and `endpoints`, which makes functions for programs.
TABS = [score_tab, compare_tab, versus_tab, best_of_n_tab]

TITLE = "CLoud reward model"
_STYLE = Path(__file__).parent / "style.css"
# Requests wait in the demo's own queue; Gradio's queue holds a few more
_SPARE_EVENTS = 32
_SETUP = f"""
# {TITLE}
This Space cannot open its model yet. Its owner sets it up under *Settings*, *Variables and secrets*: each option of the demo is a
variable, `DEMO_` with its name in capitals. `DEMO_MODEL` is needed, the id of a reward model on the Hub, such as
`org/my-cloud-rm`; `DEMO_CLASSIC_MODEL` and `DEMO_ROWS` (such as `reward_bench`) are worth having. The Space restarts by itself
when they are saved.

What is wrong:
"""


def build(backend: Backend) -> gr.Blocks:
    """Make the page for a backend."""
    with gr.Blocks(title=TITLE, analytics_enabled=backend.args.analytics) as page:
        gr.Markdown(f"# {TITLE}\nIt reads a response, writes a critique, and then gives a number.")
        about = gr.HTML(note("The model is being loaded…"), elem_id="about")
        texts = {}
        with gr.Tabs() as tabs:
            for tab in TABS:
                with gr.Tab(tab.TITLE, id=tab.TAB):
                    texts[tab.TAB] = tab.build(backend)
        open_links(page, tabs, texts)
        # Programs see the names, arguments and docstrings of the endpoints
        for endpoint in [endpoint for tab in TABS for endpoint in tab.endpoints(backend)]:
            gr.api(in_words(endpoint), api_name=endpoint.__name__)

        async def describe_models() -> AsyncGenerator[str, None]:
            backend.load_in_background()
            try:
                models = await backend.loaded()
                if models.cloud.critique is None:
                    await asyncio.to_thread(models.cloud.ask_kind)
                yield note(_describe(backend, models))
            except Exception as error:
                yield f'<p class="note bad" role="alert">{as_text(sentence_of(error))}</p>'

        page.load(describe_models, None, about, show_progress="hidden", api_visibility="private")
    page.queue(default_concurrency_limit=None, max_size=backend.args.max_waiting + _SPARE_EVENTS)
    return page


def _describe(backend: Backend, models) -> str:
    kind = {True: "CLoud", False: "classic", None: "not answering yet"}[models.cloud.critique]
    words = f"{models.cloud.name} ({kind}, {backend.args.backend})"
    if models.classic is not None:
        words += f", compared with {models.classic.name}"
    if models.rows:
        words += f"; {len(models.rows)} rows of {backend.args.rows}"
    return words + (f". {models.rows_problem}" if models.rows_problem else ".")


def build_setup_page(problem: str) -> gr.Blocks:
    """Make the page that explains what is wrong with a Space's variables."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(_SETUP)
        gr.HTML(paragraph(problem), elem_id="problem")
    return page


def launch(page: gr.Blocks, backend: Backend, prevent_thread_lock: bool = False):
    """
    Serve the page. Blocks until the process is told to stop, unless `prevent_thread_lock`.

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


def launch_setup_page(problem: str):
    """Serve the page of a Space that is not set up, until the process is told to stop."""
    build_setup_page(problem).launch(footer_links=["settings"], **_look())


def _look() -> dict[str, Any]:
    return {**launch_options(), "css_paths": _STYLE}
