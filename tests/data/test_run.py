import asyncio
import signal
import subprocess
import sys

from completion_server import serve_completions
from datasets import Features, Value

from cloud_hf.data import run
from cloud_hf.data.completions import CompletionClient
from cloud_hf.data.folder import DatasetFolder, read_record
from cloud_hf.data.journal import Journal
from cloud_hf.data.run import JournaledClient, build_dataset


BLOCKED = """
import signal
import time

from cloud_hf.data.folder import DatasetFolder
from cloud_hf.data.run import complete_build

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

    class Bar(run.tqdm):
        def set_postfix(self, **counts):
            shown.append((self.n, counts["answers"]))

    monkeypatch.setattr(run, "tqdm", Bar)
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
    assert process.returncode == 1 and errors.startswith("Interrupted.")
