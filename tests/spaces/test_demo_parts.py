"""The parts of the demo that need no model and no page."""

import asyncio
import base64
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import zlib
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from browser import REPOSITORY, SPACES
from demo_for_tests import EchoEngine, save_models
from models_for_tests import tiny_text_config
from servers_for_tests import free_port
from tokenizers_for_tests import make_tokenizer
from transformers import AutoModelForSequenceClassification


pytest.importorskip("gradio", reason="Gradio is not installed: the apps of the Spaces are not tried.")

from cloud_demo import Problem
from cloud_demo.arguments import SHIPPED, DemoArguments, parse_arguments
from cloud_demo.backend import Backend, Visitor, WaitingLine
from cloud_demo.best_of_n_tab import split_candidates
from cloud_demo.compare_tab import remove_last
from cloud_demo.engines import Models, load_pairs, open_models
from cloud_demo.judging import (
    SAMPLING_TEMPERATURE,
    Effects,
    _gathered,
    _joined,
    describe_score,
    judge,
    judge_pair,
    read_sampling,
    read_sliders,
    read_texts,
    read_turns,
    sentence_ends,
)
from cloud_demo.rows import FILTERS, Comparison, JudgedRows, Judgement, is_right, preference, rank_of, read_results
from cloud_demo.score_html import curve, reward_bars, reward_histogram, show_ranking, status
from cloud_demo.sharing import Result, read_link
from cloud_demo.tab_parts import Controls, example_prompts, visitor_of
from cloud_demo.two_models_tab import _kept, _show_summary, judge_row

from cloud_hf.cli import UsageError
from cloud_hf.combine_critiques import combine_scores
from cloud_hf.evaluation.benchmarks import preference_pairs
from cloud_hf.evaluation.report.files import write_scores
from cloud_hf.evaluation.rows import BenchmarkRow
from cloud_hf.evaluation.set_results import Evaluation
from cloud_hf.model_identity import identify_model
from cloud_hf.scalar_models import ScalarScorer, load_scalar_model
from cloud_hf.scores import Sample, Sampling, Score


# ------------------------------------------------------------------------------------------------------- arguments


def test_the_command_line_goes_over_the_environment():
    environment = {"DEMO_MODEL": "org/a", "DEMO_REFERENCE_ROWS": "3", "DEMO_ANALYTICS": "true", "DEMO_ROWS": ""}
    args = parse_arguments(["--model", "org/b"], environment)
    assert (args.model, args.reference_rows, args.analytics, args.rows) == ("org/b", 3, True, None)
    assert parse_arguments([], environment).model == "org/a"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "server"], "needs `server_url`"),
        (["--model", "a", "--backend", "tpu"], "use transformers, vllm or server"),
        (["--model", "a", "--server_url", "http://b"], "require `backend` 'server'"),
        (["--model", "a", "--max_waiting", "0"], "`max_waiting` is 0"),
        (["--model", "a", "--policy_url", "http://b"], "go together"),
        (["--model", "a", "--analytics", "maybe"], "neither True nor False"),
        (["--model", "a", "--modle", "b"], "unrecognized arguments: --modle b"),
        (["--model", "runs/no/model"], "`model` is 'runs/no/model', but there is no such folder."),
        (["--model", "a", "--results", "b"], "`results` requires `rows`: set `rows` to the rows that were scored."),
        (
            ["--model", "a", "--rows", "c", "--results", "./none"],
            "`results` is './none', but there is no such folder.",
        ),
        (["--model", "a", "--classic_model", "./none"], "`classic_model` is './none', but there is no such folder."),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_arguments(arguments, {})


def test_without_a_model_the_shipped_ones_are_opened(monkeypatch, tmp_path):
    args = parse_arguments([], {})
    assert args.is_shipped and args.classic_model == str(SHIPPED / "classic") and args.rows is not None
    assert parse_arguments(["--rows", "llm_bar"], {}).rows == "llm_bar"
    monkeypatch.setattr("cloud_demo.arguments.SHIPPED", tmp_path / "absent")
    with pytest.raises(UsageError, match=r"The demo's `model` folder is missing.*on a Space: `DEMO_MODEL`"):
        parse_arguments([], {})


