"""The page: four tabs, and the endpoints for programs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from . import api, best_of_n_tab, compare_tab, score_tab, share_link, versus_tab
from .backend import Backend
from .markup import escape, note
from .problems import sentence_of


TITLE = "CLoud reward model"
_STYLE = Path(__file__).parent / "style.css"
# Gradio's own fonts come from Google
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_FIXED_FONTS = ["ui-monospace", "SFMono-Regular", "Consolas", "monospace"]
# Gradio itself computes nothing here; beyond these, requests wait in its own queue
_SPARE_EVENTS = 32


def build(backend: Backend) -> gr.Blocks:
    """The page over a backend."""
    with gr.Blocks(title=TITLE, analytics_enabled=backend.args.analytics) as page:
        gr.Markdown(f"# {TITLE}\nIt reads a response, writes a critique, and then gives a number.")
        about = gr.HTML(note("The model is being loaded…"), elem_id="about")
        texts = {}
        with gr.Tabs() as tabs:
            with gr.Tab("Score", id="score"):
                texts["score"] = score_tab.build(backend)
            with gr.Tab("Compare", id="compare"):
                texts["compare"] = compare_tab.build(backend)
            with gr.Tab("CLoud vs classic", id="versus"):
                versus_tab.build(backend)
            with gr.Tab("Best-of-N", id="best-of-n"):
                texts["best-of-n"] = best_of_n_tab.build(backend)
        share_link.open_links(page, tabs, texts)
        api.build(backend)

        async def say_what_is_open() -> AsyncIterator[str]:
            backend.load_in_background()
            try:
                models = await backend.loaded()
                if models.cloud.critique is None:
                    await asyncio.to_thread(models.cloud.ask_kind)
                yield note(_describe(backend, models))
            except Exception as error:
                yield f'<p class="note bad" role="alert">{escape(sentence_of(error))}</p>'

        page.load(say_what_is_open, None, about, show_progress="hidden", api_visibility="private")
    # Who waits is shown where they stand by our own line; what comes on top of that waits in Gradio's
    waiting = backend.args.max_waiting
    page.queue(default_concurrency_limit=None, max_size=waiting + _SPARE_EVENTS)
    return page


def look() -> dict[str, Any]:
    """Options of `launch` for all our pages: colours that can be read, fonts of the machine, nothing shared."""
    theme = gr.themes.Default(primary_hue="blue", font=_FONTS, font_mono=_FIXED_FONTS).set(
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        color_accent="*primary_600",
    )
    return {"theme": theme, "css_paths": _STYLE, "share": False, "ssr_mode": False, "run_history": False}


def launch(page: gr.Blocks, backend: Backend, prevent_thread_lock: bool = False):
    """Serve the page. Blocks until the process is told to stop, unless `prevent_thread_lock`."""
    args = backend.args
    page.launch(
        server_name=args.host,
        server_port=args.port,
        footer_links=["api", "settings"],
        max_threads=args.max_waiting + args.concurrency + _SPARE_EVENTS,
        prevent_thread_lock=prevent_thread_lock,
        **look(),
    )


def _describe(backend: Backend, models) -> str:
    kind = {True: "CLoud", False: "classic", None: "not answering yet"}[models.cloud.critique]
    words = f"{models.cloud.name} ({kind}, {backend.args.backend})"
    if models.classic is not None:
        words += f", compared with {models.classic.name}"
    if models.rows:
        words += f"; {len(models.rows)} rows of {backend.args.rows}"
    return words + (f". {models.rows_problem}" if models.rows_problem else ".")
