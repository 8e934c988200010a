"""The metric Spaces in a real browser, with the folders named as on the Hub and tiny models."""

import importlib.util
import json
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import evaluate
import pytest
from browser import SPACES, faults, make_client, open_page, start_app
from models_for_tests import make_model, save_language_model
from payloads import PAYLOADS
from servers_for_tests import free_port, make_engine, serving
from tokenizers_for_tests import make_tokenizer

from cloud_hf import TransformersScorer
from cloud_hf.loading import load_reward_model


pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")

CHOSEN, REJECTED = [1.0, 2.0, 0.5, -1.0, 0.3], [0.0, 3.0, 0.5, -4.0, -0.2]
PAIRS = "chosen,rejected\n" + "\n".join(f"{right},{wrong}" for right, wrong in zip(CHOSEN, REJECTED, strict=True))
PROMPTS, ANSWERS = ["What is 2+2?", "Name a river.", "Say hi."], ["4", "The Nile.", ""]
LOOKS = [
    pytest.param({"dark": True}, id="dark", marks=pytest.mark.full),
    pytest.param({"width": 400}, id="narrow", marks=pytest.mark.full),
    pytest.param({"width": 400, "dark": True}, id="narrow and dark"),
]


def json_lines(**columns) -> str:
    return "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))


def box_of(page, label: str):
    """Find a text box; its accessible name also contains its hint."""
    return page.get_by_role("textbox", name=re.compile(f"^{label}"))


def compute(page, text: str, label: str = "Rewards"):
    box_of(page, label).fill(text)
    page.get_by_role("button", name="Compute", exact=True).click()


def cells(page, caption: str, column: int) -> list[str]:
    """Return the texts of a column of a table."""
    table = page.get_by_role("region", name=caption)
    table.wait_for()
    return table.locator(f"tbody tr td:nth-child({column})").all_text_contents()


def download(page, name: str, folder: Path) -> str:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name).click()
    path = folder / "download"
    waiting.value.save_as(path)
    return path.read_text(encoding="utf8")


def refused(page) -> str:
    """Read the message on the page and close it."""
    toast = page.get_by_test_id("toast-body")
    text = toast.get_by_test_id("toast-text").inner_text()
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")
    return text


