"""A server may send anything: clients read a bounded part of it, and take no answer of a wrong type."""

import asyncio
import json
import tracemalloc

import pytest
from answering_server import GOOD, bomb, tricks

from cloud_hf.rl.verl import compute_score
from cloud_hf.serving import client as client_module
from cloud_hf.serving.chat_client import CLoudChatClient
from cloud_hf.serving.client import CLoudClient, RewardServerError


TOKEN = {"logprob": -1.0, "top_logprobs": [{"logprob": -1.0}, {"logprob": -2.0}]}
CHOICE = {
    "index": 0,
    "finish_reason": "stop",
    "message": {"content": "c"},
    "token_ids": [1, 2, 3],
    "logprobs": {"content": [TOKEN, TOKEN, {"logprob": 0.5}]},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.01)


def ask(url):
    return CLoudClient(url, api_key="sesame", max_retries=0).score(["x"], ["y"])


def ask_chat(url, num_critiques=1):
    client = CLoudChatClient(url, api_key="sesame", max_retries=0)
    return client.score(["x"], ["y"], num_critiques=num_critiques, temperature=1.0)


def ask_router(url):
    row = {"data_source": "s", "solution_str": "y", "ground_truth": "", "extra_info": {"prompt": "x"}}
    return asyncio.run(compute_score(**row, reward_router_address=url.removeprefix("http://")))


def ask_model(url):
    return CLoudClient(url, api_key="sesame").served_model()


ROUTES = (ask, ask_chat, ask_router, ask_model)


@pytest.mark.parametrize("use", ROUTES)
@pytest.mark.parametrize("status", [200, 422])
def test_an_answer_is_read_up_to_its_limit(use, status):
    with tricks((status, {"Content-Encoding": "gzip"}, bomb(64))) as (url, _):
        tracemalloc.start()
        try:
            with pytest.raises(RewardServerError, match=r"more than \d+ bytes, which is the limit"):
                use(url)
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()


def test_the_limit_grows_with_what_is_asked():
    """64 critiques of 1,024 tokens fit; for a shorter request, they are too much."""
    many = {"critiques": ["c" * 2**15] * 64, "critique_ids": [[128_000] * 1024] * 64, "rewards": [0.5] * 64}
    answer = {"results": [GOOD | many | {"finish_reasons": ["stop"] * 64}]}
    with tricks((200, {}, answer)) as (url, _):
        [score] = CLoudClient(url).score(["x"], ["y"], num_critiques=64, temperature=1.0)
        assert len(score.rewards) == 64
        with pytest.raises(RewardServerError, match="the limit"):
            CLoudClient(url).score(["x"], ["y"], max_new_tokens=8)


@pytest.mark.parametrize("use", ROUTES)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(use, status):
    """Prompts and keys are for the server that the user named."""
    with tricks((200, {}, {})) as (other, times), tricks((status, {"Location": other}, {})) as (url, _):
        with pytest.raises(
            RewardServerError, match=rf"status {status}: a redirect to '{other}'.*use that address instead"
        ):
            use(url)
        assert not times


@pytest.mark.parametrize(
    "change",
    [
        {"reward": "5"},
        {"reward": True, "rewards": [True]},
        {"rewards": ["5"]},
        {"rewards": [None]},
        {"reward": 10**400, "rewards": [10**400]},
        {"reward": float("nan"), "rewards": [float("nan")]},
        {"reward": float("inf"), "rewards": [float("inf")]},
        {"reward": float("nan")},
        {"reward": 7.0},
        {"rewards": []},
        {"critiques": "c"},
        {"critiques": None},
        {"critiques": [5]},
        {"critiques": ["c", "d"]},
        {"critiques": ["\ud800"]},
        {"critique_ids": [["1"]]},
        {"critique_ids": [[-1]]},
        {"critique_ids": [[True]]},
        {"finish_reasons": ["abort"]},
        {"partial_rewards": [[0.0, 9.0]]},
        {"partial_rewards": [0.0]},
        {"partial_rewards": [[]]},
        {"response_changed": "no"},
    ],
)
def test_wrong_types_are_not_a_score(change):
    with tricks((200, {}, {"results": [GOOD | change]})) as (url, times):
        with pytest.raises(RewardServerError, match="Row 0"):
            ask(url)
        assert len(times) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"index": 1},
        {"index": None},
        {"finish_reason": "length"},
        {"message": {"content": 5}},
        {"token_ids": [1, 2]},
        {"token_ids": ["1", 2, 3]},
        {"token_ids": None},
        {"logprobs": None},
        {"logprobs": {"content": []}},
        {"logprobs": {"content": [TOKEN, TOKEN, {"logprob": "0.5"}]}},
        {"logprobs": {"content": [TOKEN, TOKEN, {"logprob": True}]}},
        {"logprobs": {"content": [TOKEN, TOKEN, {"logprob": float("nan")}]}},
    ],
)
def test_wrong_types_are_not_a_choice(change):
    with (
        tricks((200, {}, {"choices": [CHOICE | change]})) as (url, _),
        pytest.raises(RewardServerError, match="Row 0"),
    ):
        ask_chat(url)


def test_choices_are_ordered_by_their_index_and_counted():
    second = CHOICE | {"index": 1, "message": {"content": "d"}}
    with tricks((200, {}, {"choices": [second, CHOICE]})) as (url, _):
        assert ask_chat(url, 2)[0].critiques == ("c", "d")
        with pytest.raises(RewardServerError, match="2 rewards for 1 critiques"):
            ask_chat(url)
    with (
        tricks((200, {}, {"choices": [CHOICE, CHOICE]})) as (url, _),
        pytest.raises(RewardServerError, match="from 0"),
    ):
        ask_chat(url, 2)


@pytest.mark.parametrize("use", ROUTES)
@pytest.mark.parametrize("body", [b"[" * 100_000, b"null", b"[1]", b'{"results": 5, "choices": 5}', b"\xff"])
def test_other_json_is_said_not_to_be_an_answer(use, body):
    with tricks((200, {}, body)) as (url, _), pytest.raises(RewardServerError, match="not a reward server's"):
        use(url)


@pytest.mark.parametrize("use", ROUTES)
@pytest.mark.parametrize("status", [422, 500])
def test_messages_do_not_control_the_terminal(use, status):
    message = json.dumps({"error": "\x1b]0;title\x07\x9b2Jgone\r\u202e" + "x" * 10_000}).encode()
    with tricks((status, {}, message)) as (url, _), pytest.raises((ValueError, RewardServerError)) as error:
        use(url)
    assert str(error.value).isprintable() and len(str(error.value)) < 700


@pytest.mark.parametrize(
    "answer", [{"model": 5}, {"critique": "yes"}, {"context_length": "8k"}, {"context_length": True}]
)
def test_wrong_types_are_not_a_model(answer):
    good = {"model": "\x1b[31mm", "critique": True, "context_length": None}
    with tricks((200, {}, good)) as (url, _):
        assert ask_model(url).name == "\\x1b[31mm"
    with tricks((200, {}, good | answer)) as (url, _), pytest.raises(RewardServerError, match="not a reward server's"):
        ask_model(url)
