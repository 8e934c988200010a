import pytest
from browser import CHROMIUM, start_chromium


# Not for the session: Playwright keeps an event loop running in the thread, so no test could run another
@pytest.fixture(scope="module")
def chromium():
    """Start a browser for a module's tests; `browser.open_page` opens a fresh profile in it."""
    pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")
    pytest.importorskip("playwright", reason="Playwright is not installed: no browser tests.")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed: no browser tests.")
    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM} (apt-get install chromium): no browser tests.")
    with start_chromium() as browser:
        yield browser