def test_bad_variables_are_named():
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
    assert example_prompts(open_) == {"1": ("p", ["right", "wrong"])}
    assert [backend.is_usable for backend in (loading, failed, open_)] == [False, False, True]
    for backend in (loading, failed):
        assert all(prompt != "p" and len(responses) >= 2 for prompt, responses in example_prompts(backend).values())


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

    with pytest.raises(Problem, match="There is no second model"):
        asyncio.run(compare(None))
    assert asked == []
    found = asyncio.run(compare(EchoEngine(critique=False)))
    assert len(found.cloud) == len(found.classic) == 2 and asked == ["a", "b"]


def test_two_models_of_any_kind_are_compared(tmp_path):
    torch.manual_seed(0)
    config = tiny_text_config(num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "scalar")
    make_tokenizer("llama3").save_pretrained(tmp_path / "scalar")
    scalar = str(tmp_path / "scalar")
    models = open_models(DemoArguments(model=scalar, classic_model=scalar))
    assert models.names == ("scalar", "scalar") and Models(EchoEngine(), models.classic).names == ("CLoud", "scalar")

    async def judge():
        backend = Backend(DemoArguments(model="a"))
        backend._models.set_result(Models(EchoEngine(), models.classic))
        found = [step async for step in judge_pair(backend, "user", "p", ("a", "b"), Sampling(1, 0.0, 10))][-1]
        pieces = [piece async for piece in models.cloud.stream("p", "b", Sampling())]
        with pytest.raises(ValueError, match="writes no critiques"):
            models.cloud.check("p", "b", 10, ["c"])
        await models.cloud.close()
        return found, pieces

    found, pieces = asyncio.run(judge())
    expected = ScalarScorer(*load_scalar_model(scalar)).score(["p", "p"], ["a", "b"])
    assert [score.reward for score in found.classic] == pytest.approx([score.reward for score in expected], abs=1e-5)
    assert pieces == [found.classic[1]]


