import asyncio
import itertools
import json
import time
from contextlib import ExitStack

import httpx2
import pytest
from aiohttp import web
from answering_server import bomb, tricks
from completion_server import FAULTS, default_answer, serve_completions

from cloud_hf.data import completions
from cloud_hf.data.completions import Answer, CompletionClient, RequestFailed, ServerUnusable


MESSAGES = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(completions, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(completions, "_LONGEST_WAIT", 0.05)


def run(urls, use, model="tiny", **options):
    """What `use(client)` gives, with a client that was checked."""

    async def main():
        async with CompletionClient(urls, model, **options) as client:
            await client.check()
            return await use(client), client

    return asyncio.run(main())


async def ask(client):
    return await client.chat(MESSAGES, max_tokens=8)


def chats(number):
    async def use(client):
        return await asyncio.gather(
            *(client.chat([{"role": "user", "content": f"question {index}"}]) for index in range(number))
        )

    return use


def test_an_answer():
    with serve_completions() as server:
        answer, _ = run([server.url], ask)
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8}
    assert (answer.text, answer.finish_reason) == default_answer(body)


@pytest.mark.parametrize(
    ("owners", "pinned"), [(("vllm", "vllm"), True), (("vllm", None), False), (("openai",), False)]
)
def test_vllm_does_not_take_sampling_from_the_models_generation_config(owners, pinned):
    with ExitStack() as stack:
        servers = [stack.enter_context(serve_completions(owner=owner)) for owner in owners]
        _, client = run([server.url for server in servers], lambda client: client.chat(MESSAGES, top_p=0.5))
        [body] = [json.loads(text) for server in servers for text in server.answered]
    fields = {"top_p": 0.5, **({"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0} if pinned else {})}
    assert body == {"model": "tiny", "messages": MESSAGES, **fields}
    assert bool(client.sampling_defaults) == pinned


def test_the_first_choice_is_the_one_of_index_0_and_the_model_is_named():
    def write(body):
        choices = [
            {"index": number, "finish_reason": "stop", "message": {"content": f"choice {number}"}} for number in (1, 0)
        ]
        return web.json_response({"model": "tiny-2026", "choices": choices})

    with serve_completions(write=write) as server:
        answer, _ = run([server.url], ask)
    assert answer.text == "choice 0" and answer.model == "tiny-2026"


def test_ids_go_out_and_come_back():
    def write(body):
        assert body["prompt"] == [5, 6, 7] and body["return_token_ids"] is True
        choice = {"text": "", "finish_reason": "stop", "token_ids": [1, 2]}
        return web.json_response({"choices": [choice]})

    async def use(client):
        return await client.complete([5, 6, 7], return_token_ids=True)

    with serve_completions(write=write) as server:
        answer, _ = run([server.url], use)
    assert answer.text == "" and answer.token_ids == (1, 2)


def test_faults_do_not_change_the_answers():
    use = chats(300)
    with serve_completions() as server:
        expected, _ = run([server.url], use)
    with serve_completions(fault_rate=0.3, stall=0.5) as server:
        answers, client = run([server.url], use, request_timeout=0.4, max_retries=12)
    assert answers == expected
    assert set(server.faults) == set(FAULTS)
    # Not equal: on a busy machine other answers miss the time limit too
    assert client.counts.retried >= sum(server.faults.values())


def test_concurrency_is_bounded():
    with serve_completions(latency=0.02) as server:
        run([server.url], chats(60), max_concurrency=7)
    assert server.most_in_flight == 7


def test_two_servers_share_the_work_and_one_may_die():
    with serve_completions(latency=0.01) as first, serve_completions(latency=0.01) as second:
        run([first.url, second.url], chats(60))
        assert min(first.answered.total(), second.answered.total()) > 15

        async def use(client):
            loop = asyncio.get_running_loop()
            half = await chats(10)(client)
            await loop.run_in_executor(None, second.loop_stop)
            return half + await chats(20)(client)

        before = first.answered.total()
        answers, _ = run([first.url, second.url], use)
        assert len(answers) == 30 and first.answered.total() >= before + 20


def test_retry_after_is_honoured():
    asked = []

    def write(body):
        asked.append(time.monotonic())
        if len(asked) == 1:
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.7"})
        return "four", "stop"

    with serve_completions(write=write) as server:
        answer, _ = run([server.url], ask)
    assert answer.text == "four" and asked[1] - asked[0] >= 0.7


def test_a_rate_limit_fails_nobody():
    """Three of four requests are refused, which for some comes more often than `max_retries`."""
    asked = itertools.count()

    def write(body):
        if next(asked) % 4:
            return web.json_response({"error": {"message": "slow down"}}, status=429)
        return default_answer(body)

    with serve_completions(write=write) as server:
        answers, client = run([server.url], chats(40), max_retries=3, max_concurrency=16)
    assert len(answers) == 40 and client.counts.retried == 39 * 3
    assert max(server.requests.values()) > 4


@pytest.mark.parametrize("content", [None, " \n"])
def test_an_empty_answer_at_temperature_0_is_not_asked_for_again(content):
    async def greedy(client):
        return await client.chat(MESSAGES, max_tokens=8, temperature=0.0)

    with (
        serve_completions(write=lambda body: (content, "stop")) as server,
        pytest.raises(RequestFailed, match=r"without content .* at temperature 0; a retry would return the same"),
    ):
        run([server.url], greedy, max_retries=3)
    assert server.requests.total() == 1


def test_a_quota_that_is_used_up_ends():
    def write(body):
        return web.json_response({"error": {"message": "You exceeded your quota"}}, status=429)

    with serve_completions(write=write) as server, pytest.raises(RequestFailed, match=r"exceeded your quota.*4 tries"):
        run([server.url], ask, max_retries=3)
    assert server.requests.total() == 4


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (lambda: web.json_response({"choices": []}), "not a completion"),
        (lambda: web.Response(text="<html>"), "not a completion"),
        (lambda: web.Response(body=b'{"choices": [{"text": "\xff\xfe"}]}'), "not a completion"),
        (lambda: (None, "stop"), "without content .finish_reason 'stop'"),
        (lambda: ("half an ans", "abort"), "finish_reason is 'abort'"),
        (lambda: ("half an ans", None), "finish_reason is None"),
        (lambda: (" \n", "stop"), "without content"),
        (lambda: web.Response(text='{"choices": [{"message": {"content": "a\\ud800"}}]}'), "lone surrogate"),
        (lambda: web.json_response({"error": {"message": "oops"}}, status=500), "status 500: oops"),
        (lambda: web.json_response({"choices": [{"text": "not of a chat"}]}), "not a completion"),
        (lambda: web.json_response({"error": {"message": "no GPU is free", "code": 503}}), "an error: no GPU is free"),
        (lambda: web.json_response({"error": "overloaded \ud800", "choices": []}), "an error: overloaded"),
        (lambda: web.json_response({"object": "error", "message": "it restarts"}), "an error: it restarts"),
        (lambda: web.Response(text="[" * 100_000), "not a completion"),
        (lambda: ("x", "a\ud800"), "finish_reason"),
        (lambda: ("x", float("nan")), "finish_reason"),
    ],
)
def test_answers_that_are_none_are_asked_for_again_and_then_given_up(response, message):
    with (
        serve_completions(write=lambda body: response()) as server,
        pytest.raises(RequestFailed, match=f"{message}.*given up after 3 tries"),
    ):
        run([server.url], ask, max_retries=2)
    assert server.requests.total() == 3


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_is_cut_or_filtered_before_its_first_word_is_no_failure(reason):
    with serve_completions(write=lambda body: (None, reason)) as server:
        answer, _ = run([server.url], ask)
    assert answer == Answer("", reason) and server.requests.total() == 1


def test_a_request_that_is_refused_is_not_repeated():
    message = "maximum context length is 64 tokens, but you requested 90"

    def write(body):
        return web.json_response({"error": {"message": message}}, status=400)

    with serve_completions(write=write) as server, pytest.raises(RequestFailed, match=message):
        run([server.url], ask)
    assert server.requests.total() == 1


@pytest.mark.parametrize(
    ("status", "message", "exceeds_context"),
    [
        (400, "This model's maximum context length is 4096 tokens.", True),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096", True),
        (400, "Unknown parameter: seed", False),
        (402, "You requested 8192 max_tokens, but can only afford 1000. Add credits.", False),
    ],
)
def test_only_a_refusal_that_speaks_of_length_says_that_the_context_is_full(status, message, exceeds_context):
    response = {"error": {"message": message}}
    with (
        serve_completions(write=lambda body: web.json_response(response, status=status)) as server,
        pytest.raises(RequestFailed) as error,
    ):
        run([server.url], ask)
    assert error.value.exceeds_context == exceeds_context


def test_stalls_end_in_bounded_time():
    def write(body):
        time.sleep(0.5)
        return "late", "stop"

    with serve_completions(write=write) as server, pytest.raises(RequestFailed, match=r"no answer within 0\.2 s"):
        run([server.url], ask, request_timeout=0.2, max_retries=1)


def test_a_wrong_key_is_said_once_and_never_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with serve_completions(key="sk-right") as server:
        with pytest.raises(ServerUnusable, match="OPENAI_API_KEY contains a key that the server rejects") as error:
            run([server.url], ask)
        assert "sk-wrong" not in str(error.value)
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(ServerUnusable, match="The environment variable OPENAI_API_KEY is not set"):
            run([server.url], ask)
        monkeypatch.setenv("JUDGE_KEY", "sk-right")
        run([server.url], ask, api_key_env="JUDGE_KEY")
    assert server.requests.total() == 1


def test_a_key_that_expires_stops_everything(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-old")

    def write(body):
        return web.json_response({"error": {"message": "sk-old is expired"}}, status=401)

    with serve_completions(write=write) as server, pytest.raises(ServerUnusable) as error:
        run([server.url], ask)
    assert server.requests.total() == 1 and "sk-old" not in str(error.value)


def test_a_server_that_is_down_is_said_first():
    with serve_completions() as server:
        url = server.url
    with pytest.raises(ServerUnusable, match=f"{url} does not answer .*Is it running"):
        run([url], ask)


def test_another_model_is_said_first():
    with serve_completions(model="other") as server:
        with pytest.raises(ServerUnusable, match=r"serves other\. It does not serve 'tiny'"):
            run([server.url], ask)
        _, client = run([server.url], ask, model=None)
    assert client.model == "other"


def test_something_else_at_the_address():
    with serve_completions() as server, pytest.raises(ServerUnusable, match="does not list its models; set `model`"):
        run([server.url.replace("/v1", "/v2")], ask, model=None)


def test_a_server_that_dies_stops_the_run():
    async def use(client):
        await ask(client)
        await asyncio.get_running_loop().run_in_executor(None, server.loop_stop)
        await ask(client)

    with serve_completions() as server, pytest.raises(ServerUnusable, match="does not answer"):
        run([server.url], use, max_retries=2)


@pytest.mark.parametrize("ids", [[-1], ["a"], "abc", [1.5], [2**70], {}, [True], [[1]], None])
def test_token_ids_that_are_none_are_not_taken(ids):
    def write(body):
        return web.json_response({"choices": [{"text": "", "finish_reason": "stop", "token_ids": ids}]})

    async def use(client):
        return await client.complete([5], return_token_ids=True)

    with serve_completions(write=write) as server, pytest.raises(RequestFailed, match="token ids are"):
        run([server.url], use, max_retries=1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        (" 0.5 ", 0.5),
        ("86400", 300),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("inf", None),
        ("1e400", None),
        ("nan", None),
        ("-5", None),
        ("soon", None),
    ],
)
def test_how_long_a_server_may_rest(value, seconds):
    assert completions._retry_after(httpx2.Response(429, headers={"Retry-After": value})) == seconds


def test_a_key_is_not_shown_in_part_either(monkeypatch):
    key = "sk-" + "secret" * 4
    monkeypatch.setenv("OPENAI_API_KEY", f" {key}\n")

    def write(body):
        return web.json_response({"error": {"message": "x" * 490 + key}}, status=400)

    with serve_completions(write=write, key=key) as server, pytest.raises(RequestFailed) as error:
        run([server.url], ask)
    assert "sk-" not in str(error.value)


def test_a_key_is_not_shown_in_an_error_with_status_200(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with (
        serve_completions(write=lambda body: web.json_response({"error": {"message": "key sk-secret"}})) as server,
        pytest.raises(RequestFailed, match=r"an error: key \[key\]"),
    ):
        run([server.url], ask, max_retries=0)


def test_keys_and_addresses_that_cannot_be_used(monkeypatch):
    with pytest.raises(ValueError, match="user name or a password") as error:
        CompletionClient(["http://me:secret@127.0.0.1/v1"], "tiny")
    assert "secret" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-é")
    with pytest.raises(ValueError, match="OPENAI_API_KEY contains characters") as error:
        CompletionClient(["http://127.0.0.1/v1"], "tiny")
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x"])
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="must start with http"):
        CompletionClient([url], "tiny")


# ----------------------------------------------------------------------------------------------- a server of a stranger


def list_models(url, **options):
    return run([f"{url}/v1"], ask, **{"max_retries": 1, **options})


def ask_unchecked(url):
    async def main():
        async with CompletionClient([f"{url}/v1"], "tiny", max_retries=1) as client:
            return await ask(client)

    return asyncio.run(main())


@pytest.mark.parametrize("use", [list_models, ask_unchecked])
@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_is_read_up_to_its_limit(use, status):
    with (
        tricks((status, {"Content-Encoding": "gzip"}, bomb(32))) as (url, _),
        pytest.raises(ServerUnusable, match=r"more than 8388608 bytes, which is the limit"),
    ):
        use(url)


@pytest.mark.parametrize("use", [list_models, ask_unchecked])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(use, status):
    """Prompts and keys are for the server that the user named."""
    with (
        serve_completions() as other,
        tricks((status, {"Location": f"{other.url}/chat/completions"}, {})) as (url, times),
        pytest.raises(ServerUnusable, match=rf"status {status}: a redirect to '{other.url}.*use that address instead"),
    ):
        use(url)
    assert len(times) == 1 and not other.requests


@pytest.mark.parametrize(
    "models",
    [{"data": [{"id": "\x1b]0;title\x07"}]}, {"data": [{"id": 5}, {"id": "a"}]}, {"data": ["a"]}, b"[" * 100_000],
)
def test_names_that_are_none_are_not_printed(models):
    with tricks((200, {}, models)) as (url, _), pytest.raises(ServerUnusable, match="not respond like") as error:
        list_models(url, model=None)
    assert str(error.value).isprintable()


def test_messages_do_not_control_the_terminal():
    message = {"error": {"message": "\x1b]0;title\x07\x9b2J gone\r\n\u202e" + "x" * 10_000}}
    for status in (200, 400, 404, 401):
        with tricks((status, {}, message)) as (url, _), pytest.raises((RequestFailed, ServerUnusable)) as error:
            ask_unchecked(url)
        assert str(error.value).isprintable() and len(str(error.value)) < 800
