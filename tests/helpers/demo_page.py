"""Actions of a visitor on the demo's page. Each waits for the page, however slow it is."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from browser import PATIENCE, open_page, settle


# Seconds until a click without effect is repeated
_REPEAT = 5
# Gradio streams the answers of all running events of a page from here
_ANSWERS = "/gradio_api/queue/data"


@contextmanager
def open_demo(browser, url: str, **look) -> Iterator:
    """Open the page and wait until it shows the model: the stream that brings this must not be taken for a click's."""
    with open_page(browser, url, **look) as visit:
        visit.page.wait_for_function(
            "text => !document.querySelector('#about').textContent.includes(text)", arg="is being loaded"
        )
        settle(visit.page)
        yield visit


def field(page, name: str):
    """Find a box by its label in the open tab."""
    return page.get_by_label(name, exact=True).locator("visible=true").first


def slider(page, name: str):
    """Find the number box of a slider in the open tab."""
    return page.get_by_label(f"number input for {name}").locator("visible=true")


def set_slider(page, name: str, value: float):
    """Type a number into a slider's box."""
    slider(page, name).fill(str(value))
    page.keyboard.press("Tab")


def open_tab(page, name: str):
    """Open a tab; on a narrow screen the last ones are behind a button."""
    tab = page.get_by_role("tab", name=name)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    page.get_by_role("tabpanel").get_by_role("button").first.wait_for()
    settle(page)


def open_options(page):
    """Unfold the sliders of the open tab."""
    page.get_by_role("button", name="Options").locator("visible=true").click()
    slider(page, "Critiques per response").wait_for()
    settle(page)


def judge(page, tab: str, button: str = "run"):
    """
    Click, and wait for the end of the run.

    The words on the page do not tell: "Done" may be left from the last run. But the stream of answers ends with the run.
    """
    ended = []

    def hear(request):
        ended.append(request)

    for event in ("requestfinished", "requestfailed"):
        page.on(event, hear)
    stream = start(page, tab, button)
    end = time.monotonic() + PATIENCE
    while stream not in ended:
        assert time.monotonic() < end, f"The run of the button {button} of {tab} does not end."
        page.wait_for_timeout(20)
    for event in ("requestfinished", "requestfailed"):
        page.remove_listener(event, hear)
    is_done(page, tab)
    settle(page)


def start(page, tab: str, button: str = "run"):
    """
    Click until the page asks for answers, and return the request that brings them.

    A click is lost before the page has heard of the last run's end, and does nothing during a run.
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
    """Add a box in the tab Compare, the one with this number."""
    page.get_by_role("button", name="Add a response").click()
    field(page, f"Response {place}").wait_for()
    settle(page)


def is_refused(page, tab: str, sentence: str):
    """Wait until the status line shows this error."""
    page.locator(f"#{tab}-status .bad", has_text=sentence).wait_for()


def is_done(page, tab: str):
    """Wait until the status line says that the run is done."""
    page.locator(f"#{tab}-status .status", has_text=re.compile("^Done")).wait_for()
