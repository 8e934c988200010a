import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from aiohttp import web
from completion_server import default_answer, serve_completions
from datasets import Features, Value

from cloud_hf.data import build_run
from cloud_hf.data.build_run import JournaledClient, build_dataset, complete_build
from cloud_hf.data.completions import CompletionClient
from cloud_hf.data.dataset_folder import DatasetFolder, read_record
from cloud_hf.data.journal import Journal


BLOCKED = """
import signal
import time

from cloud_hf.data.dataset_folder import DatasetFolder
from cloud_hf.data.build_run import complete_build

# A shell that runs the tests in the background has its children ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)


def block():
    print("blocked", flush=True)
    time.sleep(120)


complete_build(block, DatasetFolder("out", "", {}))
"""


def build(folder, server):
    """One row of three requests."""

    def make_work(gen):
        async def work(row):
            answers = [await gen.chat([number], [{"role": "user", "content": "?"}]) for number in range(3)]
            return [{"text": answer.text} for answer in answers]

        return work

    clients = {"gen": CompletionClient([server.url], "tiny")}
    features = Features({"text": Value("string")})
    return asyncio.run(build_dataset(DatasetFolder(folder, "", {}), [{"id": 0}], features, clients, make_work))


def test_the_bar_counts_answers_within_a_row(tmp_path, monkeypatch):
    shown = []

    class Bar(build_run.tqdm):
        def set_postfix(self, **counts):
            shown.append((self.n, counts["answers"]))

    monkeypatch.setattr(build_run, "tqdm", Bar)
    with serve_completions() as server:
        build(tmp_path / "out", server)
    assert shown == [(0, 1), (0, 2), (0, 3), (0, 3)]


def test_the_record_says_where_sampling_defaults_come_from(tmp_path):
    for owner, found in ((None, "the server's own"), ("vllm", {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0})):  # fmt: skip
        folder = tmp_path / str(owner)
        with serve_completions(owner=owner) as server:
            build(folder, server)
        assert read_record(folder)["settings"]["gen_sampling_defaults"] == found
        assert "gen_sampling_defaults" in (folder / "README.md").read_text()


def test_an_aborted_answer_of_an_earlier_version_is_asked_for_again(tmp_path):
    async def ask(client, journal):
        async with client:
            journaled = JournaledClient(client, journal, "gen")
            journal.add(journaled._key([0], [], {}), {"text": "half", "finish_reason": "abort"})
            return await journaled.chat([0], [])

    with serve_completions() as server, Journal(tmp_path / "journal.jsonl", {}) as journal:
        answer = asyncio.run(ask(CompletionClient([server.url], "tiny"), journal))
    assert answer.finish_reason == "stop" and server.answered.total() == 1


def test_the_first_interrupt_ends_blocking_work(tmp_path):
    with subprocess.Popen([sys.executable, "-c", BLOCKED], cwd=tmp_path, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "blocked\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt: Interrupted.")


class Rows:
    """A builder of 12 rows with two requests each, which gets Ctrl-C in the middle of its eighth request."""

    def __init__(self, folder, interrupts):
        self.folder, self.interrupts, self.texts = folder, interrupts, []
        self.most_at_once = self.at_once = 0

    def write(self, body):
        self.texts.append(body["messages"][0]["content"])
        if len(self.texts) == 8:
            for _ in range(self.interrupts):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)
        return default_answer(body)

    def make_work(self, gen, judge):
        async def work(row):
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            for number, client in enumerate((gen, judge)):
                await client.chat([number], [{"role": "user", "content": f"{row['id']}/{number}"}])
            self.at_once -= 1
            return [{"text": "done"}]

        return work

    def build(self, max_concurrency):
        with serve_completions(write=self.write, latency=0.02) as server:
            clients = {
                role: CompletionClient([server.url], "tiny", max_concurrency=max_concurrency)
                for role in ("gen", "judge")
            }
            output, rows = DatasetFolder(self.folder, "", {}), [{"id": index} for index in range(12)]
            features = Features({"text": Value("string")})
            return complete_build(build_dataset(output, rows, features, clients, self.make_work), output)


@pytest.fixture
def interruptible():
    """A shell that runs the tests in the background has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_interrupt_keeps_what_is_in_flight_and_the_same_command_resumes(tmp_path, interruptible, capsys):
    first, again = (Rows(tmp_path / "out", interrupts) for interrupts in (1, 0))
    with pytest.raises(KeyboardInterrupt, match=r"journal.jsonl contains 8 answers so far; run the same command"):
        first.build(max_concurrency=1)
    assert "Press Ctrl-C again to stop now" in capsys.readouterr().err
    counts = again.build(max_concurrency=1)
    assert (counts["answers"], counts["answers_of_earlier_runs"]) == (24, 8)
    assert sorted(first.texts + again.texts) == sorted(f"{index}/{number}" for index in range(12) for number in (0, 1))
    assert first.most_at_once == again.most_at_once == 1


def test_requests_that_wait_for_their_turn_are_not_sent_after_an_interrupt(tmp_path, interruptible):
    first, again = (Rows(tmp_path / "out", interrupts) for interrupts in (1, 0))
    with pytest.raises(KeyboardInterrupt):
        first.build(max_concurrency=4)
    assert len(first.texts) < 16
    assert again.build(max_concurrency=4)["answers_of_earlier_runs"] == len(first.texts)


def test_the_second_interrupt_does_not_wait(tmp_path, interruptible):
    rows = Rows(tmp_path / "out", 2)
    with pytest.raises(KeyboardInterrupt, match=r"contains [67] answers so far"):
        rows.build(max_concurrency=1)


def test_a_request_that_waits_for_a_retry_does_not_delay_an_interrupt(tmp_path, interruptible):
    def refuse(body):
        if not rows.texts:
            os.kill(os.getpid(), signal.SIGINT)
        rows.texts.append(body)
        return web.Response(status=429, headers={"Retry-After": "300"})

    rows = Rows(tmp_path / "out", 1)
    rows.write = refuse
    with pytest.raises(KeyboardInterrupt, match="contains 0 answers so far"):
        rows.build(max_concurrency=2)
