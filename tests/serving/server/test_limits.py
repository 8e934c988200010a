"""What a stranger sends is bounded before it is worked on, and others are answered meanwhile."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from models_for_tests import CRITIQUES
from servers_for_tests import BUDGET, make_engine, make_talker, serving, tokenizer_of

from cloud_hf.chat_parsing import RenderedChats
from cloud_hf.serving.server.app import MAX_HEAD_BYTES
from cloud_hf.serving.server.limits import Limits, count_values
from cloud_hf.serving.server.middleware import _network


URL = "/v1/rewards"
MB = 2**20
USER, ASSISTANT = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    return make_talker(tmp_path_factory.mktemp("talker"))


def watched_engine(model):
    """An engine that counts the rows it encodes, and waits for `go` before each whose prompt is long."""
    engine = make_engine(model)
    engine.encoded, engine.go, encode = [], threading.Event(), engine.encode
    engine.go.set()

    def counted(prompt, *args):
        engine.encoded.append(prompt)
        if len(prompt) > 100:
            engine.go.wait(timeout=20)
        return encode(prompt, *args)

    engine.encode = counted
    return engine


@pytest.fixture(scope="module")
def running(talker):
    engine = watched_engine(talker)
    limits = Limits(max_batch=8, max_new_tokens=BUDGET)
    with serving(engine, limits=limits, chats=RenderedChats(tokenizer_of("llama3"))) as (server, http):
        yield server, http, engine


def one(prompt="x", response="y", **fields):
    return {"inputs": [{"prompt": prompt, "response": response, **fields}]}


def call(arguments: str) -> dict:
    return {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


MARKS = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>" + "<|eot_id|>" * 300_000 + "x"


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (URL, one([0] * 1_900_000), "JSON values; this server's limit is 50000 (`--max_values`)"),
        (URL, one([{}] * 1_300_000), "`--max_values`"),
        ("/get_reward", {"query": [0] * 1_900_000}, "`--max_values`"),
        ("/get_reward", {"query": [0] * 40_000}, "valid string"),
        (URL, {f"k{number}": 0 for number in range(40_000)}, "at most 64"),
        (URL, one(**{f"k{number}": 0 for number in range(40_000)}), "at most 64"),
        (URL, {"inputs": one()["inputs"] * 10_000}, "10000 critiques; this server's limit is 8 (`--max_batch`)"),
        (URL, one([USER, ASSISTANT] * 5_000 + [USER]), "10001 messages; this server's limit is 1024 (`--max_messages`)"),
        (URL, {"chats": [[USER, ASSISTANT] * 5_000]}, "`--max_messages`"),
        (URL, one(response="y " * MB), "`--max_chars_per_token`"),
        (URL, one([{**USER, "content": "<|eot_id|>" * 100_000}]), "`--max_chars_per_token`"),
        (URL, one(critiques=["z" * MB]), "a critique of 1048576 characters"),
        ("/get_reward", {"query": [MARKS]}, "`--max_chars_per_token`"),
        ("/get_reward", {"query": ["x"] * 1000}, "`--max_batch`"),
        ("/v1/score/evaluation", {"model": "m", "messages": [MARKS]}, "`--max_chars_per_token`"),
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused_before_any_work_with_their_limit(running, path, body, says):
    _, http, engine = running
    engine.encoded.clear()
    answer = http.post(path, json=body)
    assert answer.status_code == 422 and says in answer.json()["error"] and len(answer.text) < 1000
    assert engine.encoded == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32-le"])
def test_values_in_other_encodings_cannot_be_counted(running, encoding):
    _, http, engine = running
    engine.encoded.clear()
    answer = http.post(URL, content=json.dumps(one(['a"b', *[0] * 60_000])).encode(encoding))
    assert answer.status_code == 400 and "not UTF-8" in answer.json()["error"] and engine.encoded == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (one([USER, call('{"a": ' + "[" * 200 + "]" * 200 + "}"), USER]), "nested more than 32"),
        (one([{"role": f"r{number}", "content": "x"} for number in range(200)] + [USER]), "too many"),
        (one([{**USER, "content": 5, "tool_calls": []}]), "has no text `content`"),
        (one("long " * 600, critiques=["z"] * 8), "its critique, but the model's context holds 512"),
    ],
)
def test_hostile_rows_are_refused(running, row, says):
    answer = running[1].post(URL, json=row)
    assert answer.status_code == 422 and says in answer.json()["error"] and len(answer.text) < 1000


def test_each_row_is_encoded_once(running):
    _, http, engine = running
    engine.encoded.clear()
    assert http.post(URL, json={"inputs": one("first")["inputs"] + one("second")["inputs"]}).status_code == 200
    assert http.post(URL, json=one("given", critiques=CRITIQUES[:2])).status_code == 200
    assert "[DONE]" in http.post(URL, json={**one("stream"), "stream": True}).text
    assert engine.encoded == ["first", "second", "given", "stream"]


def test_values_are_counted_without_those_in_texts():
    for body in (one("a, [b], {c}"), one('\\"' * 9 + ","), one([USER, ASSISTANT, USER]), {"k": [1, [2, {}]]}):
        text = json.dumps(body).encode()
        assert count_values(text, 0) >= count_values(text.replace(b"a, [b], {c}", b""), 0)
        assert count_values(text, 1) <= 25
    assert count_values(b'{"k": [0, 0, "a,b\\",c"]}', 0) == 5
    for unclosed in (b'"' + b'\\"' * MB, b'"' * MB + b"\\", b'"' + b'\\"' * MB + b"\\"):
        assert count_values(unclosed + b",", 0) <= 2


def test_others_are_answered_while_a_row_is_encoded(running):
    """Short rows go before long ones; what was given up is not encoded; `/health` and `/metrics` answer."""
    server, http, engine = running
    engine.encoded.clear()
    engine.go.clear()
    long = [f"{number}" + "long " * 50 for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        try:
            first = [pool.submit(httpx.post, f"{server.url}{URL}", json=one(text), timeout=60) for text in long[:1]]
            while not engine.encoded:
                time.sleep(0.01)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}{URL}", json=one(long[3]), timeout=0.3)
            later = [
                pool.submit(httpx.post, f"{server.url}{URL}", json=one(text * 30), timeout=60) for text in long[1:3]
            ]
            short = pool.submit(httpx.post, f"{server.url}{URL}", json=one("short"), timeout=60)
            started = time.monotonic()
            assert http.get("/health").status_code == http.get("/metrics").status_code == 200
            assert time.monotonic() - started < 1.0
            time.sleep(0.2)
        finally:
            engine.go.set()
        assert all(answer.result().status_code in (200, 422) for answer in (*first, *later, short))
    assert engine.encoded[:2] == [long[0], "short"] and long[3] not in engine.encoded


def test_time_limit_and_shutdown_do_not_wait_for_an_encoding(talker):
    engine = watched_engine(talker)
    engine.go.clear()
    limits = Limits(max_new_tokens=BUDGET, request_timeout=0.3)
    with serving(engine, limits=limits, shutdown_grace=0.2) as (server, http), ThreadPoolExecutor(1) as pool:
        assert http.post(URL, json=one("long " * 50)).status_code == 504
        waiting = pool.submit(httpx.post, f"{server.url}{URL}", json=one("other"), timeout=60)
        time.sleep(0.1)
        server.terminate()
        assert waiting.result().status_code in (503, 504)
        engine.go.set()


# ------------------------------------------------------------------------------------------------ before the body's end


def connect(server, head: str, body: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(f"{head}\r\nHost: 127.0.0.1\r\n".encode() + body)
    return connection


def test_arriving_bodies_are_bounded(talker):
    """Together they hold no more than a few of the largest size; the largest gives way, so that small ones are answered."""
    limits = Limits(max_body_bytes=100_000, max_new_tokens=BUDGET)
    with serving(make_engine(talker), limits=limits) as (server, http):
        part = b"Content-Length: 100000\r\n\r\n" + b" " * 90_000
        connections = [connect(server, f"POST {URL} HTTP/1.1", part) for _ in range(12)]
        refused = [connection for connection in connections if _answer(connection, 1.0)]
        assert len(refused) >= 3 and all(b"429" in _answer(connection) for connection in refused[:1])
        assert http.post(URL, json=one()).status_code == 200
        for connection in connections:
            connection.close()


def test_waiting_bodies_are_at_most_the_queue(talker):
    limits = Limits(max_batch=2, max_queue=4, max_new_tokens=BUDGET)
    with serving(make_engine(talker), limits=limits) as (server, http):
        connections = [connect(server, f"POST {URL} HTTP/1.1", b"Content-Length: 9\r\n\r\n{") for _ in range(6)]
        assert b"429" in connections[0].recv(2000)
        assert http.post(URL, json=one()).status_code == 200
        for connection in connections:
            connection.close()


def _answer(connection: socket.socket, seconds: float = 0.1) -> bytes:
    connection.settimeout(seconds)
    try:
        return connection.recv(2000, socket.MSG_PEEK)
    except TimeoutError:
        return b""


def test_routes_without_a_body_take_none_and_heads_are_bounded(running):
    server, http, _ = running
    for path in ("/health", "/metrics"):
        answer = http.request("GET", path, content=b" " * 100_000)
        assert answer.status_code == 413 and "accepts no body" in answer.json()["error"]
    filler = "".join(f"X-{number}: {'a' * 8000}\r\n" for number in range(10)).encode()
    with connect(server, "GET /health HTTP/1.1", filler) as connection:
        answer = connection.recv(2000)
        assert b" 400 " in answer and f"at most {MAX_HEAD_BYTES} bytes".encode() in answer + _answer(connection)
    assert http.get("/health").status_code == 200


def test_tiny_chunks_and_early_requests_are_bounded(running):
    server, http, _ = running
    body, chunked = json.dumps(one()).encode(), b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

    def chunks(content: bytes, size: int) -> bytes:
        parts = [content[start : start + size] for start in range(0, len(content), size)]
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    for content, size in ((body, 1), (body + b" " * 200_000, 100)):
        with connect(server, f"POST {URL} HTTP/1.1", chunked + chunks(content, size)) as connection:
            assert b" 200 " in connection.recv(2000)
    health = b"\r\nGET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with connect(server, "GET /health HTTP/1.1", health * 20 + b"\r\n") as connection:
        answers = b""
        while answers.count(b" 200 OK") < 21:
            answers += connection.recv(2000)
    with connect(server, f"POST {URL} HTTP/1.1", chunked + chunks(b" " * 6000, 1)[:-5]) as connection:
        assert b"Send larger chunks" in connection.recv(2000) + _answer(connection, 1.0)
    for head, rest in (
        (f"POST {URL} HTTP/1.1", chunked + chunks(b" " * 20_000, 1)),
        ("GET /health HTTP/1.1", health * 2000),
    ):
        with connect(server, head) as connection, pytest.raises(OSError):  # it is closed
            for _ in range(200):
                connection.sendall(rest)
    assert http.get("/health").status_code == 200


def test_refusals_reach_a_client_that_is_still_sending(talker):
    body = b" " * (3 * MB)
    with serving(make_engine(talker), api_key="sesame", limits=Limits(max_new_tokens=BUDGET)) as (_, http):
        answer = http.post(URL, content=body)
        assert answer.status_code == 401 and "key" in answer.json()["error"]


def test_without_a_key_host_names_of_web_pages_are_refused(talker):
    with serving(make_engine(talker), allowed_hosts=["rm.example.com"]) as (_, http):
        for host in ("127.0.0.1", "localhost:8000", "[::1]:8000", "node7:1", "rm.example.com:80", "RM.example.com"):
            assert http.get("/health", headers={"Host": host}).status_code == 200
        for host in ("evil.com", "127.0.0.1.evil.com:8000", "[::1", "a.b"):
            answer = http.get("/health", headers={"Host": host})
            assert answer.status_code == 403 and "--allowed_hosts" in answer.json()["error"]
    with serving(make_engine(talker), api_key="sesame") as (_, http):
        assert http.get("/health", headers={"Host": "rm.example.com"}).status_code == 200


def test_requests_per_minute_of_an_address(talker):
    with serving(make_engine(talker), limits=Limits(max_new_tokens=BUDGET, max_requests_per_minute=3)) as (_, http):
        statuses = [http.get("/metrics") for _ in range(7)]  # a new minute may begin meanwhile
        [*_, last] = [answer for answer in statuses if answer.status_code == 429]
        assert "`--max_requests_per_minute`" in last.json()["error"] and 0 < int(last.headers["retry-after"]) <= 60
        assert http.get("/health").status_code == 200


def test_an_ipv6_network_is_one_client():
    assert _network("2001:db8::1") == _network("2001:db8::ffff") != _network("2001:db8:0:1::1")
    assert [_network(address) for address in ("::ffff:10.0.0.1", "10.0.0.1", "")] == ["10.0.0.1", "10.0.0.1", ""]


def test_health_names_a_folder_by_its_last_part(talker, tmp_path):
    engine = make_engine(talker)
    engine.name = str(tmp_path)
    with serving(engine) as (_, http):
        assert http.get("/health").json()["model"] == tmp_path.name
        assert http.post(URL, json={**one(), "max_new_tokens": 2}).json()["model"] == tmp_path.name
