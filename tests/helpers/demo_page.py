"""What a person does on the demo's page, in words of the tests. Nothing here is quicker than the page, however slow it is."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from browser import PATIENCE, open_page, settle


# Seconds until a click that did nothing is repeated
_REPEAT = 5
# Where Gradio sends the answers of a page's events, as they come: one stream for all that are under way
_ANSWERS = "/gradio_api/queue/data"


@contextmanager
def open_demo(browser, url: str, **look) -> Iterator:
    """As `open_page`, and wait until the page has heard which model is open: the stream that told it is not that of a click."""
    with open_page(browser, url, **look) as visit:
        visit.page.wait_for_function(
            "text => !document.querySelector('#about').textContent.includes(text)", arg="is being loaded"
        )
        settle(visit.page)
        yield visit


def field(page, name: str):
    """The box of a name in the tab that is open."""
    return page.get_by_label(name, exact=True).locator("visible=true").first


def slider(page, name: str):
    """The number box of a slider in the tab that is open."""
    return page.get_by_label(f"number input for {name}").locator("visible=true")


def set_slider(page, name: str, value: float):
    """Type a number into a slider's box."""
    slider(page, name).fill(str(value))
    page.keyboard.press("Tab")


def open_tab(page, name: str):
    """On a narrow screen the last tabs are behind a button."""
    tab = page.get_by_role("tab", name=name)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    page.get_by_role("tabpanel").get_by_role("button").first.wait_for()
    settle(page)


def open_options(page):
    """Unfold the sliders of the tab that is open."""
    page.get_by_role("button", name="Options").locator("visible=true").click()
    slider(page, "Critiques per response").wait_for()
    settle(page)


def judge(page, tab: str, button: str = "run"):
    """
    Click, and wait for the end of what that starts.

    The words on the page do not tell it: "Done" may be left from the last run, and Gradio writes words of its own around it. The stream
    in which the answers come ends with the run.
    """
    ended = []

    def hear(request):
        ended.append(request)

    for event in ("requestfinished", "requestfailed"):
        page.on(event, hear)
    stream = start(page, tab, button)
    end = time.monotonic() + PATIENCE
    while stream not in ended:
        assert time.monotonic() < end, f"What the button {button} of {tab} has started does not end."
        page.wait_for_timeout(20)
    for event in ("requestfinished", "requestfailed"):
        page.remove_listener(event, hear)
    is_done(page, tab)
    settle(page)


def start(page, tab: str, button: str = "run"):
    """
    Click until the page asks for answers, and return the request that brings them.

    A click before the page has heard of the last run's end is lost; one while a run goes on does nothing.
    """
    begun = []

    def hear(request):
        if _ANSWERS in request.url:
            begun.append(request)

    page.on("request", hear)
    try:
        end = time.monotonic() + PATIENCE
        while not begun:
            assert time.monotonic() < end, f"The button {button} of {tab} does nothing."
            page.locator(f"#{tab}-{button}").click()
            repeat = time.monotonic() + _REPEAT
            while not begun and time.monotonic() < repeat:
                page.wait_for_timeout(20)
    finally:
        page.remove_listener("request", hear)
    return begun[0]


def add_response(page, place: int):
    """One more box in the tab Compare, which will be the one at this place."""
    page.get_by_role("button", name="Add a response").click()
    field(page, f"Response {place}").wait_for()
    settle(page)


def is_refused(page, tab: str, sentence: str):
    """Wait until the status says this, in place of how far it has come."""
    page.locator(f"#{tab}-status .bad", has_text=sentence).wait_for()


def is_done(page, tab: str):
    """Wait until the status says that it is done."""
    page.locator(f"#{tab}-status .status", has_text=re.compile("^Done")).wait_for()
