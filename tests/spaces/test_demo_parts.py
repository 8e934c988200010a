"""The parts of the demo that need no model and no page."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest
from browser import REPOSITORY, SPACES
from demo_for_tests import EchoEngine


pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")

from cloud_demo import Problem
from cloud_demo.arguments import DemoArguments, parse_arguments
from cloud_demo.backend import Backend, RewardDistribution, Visitor, WaitingLine, preference
from cloud_demo.best_of_n_tab import split_candidates
from cloud_demo.compare_tab import remove_last
from cloud_demo.engines import Models
from cloud_demo.judging import (
    SAMPLING_TEMPERATURE,
    _gathered,
    _joined,
    judge_pair,
    read_sampling,
    read_sliders,
    read_texts,
    read_turns,
)
from cloud_demo.score_html import curve, reward_bars, reward_histogram, show_ranking, status
from cloud_demo.tab_parts import Controls, example_prompts, visitor_of

from cloud_hf.cli import UsageError
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.scores import Sampling


# ------------------------------------------------------------------------------------------------------- arguments


def test_the_command_line_goes_over_the_environment():
    environment = {"DEMO_MODEL": "org/a", "DEMO_REFERENCE_ROWS": "3", "DEMO_ANALYTICS": "true", "DEMO_ROWS": ""}
    args = parse_arguments(["--model", "org/b"], environment)
    assert (args.model, args.reference_rows, args.analytics, args.rows) == ("org/b", 3, True, None)
    assert parse_arguments([], environment).model == "org/a"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name a reward model with `--model`"),
        (["--backend", "server"], "needs `server_url`"),
        (["--model", "a", "--backend", "tpu"], "use transformers, vllm or server"),
        (["--model", "a", "--server_url", "http://b"], "are for `backend` 'server'"),
        (["--model", "a", "--max_waiting", "0"], "`max_waiting` is 0"),
        (["--model", "a", "--policy_url", "http://b"], "go together"),
        (["--model", "a", "--analytics", "maybe"], "neither True nor False"),
        (["--model", "a", "--modle", "b"], "unrecognized arguments: --modle b"),
        (["--model", "runs/no/model"], "`model` is 'runs/no/model', but there is no such folder."),
        (["--model", "a", "--classic_model", "./none"], "`classic_model` is './none', but there is no such folder."),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_arguments(arguments, {})


def test_bad_variables_are_named():
    with pytest.raises(UsageError, match="on a Space: `DEMO_MODEL`"):
        parse_arguments([], {"SPACE_ID": "org/demo"})
    with pytest.raises(UsageError, match="argument --concurrency: invalid int value: 'many'"):
        parse_arguments([], {"SPACE_ID": "org/demo", "DEMO_MODEL": "org/a", "DEMO_CONCURRENCY": "many"})
    assert parse_arguments([], {"SPACE_ID": "org/demo", "DEMO_MODEL": "org/a"}).model == "org/a"


def run_app(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess:
    """Run the command, in a process that first does `before`."""
    app = SPACES / "demo" / "app.py"
    code = f"import runpy, sys; sys.argv[0] = 'app.py'; sys.path[0] = {str(app.parent)!r}; {before}"
    command = [sys.executable, "-c", f"{code}; runpy.run_path({str(app)!r}, run_name='__main__')", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_missing_package_is_named_with_its_extra():
    ended = run_app("--model", "org/a", before="sys.modules['gradio'] = None")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "`gradio`" in ended.stderr and "pip install 'cloud-hf[demo]'" in ended.stderr


def test_a_port_in_use_is_named():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ended = run_app("--model", "org/a", "--port", str(port))
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == f"app.py: Port {port} is in use; choose another with `--port`."


def test_one_at_a_time_with_transformers_and_more_elsewhere():
    assert DemoArguments(model="a").concurrency == 1
    assert DemoArguments(model="a", backend="vllm").concurrency == 16


# -------------------------------------------------------------------------------------------------------- the line


async def wait_in(line, user, log, leave):
    with line.join(Visitor(f"{user}", "")) as ticket:
        async for position in ticket.positions():
            log.append((user, position))
        log.append((user, "served"))
        await leave.wait()


def test_the_line_serves_in_order_and_tells_places():
    async def run():
        line, log, leave = WaitingLine(1, 5, 1, 5), [], [asyncio.Event() for _ in range(3)]
        tasks = []
        for user in range(3):
            tasks.append(asyncio.ensure_future(wait_in(line, user, log, leave[user])))
            await asyncio.sleep(0)
        with pytest.raises(Problem, match="You have 1 requests under way"), line.join(Visitor("0", "")):
            pass
        assert log == [(0, "served"), (1, (1, 1)), (2, (2, 2))]
        tasks[1].cancel()  # who leaves makes room
        await asyncio.sleep(0.01)
        assert log[-1] == (2, (1, 1))
        leave[0].set()
        leave[2].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert log[-1] == (2, "served") and line.is_empty

    asyncio.run(run())


def test_a_full_line_refuses():
    line = WaitingLine(1, 1, 9, 9)
    anna, ben, carl = (Visitor(name, name) for name in "abc")
    with line.join(anna), line.join(ben):
        with pytest.raises(Problem, match="1 requests are waiting"), line.join(carl):
            pass
        assert not line.is_empty
    assert line.is_empty


def test_one_address_with_many_sessions_delays_others_by_one_request():
    async def run():
        line, places = WaitingLine(1, 64, 2, 8), []
        with ExitStack() as stack:
            for session in range(20):
                try:
                    stack.enter_context(line.join(Visitor(f"{session}", "1.1.1.1")))
                except Problem as problem:
                    assert "Your network address has 8 requests under way" in str(problem)
            for address in ("2.2.2.2", "3.3.3.3"):
                ticket = stack.enter_context(line.join(Visitor("0", address)))
                places.append(await anext(ticket.positions()))
            assert places == [(1, 8), (2, 9)]
            ticket = stack.enter_context(line.join(Visitor("1", "2.2.2.2")))
            assert await anext(ticket.positions()) == (4, 10)  # after the second of the first address

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::2", "2001:db8::/64"),
        ("testclient", "testclient"),
    ],
)
def test_the_address_of_a_visitor(host, address):
    request = SimpleNamespace(session_hash="a", client=SimpleNamespace(host=host))
    assert visitor_of(request) == Visitor("a", address)


# ---------------------------------------------------------------------------------------------------------- examples


def test_examples_are_our_own_until_there_are_rows():
    loading, failed, open_ = (Backend(DemoArguments(model="a")) for _ in range(3))
    failed._models.set_exception(Problem("There is no such model."))
    open_._models.set_result(Models(EchoEngine(), rows=[BenchmarkRow("1", "x", "p", ("right", "wrong"))]))
    assert example_prompts(open_) == [("p", ["right", "wrong"])]
    assert [backend.is_usable for backend in (loading, failed, open_)] == [False, False, True]
    for backend in (loading, failed):
        assert all(prompt != "p" and len(responses) >= 2 for prompt, responses in example_prompts(backend))


# -------------------------------------------------------------------------------------------------------- judgements


def test_pieces_are_gathered_whole_and_errors_come_through():
    async def pieces(error=None):
        for sign in "critique":
            yield sign
            await asyncio.sleep(0.001)
        if error:
            raise error

    async def gather(error=None):
        return [piece async for batch in _gathered(pieces(error)) for piece in batch]

    assert "".join(asyncio.run(gather())) == "critique"
    with pytest.raises(KeyError):
        asyncio.run(gather(KeyError("x")))


def test_a_reader_who_leaves_closes_the_stream():
    closed = []

    async def pieces():
        try:
            yield "a"
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    async def leave():
        batches = _gathered(pieces())
        assert await anext(batches) == ["a"]
        await batches.aclose()

    asyncio.run(leave())
    assert closed == [True]


def test_a_run_that_is_stopped_says_so_last():
    """Only the visitor's own run ends, wherever it is, and its resources are freed."""
    freed = []
    controls = Controls(Backend(DemoArguments(model="a")), "score")

    async def handler(request, name):
        try:
            yield f"{name} begins"
            await asyncio.Event().wait()
        finally:
            freed.append(name)

    async def watch(request, name, seen):
        async for update in controls.stoppable(handler)(request, name):
            seen.append(update)

    async def main():
        anna, ben = SimpleNamespace(session_hash="a"), SimpleNamespace(session_hash="b")
        of_anna, of_ben = [], []
        tasks = [asyncio.create_task(watch(anna, "Anna's", of_anna)), asyncio.create_task(watch(ben, "Ben's", of_ben))]
        while not (of_anna and of_ben):
            await asyncio.sleep(0)
        await controls.stop(anna)
        await tasks[0]
        assert of_anna == ["Anna's begins", {controls.said: status("Stopped.")}] and freed == ["Anna's"]
        assert of_ben == ["Ben's begins"]
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert freed == ["Anna's", "Ben's"] and not controls._stops
        await controls.stop(anna)

    asyncio.run(main())


