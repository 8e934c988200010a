"""Many visitors at once, visitors who leave, failures behind the page, and texts that try to be more than text."""

import asyncio
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from browser import PATIENCE, make_client, open_page
from completion_server import serve_completions
from demo_for_tests import PROMPT, RESPONSES, EchoEngine, running_demo, save_models
from demo_page import field, is_done, is_refused, judge, open_demo, open_options, open_tab, set_slider, settle, start
from payloads import PAYLOADS
from servers_for_tests import free_port, serving

from cloud_hf.scores import Sample, Sampling, Score


pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")
expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser tests.").expect

VISITORS = 16
LONG = 1800
"""Tokens of a critique that outlasts a visitor's leaving, however slow their browser is."""
PAUSE = 0.02
"""Seconds between two tokens."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def demo(found):
    with running_demo(model=found["cloud"], max_new_tokens=LONG, max_waiting_per_address=64) as (backend, url):
        while not backend.is_loaded:
            time.sleep(0.05)
        yield backend, url


@pytest.fixture
def passes(demo):
    """Count the steps of the model, and slow them down."""
    backend, _ = demo
    count = [0]

    def step(module, args):
        count[0] += 1
        time.sleep(PAUSE)

    hook = backend.models.cloud._model.trunk.register_forward_pre_hook(step)
    yield count
    hook.remove()


@pytest.fixture
def gate(demo):
    """The model pauses while this event is not set."""
    backend, _ = demo
    opened = threading.Event()
    opened.set()

    def wait(module, args):
        opened.wait()

    hook = backend.models.cloud._model.trunk.register_forward_pre_hook(wait)
    yield opened
    opened.set()
    hook.remove()


class HeldEngine(EchoEngine):
    """Engine that needs a permit for each character and each score."""

    def __init__(self):
        super().__init__()
        self.may_go_on = threading.Semaphore(0)

    async def score(self, prompt, response, *options):
        await self._permission()
        return await super().score(prompt, response, *options)

    async def stream(self, prompt, response, sampling):
        for sign in response:
            await self._permission()
            yield sign
        yield await self.score(prompt, response)

    async def _permission(self):
        while not self.may_go_on.acquire(blocking=False):
            await asyncio.sleep(0.02)


def wait_until(condition, seconds: float = PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not happen."
        time.sleep(0.05)


def check_that_it_stopped(backend, passes):
    """Wait until the line is empty and the model takes no further step."""
    wait_until(lambda: backend.line.is_empty)
    wait_until(lambda: _is_still(passes))
    assert passes[0] < LONG


def _is_still(passes) -> bool:
    before = passes[0]
    time.sleep(0.4)
    return passes[0] == before


def fill_in(page, response: str = "The answer is A."):
    field(page, "Prompt").fill(PROMPT)
    field(page, "Response").fill(response)


def begin(page, response: str = "The answer is A."):
    fill_in(page, response)
    start(page, "score")


def write_and_wait(first, second):
    """Let the model write for the first page, and the second page wait in the queue."""
    begin(first)
    first.locator("#score-critique .writing:not(:empty)").wait_for()
    begin(second)
    second.locator("#score-status", has_text="In the queue: number 1 of 1").wait_for()


# ---------------------------------------------------------------------------------------------------- many visitors


def test_sixteen_visitors_get_their_own_results_and_see_their_place(demo, gate, chromium):
    backend, url = demo
    prompts = [f"The ball starts under cup {'ABCD'[i % 4]}. Visitor {i}?" for i in range(VISITORS)]
    answers = [f"The answer is {'ABCD'[i // 4]}." for i in range(VISITORS)]
    engine = backend.models.cloud
    expected = engine._model.score(prompts, answers, engine._format.tokenizer, max_new_tokens=100)
    clients = [make_client(url) for _ in range(VISITORS)]
    outputs = [None] * VISITORS

    def visit(i):
        job = clients[i].submit(prompts[i], answers[i], max_new_tokens=100, api_name="/score")
        job.result(timeout=4 * PATIENCE)
        outputs[i] = job.outputs()

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(VISITORS)]
    with open_demo(chromium, url) as browsing:
        page = browsing.page
        open_tab(page, "Compare")
        field(page, "Prompt").fill(PROMPT)
        for place in (1, 2):
            field(page, f"Response {place}").fill(RESPONSES[place])
        open_options(page)
        set_slider(page, "Maximum critique length in tokens", 50)
        gate.clear()
        for thread in threads:
            thread.start()
        wait_until(lambda: len(backend.line._waiting) == VISITORS - 1)
        start(page, "compare")
        page.locator("#compare-status", has_text=f"In the queue: number {VISITORS} of {VISITORS}").wait_for()
        gate.set()
        is_done(page, "compare")
        assert browsing.problems == []
    for thread in threads:
        thread.join()
    for i, output in enumerate(outputs):
        assert output[-1]["critiques"] == list(expected[i].critiques)
        assert output[-1]["reward"] == pytest.approx(expected[i].reward, abs=1e-4)
    said = [answer["status"] for output in outputs for answer in output if "status" in answer]
    assert any(words.startswith("In the queue: number ") for words in said)
    assert backend.line.is_empty


def test_one_visitor_may_not_fill_the_line(demo, gate):
    _, url = demo
    client = make_client(url)
    gate.clear()
    jobs = [client.submit(PROMPT, "The answer is B.", max_new_tokens=20, api_name="/score") for _ in range(4)]
    wait_until(lambda: sum(job.done() for job in jobs) == 2)
    gate.set()
    ends = [job.exception(timeout=4 * PATIENCE) for job in jobs]
    refused = [str(end) for end in ends if end is not None]
    assert len(refused) == 2 and all("You have 2 requests under way" in words for words in refused)


def test_one_address_with_many_sessions_leaves_room_for_others():
    """The proxy on this machine is trusted with the address, as uvicorn does by default."""
    from cloud_demo.engines import Models

    engine = HeldEngine()
    with running_demo(Models(engine), model="echo", max_waiting_per_address=2) as (_, url):
        clients = [make_client(url) for _ in range(4)]
        jobs = [client.submit(PROMPT, "The answer is B.", api_name="/score") for client in clients]
        wait_until(lambda: sum(job.done() for job in jobs) == 2)
        other = make_client(url, headers={"X-Forwarded-For": "192.0.2.7"})
        jobs.append(other.submit(PROMPT, "The answer is B.", api_name="/score"))
        engine.may_go_on.release(3)
        refused = [str(end) for job in jobs if (end := job.exception(timeout=4 * PATIENCE)) is not None]
        assert jobs[-1].exception() is None and len(refused) == 2
        assert all("Your network address has 2 requests under way" in words for words in refused)


def test_a_full_line_says_so():
    from cloud_demo.engines import Models

    engine = HeldEngine()
    with running_demo(Models(engine), model="echo", max_waiting=1) as (_, url):
        clients = [make_client(url) for _ in range(4)]
        jobs = [client.submit(PROMPT, "The answer is B.", api_name="/score") for client in clients]
        wait_until(lambda: sum(job.done() for job in jobs) == 2)
        engine.may_go_on.release(2)
        refused = [str(end) for job in jobs if (end := job.exception(timeout=4 * PATIENCE)) is not None]
        assert len(refused) == 2
        assert all("1 requests are waiting, which is the limit" in words for words in refused)


def test_what_is_written_can_be_read_before_more_is(chromium):
    from cloud_demo.engines import Models

    engine = HeldEngine()
    with running_demo(Models(engine), model="echo") as (_, url), open_demo(chromium, url) as visit:
        begin(visit.page, "yes")
        for written in ("y", "ye", "yes"):
            engine.may_go_on.release()
            expect(visit.page.locator("#score-critique .writing")).to_have_text(written, timeout=1000 * PATIENCE)
        assert visit.page.locator("#score-result .reward strong").text_content() == "…"
        engine.may_go_on.release()
        is_done(visit.page, "score")
        expect(visit.page.locator("#score-result .reward")).to_contain_text("+3.000")


def test_closing_the_tab_stops_the_model(demo, passes, chromium):
    backend, url = demo
    with open_demo(chromium, url) as visit:
        begin(visit.page)
        visit.page.locator("#score-critique .writing:not(:empty)").wait_for()
    check_that_it_stopped(backend, passes)


def test_closing_the_tab_while_several_are_compared_stops_the_model(demo, passes, chromium):
    backend, url = demo
    with open_demo(chromium, url) as visit:
        page = visit.page
        open_tab(page, "Compare")
        field(page, "Prompt").fill(PROMPT)
        for place in (1, 2):
            field(page, f"Response {place}").fill(RESPONSES[place])
        start(page, "compare")
        page.locator("#compare-status", has_text="Judging: ").wait_for()
    check_that_it_stopped(backend, passes)


def test_the_stop_button_stops_the_model(demo, passes, chromium):
    """Updates that arrive late do not overwrite the status line."""
    backend, url = demo
    with open_demo(chromium, url) as visit:
        page = visit.page
        page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 3})
        begin(page)
        page.locator("#score-critique .writing:not(:empty)").wait_for()
        page.locator("#score-stop").click()
        page.locator("#score-status", has_text="Stopped").wait_for()
        check_that_it_stopped(backend, passes)
        settle(page)
        assert page.locator("#score-status .status").text_content() == "Stopped."
        begin(page, "The answer is B.")
        page.locator("#score-critique .writing:not(:empty)").wait_for()
    check_that_it_stopped(backend, passes)


def test_who_waits_may_stop_waiting(demo, passes, chromium):
    backend, url = demo
    with open_demo(chromium, url) as first, open_demo(chromium, url) as second:
        write_and_wait(first.page, second.page)
        second.page.locator("#score-stop").click()
        second.page.locator("#score-status", has_text="Stopped").wait_for()
        assert not backend.line._waiting and not backend.line.is_empty
    check_that_it_stopped(backend, passes)


def test_a_visitor_who_leaves_the_line_is_not_waited_for(demo, passes, chromium):
    backend, url = demo
    with open_demo(chromium, url) as first, open_demo(chromium, url) as second:
        write_and_wait(first.page, second.page)
        second.page.close()
        wait_until(lambda: not backend.line._waiting)
        assert not backend.line.is_empty
    check_that_it_stopped(backend, passes)


# ------------------------------------------------------------------------------------------------------- texts only


@pytest.fixture(scope="module")
def echo():
    from cloud_demo.engines import Models

    from cloud_hf.evaluation.rows import BenchmarkRow

    rows = [BenchmarkRow(f"{text}/{i}", text, text, (text, text + "!")) for i, text in enumerate(PAYLOADS)]
    chat = [{"role": "system", "content": PAYLOADS[0]}, {"role": "user", "content": PAYLOADS[1]}]
    rows.append(BenchmarkRow("chat", "chat", chat, ("a", "b")))
    models = Models(EchoEngine(), EchoEngine(critique=False), rows)
    with running_demo(models, model="<i>name</i>", rows="<u>rows</u>", reference_rows=0) as (_, url):
        yield url


def shown(text: str) -> str:
    """Return a text as a browser shows it, without null characters."""
    return text.replace("\0", "\ufffd")


def check_inert(visit):
    page = visit.page
    assert page.locator("#injected").count() == 0
    assert (
        page.locator(
            ".result .text > *, .result .critique > *:not(.sentence), .sentence > *, .result b, .result img, .result iframe"
        ).count()
        == 0
    )
    assert page.evaluate("getComputedStyle(document.body).display") != "none"
    assert visit.problems == [] and visit.outgoing == []


def test_texts_of_users_and_models_stay_text(echo, chromium):
    with open_demo(chromium, echo) as visit:
        page = visit.page
        page.locator("#about", has_text="<b>echo</b>").wait_for()
        for payload in PAYLOADS:
            fill_in(page, payload)
            judge(page, "score")
            critique = "document.querySelector('#score-critique .critique:not(.writing)')"
            page.wait_for_function(f"text => {critique}?.textContent === text", arg=shown(payload))
            check_inert(visit)
        open_tab(page, "Best-of-N")
        field(page, "Prompt").fill(PAYLOADS[0])
        page.get_by_label("Candidates").locator("visible=true").first.fill("\n=====\n".join(PAYLOADS))
        judge(page, "best")
        texts = page.locator("#best-result .card .text").all_text_contents()
        assert sorted(texts) == sorted(shown(payload).strip() for payload in PAYLOADS)
        check_inert(visit)
        open_tab(page, "Two models")
        page.get_by_label(re.compile("All rows")).check()
        page.get_by_label("Guess first").uncheck()
        listed = page.locator("#versus-list a")
        expect(listed).to_have_count(len(PAYLOADS) + 1, timeout=1000 * PATIENCE)
        for row, payload in enumerate(PAYLOADS):
            listed.nth(row).click()
            page.wait_for_function(
                "text => document.querySelector('#versus-result .text')?.textContent === text", arg=shown(payload)
            )
            is_done(page, "versus")
            check_inert(visit)
    with open_page(chromium, f"{echo}#{hostile_link()}") as visit:
        visit.page.locator("#score-status", has_text="this result was not computed here").wait_for()
        assert visit.page.locator("#score-critique .critique").first.text_content() == PAYLOADS[0]
        check_inert(visit)


def hostile_link() -> str:
    """Return a link whose texts are all hostile."""
    from cloud_demo.sharing import Result

    score = Score.of([Sample(1.0, PAYLOADS[0]), Sample(2.0, PAYLOADS[1])])
    texts = {"prompt": PAYLOADS[2], "response": PAYLOADS[3], "system": PAYLOADS[4]}
    return Result("score", texts, None, [score], None, PAYLOADS[5]).link()[0]


def test_texts_in_errors_stay_text(echo, chromium):
    with open_demo(chromium, echo) as visit:
        for payload in PAYLOADS[:8]:
            begin(visit.page, f"refuse {payload}")
            is_refused(visit.page, "score", f"This is refused: refuse {payload}")
            check_inert(visit)


# ------------------------------------------------------------------------------------------------ what can go wrong


def sentence_from(url: str, *args, api_name="/score", **options) -> str:
    with pytest.raises(Exception) as caught:
        make_client(url).predict(*args, api_name=api_name, **options)
    return str(caught.value)


def test_a_model_that_is_no_reward_model_is_named(found, chromium):
    with running_demo(model=found["base"]) as (_, url), open_demo(chromium, url) as visit:
        visit.page.locator("#about", has_text="is a llama model, not a CLoud model").wait_for()
        begin(visit.page)
        is_refused(visit.page, "score", "is a llama model, not a CLoud model")
        assert "not a CLoud model" in sentence_from(url, "x", "y")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "The model ran out of memory. Try shorter texts"),
        (RuntimeError("surprise at /secret/path"), "Something unexpected went wrong"),
    ],
)
def test_failing_engines_get_a_sentence(error, words, chromium):
    from cloud_demo.engines import Models

    engine = EchoEngine(error=error)
    with running_demo(Models(engine), model="echo") as (_, url), open_demo(chromium, url) as visit:
        begin(visit.page)
        is_refused(visit.page, "score", words)
        visit.page.get_by_test_id("toast-body").get_by_text(words).wait_for()
        assert "secret" not in visit.page.content()
        engine.error = None
        judge(visit.page, "score")


def test_odd_arguments_of_programs_get_a_sentence(demo):
    _, url = demo
    for options, words in (
        ({"num_critiques": 99}, "between 1 and 16 critiques"),
        ({"num_critiques": 2}, "need a temperature above 0"),
        ({"temperature": -1}, "temperature of 0, or between"),
        ({"max_new_tokens": 0}, "between 1 and 1800 tokens"),
        ({"seed": 2**63}, "fits in 64 bits"),
        ({"turns": [["a"]]}, "pairs of strings"),
        ({"turns": 7}, "`turns` must be a list of pairs of strings"),
        ({"turns": [["a", ""]]}, "Earlier turn 1 needs both"),
    ):
        assert words in sentence_from(url, PROMPT, "x", **options)
    assert "Give 2 to 8 responses" in sentence_from(url, PROMPT, ["x"], api_name="/compare")
    assert "There are no rows" in sentence_from(url, 1, api_name="/versus")
    assert "`row` must be a whole number" in sentence_from(url, "first", api_name="/versus")
    assert "is empty" in sentence_from(url, PROMPT, ["x", " "], api_name="/compare")


# ------------------------------------------------------------------------------------------------ servers elsewhere


def test_a_reward_server_elsewhere(demo, found):
    """It streams, returns the model's rewards, refuses in a sentence, and may restart."""
    from cloud_hf.loading import load_reward_model
    from cloud_hf.serving.server.engine import TransformersEngine
    from cloud_hf.serving.server.limits import Limits

    model, tokenizer = load_reward_model(found["cloud"])
    port = free_port()
    with running_demo(backend="server", server_url=f"http://127.0.0.1:{port}", max_new_tokens=40) as (_, url):
        assert "The reward server could not be reached or failed: ConnectError" in sentence_from(url, PROMPT, "x")
        with serving(TransformersEngine(model, tokenizer), port=port, limits=Limits(max_new_tokens=30)):
            got = make_client(url).predict(PROMPT, RESPONSES[0], max_new_tokens=30, api_name="/score")
            [score] = model.score([PROMPT], RESPONSES[:1], tokenizer, max_new_tokens=30)
            assert got["critiques"] == list(score.critiques)
            assert "this server's limit is 30" in sentence_from(url, PROMPT, "x", max_new_tokens=40)