@pytest.mark.parametrize("value", ["one text", None, 7, ["a", 7], ["a", None], {"a": "b"}])
def test_programs_must_give_lists_of_texts(value):
    """A single text would be judged letter by letter."""
    with pytest.raises(Problem, match="`responses` must be a list of strings"):
        read_texts("responses", value)
    assert read_texts("responses", ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("value", [7, None, "ab", {"a": "b"}, [["a"]], ["ab"], [["a", 7]], [["a", "b", "c"]]])
def test_programs_must_give_turns_in_pairs(value):
    with pytest.raises(Problem, match="`turns` must be a list of pairs of strings"):
        read_turns(value)
    assert read_turns([]) == [] and read_turns([["a", "b"]]) == [("a", "b")]


def make_score(reward: float) -> Score:
    return Score.of([Sample(reward, "c")])


def make_judgement(*rewards: float) -> Judgement:
    """Make a judgement from the rewards of chosen and rejected by the CLoud and, if given, the classic model."""
    scores = list(map(make_score, rewards))
    return Judgement(*[(scores[i], scores[i + 1]) for i in range(0, len(scores), 2)])


def test_where_a_reward_falls():
    judged = JudgedRows("x", wanted=4)
    assert "still being measured (0 of 4 rows)" in judged.describe(0.0) and judged.is_growing
    for index, pair in enumerate([(3, 1), (2, 0), (4, 5), (6, 7)]):
        judged.add(index, make_judgement(*pair))
    judged.add(0, make_judgement(100, 100))
    assert judged.chosen == [2, 3, 4, 6] and judged.rejected == [0, 1, 5, 7] and not judged.is_growing
    assert [judged.percentile(reward) for reward in (-1, 3.5, 3, 9)] == [0, 50, 43.75, 100]
    assert "Higher than 100 % of 8 rewards of right and wrong responses, from 4 rows of x" in judged.describe(9.0)
    assert preference(1.0, 0.0) == pytest.approx(0.731, abs=1e-3)
    assert preference(-1000.0, 1000.0) == 0.0 and preference(1000.0, -1000.0) == 1.0


def test_combined_rewards_are_compared_with_each_other_alone():
    """A vote share decides who is right, but it is on another scale than the page's rewards."""
    scores = combine_scores([Score.of([Sample(5.0), Sample(7.0)]), Score.of([Sample(1.0), Sample(3.0)])], "vote")
    judged = JudgedRows("x")
    for index in range(4):
        judged.add(index, Judgement((scores[0], scores[1])))
    assert judged.chosen == [6.0] * 4 and judged.rejected == [2.0] * 4 and is_right(judged.found[0].cloud)
    described = describe_score(SimpleNamespace(judged=judged), scores[1])
    assert (described["reward"], described["percentile"]) == (0.0, 25.0)


def test_ranks_follow_what_is_shown():
    assert [rank_of([1.0004, 1.0001, 0.9], index) for index in range(3)] == [1, 1, 3]


def test_the_summary_of_two_models_is_escaped_once():
    judged = JudgedRows("x", found={index: make_judgement(1, 0, 0, 1) for index in range(12)})
    models = SimpleNamespace(rows=[0] * 12, rows_problem=None, names=("CLoud", "a<b"))
    text = _show_summary(SimpleNamespace(models=models, judged=judged))
    assert "exact McNemar test: p &lt; 0.001." in text and "only a&lt;b in 0" in text and "&amp;" not in text


def test_both_models_are_compared_on_the_rows_that_both_judged():
    rows = [(1, 0, 0, 1), (1, 0, 1, 0), (0, 1, 1, 0), (0, 1, 0, 0), (1, 0, 0, 1), (1, 0)]
    judged = JudgedRows("x", wanted=6)
    for index, rewards in enumerate(rows):
        judged.add(index, make_judgement(*rewards))
    shown = {name: [i for i, row in judged.found.items() if matches(row)] for name, matches in FILTERS.items()}
    assert list(shown.values()) == [[0, 4], [2], [3], [3]]
    compared = judged.compared()
    assert [compared.right(place)[0] for place in (0, 1)] == [3, 2] and compared.alone == (2, 1)
    assert compared.p_value == pytest.approx(1.0)
    # Of six rows that one model alone has right, all are the first's: 2 * 0.5 ** 6
    assert Comparison([(True, False)] * 6 + [(True, True)]).p_value == pytest.approx(0.03125)
    assert Comparison([(True, True)]).p_value == 1.0


def write_results(folder, rows, models: dict[str, str]):
    """Write an evaluation by `cloud`, which is right in the first row only, and `classic`; `models` maps their paths to their versions."""
    for name, critique in (("cloud", "good"), ("classic", "")):
        scored = [Evaluation("x", "x", preference_pairs.score(rows, [[2, 1], [1, 2]]), rows, [
            # As with `combine` `median`: the reward is not the mean of the critiques' rewards
            [replace(Score.of([Sample(reward + more, critique) for more in (-1, 0, 7)]), reward=reward) for reward in rewards]
            for rewards in ((2.0, 1.0), (1.0, 2.0))
        ], 0, 0)]  # fmt: skip
        write_scores(scored, folder / f"scores_{name}.parquet")
    entries = [{"model": name, "name": "x", "unknown": {}} for name in models]
    arguments, environment = {"models": list(models)}, {"models": models}
    page = {"version": 1, "arguments": arguments, "environment": environment, "benchmarks": entries}
    (folder / "report.json").write_text(json.dumps(page))


def test_scores_of_an_evaluation_are_read_by_what_rows_hold(tmp_path):
    rows = [BenchmarkRow(f"{i}", "x", f"p{i}", ("right", "wrong")) for i in range(3)]
    with pytest.raises(ValueError, match=r"has no report\.json"):
        read_results(str(tmp_path), rows, [])
    write_results(tmp_path, rows[1:], {"cloud": "1", "classic": "2"})
    names, found, are_compared = read_results(str(tmp_path), rows, [])
    assert names == ("cloud", "classic") and list(found) == [1, 2] and not are_compared
    assert [score.reward for score in found[2].cloud] == [1.0, 2.0] and found[1].cloud[0].critique == "good"
    with pytest.raises(ValueError, match="no scores for the demo's rows"):
        read_results(str(tmp_path), [replace(rows[0], prompt="other")], [])
    write_results(tmp_path, rows[1:], {"cloud": "1"})
    with pytest.raises(ValueError, match="a CLoud and a classic model"):
        read_results(str(tmp_path), rows, [])


def test_the_demo_shows_only_scores_of_its_own_models(tmp_path):
    found = save_models(tmp_path)
    versions = {found[name]: identify_model(found[name])["model_version"] for name in ("cloud", "classic")}
    results = str(tmp_path / "evaluation")
    (tmp_path / "evaluation").mkdir()
    rows = load_pairs(found["rows.jsonl"], "test")[:2]

    def open_demo(model, classic_model, **arguments):
        arguments |= {"rows": found["rows.jsonl"], "results": results, "model": model, "classic_model": classic_model}
        return open_models(DemoArguments(**arguments))

    unchecked = "whether these are the demo's models could not be checked"
    write_results(tmp_path / "evaluation", rows, versions)
    for order in (1, -1):
        opened = open_demo(*list(versions)[::order])
        assert opened.results[0] == " and ".join(["cloud", "classic"][::order]) + " in evaluation"
        pair = opened.results[1][0]
        assert [scores[0].critique for scores in (pair.cloud, pair.classic)] == ["good", ""][::order]
        assert unchecked not in str(opened.warnings)
    with pytest.raises(
        Problem, match=r"but the demo's base has version .*\. Evaluate the demo's models, or open those"
    ):
        open_demo(found["base"], None)
    with pytest.raises(Problem, match="but the demo opens two CLoud models"):
        open_demo(found["cloud"], found["cloud"])
    served = {"backend": "server", "server_url": f"http://127.0.0.1:{free_port()}"}
    assert unchecked in str(open_demo(None, None, **served).warnings)
    write_results(tmp_path / "evaluation", rows, dict.fromkeys(versions, "f" * 40))  # evaluated from the Hub
    assert unchecked in str(open_demo(*versions).warnings)


# ------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1: A and C gives B. 2: so B.", ["1: A and C gives B.", " 2: so B."]),
        ("1. First\n2. Second", ["1. First\n", "2. Second"]),
        ("It is 3.14! (Yes.) No end", ["It is 3.14!", " (Yes.)", " No end"]),
        ("正しい。違う。", ["正しい。", "違う。"]),
        ("One.  \n", ["One.  \n"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    ends = sentence_ends(text)
    assert [text[start:end] for start, end in pairwise([0, *ends])] == sentences


def test_many_sentences_are_grouped():
    text = "It is so. " * 100
    ends = sentence_ends(text)
    assert 1 < len(ends) <= 12 and ends[-1] == len(text) and ends == sorted(set(ends))


# ------------------------------------------------------------------------------------------------------------ links

TABS = {"score": ["prompt", "response"], "versus": []}
SHARED = Result(
    "score", {"prompt": "p <b>", "response": "é`" * 9}, Sampling(2, 0.7, 10), [Score.of([Sample(1.5, "a. b."), Sample(0.5, "c")])],
    Effects((2, 5), (0.0, 1.0, 1.5)), "model, float32",
)  # fmt: skip


def test_a_link_holds_the_result():
    link, words = SHARED.link()
    assert read_link(link, TABS) == SHARED and "critiques" in words
    assert read_link("", TABS) is None
    row = Result("versus", row="x/1")
    assert read_link(row.link()[0], TABS) == row


def test_a_long_link_says_what_it_leaves_out():
    noise = random.Random(0)
    words = "".join(map(chr, noise.choices(range(33, 126), k=20_000)))
    long = replace(SHARED, scores=[Score.of([Sample(1.5, words)])], effects=None)
    link, said = long.link()
    assert len(link) <= 16_000 and "critiques are too long" in said
    assert read_link(link, TABS).scores[0].rewards == (1.5,)
    with pytest.raises(Problem, match="texts are too long for a link"):
        replace(long, texts={"prompt": words}).link()


@pytest.mark.parametrize(
    ("characters", "said"), [(640_000, "texts, rewards and critiques"), (2**20, "critiques are too long")]
)
def test_every_link_that_the_demo_writes_opens(characters, said):
    """Also if a box holds many candidates, which compress well."""
    long = replace(SHARED, texts={"prompt": "p", "response": "x" * 400_000}, effects=None)
    long = replace(long, scores=[Score.of([Sample(1.5, "c" * (characters - 400_000))])])
    link, words = long.link()
    assert said in words and read_link(link, TABS).texts == long.texts
    with pytest.raises(Problem, match="texts are too long for a link"):
        replace(long, texts={"prompt": "x" * 2**20}).link()


def pack(content) -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(content).encode())).decode()


def test_links_of_version_0_1_open():
    old = base64.b64encode(json.dumps({"tab": "score", "prompt": "ü?>"}).encode()).decode()
    assert read_link(old, TABS).texts == {"prompt": "ü?>"}
    with pytest.raises(Problem, match="This link is damaged"):
        read_link(base64.b64encode(json.dumps({"tab": "score", "prompt": "x" * 2**20}).encode()).decode(), TABS)


WHOLE = {
    "tab": "score",
    "texts": {"prompt": "p"},
    "options": None,
    "made": "m",
    "scores": [{"rewards": [1], "reasons": ["stop"]}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"tab": "other"},
        {"tab": []},
        {"texts": {"prompt": 7}},
        {"texts": {"prompt": "x" * 2**20}},
        {"texts": 7},
        {"made": None},
        {"options": {"num_critiques": 0}},
        {"options": {"other": 1}},
        {"scores": [7]},
        {"scores": [{"rewards": ["<b>"], "reasons": ["stop"]}]},
        {"scores": [{"rewards": [math.nan], "reasons": ["stop"]}]},
        {"scores": [{"rewards": [True], "reasons": ["stop"]}]},
        {"scores": [{"rewards": [1, 2], "reasons": ["stop"]}]},
        {"scores": [{"rewards": [], "reasons": []}]},
        {"scores": [{"rewards": [1], "reasons": ["<b>"]}]},
        {"scores": [{"rewards": [1], "reasons": ["stop"], "critiques": [None]}]},
        {"effects": {"ends": [9], "rewards": [1, 2]}},
        {"effects": {"ends": ["1"], "rewards": [1, 2]}},
    ],
)
def test_hostile_links_are_refused(change):
    assert read_link(pack(WHOLE), TABS).scores[0].reward == 1
    with pytest.raises(Problem, match="This link is damaged"):
        read_link(pack(WHOLE | change), TABS)