def test_a_run_that_is_not_stopped_ends_as_it_does():
    async def handler(request, error):
        yield 1
        yield 2
        if error is not None:
            raise error

    async def collect(error) -> list:
        run = Controls(Backend(DemoArguments(model="a")), "score").stoppable(handler)
        return [update async for update in run(SimpleNamespace(session_hash="a"), error)]

    assert asyncio.run(collect(None)) == [1, 2]
    with pytest.raises(Problem, match="no"):
        asyncio.run(collect(Problem("no")))


def test_critiques_are_joined_with_their_spread():
    async def run():
        engine = EchoEngine()
        first, more = await engine.score("p", "four"), await engine.score("p", "four", Sampling(num_critiques=2))
        return _joined(first, more)

    score = asyncio.run(run())
    assert score.rewards == (4.0, 4.0, 5.0) and score.reward == pytest.approx(13 / 3)
    assert score.reward_std == pytest.approx((2 / 9) ** 0.5)
    assert len(score.critiques) == len(score.finish_reasons) == 3


def test_a_first_critique_without_words_hides_no_other():
    async def run():
        engine = EchoEngine()
        return await engine.score("p", "a", Sampling(num_critiques=2)), await engine.score("p", "b")

    first, second = asyncio.run(run())
    first = replace(first, critique="", critiques=("", "It is right."))
    assert "It is right." in show_ranking(["Response 1", "Response 2"], ["a", "b"], [first, second])


