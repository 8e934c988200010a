import asyncio
import re
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from answering_server import COLUMNS, GOOD, tricks
from datasets import Dataset
from models_for_tests import CRITIQUES, PROMPTS, RESPONSES
from servers_for_tests import (
    BUDGET,
    free_port,
    listen,
    make_engine,
    make_talker,
    serving,
    start_process,
    tokenizer_of,
)

from cloud_hf import CritiqueFormat, TransformersScorer, __version__
from cloud_hf.evaluation import evaluate_pairs
from cloud_hf.serving import CLoudChatClient
from cloud_hf.serving import client as client_module
from cloud_hf.serving.client import CLoudClient, RewardServerError, ServedModel
from cloud_hf.serving.server.limits import Limits


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    return make_talker(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module")
def url(talker):
    with serving(make_engine(talker)) as (server, _):
        yield server.url


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Retries come as quickly as a test wants them; the pauses still double."""
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.05)


def expect(talker, prompts=PROMPTS, responses=RESPONSES, **options):
    return talker.score(prompts, responses, tokenizer_of("llama3"), **{"max_new_tokens": BUDGET, **options})


def assert_same(scores, expected):
    assert [score.critiques for score in scores] == [score.critiques for score in expected]
    for score, other in zip(scores, expected, strict=True):
        assert score.rewards == pytest.approx(other.rewards, abs=1e-4)
        assert score.reward == pytest.approx(other.reward, abs=1e-4)
        assert score.reward_std == pytest.approx(other.reward_std, abs=1e-4)
        assert (score.critique, score.finish_reasons, score.critique_ids) == (
            other.critique,
            other.finish_reasons,
            other.critique_ids,
        )
        for partial, others in zip(score.partial_rewards, other.partial_rewards, strict=True):
            assert partial == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_critiques": 3, "temperature": 1.0, "seed": 5},
        {"critiques": CRITIQUES},
        {"critiques": [[critique, "Other."] for critique in CRITIQUES], "read_every": 3},
        {"read_every": 2, "stop_when_stable": 5.0},
    ],
)
def test_its_scores_are_the_models(talker, url, options):
    assert_same(
        CLoudClient(url).score(PROMPTS, RESPONSES, **{"max_new_tokens": BUDGET, **options}), expect(talker, **options)
    )


def test_many_rows_come_back_in_order_a_few_at_a_time(talker, monkeypatch):
    engine = make_engine(talker)
    prompts = [f"What is {number} + {number % 7}?" for number in range(60)]
    expected = expect(talker, prompts, ["It is 42."] * 60)
    with serving(engine) as (server, http):
        peak, now, score = 0, 0, engine.score_encoded

        async def watch(*args, **kwargs):
            nonlocal peak, now
            now += 1
            peak = max(peak, now)
            try:
                return await score(*args, **kwargs)
            finally:
                now -= 1

        monkeypatch.setattr(engine, "score_encoded", watch)
        client = CLoudClient(server.url, max_concurrency=5)
        assert_same(client.score(prompts, ["It is 42."] * 60, max_new_tokens=BUDGET), expected)
        assert 1 < peak <= 5 and engine.computed == 60

        async def calls():
            return await asyncio.gather(
                *(client.ascore([prompt], ["It is 42."], max_new_tokens=BUDGET) for prompt in prompts)
            )

        assert_same([score for [score] in asyncio.run(calls())], expected)
        assert peak <= 5 and engine.computed == 120 and not client._pools
        assert http.get("/health").status_code == 200


def test_it_is_a_scorer_from_threads_and_inside_a_loop(talker, url):
    client = CLoudClient(url)
    expected = expect(talker)

    async def inside():
        return client.score(PROMPTS, RESPONSES, max_new_tokens=BUDGET)

    assert_same(asyncio.run(inside()), expected)
    with ThreadPoolExecutor(3) as pool:
        for scores in pool.map(lambda _: client.score(PROMPTS, RESPONSES, max_new_tokens=BUDGET), range(3)):
            assert_same(scores, expected)
    assert client.score([], []) == []


def test_a_key(talker):
    with serving(make_engine(talker), api_key="sesame") as (server, _):
        assert_same(
            CLoudClient(server.url, api_key="sesame").score(PROMPTS, RESPONSES, max_new_tokens=BUDGET), expect(talker)
        )
        with pytest.raises(RewardServerError, match=r"Row 0: http.*status 401: Send the server's key"):
            CLoudClient(server.url).score(["x"], ["y"])


@pytest.mark.parametrize(
    ("prompts", "responses", "options", "says"),
    [
        (["x", "x", ""], ["y"] * 3, {}, r"Row 2: http.*status 422: Row 0: `prompt` is empty"),
        (["x", "\ud800"], ["y"] * 2, {}, r"Row 1: .*lone surrogate"),
        (["x", "long " * 600], ["y"] * 2, {}, r"Row 1: .*context holds 512"),
        (["x"], ["y"], {"max_new_tokens": 5000}, r"limit is 1024"),
        (["x"], ["y"], {"num_critiques": 2}, r"needs `temperature` above 0"),
        (["x"], ["y"], {"temperature": float("nan")}, r"`temperature` is nan; it must be a finite number"),
        (["x"], ["y"], {"num_critiques": "2"}, r"`num_critiques` is '2'; it must be an integer"),
        (["x"], ["y"], {"num_critiques": None}, r"`num_critiques` is None; it must be an integer"),
        (["x"], ["y"], {"max_new_tokens": None}, r"`max_new_tokens` is None; it must be an integer"),
        (["x", object()], ["y"] * 2, {}, r"Row 1: cannot be sent as JSON"),
        (["x"], ["y", "z"], {}, r"1 prompts but 2 responses"),
        ("x", ["y"], {}, r"`prompts` is 'x'"),
        (["x"], ["y"], {"critiques": []}, r"0 critiques but 1 responses"),
        (["x"] * 2, ["y"] * 2, {"critiques": ["a", None]}, r"Row 1: `critiques` is None; give a string"),
        (["x"] * 2, ["y"] * 2, {"critiques": ["a", {"b": 1}]}, r"Row 1: `critiques` is {'b': 1}; give a string"),
    ],
)
def test_bad_input_is_a_value_error_that_names_the_row(url, prompts, responses, options, says):
    with pytest.raises(ValueError, match=says):
        CLoudClient(url).score(prompts, responses, **{"max_new_tokens": BUDGET, **options})


def test_a_full_queue_is_waited_for(talker):
    limits = Limits(max_batch=2, max_queue=2, max_new_tokens=BUDGET)
    engine = make_engine(talker, seconds=0.05)
    with serving(engine, limits=limits) as (server, http):
        client = CLoudClient(server.url, max_retries=0, timeout=60)
        assert_same(client.score(PROMPTS, RESPONSES, max_new_tokens=BUDGET), expect(talker))
        assert engine.computed == 4 and 'status="429"' in http.get("/metrics").text


# ------------------------------------------------------------------------------------------------- a server of tricks


def test_the_model_that_is_served(talker, url):
    assert CLoudClient(url).served_model() == ServedModel(
        Path(talker.name_or_path).name, True, talker.config.text_config.max_position_embeddings, None, __version__
    )


def test_a_server_that_stopped_is_not_answered_for(talker):
    with serving(make_engine(talker)) as (server, _):
        client = CLoudClient(server.url, max_retries=0)
        client.served_model()
    with pytest.raises(RewardServerError, match="Is the server running there"):
        client.served_model()


def test_no_server_and_one_of_something_else_are_told_apart():
    with pytest.raises(RewardServerError, match="Is the server running there"):
        CLoudClient(f"http://127.0.0.1:{free_port()}").served_model()
    with tricks((200, {}, [])) as (other, _), pytest.raises(RewardServerError, match="not a reward server's"):
        CLoudClient(other).served_model()


SUCCESS = (200, {}, {"model": "m", "results": [GOOD]})


@pytest.mark.parametrize("trouble", [None, (502, {}, b"<html>"), (503, {}, {"error": "stopping"}), (504, {}, {}), (200, {"X-Cut": "1"}, b"{")])  # fmt: skip
def test_passing_trouble_is_tried_again_with_growing_pauses(trouble):
    with tricks(trouble, trouble, trouble, SUCCESS) as (url, times):
        [score] = CLoudClient(url, max_retries=3).score(["x"], ["y"])
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert score.reward == 0.5 and len(pauses) == 3
    assert pauses[0] >= 0.025 and pauses[1] >= 0.05 and pauses[2] >= 0.1


@pytest.mark.parametrize(
    ("answer", "tries", "says"),
    [
        ((503, {}, {"error": "stopping"}), 3, r"Row 0: http://127.* status 503: stopping \(given up after 3 tries"),
        (None, 3, r"Row 0: http.*RemoteProtocolError.*given up after 3 tries"),
        ((500, {}, {"error": "boom"}), 1, r"status 500: boom$"),
        ((404, {}, b"nothing here"), 1, r"status 404: 'nothing here'"),
        ((200, {}, b"hello"), 1, r"not a reward server's"),
        ((200, {}, {"results": []}), 1, r"not a reward server's"),
        (
            (
                200,
                {},
                b'{"results": [{"reward": NaN, "rewards": [NaN], "critiques": ["x"], "reward_std": 0, '
                b'"finish_reasons": ["stop"], "critique_ids": [[]]}]}',
            ),
            1,
            r"has rewards that are NaN or infinite",
        ),
        (
            (200, {}, {"results": [{**GOOD, "rewards": [0.5, 0.5]}]}),
            1,
            r"the numbers of rewards, critiques, ids and finish reasons differ: 2, 1, 1, 1",
        ),
        ((200, {}, {"results": [GOOD | {name: GOOD[name] * 2 for name in COLUMNS}]}), 1, r"2 rewards for 1 critiques"),
    ],
)
def test_lasting_trouble_is_an_error_that_says_all(answer, tries, says):
    with tricks(answer) as (url, times):
        with pytest.raises(RewardServerError, match=says):
            CLoudClient(url, max_retries=2).score(["x"], ["y"])
        assert len(times) == tries


def test_the_servers_wish_is_honoured():
    with tricks((429, {"Retry-After": "1"}, {"error": "full"}), (503, {"Retry-After": "1"}, {}), SUCCESS) as (
        url,
        times,
    ):
        CLoudClient(url, max_retries=1).score(["x"], ["y"])
    assert times[1] - times[0] >= 1 and times[2] - times[1] >= 1
    with (
        tricks((429, {"Retry-After": "7"}, {"error": "full"})) as (url, _),
        pytest.raises(RewardServerError, match=r"429: full \(for 2 s\)"),
    ):
        CLoudClient(url, timeout=2).score(["x"], ["y"])


def test_an_answer_that_never_comes_ends_in_bounded_time(talker):
    with (
        serving(make_engine(talker, seconds=1.0)) as (server, _),
        pytest.raises(RewardServerError, match=r"Timeout.*given up after 2 tries"),
    ):
        CLoudClient(server.url, timeout=0.1, max_retries=1).score(["x"], ["y"], max_new_tokens=2)


def test_one_lost_row_ends_the_call_and_closes_the_connections(url):
    client = CLoudClient(f"http://127.0.0.1:{free_port()}", max_retries=1)
    with pytest.raises(RewardServerError, match=r"ConnectError.*given up after 2 tries"):
        client.score(PROMPTS, RESPONSES)
    assert not client._pools


def test_arguments():
    for options in ({"base_url": "localhost:8000"}, {"max_concurrency": 0}, {"timeout": 0}, {"max_retries": -1}):
        with pytest.raises(ValueError, match=r"base_url|max_concurrency"):
            CLoudClient(**{"base_url": "http://x", **options})
    for address in ("http://127.0.0.1:99999", "http://127.0.0.1:port", "http://[::1"):
        with pytest.raises(ValueError, match=re.escape(f"`base_url` is '{address}', which is not an address")):
            CLoudClient(f"http://127.0.0.1:8000,{address}")


@pytest.mark.parametrize("kind", [CLoudClient, CLoudChatClient])
def test_a_key_that_cannot_be_sent_is_refused_unquoted(kind):
    for key in (" \n", "sesame\0", "sésame"):
        with pytest.raises(ValueError, match=r"`api_key` (is empty|contains characters)") as error:
            kind("http://x", api_key=key)
        assert "same" not in str(error.value)
    assert kind("http://x", api_key=" sesame\n")._headers["Authorization"] == "Bearer sesame"


HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("prompt", "response", "says"),
    [
        (None, "y", "`prompt` is None; give a string"),
        ({"tools": []}, "y", "`prompt` is None; give a string"),
        ({"messages": HI, "repetition_penalty": 2.0}, "y", r"has the unknown key\(s\) repetition_penalty"),
        (HI, 4, "`response` is of type int; give text"),
        (
            HI,
            {"role": "assistant", "content": "y", "reasoning": "Hm."},
            "cannot tell `reasoning` from `reasoning_content`",
        ),
    ],
)
def test_chats_that_vllm_would_misread_are_refused_before_they_are_sent(prompt, response, says):
    with pytest.raises(ValueError, match=f"^Row 1: .*{says}"):
        CLoudChatClient("http://x").score(["x", prompt], ["y", response])


# ----------------------------------------------------------------------------------------------------- away and back


def test_a_server_that_is_killed_and_comes_back_costs_nothing(tmp_path, talker):
    talker.save_pretrained(tmp_path)
    tokenizer_of("llama3").save_pretrained(tmp_path)
    port = free_port()
    prompts = [f"What is {number} + 1?" for number in range(120)]
    responses = [f"It is {number}." for number in range(120)]
    client = CLoudClient(f"http://127.0.0.1:{port}", max_concurrency=16, max_retries=12)
    with start_process(tmp_path, port, 0.1) as first, ThreadPoolExecutor(1) as pool:
        try:
            listen(first)
            running = pool.submit(client.score, prompts, responses, max_new_tokens=BUDGET)
            client.score(["x"], ["y"], max_new_tokens=2)
        finally:
            first.kill()
        first.wait()
        assert not running.done()
        with serving(make_engine(talker), port=port):
            scores = running.result(timeout=60)
    assert_same(scores, expect(talker, prompts, responses))


def test_a_server_that_is_restarted_in_its_place_loses_no_row(talker):
    """It is told to stop in mid-run, finishes what runs, and another takes its port."""
    port, prompts = free_port(), [f"What is {number} + 1?" for number in range(60)]
    client = CLoudClient(f"http://127.0.0.1:{port}", max_concurrency=8, max_retries=12)
    first, second = make_engine(talker, seconds=0.1, batch_size=4), make_engine(talker)
    with ThreadPoolExecutor(1) as pool:
        with serving(first, port=port):
            running = pool.submit(client.score, prompts, ["y"] * 60, max_new_tokens=BUDGET)
            while first.computed < 8:
                time.sleep(0.01)
        with serving(second, port=port):
            scores = running.result(timeout=60)
    assert_same(scores, expect(talker, prompts, ["y"] * 60))
    assert first.computed + second.computed == 60 and second.computed > 0


def test_evaluation_takes_it_as_its_scorer(talker, url):
    rows = [
        {"prompt": prompt, "chosen": "Yes.", "rejected": response or "No."}
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    critique_format = CritiqueFormat.from_config(talker.config, tokenizer_of("llama3"))
    results = [
        evaluate_pairs(scorer, Dataset.from_list(rows), critique_format, max_new_tokens=BUDGET)
        for scorer in (CLoudClient(url), TransformersScorer(talker, tokenizer_of("llama3")))
    ]
    for ours, theirs in zip(*(result.pairs for result in results), strict=True):
        assert_same([ours.chosen, ours.rejected], [theirs.chosen, theirs.rejected])


def test_the_client_and_the_reward_functions_over_it_need_none_of_the_dependencies():
    """A trainer that pins other versions installs with `--no-deps`, and httpx2."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    absent = [re.match(r"\w+", dependency).group() for dependency in project["dependencies"]]
    assert {"torch", "transformers", "trl"} < {*absent}
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import cloud_hf.rl.trl, cloud_hf.rl.verl"
    subprocess.run([sys.executable, "-c", code], check=True)
