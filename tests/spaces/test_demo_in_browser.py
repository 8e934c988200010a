"""The demo as visitors see it: its own command, a real browser, every tab; and its requests to the network."""

import json
import re
import shutil
import time

import httpx
import pytest
from browser import PATIENCE, SPACES, faults, make_client, open_page, start_app
from demo_for_tests import PROMPT, RESPONSES, save_models
from demo_page import (
    add_response,
    field,
    is_done,
    is_refused,
    judge,
    open_demo,
    open_options,
    open_tab,
    set_slider,
    settle,
    slider,
    start,
)


pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")
expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser tests.").expect

TOKENS = 60


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    found = save_models(folder)
    arguments = ("--model", found["cloud"], "--classic_model", found["classic"], "--rows", found["rows.jsonl"])
    limits = ("--max_new_tokens", str(TOKENS), "--reference_rows", "4")
    with start_app(SPACES / "demo" / "app.py", *arguments, *limits, workdir=folder / "work") as running:
        running.folder = folder
        yield running


@pytest.fixture
def visit(app, chromium):
    with open_demo(chromium, app.url) as visit:
        assert "6 rows" in visit.page.locator("#about").text_content()
        yield visit
        assert visit.problems == []
        assert visit.outgoing == []


def choose_critiques(page, number: int):
    """Ask for several critiques; the temperature stays at 0."""
    open_options(page)
    set_slider(page, "Critiques per response", number)
    expect(slider(page, "Critiques per response")).to_have_value(str(number))
    expect(slider(page, "Temperature")).to_have_value("0")


def wait_until_rewards_are_known(url: str):
    """The demo measures its reference rows while nobody asks, so ask rarely."""
    client = make_client(url)
    end = time.monotonic() + 2 * PATIENCE
    while client.predict(PROMPT, "x", max_new_tokens=1, api_name="/score")["percentile"] is None:
        assert time.monotonic() < end, "The model's rewards are not measured."
        time.sleep(2)


def test_a_critique_is_shown_as_it_is_written_and_then_the_reward(visit, app):
    page = visit.page
    field(page, "Prompt").fill(PROMPT)
    field(page, "Response").fill(RESPONSES[0])
    page.evaluate("""() => {
        [window.seen, window.places] = [[], new Set()];
        new MutationObserver(() => {
            const critique = document.querySelector("#score-critique .critique");
            if (!critique?.textContent) return;
            window.places.add(critique.getBoundingClientRect().top + window.scrollY);
            if (critique.textContent !== window.seen.at(-1)) window.seen.push(critique.textContent);
        }).observe(document.querySelector(".gradio-container"), {childList: true, subtree: true, characterData: true});
    }""")
    judge(page, "score")
    seen, final = page.evaluate("window.seen"), page.locator("#score-critique .critique").text_content()
    assert all(final.startswith(text) for text in seen)
    assert len(page.evaluate("[...window.places]")) == 1, "The critique moved."
    assert "Truncated at the maximum length" in page.locator("#score-critique").text_content()
    assert float(page.locator("#score-result .reward strong").text_content())
    assert (
        "cloud, float32 with transformers on cpu; 1 critique at temperature 0"
        in page.locator("#score-more").inner_text()
    )
    assert "The reward head of cloud has never been trained" in page.locator("#score-more").inner_text()
    assert str(app.folder) not in page.content()


def test_where_the_reward_falls_and_several_critiques(visit, app):
    page = visit.page
    field(page, "Prompt").fill(PROMPT)
    field(page, "Response").fill(RESPONSES[1])
    choose_critiques(page, 3)
    set_slider(page, "Temperature", 2)
    wait_until_rewards_are_known(app.url)
    judge(page, "score")
    result = page.locator("#score-result")
    assert "± " in result.locator(".reward").text_content()
    assert result.locator("svg circle").count() == 3
    assert "of 8 rewards of right and wrong responses, from 4 rows of rows.jsonl" in result.text_content()
    assert "4 right" in result.text_content() and "4 wrong" in result.text_content()
    page.locator("#score-critique label", has_text="3: ").click()
    expect(page.locator("#score-critique .critique >> visible=true")).to_have_count(1)
    assert faults(page) == []


