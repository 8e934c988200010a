"""A judge in an evaluation: both orders, ties, unreadable verdicts, nothing asked twice, the same figures after kills."""

import json
from functools import partial

import pytest
from aiohttp import web
from benchmark_files import write_rows
from completion_server import serve_completions
from models_for_tests import make_model
from tokenizers_for_tests import make_tokenizer

from cloud_hf.commands import evaluate_rewards
from cloud_hf.evaluation.context_fitting import FittedRow, FittedRows
from cloud_hf.evaluation.generative_judges import JudgeServerArguments, judge_rows, rate_rows


def shown(body):
    """The responses that a request shows, A first."""
    text = body["messages"][-1]["content"]
    return tuple(text.split(f"<{name}>\n")[1].split(f"\n</{name}>")[0] for name in ("response_a", "response_b"))


def by_length(body):
    """Prefers the longer response, strongly from three characters on; reads nothing into question marks."""
    first, second = shown(body)
    if "?" in first + second:
        return "I cannot say.", "stop"
    lead = len(first) - len(second)
    strength = ">>" if abs(lead) >= 3 else ">"
    verdict = "A=B" if lead == 0 else f"A{strength}B" if lead > 0 else f"B{strength}A"
    return f"[[{verdict}]]", "stop"


def rows_of(*responses):
    return FittedRows([FittedRow(place, {}, "Which?", list(row), []) for place, row in enumerate(responses)], 0, 0)


def options(server, **others):
    return JudgeServerArguments(judge_base_url=[server.url], max_retries=1, judge_tries=2, **others)


def margins(scores):
    return [[row[0].reward - score.reward for score in row[1:]] for row in scores]


def test_margins_are_the_mean_lead_of_both_orders(tmp_path):
    parts = {
        ("pairs", "a"): (rows_of(("abcd", "ab"), ("a", "abcdef"), ("ab", "cd"), ("same", "same "), ("a", "b?")), 1),
        ("benchmark", "b"): (rows_of(("abcd", "ab", "x", "abcdefgh")), 1),
    }
    with serve_completions(write=by_length) as server:
        scores, report = judge_rows(parts, options(server), 0, tmp_path / "judgements")
        assert margins(scores["pairs", "a"]) == [[1.0], [-2.0], [0.0], [0.0], [0.0]]
        assert margins(scores["benchmark", "b"]) == [[1.0, 2.0, -2.0]]
        # "abcd" against "ab" is in both sets, equal texts are not judged, and an unreadable verdict is tried twice in each order
        assert report.pairs == 6 and server.requests.total() == 2 * 5 + 2 * 2
        assert (report.right, report.ties, report.unreadable) == (2, 1, 1)
        assert report.orders_agree == 1.0 and report.first_shown_wins == 0.5
        again = judge_rows(parts, options(server), 0, tmp_path / "judgements")
        assert again == (scores, report) and server.requests.total() == 14


def test_a_position_bias_shows(tmp_path):
    with serve_completions(write=lambda body: ("[[A>B]]", "stop")) as server:
        scores, report = judge_rows({("pairs", "a"): (rows_of(("a", "b")), 1)}, options(server), 0, tmp_path / "j")
    assert margins(scores["pairs", "a"]) == [[0.0]]
    assert report.ties == 1 and report.first_shown_wins == 1.0 and report.orders_agree == 0.0


def test_what_a_judge_cannot_compare_is_refused_before_the_first_request(tmp_path):
    with serve_completions(write=by_length) as server:
        with pytest.raises(ValueError, match=r"rm_bench: a judge compares one right response .* but rows have 3"):
            judge_rows({("benchmark", "rm_bench"): (rows_of("abcdef"), 3)}, options(server), 0, tmp_path / "j")
        call = {"role": "assistant", "content": "", "tool_calls": [{}]}
        with pytest.raises(ValueError, match="pairs, row 0: a judge reads only text"):
            judge_rows({("pairs", "pairs"): (rows_of((call, "b")), 1)}, options(server), 0, tmp_path / "j")
        assert not server.requests


