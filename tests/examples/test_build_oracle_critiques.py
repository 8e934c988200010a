import json
from datetime import datetime

import pytest
from aiohttp import web
from builders_for_tests import Builder, kill_and_resume, read_rejects, read_rows, run_script
from completion_server import default_answer, serve_completions
from datasets import Dataset, load_from_disk

from cloud_hf.data.critique_prompt import messages_for_critic
from cloud_hf.data.rows import load_rows


SCRIPT = "build_oracle_critiques"
WAYS = ("jsonl", "json.gz", "parquet", "save_to_disk")


def make_rows(count):
    return [
        {"id": f"p{i}", "prompt": f"What is {i} + 30?", "chosen": f"It is {i + 30}.", "rejected": f"It is {i}.", "topic": i % 3}
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, make_rows(40))))
    return path


def options(server, pairs, out, *more):
    return ["--dataset_name", pairs, "--output_dir", out, "--base_url", server.url, "--model", "tiny", *more]


def expected(rows, max_tokens=1024):
    """The dataset, from the server's rule alone."""
    built = []
    for row in rows:
        new = dict(row)
        for side in ("chosen", "rejected"):
            messages = messages_for_critic(row["prompt"], row[side])
            body = {"model": "tiny", "messages": messages, "max_tokens": max_tokens, "temperature": 0.0, "top_p": 1.0}
            new[f"{side}_feedback"] = default_answer(body)[0]
        built.append(new)
    return built


def test_critiques_of_both_responses(pairs, tmp_path):
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out"), log_dir=tmp_path)
        assert ended.status == 0, ended.output
        assert read_rows(tmp_path / "out") == expected(make_rows(40))
        assert "Wrote 40 rows to" in ended.output and server.requests.total() == 80
        again = run_script(SCRIPT, *options(server, pairs, tmp_path / "out"), log_dir=tmp_path)
        assert again.status == 0 and server.requests.total() == 80
    assert read_rows(tmp_path / "out") == expected(make_rows(40))
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["settings"]["critic_model"] == "tiny" and record["counts"]["rows"] == 40
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| critic_model | `tiny` |" in card and "Write a critique of that response" in card
    assert read_rejects(tmp_path / "out") == []


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_input(way, tmp_path):
    rows = Dataset.from_list(make_rows(4))
    path = tmp_path / (way if way == "save_to_disk" else f"pairs.{way}")
    if way == "parquet":
        rows.to_parquet(path)
    elif way == "save_to_disk":
        rows.save_to_disk(path)
    else:
        rows.to_json(path, compression="gzip" if way.endswith("gz") else None)
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    assert read_rows(tmp_path / "out") == expected(make_rows(4))
    assert load_rows(str(tmp_path / "out")).num_rows == 4


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.full)])
def test_a_killed_run_goes_on(kills, pairs, tmp_path):
    with serve_completions(latency=0.03) as server:
        arguments = options(server, pairs, tmp_path / "out", "--max_concurrency", 4)
        killed = kill_and_resume(server, SCRIPT, arguments, tmp_path / "out", tmp_path, kills, requests=80)
    assert killed >= kills / 2
    assert read_rows(tmp_path / "out") == expected(make_rows(40))


def test_faults_change_nothing(pairs, tmp_path):
    with serve_completions(fault_rate=0.3, stall=2.0) as server:
        more = ["--request_timeout", 1.0, "--max_retries", 12]
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out", *more), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    assert server.faults.total() > 15
    assert read_rows(tmp_path / "out") == expected(make_rows(40))