def test_a_classic_reward_server_elsewhere(found, chromium):
    """The demo asks it for its kind, and asks again if it did not answer at first."""
    from cloud_hf.loading import load_reward_model
    from cloud_hf.serving.server.engine import TransformersEngine

    model, tokenizer = load_reward_model(found["classic"])
    [score] = model.score([PROMPT], RESPONSES[:1], tokenizer)
    port = free_port()
    with running_demo(backend="server", server_url=f"http://127.0.0.1:{port}/") as (_, url):
        with open_demo(chromium, url) as visit:
            visit.page.locator("#about", has_text="(not answering yet, server)").wait_for()
        with serving(TransformersEngine(model, tokenizer), port=port), open_demo(chromium, url) as visit:
            visit.page.locator("#about", has_text="(classic, server)").wait_for()
            fill_in(visit.page, RESPONSES[0])
            judge(visit.page, "score")
            critique = visit.page.locator("#score-critique")
            assert "This model writes no critiques: it is a classic reward model." in critique.text_content()
            assert f"{score.reward:+.3f}" in visit.page.locator("#score-result").text_content()
            assert critique.locator(".critique").count() == 0
            said = sentence_from(url, PROMPT, "x", num_critiques=2, temperature=1.0)
            assert "This is a classic reward model: it writes no critiques. Choose 1 critique." in said


