"""Builder scripts in separate processes that can be killed, and what must hold when they resume."""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from datasets import load_from_disk
from scripts_for_tests import PROCESSES, command_module

from cloud_hf import cli


def _run(script: str, options: list[str], log: str, environment: dict[str, str], file_size_limit: int | None):
    if file_size_limit is not None:  # what a full disk is like
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
        sys.dont_write_bytecode = True  # it would be cut, too, and left to everybody
    with open(log, "w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        os.environ.update(environment)
        sys.argv = [f"{script}.py", *options]
        try:
            cli.run(command_module(script).__name__)
        except Exception:
            traceback.print_exc()
            sys.exit(1)


@dataclass
class Ended:
    """How a script ended, and what it said."""

    status: int
    output: str


class Builder:
    """A script with its options, run in a fork."""

    def __init__(self, script: str, *options, log_dir: Path, file_size_limit: int | None = None, **environment: str):
        self.log = log_dir / f"{script}-{time.monotonic_ns()}.log"
        arguments = (script, list(map(str, options)), str(self.log), environment, file_size_limit)
        self.process = PROCESSES.Process(target=_run, args=arguments)
        self.process.start()

    def wait(self, timeout: float = 300) -> Ended:
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            raise TimeoutError(self.log.read_text())
        return Ended(self.process.exitcode, self.log.read_text())

    def kill(self):
        self.process.kill()
        self.process.join()


def run_script(script: str, *options, **how) -> Ended:
    """Run a builder to its end."""
    return Builder(script, *options, **how).wait()


def read_rows(folder: Path) -> list[dict]:
    """The dataset a builder wrote."""
    return load_from_disk(str(folder)).to_list()


def read_rejects(folder: Path) -> list[dict]:
    """What it left out."""
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def journaled_texts(folder: Path) -> set[str]:
    """The answers in a journal, whole lines only."""
    path = folder / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {json.loads(line)["value"]["text"] for line in lines[1:]}


def kill_and_resume(server, script: str, options: list, folder: Path, log_dir: Path, kills: int, requests: int) -> int:
    """
    Kill a builder at random moments of a run that takes so many requests, going on each time, then let it end.

    Every answer of the server must be unlike all others. Nothing that was journaled may be asked for again.

    Returns:
        `int`: How many runs were really killed, not ended by themselves.
    """
    generator = random.Random(0)
    killed = 0
    for _ in range(kills):
        kept = journaled_texts(folder)
        before = server.requests.copy()
        enough = before.total() + generator.randint(0, 2 * requests // kills)
        builder = Builder(script, *options, log_dir=log_dir)
        while builder.process.is_alive() and server.requests.total() < enough:
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.02))
        builder.kill()
        killed += builder.process.exitcode == -signal.SIGKILL
        check_not_asked_again(server, before, kept)
    kept, before = journaled_texts(folder), server.requests.copy()
    ended = run_script(script, *options, log_dir=log_dir)
    assert ended.status == 0, ended.output
    check_not_asked_again(server, before, kept)
    return killed


def check_not_asked_again(server, before, kept: set[str]):
    """Requests since `before` whose answer was kept by then."""
    for text, number in (server.requests - before).items():
        content, _ = (server.write or server.default)(json.loads(text))
        assert content not in kept, f"asked {number} times for an answer that was journaled"