def test_options_are_checked():
    class Backend:
        args = DemoArguments(model="a", max_new_tokens=10)

    assert read_sampling(Backend, 2.0, 1, 10.0) == Sampling(2, 1.0, 10, None)
    infinite, nan = float("inf"), float("nan")
    for options in (
        (1.5, 0, 10),
        (True, 0, 10),
        (None, 0, 10),
        (nan, 0, 10),
        (2, 0, 10),
        (1, nan, 10),
        (1, None, 10),
        (1, 0, 11),
        (1, 0, infinite),
        (1, 0, 10, 0.5),
        (1, 0, 10, infinite),
        (1, 0, 10, 10**400),
    ):
        with pytest.raises(Problem):
            read_sampling(Backend, *options)
        if len(options) == 3 and options != (2, 0, 10):
            with pytest.raises(Problem):
                read_sliders(Backend, *options)


def test_on_the_page_several_critiques_are_sampled():
    """Programs get an error at temperature 0; the page samples, and says so next to the slider."""

    class Backend:
        args = DemoArguments(model="a", max_new_tokens=10)

    chosen = {(1, 0): 0.0, (2, 0): SAMPLING_TEMPERATURE, (8, 0.0): SAMPLING_TEMPERATURE, (2, 1.5): 1.5, (1, 0.3): 0.3}
    for (critiques, temperature), used in chosen.items():
        assert read_sliders(Backend, critiques, temperature, 10) == Sampling(critiques, used, 10)


def test_without_a_classic_model_nothing_is_judged():
    asked = []

    class CountingEngine(EchoEngine):
        async def score(self, prompt, response, sampling):
            asked.append(response)
            return await super().score(prompt, response, sampling)

    async def compare(classic):
        backend = Backend(DemoArguments(model="a"))
        backend._models.set_result(Models(CountingEngine(), classic))
        return [step async for step in judge_pair(backend, "user", "p", ("a", "b"), Sampling(1, 0.0, 10))][-1]

    with pytest.raises(Problem, match="There is no classic model"):
        asyncio.run(compare(None))
    assert asked == []
    cloud, classic = asyncio.run(compare(EchoEngine(critique=False)))
    assert len(cloud) == len(classic) == 2 and asked == ["a", "b"]


