import pytest
from browser import CHROMIUM, start_chromium


# Not for the session: Playwright keeps an event loop in the thread, beside which no test can run one of its own
@pytest.fixture(scope="module")
def chromium():
    """A browser for a module's tests; `browser.open_page` gives each a fresh profile in it."""
    pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")
    pytest.importorskip("playwright", reason="Playwright is not installed: no browser tests.")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed: no browser tests.")
    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM} (apt-get install chromium): no browser tests.")
    with start_chromium() as browser:
        yield browser