def test_a_chat_with_a_system_message_reaches_the_model(visit):
    page = visit.page
    field(page, "Prompt").fill("And now?")
    field(page, "Response").fill("The answer is A.")
    judge(page, "score")
    plain = page.locator("#score-critique .critique").text_content()
    page.get_by_role("button", name="Chat: system message").click()
    field(page, "System message").wait_for()
    settle(page)
    field(page, "System message").fill("Be strict.")
    field(page, "Turn 1: user").fill(PROMPT)
    start(page, "score")
    is_refused(page, "score", "Earlier turn 1 needs both")
    field(page, "Turn 1: assistant").fill("The answer is D.")
    judge(page, "score")
    assert page.locator("#score-critique .critique").text_content() != plain


def test_compare(visit):
    page = visit.page
    open_tab(page, "Compare")
    field(page, "Prompt").fill(PROMPT)
    for place in (3, 4, 5):
        add_response(page, place)
    page.get_by_role("button", name="Remove the last").click()
    page.get_by_label("Response 5", exact=True).wait_for(state="hidden")
    settle(page)
    for place, response in enumerate(RESPONSES, start=1):
        field(page, f"Response {place}").fill(response)
    choose_critiques(page, 2)
    judge(page, "compare")
    result = page.locator("#compare-result")
    rewards = [float(cell) for cell in result.locator("table").first.locator("td:nth-child(3)").all_text_contents()]
    assert len(rewards) == 4 and rewards == sorted(rewards, reverse=True)
    assert result.locator("svg .bar").count() == 4
    assert result.locator("svg .error").count() > 0
    assert result.locator(".card").count() == 4
    # Not `.critique`: a sampled critique may be empty
    assert result.locator(".card .critiques input").count() == 8
    shares = result.locator("table").nth(1).locator("tbody td").all_text_contents()
    assert len(shares) == 16 and shares[0] == "—"
    assert faults(page) == []


def open_rows(page):
    """Open the tab of rows, which shows one."""
    open_tab(page, "Two models")
    page.locator("#versus-status", has_text="Which response is better?").wait_for()


def test_cloud_versus_classic(visit, app, chromium):
    page = visit.page
    open_rows(page)
    result, listed = page.locator("#versus-result"), page.locator("#versus-list a")
    assert "CLoud:" not in result.inner_text() and "chosen" not in result.inner_text()
    page.locator("#versus-a").click()
    page.locator("#versus-status", has_text=re.compile("You are right|The other one was chosen")).wait_for()
    titles = result.locator(".card h3").all_text_contents()
    assert sorted(title.split(": ")[1] for title in titles) == ["chosen", "rejected"]
    assert (
        result.locator(".card .critique").count() == 2
        and result.locator(".marks").text_content().count("classic") == 1
    )
    wait_until_rewards_are_known(app.url)
    compared = re.compile(r"CLoud is right in \d of 4 rows.*exact McNemar test", re.DOTALL)
    page.locator("#versus-summary", has_text=compared).wait_for()
    page.get_by_label(re.compile("All rows")).check()
    expect(listed).to_have_count(6, timeout=1000 * PATIENCE)
    page.get_by_label("Guess first").uncheck()
    listed.nth(5).click()
    row = json.loads((app.folder / "rows.jsonl").read_text().splitlines()[5])
    result.locator(".text", has_text=row["prompt"]).wait_for()
    is_done(page, "versus")
    assert result.locator(".card h3").all_text_contents() == ["Chosen", "Rejected"]
    assert faults(page) == []
    with open_page(chromium, page.url) as other:
        other.page.locator("#versus-result .text", has_text=row["prompt"]).wait_for()
        assert other.problems == []
    page.get_by_label("Search").fill("no such words")
    page.locator("#versus-list", has_text="No rows.").wait_for()


def test_best_of_n(visit):
    page = visit.page
    open_tab(page, "Best-of-N")
    field(page, "Prompt").fill(PROMPT)
    page.get_by_label("Candidates").locator("visible=true").first.fill("\n=====\n".join(RESPONSES))
    judge(page, "best")
    result = page.locator("#best-result")
    assert "Best: candidate" in result.text_content()
    assert result.locator(".text").first.text_content() in RESPONSES
    assert len(result.locator("svg .curve").get_attribute("points").split()) == 4
    assert page.get_by_role("button", name="Generate candidates").count() == 0
    assert faults(page) == []