def fits(page) -> bool:
    """Check that the page is not wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def quiet(app, visit) -> bool:
    """Check that nothing left this machine, no script failed or was injected, and no traceback was printed."""
    assert visit.outgoing == [] and app.outgoing() == [] and visit.problems == []
    assert visit.page.locator("#injected").count() == 0 and "Traceback" not in app.log()
    return True


# ------------------------------------------------------------------------------------------------ pairwise preference


@pytest.fixture(scope="module")
def preference_app(chromium, tmp_path_factory):
    """On the Hub the folder is called `app`; the app must still find its module."""
    work = tmp_path_factory.mktemp("preference")
    shutil.copytree(SPACES / "pairwise_preference", work / "app", ignore=shutil.ignore_patterns("__pycache__"))
    with start_app(work / "app" / "app.py", workdir=work) as app:
        yield app


@pytest.fixture(scope="module")
def preference():
    return evaluate.load(str(SPACES / "pairwise_preference"), keep_in_memory=True)


def test_rewards_become_figures(chromium, preference_app, preference, tmp_path):
    wanted = preference.compute(chosen=CHOSEN, rejected=REJECTED)
    with open_page(chromium, preference_app.url) as visit:
        assert faults(visit.page) == []
        compute(visit.page, PAIRS)
        assert cells(visit.page, "Metrics", 2)[:4] == ["60.0\u00a0%", "70.0\u00a0%", "5", "0.7"]
        for alt_text in ("Histogram of the margins", "Reliability diagram"):
            visit.page.wait_for_function(
                "name => document.querySelector(`img[alt^='${name}']`)?.naturalWidth > 300", arg=alt_text
            )
        assert faults(visit.page) == []
        visit.page.screenshot(path=tmp_path / "pairwise_preference.png", full_page=True)
        found = json.loads(download(visit.page, "Download the metrics", tmp_path))
        assert found == json.loads(json.dumps(wanted))
        assert quiet(preference_app, visit)


@pytest.mark.parametrize("look", LOOKS)
def test_preference_by_keyboard_in_any_light(chromium, preference_app, tmp_path, look):
    with open_page(chromium, preference_app.url, **look) as visit:
        box_of(visit.page, "Rewards").focus()
        visit.page.keyboard.insert_text(json_lines(chosen=CHOSEN, rejected=REJECTED, subset=["math-prm"] * 5))
        visit.page.keyboard.press("Shift+Enter")
        assert cells(visit.page, "RewardBench, only 1 of its 23 subsets", 1) == ["Reasoning"]
        assert faults(visit.page) == [] and fits(visit.page)
        assert ("dark" in (visit.page.locator("body").get_attribute("class") or "")) == ("dark" in look)
        visit.page.screenshot(path=tmp_path / "pairwise_preference_look.png", full_page=True)
        assert quiet(preference_app, visit)


def test_subsets_are_text(chromium, preference_app):
    count = len(PAYLOADS)
    with open_page(chromium, preference_app.url) as visit:
        compute(visit.page, json_lines(chosen=[1.0] * count, rejected=[0.0] * count, subset=PAYLOADS))
        shown = cells(visit.page, "Accuracy by subset", 1)
        assert shown == [payload.replace("\0", "\ufffd") for payload in PAYLOADS]
        for payload in PAYLOADS[:5]:
            compute(visit.page, json_lines(chosen=[payload], rejected=[1]))
            assert payload[:40] in refused(visit.page)
        assert quiet(preference_app, visit)


def test_bad_rewards_get_a_sentence(chromium, preference_app, tmp_path):
    bad = {
        "": "There are no rows",
        "chosen,rejected\n1,nan": "Row 0: a reward is not a finite number",
        "chosen,rejected\n1,2\n1e400,2": "Row 1: a reward is not a finite number",
        "chosen,rejected\n1,2\nx,3": "Row 1: `chosen` is 'x', not a number",
        '{"chosen": [1, 2], "rejected": [1]}': "The columns differ in length",
        '{"chosen": true, "rejected": 1}': "Row 0: a reward is not a finite number",
        '{"chosen": null, "rejected": 1}': "Row 0: `chosen` is None",
        "chosen,rejected\n1e308,-1e308": "rewards are limited to ±1e+100",
        "x" * 1_000_000: "There are no rows below the first line",
        "[" * 100_000: "nested too deeply",
    }
    workbook = tmp_path / "<img src=x onerror=alert(1)>.csv"
    workbook.write_bytes(b"PK\x03\x04\xff\xfe\x00\x01")
    with open_page(chromium, preference_app.url) as visit:
        for text, message in bad.items():
            compute(visit.page, text)
            assert message in refused(visit.page)
            assert not visit.page.get_by_role("region", name="Metrics").is_visible()
        visit.page.locator("input[type=file]").first.set_input_files(workbook)
        visit.page.get_by_role("button", name="Clear").first.wait_for()
        visit.page.get_by_role("button", name="Compute", exact=True).click()
        assert "is not UTF-8 text" in refused(visit.page)
        visit.page.get_by_role("button", name="Clear").first.click()
        pairs = {"chosen": [1.25] * 100_000, "rejected": [0.75] * 100_000}
        compute(visit.page, json.dumps(pairs))  # 1.2 MB
        assert cells(visit.page, "Metrics", 2)[2] == "100000"
        assert quiet(preference_app, visit)


def test_an_uploaded_file_is_read_instead(chromium, preference_app, tmp_path):
    path = tmp_path / "rewards.jsonl"
    path.write_text(json_lines(chosen=CHOSEN, rejected=REJECTED))
    with open_page(chromium, preference_app.url) as visit:
        visit.page.locator("input[type=file]").first.set_input_files(path)
        visit.page.get_by_role("button", name="Clear").first.wait_for()
        compute(visit.page, "chosen,rejected\n1,2")
        assert cells(visit.page, "Metrics", 2)[2] == "5"


def test_preference_for_programs(preference_app, preference):
    from gradio_client.exceptions import AppError

    client = make_client(preference_app.url)
    subsets = ["math-prm", "hep-go", "math-prm", "donotanswer", "hep-go"]
    rows = {"chosen": CHOSEN, "rejected": REJECTED, "subsets": subsets}
    wanted = json.loads(json.dumps(preference.compute(**rows, num_bins=5)))
    assert client.predict(**rows, num_bins=5, api_name="/compute") == wanted
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/compute"]
    for arguments, message in (
        ({"chosen": [1.0, 2.0], "rejected": [0.0]}, "2 chosen and 1 rejected rewards"),
        ({"chosen": [], "rejected": []}, "no pairs"),
        ({"chosen": 3, "rejected": [0.0]}, "`chosen` is 3; give a list of numbers"),
        ({"chosen": [1.0], "rejected": [0.0], "num_bins": 0}, "`num_bins` is 0"),
        ({"chosen": [1.0], "rejected": [0.0], "subsets": [["a"]]}, "give a list of names"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(**arguments, api_name="/compute")


# ------------------------------------------------------------------------------------------------------- CLoud reward


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "cloud"
    make_model(save_language_model(tmp_path_factory.mktemp("base"))).save_pretrained(folder)
    make_tokenizer("llama3").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward_app(chromium, model_folder, tmp_path_factory):
    """The environment names the model, as on the Hub; an option of the command line takes precedence."""
    script, work = SPACES / "cloud_reward" / "app.py", tmp_path_factory.mktemp("reward")
    settings = {"CLOUD_MODEL": model_folder, "CLOUD_MAX_ROWS": "1"}
    with start_app(script, "--max_rows", "20", workdir=work, **settings) as app:
        yield app


@pytest.fixture(scope="module")
def scorer(model_folder):
    return TransformersScorer(*load_reward_model(model_folder))


def compute_rewards(page, text: str, longest: int = 8):
    page.get_by_label("number input for Maximum critique length in tokens").fill(str(longest))
    compute(page, text, "Prompts and predictions")


def test_predictions_become_rewards(chromium, reward_app, scorer, tmp_path):
    scores = scorer.score(PROMPTS, ANSWERS, num_critiques=3, temperature=1.0, max_new_tokens=8, seed=4)
    with open_page(chromium, reward_app.url) as visit:
        assert faults(visit.page) == []
        visit.page.get_by_label("number input for Critiques per response").fill("3")
        visit.page.get_by_label("number input for Temperature").fill("1")
        visit.page.get_by_label("Seed").fill("4")
        compute_rewards(visit.page, json_lines(prompt=PROMPTS, prediction=ANSWERS))
        shown = [float(text.replace("−", "-")) for text in cells(visit.page, "Rewards and critiques", 2)]
        assert shown == pytest.approx([score.reward for score in scores], rel=1e-3)
        spreads = [float(text) for text in cells(visit.page, "Rewards and critiques", 3)]
        assert spreads == pytest.approx([score.reward_std for score in scores], rel=1e-3) and min(spreads) > 0
        critiques = cells(visit.page, "Rewards and critiques", 4)
        for text, score in zip(critiques, scores, strict=True):
            assert text == f"{score.critique}\n(and 2 more, in the download)"
        ends = cells(visit.page, "Rewards and critiques", 5)
        cut = [score.finish_reasons.count("length") for score in scores]
        assert ends == [f"{count} of 3 truncated" if count else "on its own" for count in cut] and max(cut) > 0
        visit.page.locator(".vega-embed").wait_for()
        assert faults(visit.page) == []
        visit.page.screenshot(path=tmp_path / "cloud_reward.png", full_page=True)
        rows = [json.loads(line) for line in download(visit.page, "Download rewards", tmp_path).splitlines()]
        assert [row["critiques"] for row in rows] == [list(score.critiques) for score in scores]
        assert [row["reward"] for row in rows] == pytest.approx([score.reward for score in scores], abs=1e-5)
        assert [row["prompt"] for row in rows] == PROMPTS
        assert quiet(reward_app, visit)


@pytest.mark.parametrize("look", LOOKS)
def test_rewards_by_keyboard_in_any_light(chromium, reward_app, tmp_path, look):
    with open_page(chromium, reward_app.url, **look) as visit:
        visit.page.get_by_label("number input for Maximum critique length in tokens").fill("8")
        box_of(visit.page, "Prompts and predictions").focus()
        visit.page.keyboard.insert_text("prompt,prediction\nHi!,Hello.")
        visit.page.keyboard.press("Shift+Enter")
        assert cells(visit.page, "Rewards and critiques", 7) == ["Hello."]
        assert faults(visit.page) == [] and fits(visit.page)
        visit.page.screenshot(path=tmp_path / "cloud_reward.png", full_page=True)
        assert quiet(reward_app, visit)


def test_prompts_and_predictions_are_text(chromium, reward_app):
    with open_page(chromium, reward_app.url) as visit:
        compute_rewards(visit.page, json_lines(prompt=PAYLOADS, prediction=PAYLOADS))
        for column in (6, 7):
            shown = cells(visit.page, "Rewards and critiques", column)
            assert shown == [payload.replace("\0", "\ufffd") for payload in PAYLOADS]
        assert quiet(reward_app, visit)


def test_bad_rows_get_a_sentence(chromium, reward_app):
    chat = [{"role": "user", "content": "Hi"}]
    bad = {
        "": "There are no rows",
        "prompt\nHi": "There is no column `prediction`",
        "prompt,prediction\n,4": "Row 0: `prompt` is empty",
        json_lines(prompt=["a", "b"], prediction=["c", None]): "Row 1: `prediction` is None; give text",
        json_lines(prompt=["a", chat], prediction=["c", "d"]): "Row 1: text and chats are mixed",
        json_lines(prompt=[["a"]], prediction=["c"]): "give text, or a list of messages",
        json_lines(prompt=["\ud800"], prediction=["c"]): "Row 0: `prompt` is '\\ud800'",
        json_lines(prompt=["a"] * 21, prediction=["b"] * 21): "21 rows, but this Space accepts at most 20",
        json_lines(prompt=["word " * 200_000], prediction=["b"]): "the model's context holds 512",
        '{"prompt": ["a", "b"], "prediction": ["c"]}': "The columns differ in length",
    }
    with open_page(chromium, reward_app.url) as visit:
        for text, message in bad.items():
            compute_rewards(visit.page, text)
            assert message in refused(visit.page)
        visit.page.get_by_label("number input for Critiques per response").fill("2")
        compute_rewards(visit.page, "prompt,prediction\nHi!,Hello.")
        assert "needs `temperature` above 0" in refused(visit.page)
        visit.page.get_by_label("number input for Critiques per response").fill("1")
        compute_rewards(visit.page, "prompt,prediction\nHi!,Hello.")
        assert cells(visit.page, "Rewards and critiques", 6) == ["Hi!"]
        assert quiet(reward_app, visit)


def test_rewards_for_programs(reward_app, scorer):
    from gradio_client.exceptions import AppError

    client = make_client(reward_app.url)
    chats = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}] for prompt in PROMPTS]
    found = client.predict(prompts=chats, predictions=ANSWERS, max_new_tokens=8, api_name="/compute")
    scores = scorer.score(chats, ANSWERS, max_new_tokens=8)
    assert found["critiques"] == [list(score.critiques) for score in scores]
    assert found["rewards"] == pytest.approx([score.reward for score in scores], abs=1e-5)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/compute"]
    for changed, message in (
        ({"predictions": ["4"]}, "3 prompts but 1 predictions"),
        ({"prompts": "Hi"}, "`prompts` is 'Hi'; give a list"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        ({"max_new_tokens": "many"}, "`max_new_tokens` is 'many'"),
        ({"num_critiques": 2.5}, r"`num_critiques` is 2\.5"),
        ({"seed": "x"}, "`seed` is 'x'"),
    ):
        arguments = {"prompts": PROMPTS, "predictions": ANSWERS, "max_new_tokens": 8, **changed}
        with pytest.raises(AppError, match=message):
            client.predict(**arguments, api_name="/compute")


@pytest.fixture(scope="module")
def reward_script():
    """Import the app into this process."""
    spec = importlib.util.spec_from_file_location("cloud_reward_app", SPACES / "cloud_reward" / "app.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_model_that_is_none_of_ours(chromium, reward_script, base_folder, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with ExitStack() as stack:
        page = reward_script.open_page(stack, *reward_script.read_arguments(["--model", str(base_folder)]))
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), share=False)
        stack.callback(page.close)
        with open_page(chromium, url) as visit:
            visit.page.get_by_text("is a llama model, not a CLoud model").wait_for()
            assert visit.problems == []


def test_behind_a_server_and_without_it(reward_script, model_folder, scorer):
    import gradio as gr

    model, _ = load_reward_model(model_folder)
    with ExitStack() as stack:
        with serving(make_engine(model)) as (running, _):
            arguments = ["--model", model_folder, "--backend", "server", "--server_url", running.url]
            space, backend = reward_script.read_arguments(arguments)
            opened = stack.enter_context(reward_script.open_backend(space.model, backend))
            judge = reward_script.Judge(space.model, opened[0], True, opened[2], backend.server_url, space.max_rows)
            found = judge.compute(PROMPTS, ANSWERS, max_new_tokens=8)
            assert found["critiques"] == [list(s.critiques) for s in scorer.score(PROMPTS, ANSWERS, max_new_tokens=8)]
        with pytest.raises(gr.Error, match=f"The reward server at {running.url} does not respond"):
            judge.compute(PROMPTS, ANSWERS, max_new_tokens=8)


def test_out_of_memory(reward_script, scorer):
    """The only failure that cannot be provoked, so a scorer imitates it."""
    import gradio as gr
    import torch

    class Full:
        def score(self, *args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    judge = reward_script.Judge("model", Full(), True, 512, None, 20)
    with pytest.raises(gr.Error, match=r"Out of memory\. Score fewer or shorter rows, or lower max_new_tokens"):
        judge.compute(PROMPTS, ANSWERS)