@pytest.mark.parametrize(
    "link", ["%%%", "bnVsbA==", "AAAA", pack([]), pack(7), pack(" " * 2**21), pack(WHOLE)[:-20], "é"]
)
def test_damaged_links_are_refused(link):
    with pytest.raises(Problem, match="This link is damaged"):
        read_link(link, TABS)


def test_markdown_fences_cannot_be_closed():
    text = replace(SHARED, texts={"response": "```\n<img src=x>"}).markdown("Judged")
    assert "````text\n```\n<img src=x>\n````" in text and "**Reward: +1.000** ± 0.50 over 2 critiques" in text


# --------------------------------------------------------------------------------------- rows judged in the background


class PickyEngine(EchoEngine):
    """Engine that refuses some responses and gives others a reward that is not finite."""

    async def score(self, prompt, response, sampling):
        self.check(prompt, response, None)
        score = await super().score(prompt, response, sampling)
        return replace(score, reward=float("nan")) if response == "odd" else score


def judge_rows(responses: list[str], engine: EchoEngine, reference_rows: int = 24, **models) -> JudgedRows:
    """Judge rows that have these chosen responses, and the rejected response `wrong`."""
    rows = [BenchmarkRow(f"row {i}", "x", "p", (response, "wrong")) for i, response in enumerate(responses)]
    backend = Backend(DemoArguments(model="a", rows="x", reference_rows=reference_rows))
    backend._models.set_result(Models(engine, rows=rows, **models))

    async def run():
        await backend.loaded()
        await backend._judging

    asyncio.run(run())
    return backend.judged