def test_candidates_from_a_policy_server(chromium):
    from cloud_demo.engines import Models

    with serve_completions(write=lambda body: (f"an answer to {body['messages'][-1]['content']}", "stop")) as server:
        options = {"policy_url": server.url, "policy_model": server.model}
        with (
            running_demo(Models(EchoEngine()), model="echo", **options) as (_, url),
            open_demo(chromium, url) as visit,
        ):
            page = visit.page
            open_tab(page, "Best-of-N")
            field(page, "Prompt").fill("Why?")
            set_slider(page, "Candidates to generate", 3)
            page.locator("#best-generate").click()
            page.locator("#best-status", has_text="3 candidates were written").wait_for()
            judge(page, "best")
            assert page.locator("#best-result .text").first.text_content() == "an answer to Why?"
            assert make_client(url).predict("Why?", 2, api_name="/generate") == ["an answer to Why?"] * 2
    with running_demo(Models(EchoEngine()), model="echo", **options) as (_, url):
        assert "could not be reached" in sentence_from(url, "Why?", 2, api_name="/generate")


# ------------------------------------------------------------------------------------------------------- ZeroGPU


def test_on_zero_gpu_each_request_goes_through_its_decorator(found, monkeypatch):
    """The real decorator lends a GPU; this one counts."""
    from cloud_hf.loading import load_reward_model

    borrowed = []

    def lend(duration):
        def decorate(function):
            def run(*args):
                borrowed.append(function.__name__)
                return function(*args)

            return run

        return decorate

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=lend))
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.delitem(sys.modules, "cloud_demo.engines", raising=False)  # its functions are decorated at import
    model, tokenizer = load_reward_model(found["cloud"])
    [score] = model.score([PROMPT], RESPONSES[:1], tokenizer, max_new_tokens=30)
    with running_demo(model=found["cloud"], max_new_tokens=30) as (backend, url):
        wait_until(lambda: backend.is_loaded)
        got = make_client(url).predict(PROMPT, RESPONSES[0], api_name="/score")
        assert got["critiques"] == list(score.critiques)

        async def stream():
            return [
                piece async for piece in backend.models.cloud.stream(PROMPT, RESPONSES[0], Sampling(max_new_tokens=30))
            ]

        with ThreadPoolExecutor(1) as thread:  # the browser's loop runs in this one
            *pieces, last = thread.submit(asyncio.run, stream()).result()
        assert "".join(pieces) == score.critique and last.reward == pytest.approx(score.reward, abs=1e-4)
    assert borrowed == ["_judge", "_write"]
