"""
Take the pictures of the demo, `spaces/demo/score.png` and `versus.png`, from its small models, in Chromium.

    python docs/pictures.py
"""

import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from browser import start_app, start_chromium  # noqa: E402
from demo_page import judge, open_demo, open_tab  # noqa: E402


DEMO = ROOT / "spaces" / "demo"


def take(chromium, url: str, folder: Path):
    """Take the pictures of a running demo, once it has judged all of its rows."""
    with open_demo(chromium, url, width=1280, height=800) as visit:
        page = visit.page
        open_tab(page, "Two models")
        # While rows are still being judged, the summary says how many there will be: "15 of 200 rows of …"
        page.wait_for_function(
            "/^[^]*McNemar[^]*\\.\\d+ rows of /.test(document.querySelector('#versus-summary')?.textContent)"
        )
        page.get_by_label("Guess first").uncheck()
        page.locator("#versus-list a").first.click()
        page.locator("#versus-result .card").first.wait_for()
        page.screenshot(path=folder / "versus.png", full_page=True)
        open_tab(page, "Score")
        page.get_by_label("Examples").first.click()
        page.get_by_role("option").first.click()
        judge(page, "score")
        page.screenshot(path=folder / "score.png")


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as workdir,
        start_app(DEMO / "app.py", workdir=Path(workdir)) as app,
        start_chromium() as chromium,
    ):
        take(chromium, app.url, DEMO)