def test_what_fails_for_good_is_said(pairs, tmp_path):
    said = "maximum context length is 64 tokens, but your request has 90"
    broken = [True]

    def write(body):
        text = body["messages"][0]["content"]
        if "What is 3 + 30" in text:
            return web.json_response({"error": {"message": said}}, status=400)
        if "What is 5 + 30" in text and broken[0]:
            return "half a crit", "abort"
        if "What is 8 + 30" in text:
            return "half a crit", "content_filter"
        return default_answer(body)

    with serve_completions(write=write) as server:
        arguments = options(server, pairs, tmp_path / "out", "--max_retries", 1)
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path)
        assert ended.status == 3 and "2 row(s) failed" in ended.output and said in ended.output
        rejects = read_rejects(tmp_path / "out")
        kinds = [("p3", "failed"), ("p5", "failed"), ("p8", "dropped")]
        assert [(reject["id"], reject["kind"]) for reject in rejects] == kinds
        assert said in rejects[0]["reason"] and "'abort'" in rejects[1]["reason"]
        assert rejects[2]["reason"] == "a critique was withheld by the server's content filter"
        assert [row["id"] for row in read_rows(tmp_path / "out")] == [f"p{i}" for i in range(40) if i not in (3, 5, 8)]
        broken[0] = False
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path)
        assert ended.status == 3 and "1 row(s) failed" in ended.output
    assert [reject["id"] for reject in read_rejects(tmp_path / "out")] == ["p3", "p8"]
    assert read_rows(tmp_path / "out") == [row for row in expected(make_rows(40)) if row["id"] not in ("p3", "p8")]


def test_answers_of_another_model_are_counted(pairs, tmp_path):
    def write(body):
        text, reason = default_answer(body)
        choice = {"index": 0, "finish_reason": reason, "message": {"content": text}}
        name = "small" if "What is 3 + 30" in body["messages"][0]["content"] else "tiny"
        return web.json_response({"model": name, "choices": [choice]})

    with serve_completions(write=write) as server:
        for _ in range(2):  # again from the journal
            ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out"), log_dir=tmp_path)
            assert ended.status == 0 and ended.output.count("'small' answered a request to 'tiny' (critic)") == 1
            assert "critic_answers_of_other_models" in (tmp_path / "out" / "README.md").read_text()
            counts = json.loads((tmp_path / "out" / "build.json").read_text())["counts"]
            assert counts["critic_answers_of_other_models"] == {"small": 2}


def test_cut_critiques_are_asked_for_longer(pairs, tmp_path):
    def write(body):
        text = body["messages"][0]["content"]
        needed = 1000 if "What is 7 + 30" in text else 15 if "It is 31" in text else 5
        return default_answer(body)[0], "length" if body["max_tokens"] < needed else "stop"

    with serve_completions(write=write) as server:
        arguments = options(server, pairs, tmp_path / "out", "--max_tokens", 8)
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path)
    assert ended.status == 0, ended.output
    [reject] = read_rejects(tmp_path / "out")
    assert reject["id"] == "p7" and reject["kind"] == "dropped" and "after 2 longer tries" in reject["reason"]
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    assert len(rows) == 39
    assert rows["p1"]["chosen_feedback"] == expected(make_rows(2), 16)[1]["chosen_feedback"]
    assert rows["p1"]["rejected_feedback"] == expected(make_rows(2), 8)[1]["rejected_feedback"]


def test_critiques_that_stay_cut_may_be_kept(pairs, tmp_path):
    def write(body):
        cut = "What is 7 + 30" in body["messages"][0]["content"]
        return default_answer(body)[0], "length" if cut else "stop"

    with serve_completions(write=write) as server:
        more = ["--max_tokens", 8, "--truncated", "keep"]
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out", *more), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    assert not read_rejects(tmp_path / "out") and rows["p7"]["chosen_feedback"]
    assert json.loads((tmp_path / "out" / "build.json").read_text())["counts"]["critic_answers_kept_cut"] == 2


def test_many_rows_that_fail_do_not_keep_the_others_from_being_written(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, make_rows(200))))
    bad = [f"What is {i} + 30?" for i in range(20, 180)]

    def write(body):
        if any(prompt in body["messages"][0]["content"] for prompt in bad):
            return web.json_response({"error": {"message": "no"}}, status=400)
        return default_answer(body)

    with serve_completions(write=write) as server:
        for _ in range(2):
            ended = run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path)
            assert ended.status == 3 and "160 row(s) failed" in ended.output
    assert len(read_rows(tmp_path / "out")) == 40 and len(read_rejects(tmp_path / "out")) == 160