def test_a_link_opens_the_texts_it_was_made_of(visit, app, chromium):
    page = visit.page
    open_tab(page, "Compare")
    field(page, "Prompt").fill("Ünïcode <b>?</b>")
    add_response(page, 3)
    field(page, "Response 3").fill("three")
    page.locator("#compare-link").click()
    page.locator("#compare-status", has_text="Copied a link with these texts").wait_for()
    page.wait_for_function("location.hash.length > 1")
    with open_page(chromium, page.url) as other:
        assert other.page.url == page.url
        expect(field(other.page, "Response 3")).to_have_value("three", timeout=1000 * PATIENCE)
        expect(field(other.page, "Prompt")).to_have_value("Ünïcode <b>?</b>", timeout=1000 * PATIENCE)
    with open_page(chromium, app.url) as other:
        other.page.goto(page.url)
        expect(field(other.page, "Response 3")).to_have_value("three", timeout=1000 * PATIENCE)
    open_tab(page, "Score")
    page.get_by_role("button", name="Chat: system message").click()
    field(page, "System message").wait_for()
    settle(page)
    field(page, "System message").fill("Be strict.")
    field(page, "Prompt").fill("And now?")
    link_of_texts = page.url
    page.locator("#score-link").click()
    page.wait_for_url(lambda url: url != link_of_texts)
    with open_page(chromium, page.url) as other:
        expect(field(other.page, "System message")).to_have_value("Be strict.", timeout=1000 * PATIENCE)
        expect(field(other.page, "Prompt")).to_have_value("And now?", timeout=1000 * PATIENCE)
    for broken in ("#", "#%%%"):
        with open_page(chromium, app.url + broken) as other:
            field(other.page, "Prompt").fill("still works")
            assert other.problems == []


def test_a_link_shows_the_result_without_judging_again(visit, app, chromium):
    page = visit.page
    field(page, "Prompt").fill(PROMPT)
    field(page, "Response").fill(RESPONSES[2])
    judge(page, "score")
    shown = [page.locator(f"#score-{part}").inner_text() for part in ("critique", "more")]
    page.locator("#score-link").click()
    page.wait_for_function("location.hash.length > 1")
    page.locator("#score-markdown").click()
    page.locator("#score-status", has_text="Copied as Markdown").wait_for()
    expect(page.locator("#score-copied textarea")).to_have_value(re.compile(r"\*\*Reward: [+-]"))
    with open_page(chromium, page.url) as other:
        other.page.locator("#score-status", has_text="this result was not computed here").wait_for()
        assert [other.page.locator(f"#score-{part}").inner_text() for part in ("critique", "more")] == shown
        expect(field(other.page, "Response")).to_have_value(RESPONSES[2], timeout=1000 * PATIENCE)
        expect(other.page.locator("#score-run")).to_have_text("Judge again")
        assert faults(other.page) == [] and other.problems == []