def test_rows_that_cannot_be_judged_are_left_out(caplog):
    judged = judge_rows(["a", "refuse", "b", "odd", "c", "d"], PickyEngine(), classic=EchoEngine(critique=False))
    assert list(judged.found) == [0, 2, 4, 5] and judged.wanted == 4
    assert judged.chosen == [1.0] * 4 and judged.rejected == [5.0] * 4
    assert all(row.classic[1].reward == 5.0 for row in judged.found.values())
    assert "Could not judge row 1. " in caplog.text and "Could not judge row 3. " in caplog.text
    assert "could not be measured" in judge_rows(["refuse"] * 6, PickyEngine()).describe(0.0)


def test_an_engine_that_fails_ends_the_judging():
    judged = judge_rows(["a"] * 6, EchoEngine(error=RuntimeError("surprise")))
    assert judged.wanted == 0 and "could not be measured" in judged.describe(0.0)


@pytest.mark.parametrize(("there", "wanted"), [(6, 3), (3, 24), (1, 1)])
def test_too_few_rows_to_compare_with(there, wanted):
    """They are judged, but the page does not ask visitors to wait for more."""
    judged = judge_rows(["a"] * there, EchoEngine(), reference_rows=wanted)
    assert len(judged.found) == min(there, wanted) and "too few rows to compare a reward with" in judged.describe(0.0)
    assert f"this demo judges {min(there, wanted)}, but needs at least 4" in judged.describe(0.0)


