"""The demo's first page answers with a real model."""

import math

import pytest


pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")

from browser import SPACES, start_app
from demo_page import field, judge, open_demo


def test_first_page(reward_model, chromium, tmp_path):
    options = ("--model", str(reward_model), "--max_new_tokens", "12")
    with start_app(SPACES / "demo/app.py", *options, workdir=tmp_path) as app, open_demo(chromium, app.url) as visit:
        field(visit.page, "Prompt").fill("What is 2+2?")
        field(visit.page, "Response").fill("It is 4.")
        judge(visit.page, "score")
        assert len(visit.page.locator("#score-critique .critique").text_content().split()) > 3
        assert math.isfinite(float(visit.page.locator("#score-result .reward strong").text_content()))
        assert visit.problems == [] and visit.outgoing == [] and app.outgoing() == []