def test_the_keyboard_is_enough(visit):
    page = visit.page
    page.get_by_label("Examples").locator("visible=true").first.focus()
    for key in ("ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(field(page, "Prompt")).to_have_value(re.compile("^The ball"), timeout=1000 * PATIENCE)
    field(page, "Response").focus()
    page.keyboard.press("Shift+Enter")
    is_done(page, "score")
    critique = page.locator("#score-critique .critique")
    critique.focus()
    assert critique.evaluate("element => element === document.activeElement")


def test_empty_and_huge_fields_get_a_sentence(visit):
    page = visit.page
    for prompt, response, sentence in (
        ("", "x", "The prompt is empty."),
        ("x", " \n", "The response is empty."),
        ("x", "y" * 1_000_000, "The response has 1,000,000 characters; this demo accepts at most 20,000."),
        ("z" * 5_000, "y" * 15_000, "but the model's context holds 2048"),
    ):
        field(page, "Prompt").fill(prompt)
        field(page, "Response").fill(response)
        start(page, "score")
        is_refused(page, "score", sentence)
    field(page, "Prompt").fill(PROMPT)
    field(page, "Response").fill("The answer is C.")
    judge(page, "score")


@pytest.mark.parametrize("look", [{"dark": True}, {"width": 400}], ids=["dark", "narrow"])
def test_dark_and_narrow(app, chromium, look):
    with open_demo(chromium, app.url, **look) as visit:
        page = visit.page
        field(page, "Prompt").fill(PROMPT)
        field(page, "Response").fill(RESPONSES[0])
        judge(page, "score")
        if "width" in look:
            top = page.locator("#score-status").bounding_box()["y"]
            assert -2 < top < 100, "The result did not come into view."
        assert faults(page) == []
        open_rows(page)
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.screenshot(path=app.folder / "look.png", full_page=True)
        assert visit.problems == []


def test_programs_can_call_every_endpoint(app):
    from cloud_hf.loading import load_reward_model

    client = make_client(app.url)
    named = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert set(named) == {"/score", "/compare", "/versus", "/best_of_n"}
    model, tokenizer = load_reward_model(str(app.folder / "cloud"))
    expected = model.score([PROMPT] * 4, RESPONSES, tokenizer, max_new_tokens=TOKENS)
    rewards = pytest.approx([score.reward for score in expected], abs=1e-4)
    one = client.predict(PROMPT, RESPONSES[0], api_name="/score")
    assert one["critiques"] == list(expected[0].critiques)
    assert one["reward"] == pytest.approx(expected[0].reward, abs=1e-4)
    assert one["finish_reasons"] == ["length"]
    several = client.predict(PROMPT, RESPONSES[0], num_critiques=3, temperature=1.0, seed=5, api_name="/score")
    [same] = model.score(
        [PROMPT], RESPONSES[:1], tokenizer, num_critiques=3, temperature=1.0, seed=5, max_new_tokens=TOKENS
    )
    assert several["critiques"] == list(same.critiques)
    compared = client.predict(PROMPT, RESPONSES, api_name="/compare")
    assert [score["reward"] for score in compared["scores"]] == rewards
    assert sorted(compared["ranks"]) == [1, 2, 3, 4]
    assert compared["preferences"][0][1] + compared["preferences"][1][0] == pytest.approx(1)
    best = client.predict(PROMPT, RESPONSES, api_name="/best_of_n")
    assert [score["reward"] for score in best["scores"]] == rewards
    assert best["best"] == compared["ranks"].index(1)
    assert best["curve"][-1] == best["scores"][best["best"]]["reward"]
    row = client.predict(2, api_name="/versus")
    rows = [json.loads(line) for line in (app.folder / "rows.jsonl").read_text().splitlines()]
    assert row["prompt"] == rows[1]["prompt"]
    assert isinstance(row["cloud"]["right"], bool) and isinstance(row["classic"]["right"], bool)
    with pytest.raises(Exception, match="There is no row 7; there are 6"):
        client.predict(7, api_name="/versus")


def test_a_copy_of_the_space_answers_at_the_first_click(chromium, tmp_path):
    """Without any variable, from its folder alone."""
    shutil.copytree(SPACES / "demo", tmp_path / "demo", ignore=shutil.ignore_patterns("__pycache__"))
    with (
        start_app(tmp_path / "demo" / "app.py", workdir=tmp_path / "work", SPACE_ID="org/demo") as app,
        open_demo(chromium, app.url) as visit,
    ):
        judge(visit.page, "score")
        assert float(visit.page.locator("#score-result .reward strong").text_content()) > 0
        sentences = visit.page.locator("#score-critique .sentence")
        assert sentences.last.text_content().strip() == "Response C right."
        assert sentences.last.evaluate("element => getComputedStyle(element, '::after').content").startswith('"+')
        assert (
            'property="og:image" content="https://huggingface.co/spaces/org/demo/resolve/main/score.png"'
            in httpx.get(app.url).text
        )
        assert visit.problems == [] and visit.outgoing == [] and app.outgoing() == []


def test_a_space_with_a_bad_variable_says_what_is_wrong(chromium, tmp_path):
    with (
        start_app(SPACES / "demo" / "app.py", workdir=tmp_path, SPACE_ID="org/demo", DEMO_CONCURRENCY="<b>") as app,
        open_page(chromium, app.url) as visit,
    ):
        visit.page.locator("#problem", has_text="argument --concurrency: invalid int value: '<b>'").wait_for()
        assert faults(visit.page) == []
        assert visit.problems == [] and visit.outgoing == [] and app.outgoing() == []


def test_nobody_outside_was_asked(app):
    """Runs last: covers everything that this file made the server and its children do."""
    assert app.outgoing() == []
    assert "Traceback" not in app.log()
