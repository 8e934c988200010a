"""What a person does on the demo's page, in words of the tests. Nothing here is quicker than the page, however slow it is."""

import re
import time

from browser import PATIENCE


# Seconds until a click that did nothing is repeated
_REPEAT = 5
# Where Gradio sends the answers of a page's events, as they come
_ANSWERS = "**/gradio_api/queue/data*"


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


def settle(page):
    """
    Wait until what a click has opened can be filled in.

    A closed tab or accordion has no fields. When it is opened, Gradio puts them there and, in the next frame and thus before anybody
    sees them, gives each the value it began with: a script that does not wait for frames may have filled them in between.
    """
    page.evaluate("""async () => {
        for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
    }""")


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
    from playwright.sync_api import TimeoutError

    for _ in range(round(PATIENCE / _REPEAT)):
        try:
            with page.expect_request(_ANSWERS, timeout=1000 * _REPEAT) as request:
                page.locator(f"#{tab}-{button}").click()
            return request.value
        except TimeoutError:
            continue
    raise AssertionError(f"The button {button} of {tab} does nothing.")


def is_done(page, tab: str):
    """Wait until the status says that it is done."""
    page.locator(f"#{tab}-status .status", has_text=re.compile("^Done")).wait_for()
