import json
import re
import resource
import subprocess
import sys

import pytest

from cloud_hf.data.journal import Journal, JournalError, key_of


SETTINGS = {"model": "a judge", "temperature": 0.0, "rows": {"hash": "x"}}
KEYS = [key_of("row", number) for number in range(5)]


def write(path, keys=KEYS):
    with Journal(path, SETTINGS) as journal:
        for key in keys:
            journal.add(key, {"text": f"naïve 正しい\n{key}\u2028", "n": [1, 2.5, None]})


def test_entries_come_back_in_another_run(tmp_path):
    write(tmp_path / "journal.jsonl")
    with Journal(tmp_path / "journal.jsonl", SETTINGS) as journal:
        assert len(journal) == len(KEYS)
        assert journal[KEYS[2]] == {"text": f"naïve 正しい\n{KEYS[2]}\u2028", "n": [1, 2.5, None]}
        assert key_of("row", 5) not in journal


def test_long_entries(tmp_path):
    with Journal(tmp_path / "journal.jsonl", SETTINGS) as journal:
        journal.add(KEYS[0], "x" * 1_000_000)
        journal.add(KEYS[1], "y")
        assert journal[KEYS[0]] == "x" * 1_000_000 and journal[KEYS[1]] == "y"


def test_a_torn_line_is_removed_wherever_it_was_cut(tmp_path, capsys):
    path = tmp_path / "journal.jsonl"
    write(path)
    content = path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    whole = len(content) - len(last)
    for cut in range(whole + 1, len(content)):
        path.write_bytes(content[:cut])
        with Journal(path, SETTINGS) as journal:
            assert len(journal) == len(KEYS) - 1 and KEYS[-1] not in journal
            journal.add(KEYS[-1], json.loads(last)["value"])
        assert path.read_bytes() == content
    assert "line 6, which an earlier run left incomplete, was removed" in capsys.readouterr().out


def test_a_torn_header_begins_anew(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"format":"cloud_hf.jou')
    write(path)
    with Journal(path, SETTINGS) as journal:
        assert len(journal) == len(KEYS)


def test_damage_before_the_end_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 20 + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="line 3 is damaged, and other lines follow it"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "b"}, '`model` was "a judge" and is now "b"'),
        ({"rows": {"hash": "y"}}, '`rows` was {"hash": "x"} and is now {"hash": "y"}'),
        ({"seed": 1}, "`seed` was null and is now 1"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, message):
    write(tmp_path / "journal.jsonl")
    with pytest.raises(JournalError, match=re.escape(message)):
        Journal(tmp_path / "journal.jsonl", {**SETTINGS, **change})


def test_a_journal_without_entries_takes_other_settings(tmp_path):
    """A run that ended before its first answer, because of a mistake in its settings, does not bar the folder."""
    path = tmp_path / "journal.jsonl"
    write(path, [])
    Journal(path, {**SETTINGS, "temperature": 0.5}).close()
    with Journal(path, {**SETTINGS, "temperature": 1.0}) as journal:
        journal.add(KEYS[0], "x")
    with pytest.raises(JournalError, match=r"`temperature` was 1\.0 and is now 0\.0"):
        Journal(path, SETTINGS)


def test_a_second_writer_is_refused(tmp_path):
    with (
        Journal(tmp_path / "journal.jsonl", SETTINGS),
        pytest.raises(JournalError, match="Another process is writing to"),
    ):
        Journal(tmp_path / "journal.jsonl", SETTINGS)
    Journal(tmp_path / "journal.jsonl", SETTINGS).close()


@pytest.mark.parametrize("text", ['{"prompt": "x"}\n', "my notes", "[]\n"])
def test_a_file_that_is_no_journal_is_left_alone(text, tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError, match="not a cloud_hf journal"):
        Journal(path, SETTINGS)
    assert path.read_text() == text


def test_two_journals_in_one_file_are_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path)
    content = path.read_bytes() * 2
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"line 7 is the first line of another journal.*Split"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", ['{"value": 1}', '{"key": "xyz", "value": 1}', '{"key": "00ff"}', "[]", "5"])
def test_a_line_that_is_not_an_entry_is_refused(line, tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(JournalError, match=r"line 7 is not an entry with `key` and `value`"):
        Journal(path, SETTINGS)


@pytest.mark.parametrize("missing", ["version", "settings"])
def test_a_header_that_lacks_a_field_is_refused(missing, tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path, keys=[])
    header = json.loads(path.read_text())
    del header[missing]
    path.write_text(json.dumps(header) + "\n")
    with pytest.raises(JournalError, match=f"its first line lacks `{missing}`"):
        Journal(path, SETTINGS)


FULL = """
import signal, sys
from cloud_hf.data.journal import Journal, key_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(sys.argv[1], {}) as journal:
    try:
        for number in range(1000):
            journal.add(key_of(number), "x" * 100)
    except OSError:
        print(number, len(journal))
"""


def test_a_full_disk_keeps_what_was_written(tmp_path):
    path = tmp_path / "journal.jsonl"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    # Python would cut the bytecode of what it imports, too, and leave it to everybody
    command = [sys.executable, "-B", "-c", FULL, str(path)]
    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    failed, kept = map(int, run.stdout.split())
    assert failed == kept > 10, run.stderr
    with Journal(path, {}) as journal:
        assert len(journal) == kept and path.read_bytes().endswith(b"\n")
        journal.add(key_of(kept), "x")


def test_keys_follow_from_their_parts():
    assert key_of("a", ["b"], {"x": 1, "y": 2}) == key_of("a", ["b"], {"y": 2, "x": 1})
    assert len({key_of("a", "b"), key_of("ab"), key_of(["a", "b"]), key_of("a", "b", None)}) == 4
    assert re.fullmatch("[0-9a-f]{32}", key_of("\ud800"))


def test_a_journal_of_version_1_resumes_and_explains_another_hash_of_its_model(tmp_path):
    path = tmp_path / "journal.jsonl"
    header = {"format": "cloud_hf.journal", "version": 1, "settings": {"model_version": "abc"}}
    path.write_text(json.dumps(header) + "\n" + json.dumps({"key": key_of(1), "value": "x"}) + "\n")
    path.write_text(path.read_text().replace('": ', '":').replace(', "', ',"'))
    with Journal(path, {"model_version": "abc"}) as journal:
        assert journal[key_of(1)] == "x"
    with pytest.raises(
        JournalError, match=r"`model_version` was .* version 1, which hashed model folders differently"
    ):
        Journal(path, {"model_version": "def"})
