"""What a Space shows until it is told what to open."""

import gradio as gr

from .markup import paragraph
from .page import TITLE, look


_WORDS = f"""
# {TITLE}
This Space cannot open its model yet. Whoever it belongs to sets it up under *Settings*, *Variables and secrets*: each option of
the demo is a variable, `DEMO_` with its name in capitals. `DEMO_MODEL` is needed, the id of a reward model on the Hub, such as
`org/my-cloud-rm`; `DEMO_CLASSIC_MODEL` and `DEMO_ROWS` (such as `reward_bench`) are worth having. The Space starts again by itself
when they are saved.

What is wrong:
"""


def build_setup_page(problem: str) -> gr.Blocks:
    """The page that says what is wrong with a Space's variables."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(_WORDS)
        gr.HTML(paragraph(problem), elem_id="problem")
    return page


def launch_setup_page(problem: str):
    """Serve it, until the process is told to stop."""
    build_setup_page(problem).launch(footer_links=["settings"], **look())
