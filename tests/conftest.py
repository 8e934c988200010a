import gc
import os
import sys


# No test may look for the network. pytest-xdist's workers share the cores: with two OpenMP threads each, they wait for
# each other by spinning, and the run takes almost twice as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


# Fixtures import torch when they are used, so that a test of a pure module starts at once


# Engines, browsers, two processes, Ray, a real model, the quickstart. The longest come first, so that none is left at the end when
# files run two at a time.
HEAVY = (
    "tests/examples/test_quickstart.py",
    "tests/serving/test_vllm.py",
    "tests/distributed/",
    "tests/real/",
    "tests/spaces/test_demo_in_browser.py",
    "tests/data/builders/test_ray.py",
    "tests/spaces/test_demo_sessions.py",
    "tests/spaces/test_metric_apps.py",
    "tests/serving/test_vllm_bases.py",
    "tests/examples/test_self_critiques_with_vllm.py",
)


def pytest_collection_modifyitems(items):
    def place(item) -> int:
        return next((place for place, prefix in enumerate(HEAVY) if item.nodeid.startswith(prefix)), len(HEAVY))

    items.sort(key=place)
    for item in items:
        if item.nodeid.startswith(HEAVY):
            item.add_marker(pytest.mark.heavy)


_modules = 0


def pytest_runtest_setup():
    """Exempt what imports created from garbage collection: trainers collect often, and torch alone makes a million objects."""
    global _modules
    if len(sys.modules) > _modules + 100:
        _modules = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A tiny Llama language model on disk."""
    from models_for_tests import save_language_model

    return save_language_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base_folder):
    """A fresh CLoud model."""
    from models_for_tests import make_model

    return make_model(base_folder)


@pytest.fixture
def classic_model(base_folder):
    """A fresh classic model."""
    from models_for_tests import make_model

    return make_model(base_folder, critique=False)


# Not for the session: Playwright keeps an event loop running in the thread, so no test could run another
@pytest.fixture(scope="module")
def chromium():
    """Start a browser for a module's tests; `browser.open_page` opens a fresh profile in it."""
    pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")
    pytest.importorskip("playwright", reason="Playwright is not installed: no browser tests.")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed: no browser tests.")
    from browser import CHROMIUM, start_chromium

    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM} (apt-get install chromium): no browser tests.")
    with start_chromium() as browser:
        yield browser


def pytest_terminal_summary(terminalreporter):
    """Print the number of comparisons with golden outputs."""
    reports = [report for status in ("passed", "failed") for report in terminalreporter.stats.get(status, [])]
    reports = [report for report in reports if "tests/parity/" in report.nodeid]
    if reports:
        count = sum(dict(report.user_properties).get("golden_comparisons", 0) for report in reports)
        failed = sum(report.failed for report in reports)
        terminalreporter.write_line(f"Goldens of the reference: {count} comparisons, {failed} tests failed")