@pytest.mark.parametrize("value", ["one text", None, 7, ["a", 7], ["a", None], {"a": "b"}])
def test_programs_must_give_lists_of_texts(value):
    """A single text would be judged letter by letter."""
    with pytest.raises(Problem, match="`responses` must be a list of texts"):
        read_texts("responses", value)
    assert read_texts("responses", ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("value", [7, None, "ab", {"a": "b"}, [["a"]], ["ab"], [["a", 7]], [["a", "b", "c"]]])
def test_programs_must_give_turns_in_pairs(value):
    with pytest.raises(Problem, match="`turns` must be a list of pairs of texts"):
        read_turns(value)
    assert read_turns([]) == [] and read_turns([["a", "b"]]) == [("a", "b")]


def test_where_a_reward_falls():
    distribution = RewardDistribution("x", 8)
    assert "still being measured (0 of 8)" in distribution.describe(0.0)
    for reward in (3, 1, 2, 0, 4, 5, 6, 7):
        distribution.add(float(reward))
    assert distribution.rewards == sorted(distribution.rewards)
    assert [distribution.percentile(reward) for reward in (-1, 3.5, 3, 9)] == [0, 50, 43.75, 100]
    described = "Higher than 100 % of 8 rewards that this model gave to right and wrong responses of 4 rows of x"
    assert described in distribution.describe(9.0)
    assert preference(1.0, 0.0) == pytest.approx(0.731, abs=1e-3)
    assert preference(-1000.0, 1000.0) == 0.0 and preference(1000.0, -1000.0) == 1.0


class PickyEngine(EchoEngine):
    """Engine that refuses some responses and gives others a reward that is not finite."""

    async def score(self, prompt, response, sampling):
        self.check(prompt, response, None)
        score = await super().score(prompt, response, sampling)
        return replace(score, reward=float("nan")) if response == "odd" else score


def measure(responses: list[str], engine: EchoEngine, reference_rows: int = 24) -> RewardDistribution:
    """Measure rows that have these chosen responses, and the rejected response `wrong`."""
    rows = [BenchmarkRow(f"row {i}", "x", "p", (response, "wrong")) for i, response in enumerate(responses)]
    backend = Backend(DemoArguments(model="a", rows="x", reference_rows=reference_rows))
    backend._models.set_result(Models(engine, rows=rows))

    async def run():
        await backend.loaded()
        await backend._measuring

    asyncio.run(run())
    return backend.distribution


def test_rows_that_cannot_be_judged_are_left_out_of_the_distribution(caplog):
    distribution = measure(["a", "refuse", "b", "odd", "c", "d"], PickyEngine())
    assert distribution.rewards == [1.0] * 4 + [5.0] * 4 and distribution.wanted == 8
    assert "of 8 rewards that this model gave to right and wrong responses of 4 rows of x" in distribution.describe(
        5.0
    )
    assert "Row row 1 is left out" in caplog.text and "Row row 3 is left out" in caplog.text
    assert "could not be measured" in measure(["refuse"] * 6, PickyEngine()).describe(0.0)


def test_an_engine_that_fails_ends_the_measuring():
    engine = EchoEngine(error=RuntimeError("surprise"))
    distribution = measure(["a"] * 6, engine)
    assert distribution.wanted == 0 and "could not be measured" in distribution.describe(0.0)


@pytest.mark.parametrize(("there", "wanted"), [(6, 3), (6, 0), (3, 24), (1, 1)])
def test_too_few_rows_are_not_measured(there, wanted):
    """The page does not ask visitors to wait for them."""
    distribution = measure(["a"] * there, EchoEngine(), reference_rows=wanted)
    assert distribution.rewards == [] and "it takes at least 4" in distribution.describe(0.0)
    assert f"`--reference_rows` is {wanted} and there are {there} rows" in distribution.describe(0.0)


def test_without_rows_nothing_is_measured():
    assert "name rows with --rows" in measure([], EchoEngine()).describe(0.0)
    assert measure(["a"] * 4, EchoEngine(), reference_rows=4).is_usable


def test_no_rewards_are_measured_on_zero_gpu(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    distribution = measure(["a"] * 6, EchoEngine())
    assert distribution.rewards == [] and "On ZeroGPU" in distribution.describe(0.0)


def test_candidates_are_split_at_lines_of_equals_signs():
    assert split_candidates("a\n---\nb == c\n=====\n\n======= \n d \n") == ["a\n---\nb == c", "d"]


def test_a_response_that_is_removed_is_emptied():
    count, *boxes = remove_last(4)
    assert count == 3 and [box["visible"] for box in boxes] == [True] * 3 + [False] * 5
    assert all("value" not in box for box in boxes[:3]) and all(box["value"] == "" for box in boxes[3:])
    assert remove_last(2)[0] == 2 and all("value" not in box for box in remove_last(2)[1:3])


# ------------------------------------------------------------------------------------------------------------ charts


def test_charts_draw_equal_and_single_values():
    assert reward_bars(["a", "b"], [0.0, 0.0], [0.0, 0.0]).count('class="bar"') == 2
    assert reward_bars(["a"], [-1.0], [0.5]).count('class="error"') == 3
    assert reward_histogram([1.0] * 8, [1.0]).count("<circle") == 1
    assert curve([2.0, 2.0], "x").count("<circle") == 2
    for chart in (reward_bars(["a"], [-1.0], [0.5]), reward_histogram([0.0, 2.0], [1.0]), curve([1.0, 2.0], "x")):
        assert "nan" not in chart and 'role="img"' in chart
