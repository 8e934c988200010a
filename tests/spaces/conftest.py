import pytest
from browser import CHROMIUM, start_chromium


@pytest.fixture(scope="session")
def chromium():
    """A browser for the whole session; `browser.open_page` gives each test a fresh profile in it."""
    pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")
    pytest.importorskip("playwright", reason="Playwright is not installed: no browser tests.")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed: no browser tests.")
    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM} (apt-get install chromium): no browser tests.")
    with start_chromium() as browser:
        yield browser
