import os


# Nothing here may look for the network, and a run must not depend on how many cores the machine has
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from models_for_tests import make_model, save_language_model


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A tiny Llama language model on disk."""
    return save_language_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base_folder):
    """A fresh CLoud model."""
    return make_model(base_folder)


@pytest.fixture
def classic_model(base_folder):
    """A fresh classic model."""
    return make_model(base_folder, critique=False)


def pytest_terminal_summary(terminalreporter):
    """Say how many golden outputs were compared with."""
    reports = [report for status in ("passed", "failed") for report in terminalreporter.stats.get(status, [])]
    reports = [report for report in reports if "tests/parity/" in report.nodeid]
    if reports:
        count = sum(dict(report.user_properties).get("golden_comparisons", 0) for report in reports)
        failed = sum(report.failed for report in reports)
        terminalreporter.write_line(f"Goldens of the reference: {count} comparisons, {failed} tests failed")