def test_responses_of_several_turns_and_tool_calls_are_rated(tmp_path):
    """The judge sees the earlier turns in the conversation, and rates only the last turn."""

    def rate(body):
        text = body["messages"][-1]["content"]
        conversation, last = text.index("[user]\nMore"), text.rindex("Yes.")
        assert conversation < last
        return "[[7]]" if "lookup" not in text else "[[3]]", "stop"

    turns = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    call = {"type": "function", "function": {"name": "lookup", "arguments": {}}}
    said = {"role": "assistant", "content": "Yes."}
    parts = {("pairs", "a"): rows_of(([*turns, said], [*turns, {**said, "tool_calls": [call]}]))}
    with serve_completions(write=rate) as server:
        scores, report = rate_rows(parts, options(server), 0, tmp_path / "j")
        assert [score.reward for score in scores["pairs", "a"][0]] == [7.0, 3.0] and report.unreadable == 0
        says = "pairs, row 0: a judge reads only text"
        with pytest.raises(ValueError, match=says):
            judge_rows({("pairs", "pairs"): (rows_of(([*turns, said], "b")), 1)}, options(server), 0, tmp_path / "p")


def test_bad_candidates_are_left_out_for_the_judge_too(evaluated):
    folder, run = evaluated
    rows = [{"prompt": f"Say {n}.", "responses": ["a", "bb"], "correct": [1, 0]} for n in range(3)]
    write_rows(folder / "bon.jsonl", [*rows, {"prompt": "bad", "responses": ["x"], "correct": [1, 0]}])
    options = {"best_of_n": [str(folder / "bon.jsonl")], "judge_mode": "pointwise"}
    with serve_completions(write=lambda body: ("[[5]]", "stop")) as server:
        report = run(server, bad_rows="drop", **options)
    counts = report["best_of_n"]["bon.jsonl"]["judge tiny"]
    assert (counts["problems"], counts["bad"]) == (3, 1)


def test_failed_verdicts_leave_no_figures(tmp_path):
    def refuse(body):
        return web.json_response({"error": {"message": "no"}}, status=400) if "x" in shown(body) else by_length(body)

    parts = {("pairs", "a"): (rows_of(("ab", "b"), ("x", "abc")), 1)}
    says = r"1 of 2 pairs could not be judged; see .*rejects.jsonl"
    with serve_completions(write=refuse) as server, pytest.raises(SystemExit, match=says):
        judge_rows(parts, options(server), 0, tmp_path / "j")


@pytest.fixture
def evaluated(base_folder, tmp_path):
    make_model(base_folder, critique=False).save_pretrained(tmp_path / "classic")
    make_tokenizer("llama3").save_pretrained(tmp_path / "classic")
    rows = [{"prompt": f"Say {n}.", "chosen": "a" * (1 + n % 3), "rejected": "bb"} for n in range(9)]
    write_rows(tmp_path / "pairs.jsonl", rows)

    def run(server, name="results", **others):
        args = {
            "models": [str(tmp_path / "classic")], "dataset_name": [str(tmp_path / "pairs.jsonl")],
            "judge_base_url": [server.url], "judge_model": "tiny", "max_retries": 1, **others,
        }  # fmt: skip
        evaluate_rewards.main(evaluate_rewards.EvaluationArguments(output_dir=str(tmp_path / name), **args))
        return json.loads((tmp_path / name / "report.json").read_text())

    return tmp_path, run