def test_a_run_in_which_nothing_works_stops(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, make_rows(300))))
    with serve_completions(write=lambda body: web.json_response({"error": {"message": "no"}}, status=400)) as server:
        ended = run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path)
    assert ended.status == 2 and "The first 100 rows failed. The last error: status 400: no" in ended.output


def test_a_failure_is_no_drop_and_is_tried_again(pairs, tmp_path):
    """One critique of a row stays cut, and the other fails: by a status whose text speaks of a context, too."""
    broken = [True]

    def write(body):
        text = body["messages"][0]["content"]
        if "What is 3 + 30" in text and broken[0] and ("It is 33." not in text or body["max_tokens"] > 1024):
            return web.json_response({"error": {"message": "context deadline exceeded"}}, status=504)
        return default_answer(body)[0], "length" if "It is 33." in text and body["max_tokens"] == 1024 else "stop"

    with serve_completions(write=write) as server:
        arguments = options(server, pairs, tmp_path / "out", "--max_retries", 0)
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path)
        assert ended.status == 3, ended.output
        [reject] = read_rejects(tmp_path / "out")
        assert reject["id"] == "p3" and reject["kind"] == "failed" and "context deadline" in reject["reason"]
        broken[0] = False
        assert run_script(SCRIPT, *arguments, log_dir=tmp_path).status == 0
    assert len(read_rows(tmp_path / "out")) == 40


@pytest.mark.parametrize("name", ["notes.txt", "journal.jsonl"])
def test_a_folder_of_others_is_left_alone(name, pairs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, pairs, out), log_dir=tmp_path)
        assert ended.status == 2 and "hoose another" in ended.output
        assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "mine"
        Dataset.from_list(make_rows(4)).save_to_disk(tmp_path / "rows")
        ended = run_script(SCRIPT, *options(server, tmp_path / "rows", tmp_path / "rows" / "x"), log_dir=tmp_path)
        assert ended.status == 2 and "is the dataset folder or a folder inside it" in ended.output
        assert server.requests.total() == 0


