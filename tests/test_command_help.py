"""The page that `--help` prints."""

import re
import subprocess
import sys

import pytest

from cloud_hf.cli import COMMANDS
from cloud_hf.command_help import help_page


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def page_of(command):
    return help_page(COMMANDS[command][0], f"cloud-hf {command}")


def options_of(page):
    return re.findall(r"^  (--\w+)", page, re.MULTILINE)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("serve", "demo", "convert")])
def test_a_page_is_short_and_names_each_option_once(command):
    page = page_of(command)
    assert len(page.splitlines()) <= 80
    assert len(options_of(page)) == len(set(options_of(page)))
    assert "`~" not in page and "(default: None)" not in page


@pytest.mark.parametrize(
    "command", ["train-critique-sft", "train-cloud", "train-classic", "evaluate", "oracle-critiques"]
)
def test_every_option_of_a_page_exists(command):
    import dataclasses
    import importlib

    types = importlib.import_module(COMMANDS[command][0]).ARGUMENTS
    known = {f"--{field.name}" for cls in types for field in dataclasses.fields(cls)}
    assert set(options_of(page_of(command))) - known <= {"--config", "--help_all", "--debug"}
    # Whatever a class of this package describes is on the page
    own = {f"--{field.name}" for field in dataclasses.fields(types[0])}
    assert own <= set(options_of(page_of(command)))


def test_options_that_a_command_fixes_are_left_out():
    assert "--critique" not in options_of(page_of("train-classic")) and "--critique" in options_of(
        page_of("train-cloud")
    )


def test_benchmarks_and_probes_are_named():
    from cloud_hf.evaluation.benchmarks import BENCHMARKS
    from cloud_hf.evaluation.probes import PROBES

    page = " ".join(page_of("evaluate").split())
    for name in [*BENCHMARKS, *PROBES]:
        assert name in page, name


@pytest.mark.parametrize(
    ("command", "options"),
    [("train-cloud", ["--lm_loss_weight", "--learning_rate"]), ("serve", ["--max_queue"]), ("convert", ["--dry_run"])],
)
def test_it_is_printed_without_torch(command, options):
    code = f"import sys; from cloud_hf.cli import main\ntry: main(['{command}', '--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) <= 80, done.stderr
    assert all(option in done.stdout for option in options)


def test_a_command_that_parses_its_own_command_line_has_no_page():
    assert help_page("cloud_hf.serving.server.command", "serve") is None
    assert help_page("app", "app.py") is None
