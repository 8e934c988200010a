"""Several reward servers behind one client."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from same_scores import assert_same_scores
from servers_for_tests import BUDGET, free_port, listen, make_engine, make_talker, serving, start_process, tokenizer_of

from cloud_hf.serving import client as client_module
from cloud_hf.serving import replicas as replicas_module
from cloud_hf.serving.chat_client import CLoudChatClient
from cloud_hf.serving.client import CLoudClient, RewardServerError
from cloud_hf.serving.replicas import Replicas
from cloud_hf.serving.server.limits import Limits


ONE, TWO = "http://one:8000", "http://two:8000"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.05)
    monkeypatch.setattr(replicas_module, "_FIRST_PAUSE", 0.05)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    return make_talker(tmp_path_factory.mktemp("talker"))


def make_rows(count):
    return [f"What is {number} + 1?" for number in range(count)], [f"It is {number}." for number in range(count)]


def assert_equal_load(first: int, second: int):
    assert abs(first - second) <= 0.1 * (first + second) / 2, (first, second)


@pytest.mark.full  # three processes load a model
def test_one_is_killed_and_restarted_under_64_clients(tmp_path, talker, caplog):
    """No row is lost or gets another's score, and each replica has half of the rows while both are up."""
    talker.save_pretrained(tmp_path)
    tokenizer_of("llama3").save_pretrained(tmp_path)
    prompts, responses = make_rows(256)
    expected = talker.score(prompts, responses, tokenizer_of("llama3"), max_new_tokens=4)
    ports = [free_port(), free_port()]
    client = CLoudClient([f"http://127.0.0.1:{port}" for port in ports], max_concurrency=64)
    first, second = client._replicas.all

    def score() -> tuple[int, int]:
        """Score all rows, and return how many each replica answered."""
        before = first.answered, second.answered
        assert_same_scores(client.score(prompts, responses, max_new_tokens=4), expected, abs=1e-4)
        return first.answered - before[0], second.answered - before[1]

    with ExitStack() as stack:
        starts = [stack.enter_context(start_process(tmp_path, port, 0.2)) for port in (*ports, ports[0])]
        for process in starts:
            stack.callback(process.kill)
        killed, stays, comes = starts
        listen(killed)
        listen(stays)
        while not (first.is_up and second.is_up):
            with suppress(RewardServerError):
                client.served_model()
        assert_equal_load(*score())
        running = stack.enter_context(ThreadPoolExecutor(1)).submit(score)
        done = first.answered
        while first.answered < done + 24:
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        running.result(120)
        assert f"{first.url} is left out until it is back: " in caplog.text and not first.is_up
        listen(comes)
        while not first.is_up:
            client.score(["x"], ["y"], max_new_tokens=4)
        assert f"{first.url} is back." in caplog.text
        assert_equal_load(*score())


def test_replicas_of_other_models_and_releases_are_refused(talker):
    with serving(make_engine(talker), model_version="a") as (one, _), serving(make_engine(talker)) as (two, _):
        client = CLoudClient([one.url, two.url])
        for call in (client.served_model, lambda: client.score(["x"], ["y"])):
            with pytest.raises(
                RewardServerError, match=r"serves .*, but .* serves .*start all replicas with the same model"
            ):
                call()
    assert not client._pools


def test_a_replica_that_comes_back_with_another_model_ends_the_call(talker):
    port = free_port()
    with serving(make_engine(talker), model_version="a") as (one, _):
        client = CLoudClient([one.url, f"http://127.0.0.1:{port}"])
        assert client.served_model().model_version == "a"
        client._replicas.all[1].back_at = 0
        with (
            serving(make_engine(talker), model_version="b", port=port),
            pytest.raises(RewardServerError, match="start all replicas with the same model"),
        ):
            client.score(["x"], ["y"], max_new_tokens=2)


def test_none_is_there():
    client = CLoudClient([f"http://127.0.0.1:{free_port()}" for _ in range(2)], max_retries=2)
    with pytest.raises(RewardServerError, match="Is the server running there"):
        client.served_model()
    with pytest.raises(RewardServerError, match="Is the server running there"):
        client.score(["x"], ["y"])


def test_a_full_queue_sends_requests_to_the_other(talker):
    full, engine = make_engine(talker, seconds=0.5), make_engine(copy.deepcopy(talker))
    limits = Limits(max_batch=1, max_queue=1, max_new_tokens=BUDGET)
    with serving(full, limits=limits) as (one, _), serving(engine) as (two, _):
        client = CLoudClient([one.url, two.url], timeout=60, max_retries=0)
        prompts, responses = make_rows(24)
        assert len(client.score(prompts, responses, max_new_tokens=2)) == 24
    assert full.computed + engine.computed == 24 and engine.computed > full.computed > 0


def test_the_least_loaded_is_chosen_and_one_that_failed_is_asked_by_one_caller():
    replicas = Replicas(f"{ONE},{TWO}")
    one, two = replicas.all
    assert {id(replicas.choose()), id(replicas.choose())} == {id(one), id(two)}  # to be asked
    assert replicas.choose() is None
    replicas.welcome(one)
    replicas.welcome(two)
    with replicas.working(one):
        assert replicas.choose() is two
        replicas.add_answer(two)
    assert replicas.choose() is one
    replicas.leave_out(one, "gone")
    replicas.leave_out(one, "gone")  # by another request
    assert one.failures == 1 and replicas.choose() is two and replicas.others_are_up
    one.back_at = 0.0
    assert replicas.choose() is one and replicas.choose() is two
    replicas.leave_out(one, "gone", is_asked=True)
    assert one.failures == 2
    replicas.leave_out(two, "gone")
    assert replicas.choose() is None and not replicas.others_are_up


def test_a_single_server_is_never_left_out():
    replicas = Replicas(ONE)
    replicas.leave_out(replicas.all[0], "gone")
    replicas.rest(replicas.all[0], 60)
    assert replicas.choose() is replicas.all[0] and not replicas.others_are_up


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        ([], "must contain at least one address"),
        (f"{ONE},{ONE}/", "no address twice"),
        (f"{ONE},two:8000", "`base_url` is 'two:8000'"),
        (f"{ONE},", "`base_url` is ''"),
    ],
)
def test_addresses(urls, says):
    with pytest.raises(ValueError, match=says):
        CLoudClient(urls)


def test_vllms_own_servers_are_divided_by_their_router():
    with pytest.raises(ValueError, match="a router"):
        CLoudChatClient(f"{ONE},{TWO}")