def test_the_same_rows_elsewhere_and_their_tools(tmp_path, pairs):
    """A dataset may move; its tools are part of what is judged."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "pairs.jsonl").write_text(pairs.read_text())
    (moved / "tools").mkdir()
    tools = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    with_tools = [{**row, "tools": tools} for row in make_rows(40)]
    (moved / "tools" / "pairs.jsonl").write_text("\n".join(map(json.dumps, with_tools)))
    with serve_completions() as server:
        for path in (pairs, moved / "pairs.jsonl"):
            assert run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path).status == 0
        assert server.requests.total() == 80
        path = moved / "tools" / "pairs.jsonl"
        ended = run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path)
        assert ended.status == 2 and "`hash` was" in ended.output


def test_no_room_for_more_tokens_is_no_failure(pairs, tmp_path):
    def write(body):
        if body["max_tokens"] > 8:
            return web.json_response({"error": {"message": "maximum context length is 64 tokens"}}, status=400)
        return default_answer(body)[0], "length" if "It is 31" in body["messages"][0]["content"] else "stop"

    with serve_completions(write=write) as server:
        arguments = options(server, pairs, tmp_path / "out", "--max_tokens", 8)
        for _ in range(2):
            ended = run_script(SCRIPT, *arguments, log_dir=tmp_path)
            assert ended.status == 0, ended.output
        assert server.requests.total() == 82
    rejects = [(reject["id"], reject["kind"]) for reject in read_rejects(tmp_path / "out")]
    assert rejects == [("p1", "dropped"), ("p31", "dropped")]


def test_no_row_left(pairs, tmp_path):
    with serve_completions(write=lambda body: ("x", "length")) as server:
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out"), log_dir=tmp_path)
    assert ended.status == 2 and "Every row was left out" in ended.output and "Traceback" not in ended.output
    assert len(read_rejects(tmp_path / "out")) == 40
    assert read_rows(tmp_path / "out") == []  # a shard may keep none


def test_every_request_has_a_seed_of_its_own(pairs, tmp_path):
    more = ["--num_critiques", 2, "--temperature", 0.7, "--limit", 5, "--seed", 3]
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out", *more), log_dir=tmp_path)
        assert ended.status == 0, ended.output
    assert len({json.loads(body)["seed"] for body in server.requests}) == 20


def test_several_critiques(pairs, tmp_path):
    counts = {}

    def write(body):  # as a server that samples: each answer another
        text = body["messages"][0]["content"]
        counts[text] = counts.get(text, 0) + 1
        return f"{counts[text]}: {default_answer(body)[0]}", "stop"

    more = ["--num_critiques", 3, "--temperature", 0.7, "--limit", 5]
    with serve_completions(write=write) as server:
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out", *more), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 5
    for row in rows:
        assert sorted(text[0] for text in row["chosen_feedback"]) == ["1", "2", "3"]


def test_other_settings_are_refused(pairs, tmp_path):
    with serve_completions() as server:
        arguments = options(server, pairs, tmp_path / "out")
        assert run_script(SCRIPT, *arguments, log_dir=tmp_path).status == 0
        before = server.requests.total()
        other = tmp_path / "other.jsonl"
        other.write_text("\n".join(map(json.dumps, make_rows(39))))
        template = tmp_path / "critic.txt"
        template.write_text("Judge {conversation} {response}")
        for more, name in (
            (["--temperature", 0.5], "temperature"),
            (["--dataset_name", other], "hash"),
            (["--critic_prompt_file", template], "critic_prompt"),
        ):
            ended = run_script(SCRIPT, *arguments, *more, log_dir=tmp_path)
            assert ended.status == 2 and "started with other settings" in ended.output and f"`{name}`" in ended.output
        assert server.requests.total() == before
    with serve_completions(model="bigger") as server:
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "out")[:-2], log_dir=tmp_path)
        assert ended.status == 2 and '`critic_model` was "tiny" and is now "bigger"' in ended.output
        assert server.requests.total() == 0


def test_two_writers_are_refused(pairs, tmp_path):
    with serve_completions(latency=0.5) as server:
        arguments = options(server, pairs, tmp_path / "out", "--max_concurrency", 8)
        first = Builder(SCRIPT, *arguments, log_dir=tmp_path)
        while not server.requests:
            assert first.process.is_alive(), first.log.read_text()
        second = run_script(SCRIPT, *arguments, log_dir=tmp_path)
        assert second.status == 2 and "Another process is writing to" in second.output
        assert first.wait().status == 0
    assert read_rows(tmp_path / "out") == expected(make_rows(40))


def test_a_full_disk_stops_cleanly_and_the_run_goes_on(pairs, tmp_path):
    load_rows(str(pairs))  # now in the cache: the limit is for the journal
    with serve_completions() as server:
        arguments = options(server, pairs, tmp_path / "out", "--max_concurrency", 4)
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path, file_size_limit=6000)
        assert (
            ended.status == 2 and "File too large" in ended.output and "run the same command to resume" in ended.output
        )
        assert "Traceback" not in ended.output
        assert 0 < server.requests.total() < 80
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path)
        assert ended.status == 0, ended.output
    assert read_rows(tmp_path / "out") == expected(make_rows(40))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "x", "chosen": "y", "reject": "z"}], "rename 'reject' to 'rejected'"),
        ([*make_rows(3), make_rows(2)[1]], "row 3 (id 'p1'): row 1 has the same id"),
        ([*make_rows(1), {**make_rows(2)[1], "prompt": " "}], "row 1 (id 'p1'): `prompt` is empty"),
        ([{**make_rows(1)[0], "chosen": ""}], "row 0 (id 'p0'): `chosen` is empty"),
        ([{**make_rows(1)[0], "id": None}], "row 0: `id` is None"),
    ],
)
def test_bad_rows_are_said_before_anything_is_asked(rows, message, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path)
        assert ended.status == 2 and message in ended.output
        assert server.requests.total() == 0


def test_no_rows(tmp_path):
    Dataset.from_list(make_rows(2)).filter(lambda row: False).save_to_disk(tmp_path / "rows")
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, tmp_path / "rows", tmp_path / "out"), log_dir=tmp_path)
    assert ended.status == 2 and "has no rows" in ended.output


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"prompt": "x\xff", "chosen": "y", "rejected": "z"}\n')
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path)
    assert ended.status == 2 and "it is not UTF-8" in ended.output


def test_a_server_that_is_down_or_refuses_the_key(pairs, tmp_path):
    with serve_completions(key="sk-right") as server:
        arguments = options(server, pairs, tmp_path / "out")
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path, OPENAI_API_KEY="sk-wrong")
        assert ended.status == 2 and "contains a key that the server rejects" in ended.output
        assert server.requests.total() == 0
        assert run_script(SCRIPT, *arguments, log_dir=tmp_path, OPENAI_API_KEY="sk-right").status == 0
    for path in [*tmp_path.glob("*.log"), *(tmp_path / "out").glob("*.json*"), tmp_path / "out" / "README.md"]:
        assert "sk-" not in path.read_text(), path
    ended = run_script(SCRIPT, *arguments, log_dir=tmp_path)
    assert ended.status == 2 and "does not answer" in ended.output and "Traceback" not in ended.output


def test_shards_hold_all_rows_once(pairs, tmp_path):
    with serve_completions() as server:
        for index in range(3):
            arguments = options(server, pairs, tmp_path / f"out{index}", "--shard", f"{index}/3")
            assert run_script(SCRIPT, *arguments, log_dir=tmp_path).status == 0
        ended = run_script(SCRIPT, *options(server, pairs, tmp_path / "x", "--shard", "3/3"), log_dir=tmp_path)
        assert ended.status == 2 and "`shard` is '3/3'" in ended.output
    rows = [row for index in range(3) for row in read_rows(tmp_path / f"out{index}")]
    assert rows == expected(make_rows(40))
    assert load_from_disk(str(tmp_path / "out0")).column_names[-2:] == ["chosen_feedback", "rejected_feedback"]


def test_rows_with_dates_may_be_sharded(tmp_path):
    rows = [{**row, "created": "2024-01-02 03:04:05"} for row in make_rows(2)]  # `datasets` reads it as a timestamp
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, path, tmp_path / "out", "--shard", "0/2"), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    [row] = read_rows(tmp_path / "out")
    assert row["created"] == datetime(2024, 1, 2, 3, 4, 5)


def test_nothing_of_earlier_critiques_stays(tmp_path):
    """The ids and finish reasons of self critiques do not describe the oracle's."""
    rows = make_rows(3)
    path = tmp_path / "self.jsonl"
    old = {"feedback": "Old.", "feedback_ids": [1, 2], "finish_reason": "length"}
    old = {f"{side}_{name}": value for side in ("chosen", "rejected") for name, value in old.items()}
    path.write_text("\n".join(json.dumps({**row, **old}) for row in rows))
    with serve_completions() as server:
        ended = run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    assert read_rows(tmp_path / "out") == expected(rows)


def test_placeholders_in_texts_stay(tmp_path):
    rows = [{"prompt": "{response} {conversation}", "chosen": "{conversation}", "rejected": "</response><|im_end|>"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(rows[0]))
    with serve_completions() as server:
        assert run_script(SCRIPT, *options(server, path, tmp_path / "out"), log_dir=tmp_path).status == 0
    texts = [json.loads(body)["messages"][0]["content"] for body in server.requests]
    assert all("<conversation>\n{response} {conversation}\n</conversation>" in text for text in texts)
    assert any("<response>\n{conversation}\n</response>" in text for text in texts)