def test_without_rows_nothing_is_judged():
    assert "There are no rewards" in judge_rows([], EchoEngine()).describe(0.0)
    assert judge_rows(["a"] * 4, EchoEngine(), reference_rows=4).is_usable


def test_scores_of_an_evaluation_take_the_place_of_judging(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    results = "cloud and classic in run", {2: make_judgement(1, 0, 0, 1)}
    judged = judge_rows(["a"] * 6, EchoEngine(error=RuntimeError("not asked")), results=results)
    assert list(judged.found) == [2] and judged.evaluation == "cloud and classic in run" and not judged.is_growing


def test_the_first_visitor_opens_a_row_of_the_evaluation():
    backend, kept = Backend(DemoArguments(model="a", reference_rows=0)), make_judgement(1, 0, 0, 1)
    rows = [BenchmarkRow(f"{i}", "x", "p", ("a", "wrong")) for i in range(2)]
    models = Models(EchoEngine(), EchoEngine(critique=False), rows, results=("cloud and classic in run", {1: kept}))
    backend._models.set_result(models)

    async def open_rows() -> list[Judgement]:
        await backend.loaded()
        return [[step async for step in judge_row(backend, "user", rows[i], i)][-1] for i in (1, 0)]

    evaluated, judged = asyncio.run(open_rows())
    assert evaluated is kept and _kept(backend, rows[1], evaluated).made == "Scores of cloud and classic in run."
    assert judged.cloud[1].reward == 5.0 and "1 critique at temperature 0" in _kept(backend, rows[0], judged).made


def test_no_rows_are_judged_in_the_background_on_zero_gpu(monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    judged = judge_rows(["a"] * 6, EchoEngine())
    assert not judged.found and "On ZeroGPU" in judged.describe(0.0)


# ---------------------------------------------------------------------------------------------------------- compare


def test_equal_responses_are_judged_once_and_shown_as_they_finish():
    asked = []

    class CountingEngine(EchoEngine):
        async def score(self, prompt, response, sampling):
            asked.append(response)
            await asyncio.sleep(0.05)
            return await super().score(prompt, response, sampling)

    async def run():
        backend = Backend(DemoArguments(model="a"))
        backend._models.set_result(Models(CountingEngine(), at_once=1))
        return [step async for step in judge(backend, "user", "p", ["a", "b", "a"], Sampling(), as_they_finish=True)]

    *steps, scores = asyncio.run(run())
    assert asked == ["a", "b"] and scores[0] is scores[2] and scores[1].reward == 1.0
    first = next(step for step in steps if any(step.scores))
    assert [score is not None for score in first.scores] == [True, False, True]
    names, responses = ["R 1", "R 2", "R 3"], ["a", "b", "a"]
    assert "1 so far" in show_ranking(names, responses, [scores[0], None, None], is_final=False)
    shown = show_ranking(names, responses, scores, noise=0.001)
    assert "The same text, judged once: R 1, R 3." in shown and "Too close to rank: R 1 and R 2, R 2 and R 3." in shown
    assert "Too close" not in show_ranking(
        names, responses, [make_score(1), make_score(2), make_score(1)], noise=0.001
    )


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
    assert reward_histogram([1.0] * 8, [0.0], [1.0]).count("<circle") == 1
    assert curve([2.0, 2.0], "x", "drawn").count("<circle") == 2
    for chart in (reward_bars(["a"], [-1.0], [0.5]), reward_histogram([0.0], [0.0], []), curve([1.0, 2.0], "x", "y")):
        assert "nan" not in chart and 'role="img"' in chart
