"""The demo in this process, with untrained models of the quickstart's shape, or with engines that echo."""

import json
import sys
from contextlib import contextmanager

import torch
from browser import SPACES
from models_for_tests import make_model
from transformers import LlamaForCausalLM

from cloud_hf.data.shell_game import build_model_config, build_tokenizer, preference_rows
from cloud_hf.scores import Sample, Sampling, Score


sys.path.insert(0, str(SPACES / "demo"))

PROMPT = "The ball starts under cup D. Swap cups 1: A and B. 2: D and B. Where is the ball now?"
RESPONSES = [f"The answer is {cup}." for cup in "ABCD"]


def save_models(folder) -> dict[str, str]:
    """Save a CLoud, a classic and a plain language model, and rows."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    LlamaForCausalLM(build_model_config(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name, critique in (("cloud", True), ("classic", False)):
        model = make_model(folder / "base", seed=critique, critique=critique)
        with torch.no_grad():  # never the likeliest token, so every critique reaches its longest length
            model.get_output_embeddings().weight[model.config.critique_end_token_id] = 0
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in preference_rows(6, "test")))
    return {name: str(folder / name) for name in ("base", "cloud", "classic", "rows.jsonl")}


@contextmanager
def running_demo(models=None, **arguments):
    """Serve a demo in this process; yields its backend and address. `models` replace those to be loaded."""
    from cloud_demo.arguments import DemoArguments
    from cloud_demo.backend import Backend
    from cloud_demo.page import build, launch

    backend = Backend(DemoArguments(**arguments))
    if models is not None:
        assert backend._begun.acquire(blocking=False)
        backend._models.set_result(models)
    page = build(backend)
    launch(page, backend, prevent_thread_lock=True)
    backend.load_in_background()
    try:
        yield backend, page.local_url
    finally:
        page.close()


class EchoEngine:
    """Engine whose critique of a response is the response itself, streamed by characters."""

    name = "<b>echo</b>"

    def __init__(self, critique: bool = True, error: Exception | None = None):
        self.critique = critique
        self.error = error

    def check(self, prompt, response, max_new_tokens, critiques=None):
        if response.startswith("refuse"):
            raise ValueError(f"This is refused: {response}")

    async def score(self, prompt, response, sampling=Sampling(), critiques=None):  # noqa: B008
        if self.error is not None:
            raise self.error
        if critiques is not None:
            return Score.of([Sample(float(len(text)), text) for text in critiques])
        critique = response if self.critique else ""
        count = sampling.num_critiques
        rewards = tuple(float(len(response) + place) for place in range(count))
        return Score(
            sum(rewards) / count,
            critique,
            rewards,
            (critique,) * count,
            0.5,
            ("stop",) * count,
        )

    async def stream(self, prompt, response, sampling):
        score = await self.score(prompt, response)
        for sign in response:
            yield sign
        yield score