def test_a_judge_is_a_column_of_the_report(evaluated):
    folder, run = evaluated
    with serve_completions(write=by_length) as server:
        report = run(server, probes=["length"])
        asked = server.requests.total()
        assert run(server, probes=["length"]) == report and server.requests.total() == asked
    [judge] = [part for part in report["benchmarks"] if part["model"] == "judge tiny"]
    assert judge["figures"]["accuracy"]["value"] == pytest.approx(3 / 9)
    assert report["judge"]["ties"] == 3 and report["judge"]["pairs"] == 9
    text = (folder / "results" / "report.md").read_text()
    assert "| judge tiny |" in text.replace("accuracy |", "|") and "## Judge" in text
    assert any(part["models"] == ["classic", "judge tiny"] for part in report["differences"])


def test_what_a_judge_cannot_do_shows_before_a_model_is_loaded(evaluated, monkeypatch):
    folder, run = evaluated
    monkeypatch.setattr("cloud_hf.evaluation.scoring_arguments.open_any_model", None)
    (folder / "prompt.txt").write_text("{conversation} {response_a} {response_b}")
    styles = {"chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    write_rows(folder / "rm.jsonl", [{"id": "chat/1", "prompt": "x", "subset": "chat", **styles}])
    with serve_completions(write=by_length) as server:
        with pytest.raises(ValueError, match="does not mention the verdict"):
            run(server, judge_prompt_file=str(folder / "prompt.txt"))
        with pytest.raises(ValueError, match=r"a judge compares one right response .* but rows have 3"):
            run(server, benchmarks=[f"rm_bench={folder}/rm.jsonl"])
        assert not server.requests


def test_figures_are_the_same_after_a_server_that_died(evaluated):
    _, run = evaluated
    answered = []

    def dies(body):
        if len(answered) >= 7:
            return web.json_response({"error": {"message": "out of order"}}, status=401)
        answered.append(body)
        return by_length(body)

    with serve_completions(write=dies) as server, pytest.raises(SystemExit, match="run the same command to resume"):
        run(server, "killed")
    with serve_completions(write=by_length) as server:
        report = run(server, "killed")
        assert server.requests.total() == 18 - 7
    with serve_completions(write=by_length) as server:
        undisturbed = run(server, "undisturbed")
    for found in (report, undisturbed):
        found["arguments"] = found["environment"] = None
    assert report == undisturbed


def counted(body, completion=True):
    """Counts 11 tokens, of which as many as the answer has characters are the answer's."""
    message = {"role": "assistant", "content": by_length(body)[0]}
    usage = {"total_tokens": 11} | ({"completion_tokens": len(message["content"])} if completion else {})
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return web.json_response({"model": "tiny", "choices": [choice], "usage": usage})


def test_tokens_and_cost_are_those_that_the_server_counts(tmp_path):
    parts = {("pairs", "a"): (rows_of(("abcd", "ab"), ("a", "b?")), 1)}
    with serve_completions(write=counted) as server:
        found = [judge_rows(parts, options(server), 0, tmp_path / "j", (2.0, 8.0))[1] for _ in range(2)]
        unpriced = judge_rows(parts, options(server), 0, tmp_path / "j")[1]
    # Two verdicts with one try, "[[A>B]]" and "[[B>A]]"; two with two, "I cannot say."
    written = 2 * 7 + 4 * 13
    cost = (2.0 * (6 * 11 - written) + 8.0 * written) / 1e6
    for report in found:
        assert report.tokens_per_verdict == pytest.approx(11 * 6 / 4)
        assert report.cost == pytest.approx(cost) and report.cost_per_verdict == pytest.approx(cost / 4)
    assert unpriced.tokens_per_verdict == 11 * 6 / 4 and unpriced.cost is None and unpriced.cost_per_verdict is None
    with serve_completions(write=partial(counted, completion=False)) as server:
        report = judge_rows(parts, options(server), 0, tmp_path / "sums", (2.0, 8.0))[1]
    assert report.tokens_per_verdict == 11 * 6 / 4 and report.cost is None


# ------------------------------------------------------------------------------------------------ a judge that rates


def rated(body):
    """Rates the length of the response; writes prose about question marks."""
    response = body["messages"][-1]["content"].split("<response>\n")[1].split("\n</response>")[0]
    return ("I cannot say." if "?" in response else f"[[9]]? No: [[{len(response)}]]"), "stop"


def test_ratings_are_rewards(tmp_path):
    parts = {
        ("pairs", "a"): rows_of(("abcd", "ab"), ("b?", "ab")),
        ("problems", "b"): rows_of(("abcd", "a", "abcdefghijkl")),
    }
    with serve_completions(write=rated) as server:
        scores, report = rate_rows(parts, options(server), 0, tmp_path / "j")
        assert [[score.reward for score in row] for row in scores["pairs", "a"]] == [[4, 2], [5.5, 2]]
        # 12 is not on the scale, so it is asked twice
        assert [score.reward for score in scores["problems", "b"][0]] == [4, 1, 5.5]
        assert server.requests.total() == 3 + 2 * 2
        assert (report.responses, report.unreadable, report.distinct) == (5, 2, 3)
        assert report.mean == pytest.approx(7 / 3)
        assert rate_rows(parts, options(server), 0, tmp_path / "j") == (scores, report)
        assert server.requests.total() == 7


def test_a_rating_judge_also_chooses_among_candidates(evaluated):
    folder, run = evaluated
    write_rows(folder / "bon.jsonl", [{"prompt": "p", "responses": ["a", "abc", "ab"], "correct": [0, 1, 0]}] * 2)

    def priced(body):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": rated(body)[0]}}
        return web.json_response({"choices": [choice], "usage": {"total_tokens": 101, "completion_tokens": 1}})

    with serve_completions(write=priced) as server:
        options = {"judge_mode": "pointwise", "best_of_n": [str(folder / "bon.jsonl")]}
        report = run(server, judge_price=[2.0, 30.0], **options)
    assert report["best_of_n"]["bon.jsonl"]["judge tiny"]["rates"]["3"] == 1.0
    assert report["judge"]["unreadable"] == 0
    ratings = report["judge"]["responses"]
    assert report["judge"]["cost_per_verdict"] == pytest.approx(230e-6)
    assert report["judge"]["cost"] == pytest.approx(ratings * 230e-6)
    text = (folder / "results" / "report.md").read_text()
    assert "| tokens per rating | cost per rating | cost |" in text
    assert f"| 101 | 0.0002 | {ratings * 230e-6:.4f} |" in text


def test_a_judge_that_answers_prose_is_refused_before_a_model_is_loaded(evaluated, monkeypatch):
    _, run = evaluated
    monkeypatch.setattr("cloud_hf.evaluation.scoring_arguments.open_any_model", None)
    with serve_completions(write=lambda body: ("A fine pair.", "stop")) as server:
        for mode in ("pairwise", "pointwise"):
            with pytest.raises(ValueError, match=r"No judgement contains a verdict.*'A fine pair.'"):
                run(server, mode, judge_mode=mode, judge_tries=1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"judge_model": "m"}, "require a judge: set `judge_base_url`"),
        ({"judge_base_url": ["http://x"], "dataset_name": [], "best_of_n": ["b"]}, "omit `best_of_n`"),
        ({"judge_base_url": ["http://x"], "judge_tries": 0}, "`judge_tries`"),
        ({"judge_base_url": ["http://x"], "judge_mode": "both"}, "`judge_mode` is 'both'"),
        ({"judge_mode": "pointwise"}, "require a judge: set `judge_base_url`"),
        ({"judge_price": [1.0, 2.0]}, "require a judge: set `judge_base_url`"),
        ({"judge_base_url": ["http://x"], "judge_price": [1.0]}, r"`judge_price` is \[1.0\]; pass two prices"),
        ({"judge_base_url": ["http://x"], "judge_price": [1.0, -2.0]}, "pass two prices of at least 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, says):
    base = {"models": ["m"], "output_dir": "o", "dataset_name": ["d"]}
    with pytest.raises(ValueError, match=says):
        evaluate_rewards.EvaluationArguments(**{**base, **given})
