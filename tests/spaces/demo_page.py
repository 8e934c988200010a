"""What a person does on the demo's page, in words of the tests. Nothing here is quicker than the page, however slow it is."""

import re

from browser import PATIENCE


# Seconds until a click that did nothing is repeated
_REPEAT = 5


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
    """Click, and wait for the end of what that starts."""
    start(page, tab, button)
    is_done(page, tab)
    settle(page)


def start(page, tab: str, button: str = "run"):
    """Click until the status says what goes on: a click before the page has heard of the last run's end is lost."""
    from playwright.sync_api import TimeoutError

    page.evaluate(
        """status => {
            const box = document.querySelector(status), before = box.textContent.trim();
            window.watch?.disconnect();
            window.hasBegun = false;
            // Any change would not do: when a run is over, its last words are taken away and written once more
            window.watch = new MutationObserver(() => {
                const words = box.textContent.trim();
                window.hasBegun ||= words !== "" && words !== before && !words.startsWith("Done");
            });
            window.watch.observe(box, {childList: true, subtree: true, characterData: true});
        }""",
        f"#{tab}-status",
    )
    for _ in range(round(PATIENCE / _REPEAT)):
        page.locator(f"#{tab}-{button}").click()
        try:
            page.wait_for_function("() => window.hasBegun", timeout=1000 * _REPEAT)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"The button {button} of {tab} does nothing.")


def is_done(page, tab: str):
    """Wait for the end of what was started."""
    page.locator(f"#{tab}-status", has_text=re.compile("Done")).wait_for()
