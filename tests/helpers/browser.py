"""
Spaces as a person meets them: the app in its own process, a real Chromium, and what either asks of the network.

with start_app(SPACES / "demo" / "app.py", "--model", folder, workdir=tmp_path) as app, open_page(chromium, app.url) as visit:
    visit.page.get_by_label("Prompt").fill("What is 2+2?")
    assert visit.outgoing == [] and app.outgoing() == [] and faults(visit.page) == []
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from servers_for_tests import free_port


CHROMIUM = Path("/usr/bin/chromium")
REPOSITORY = Path(__file__).parents[2]
SPACES = REPOSITORY / "spaces"
_WATCH = Path(__file__).parent / "network_watch"
_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    # Requests of a page to other hosts fail, and are recorded
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
# Limit of every wait: on two busy cores a model's first critique can take half a minute
PATIENCE = 90.0
# axe would find half-faded colors too pale
_NOTHING_FADES = """document.getAnimations().every(
    ({ playState, effect }) => playState !== "running" || effect.getComputedTiming().endTime === Infinity
)"""
# The tests set these to keep libraries off the network; an app must be quiet without them
_QUIETED_BY_TESTS = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED", "VLLM_NO_USAGE_STATS")


@dataclass
class RunningApp:
    """An app that answers at `url`."""

    url: str
    process: subprocess.Popen
    log_file: Path
    network_file: Path
    seconds: float
    """Time from the start of the process to its first answer."""

    def outgoing(self) -> list[str]:
        """Return the connections and look-ups that left this machine, those of child processes included."""
        return self.network_file.read_text().splitlines() if self.network_file.exists() else []

    def log(self) -> str:
        """Return the output so far."""
        return self.log_file.read_text(errors="replace")


@contextmanager
def start_app(script: Path, *args: str, workdir: Path, patience: float = 240.0, **env: str) -> Iterator[RunningApp]:
    """
    Start a Gradio app on a free port, and wait until it answers.

    Args:
        script (`Path`):
            The app.
        *args (`str`):
            Its command line.
        workdir (`Path`):
            Where log, record of the network and Gradio's files go.
        patience (`float`, *optional*, defaults to `240.0`):
            Seconds that it may take to answer.
        **env (`str`):
            More environment variables.

    Yields:
        [`RunningApp`]
    """
    port = free_port()
    workdir.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name not in _QUIETED_BY_TESTS}
    settings = {
        "PYTHONPATH": os.pathsep.join((str(_WATCH), str(REPOSITORY))),
        "WATCHED_NETWORK": str(workdir / "network.txt"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(workdir / "gradio"),
        "PYTHONUNBUFFERED": "1",
    }
    start = time.monotonic()
    with open(workdir / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), *args],
            env={**inherited, **settings, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    app = RunningApp(f"http://127.0.0.1:{port}", process, workdir / "log.txt", workdir / "network.txt", 0.0)
    try:
        _wait_until_it_answers(app, start + patience)
        app.seconds = time.monotonic() - start
        yield app
    finally:
        _stop(process)


def _wait_until_it_answers(app: RunningApp, deadline: float):
    with httpx.Client(trust_env=False, timeout=10) as http:
        while time.monotonic() < deadline:
            assert app.process.poll() is None, f"The app ended by itself:\n{app.log()}"
            try:
                if http.get(f"{app.url}/config").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
    raise AssertionError(f"The app does not answer:\n{app.log()}")


def _stop(process: subprocess.Popen):
    """End the app and its children, by force if needed."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


@contextmanager
def start_chromium():
    """Start Debian's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page in a fresh profile, and a record of its requests and errors."""

    page: object
    outgoing: list[str] = field(default_factory=list)
    """Requested addresses outside this machine."""
    problems: list[str] = field(default_factory=list)
    """Script errors and dialogs; only an injected script opens a dialog."""


@contextmanager
def open_page(browser, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, **context) -> Iterator:
    """
    Open an app and wait until Gradio has drawn it.

    Args:
        browser:
            From the fixture `chromium`.
        url (`str`):
            Address of the app.
        width, height (`int`, *optional*):
            Size of the window in pixels.
        dark (`bool`, *optional*, defaults to `False`):
            Whether the system prefers dark colors.
        **context:
            More options of Playwright's `new_context`.

    Yields:
        [`Visit`]
    """
    scheme = "dark" if dark else "light"
    window = {"width": width, "height": height}
    profile = browser.new_context(viewport=window, color_scheme=scheme, reduced_motion="reduce", **context)
    profile.set_default_timeout(1000 * PATIENCE)
    visit = Visit(profile.new_page())

    def see(address: str):
        parts = urlsplit(address)
        if parts.scheme not in ("data", "blob", "about") and parts.hostname != "127.0.0.1":
            visit.outgoing.append(address)

    def dismiss(dialog):
        visit.problems.append(f"{dialog.type}: {dialog.message}")
        dialog.dismiss()

    profile.on("request", lambda request: see(request.url))
    visit.page.on("websocket", lambda websocket: see(websocket.url))
    visit.page.on("pageerror", lambda error: visit.problems.append(str(error)))
    visit.page.on("dialog", dismiss)
    try:
        visit.page.goto(url)
        visit.page.locator(".gradio-container footer").wait_for()
        visit.page.wait_for_function("!document.querySelector('p.loading')")
        settle(visit.page)
        yield visit
    finally:
        profile.close()


def settle(page):
    """
    Wait until the fields of a page, tab or accordion that was just opened can be filled in.

    Gradio creates the fields on opening and sets their initial values in the next frame, before anybody sees them. A script that
    does not wait for frames may fill them in between.
    """
    page.evaluate("""async () => {
        for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
    }""")


def make_client(url: str, **options):
    """Make a program's client of an app; `options` are `gradio_client`'s. By default `gradio_client` gives up after 5 s without an answer."""
    from gradio_client import Client

    return Client(url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": PATIENCE}, **options)


def faults(page) -> list[str]:
    """Return the findings of axe-core above minor ones: rule, elements, and what is wrong with each."""
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_function(_NOTHING_FADES)
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {[(node['html'][:200], node['failureSummary']) for node in rule['nodes']]}"
        for rule in found
        if rule["impact"] != "minor"
    ]
