"""The settings that the tabs share."""

import gradio as gr

from .backend import Backend
from .judging import SAMPLING_TEMPERATURE


def judging_options(backend: Backend, most_critiques: int = 8) -> list[gr.Slider]:
    """Sliders for critiques, temperature and length, in the order of `Options.of_page`."""
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
    """A prompt and responses to it, as examples: from the rows if there are any, else a few of our own."""
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
