"""The `cloud-hf` command: its list, how it finds commands, and mistakes as one sentence with status 2."""

import contextlib
import io
import json
import runpy
import socket
import subprocess
import sys
import time

import pytest
from scripts_for_tests import EXAMPLES

from cloud_hf import cli


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Write a command's module and return its name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def write(body: str) -> str:
        name = f"command_{abs(hash(body))}"
        (tmp_path / f"{name}.py").write_text(body)
        return name

    return write


def ended(call, *arguments) -> tuple[int, str]:
    """How a call ended, and what it wrote to stderr."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        try:
            call(*arguments)
        except SystemExit as end:
            return end.code, stderr.getvalue()
    return 0, stderr.getvalue()


def check_sentence(found: tuple[int, str], says: str):
    status, stderr = found
    assert status == 2, stderr
    assert says in stderr.splitlines()[-1] and "Traceback" not in stderr, stderr


def run_script(script: str, *arguments):
    """As `python examples/SCRIPT.py ARGUMENTS`, in this process."""
    sys.argv = [str(EXAMPLES / f"{script}.py"), *map(str, arguments)]
    runpy.run_path(sys.argv[0], run_name="__main__")


# ------------------------------------------------------------------------------------------------------ the runner


def test_help_lists_the_commands_fast():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "cloud_hf", "--help"], capture_output=True, text=True, check=True)
    # 0.2 s; more on a machine that is busy
    assert time.monotonic() - started < 15
    lines = done.stdout.splitlines()
    for name, (_, summary) in cli.COMMANDS.items():
        assert any(line.split()[:1] == [name] and line.endswith(summary) for line in lines)


def test_every_module_exists():
    from importlib.util import find_spec

    assert all(find_spec(module) for module, _ in cli.COMMANDS.values())


def test_an_unknown_command_is_named():
    check_sentence(ended(cli.main, ["scroe"]), "`scroe` is not a command; it must be one of score, serve")


def test_a_command_gets_its_arguments(command, monkeypatch):
    name = command("def main(arguments):\n    raise SystemExit(' '.join(arguments))")
    monkeypatch.setitem(cli.COMMANDS, "echo", (name, ""))
    assert ended(cli.main, ["echo", "--one", "2"]) == (2, "cloud-hf echo: --one 2\n")
    assert ended(cli.main, ["--debug", "echo", "x", "--debug", "underflow_overflow"])[1].endswith(
        "x --debug underflow_overflow\n"
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('`limit` is 0;\\n it must be more.')", "`limit` is 0; it must be more."),
        ("open('absent.txt')", "absent.txt: No such file or directory."),
        ("raise OSError('Cannot listen on port 80.')", "Cannot listen on port 80."),
        ("import yaml\nyaml.safe_load('a: [')", "line 1, column 5"),
        ("raise SystemExit('2 shards differ.')", "2 shards differ."),
        ("from cloud_hf.data.journal import JournalError\nraise JournalError('Not a journal.')", "Not a journal."),
        ("raise ImportError('Needs bitsandbytes.')", "Needs bitsandbytes."),
        (
            "raise ModuleNotFoundError(name='datasketch')",
            "`datasketch` is not installed. It comes with an extra: pip install 'cloud-hf[data]'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(command, body, says):
    # As if the command were one of ours
    name = command("__name__ = 'cloud_hf.commands.made_up'\ndef main(arguments):\n    " + body.replace("\n", "\n    "))
    status, stderr = ended(cli.run, name, [])
    assert status == 2 and stderr.startswith("script.py: ") and says in stderr and stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("1 + ''", TypeError),
        ("assert False", AssertionError),
        ("raise RuntimeError('CUDA error')", RuntimeError),
        ("import numpy\n    numpy.zeros(2) + numpy.zeros(3)", ValueError),
        ("import absent_module", ModuleNotFoundError),
        ("from cloud_hf.cli import absent", ImportError),
    ],
)
def test_a_programming_error_keeps_its_traceback(command, body, error):
    with pytest.raises(error):
        cli.run(command(f"def main(arguments):\n    {body}"), [])


def test_debug_shows_the_traceback(command):
    with pytest.raises(FileNotFoundError):
        cli.run(command("def main(arguments):\n    assert not arguments\n    open('absent.txt')"), ["--debug"])


def test_an_interrupt_has_its_own_status(command):
    assert ended(cli.run, command("def main(arguments):\n    raise KeyboardInterrupt"), []) == (
        130,
        "script.py: Interrupted.\n",
    )


# ------------------------------------------------------------------------------------------------- real commands


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "bad.yaml").write_text("dataset_name: [\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "key.yaml").write_text("lm_loss_wieght: 1.0\n")
    row = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "chosen_feedback": "Good.", "rejected_feedback": "Bad."}
    (folder / "pairs.jsonl").write_text(json.dumps(row))
    (folder / "rows.jsonl").write_text('{"prompt": "Hi", "response": "Hello"}\n\n{"prompt": "Hi"}\n')
    return folder


TRAIN = ("--output_dir", "{files}/out", "--use_cpu", "--bf16", "False", "--report_to", "none")
PAIRS = ("--dataset_name", "{files}/pairs.jsonl", *TRAIN)
MISTAKES = [
    ("train_cloud", (*PAIRS, "--lm_loss_wieght", "1"), "Unknown option `--lm_loss_wieght`"),
    ("train_cloud", TRAIN, "The following arguments are required: --dataset_name"),
    ("train_cloud", PAIRS, "`model_name_or_path` is missing"),
    ("train_cloud", ("--dataset_name", "absent.jsonl", "--model_name_or_path", "{base}", *TRAIN), "no such file"),
    ("train_cloud", (*PAIRS, "--model_name_or_path", "{files}/absent"), "absent"),
    ("train_classic", (*PAIRS, "--model_name_or_path", "{base}", "--lm_loss_chunks", "2"), "no critique loss"),
    ("train_critique_sft", ("--config", "{files}/bad.yaml", *TRAIN), "bad.yaml"),
    ("train_critique_sft", ("--config", "{files}/absent.yaml", *TRAIN), "absent.yaml: No such file or directory."),
    ("train_critique_sft", ("--config", "{files}/list.yaml", *TRAIN), "must contain a YAML mapping"),
    ("train_cloud", ("--config", "{files}/key.yaml", *PAIRS), "Unknown key `lm_loss_wieght`"),
    ("train_cloud", (*PAIRS, "--config"), "`--config` needs the name of a YAML file."),
    ("evaluate_rewards", ("--models", "{base}", "--output_dir", "{files}/o"), "There is nothing to score"),
    ("evaluate_rewards", ("--models", "{files}/absent", "--output_dir", "{files}/o", *PAIRS[:2]), "absent"),
    ("best_of_n", ("--models", "{base}", "--output_dir", "{files}/o", "--largest_n", "x"), "invalid int value: 'x'"),
    ("merge_adapter", ("--model_name_or_path", "{base}", "--output_dir", "{files}/o"), "not an adapter"),
    ("merge_shards", ("--shards", "{files}/absent", "--output_dir", "{files}/o"), "absent"),
    ("build_self_critiques", ("--model_name_or_path", "{files}/absent", "--output_dir", "{files}/o", *PAIRS[:2]), "absent"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "arguments", "says"), MISTAKES)
def test_scripts_and_commands_say_the_same(script, arguments, says, files, base_folder, monkeypatch):
    arguments = [argument.format(files=files, base=base_folder) for argument in arguments]
    monkeypatch.setattr(sys, "argv", sys.argv)
    found = ended(run_script, script, *arguments)
    check_sentence(found, says)
    [module] = [line.split('"')[1] for line in (EXAMPLES / f"{script}.py").read_text().splitlines() if "run(" in line]
    [name] = [name for name, (found, _) in cli.COMMANDS.items() if found == module]
    again = ended(cli.main, [name, *arguments])
    assert again[1].splitlines()[-1].split(": ", 1)[1] == found[1].splitlines()[-1].split(": ", 1)[1]
    check_sentence(again, says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score", "--model", "{base}", "--prompt", "x"], "Give `prompt` and `response`, or `input`."),
        (["score", "--model", "{base}", "--prompt", "x", "--response", "y"], "not a CLoud model"),
        (["score", "--model", "{base}", "--input", "{files}/absent.jsonl"], "absent.jsonl: No such file"),
        (["score", "--model", "{base}", "--input", "{files}/rows.jsonl"], "rows.jsonl: Row 1 has no `response`."),
        (["convert", "{files}/absent"], "The following arguments are required: destination."),
        (["convert", "{base}", "{files}"], "is not an empty folder"),
        (["plan", "--config", "{files}/absent.yaml"], "absent.yaml: No such file"),
        (["plan", "--model", "{base}", "--gpus", "0"], "`gpus` is 0; it must be at least 1"),
        (["serve", "{base}", "--vllm_options", "{{"], "not JSON"),
        (["demo", "--model"], "expected one argument"),
    ],
)
def test_mistakes_of_other_commands(arguments, says, files, base_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = [argument.format(files=files, base=base_folder) for argument in arguments]
    check_sentence(ended(cli.main, arguments), says)


def test_a_port_in_use_is_named_before_the_model_loads(monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        check_sentence(ended(cli.main, ["serve", "absent-model", "--port", str(port)]), f"port {port}")
