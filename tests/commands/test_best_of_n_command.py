"""Best-of-N as a script: recorded candidates, and ArenaHard with real servers that say what they are told to."""

import hashlib
import json
import math
import random
import time
from pathlib import Path

import pytest
import torch
from benchmark_files import write_rows
from builders_for_tests import Builder, check_not_asked_again, journaled_texts, run_script
from completion_server import default_answer, serve_completions
from datasets import load_from_disk
from models_for_tests import make_model, save_language_model
from tokenizers_for_tests import make_tokenizer

from cloud_hf.commands import best_of_n
from cloud_hf.data.journal import JournalError
from cloud_hf.evaluation.arena_hard.win_rate import Votes, win_rate
from cloud_hf.loading import load_reward_model
from cloud_hf.scoring import TransformersScorer


BUDGET = 6
CANDIDATES = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = save_language_model(folder / "base")
    for name, options in (("cloud", {}), ("classic", {"critique": False})):
        make_model(base, **options).save_pretrained(folder / name)
        make_tokenizer("llama3").save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {
            "id": f"p{number}",
            "prompt": f"What is {number}?",
            "responses": [f"It is {number + place}." * (1 + place) for place in range(3 + number % 2)],
            "correct": [place == 0 for place in range(3 + number % 2)],
        }
        for number in range(6)
    ]
    write_rows(folder / "problems.jsonl", rows)
    scored = [{"response": text, "judge_score": len(text) % 7} for text in ("Yes.", "No, never.", "Perhaps it is so.")]
    write_rows(folder / "scored.jsonl", [{"id": "s", "prompt": "Is it?", "candidates": scored}])
    questions = [
        {"uid": f"q{n}", "category": "math" if n % 2 else "poem", "prompt": f"Question {n}?"} for n in range(6)
    ]
    write_rows(folder / "questions.jsonl", questions)
    write_rows(folder / "math.jsonl", [{"uid": row["uid"], "answer": f"Math {row['uid']}."} for row in questions])
    write_rows(folder / "poem.jsonl", [{"uid": row["uid"], "answer": f"Poem {row['uid']}."} for row in questions])
    return folder


def arguments(models, output_dir, *names, **options):
    named = [str(models / name) for name in names]
    return best_of_n.BestOfNArguments(
        models=named, output_dir=str(output_dir), max_new_tokens=BUDGET, batch_size=4, **options
    )


def choose(*args, **options) -> dict:
    args = arguments(*args, **options)
    best_of_n.main(args)
    return json.loads((Path(args.output_dir) / "best_of_n.json").read_text())


def read_selected(folder, name):
    return [json.loads(line) for line in (folder / f"selected_{name}.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------- recorded candidates


def test_recorded_candidates(models, data, tmp_path):
    """The chosen ones are those with the highest rewards of the model itself, and the figures follow from them."""
    files = [str(data / "problems.jsonl"), str(data / "scored.jsonl")]
    options = {"dataset_name": files, "temperature": 1.0, "num_seeds": 2, "seed": 4}
    page = choose(models, tmp_path, "cloud", "classic", **options)
    found = {(Path(result["model"]).name, result["title"]): result for result in page["results"]}
    assert set(found) == {
        (model, title) for model in ("cloud", "classic") for title in ("problems.jsonl", "scored.jsonl")
    }
    for name, seeds in (("cloud", (4, 5)), ("classic", (None,))):
        scorer = TransformersScorer(*load_reward_model(str(models / name)), batch_size=4)
        rows = [json.loads(line) for line in (data / "problems.jsonl").read_text().splitlines()]
        right, selected = [], read_selected(tmp_path, name)
        for number, seed in enumerate(seeds):
            for row in rows:
                sampling = {} if seed is None else {"temperature": 1.0, "seed": seed}
                prompts = [row["prompt"]] * len(row["responses"])
                scores = scorer.score(prompts, row["responses"], max_new_tokens=BUDGET, **sampling)
                best = max(range(len(scores)), key=lambda place: scores[place].reward)
                [line] = [one for one in selected if one["id"] == row["id"] and one["seed"] == number]
                assert line["chosen"] == best and line["response"] == row["responses"][best]
                assert line["reward"] == pytest.approx(scores[best].reward, abs=1e-5)
                assert line["critiques"] == list(scores[best].critiques) and line["worth"] == row["correct"][best]
                right.append(row["correct"][best])
        result = found[name, "problems.jsonl"]
        assert result["rate_of_all"] == pytest.approx(sum(right) / len(right))
        assert (result["fewest_candidates"], result["most_candidates"], result["seeds"]) == (3, 4, len(seeds))
        assert list(result["rates"]) == ["1", "2", "3"] == list(result["oracle"])
        assert (result["standard_errors_over_seeds"]["3"] is None) == (name == "classic")
    assert found["cloud", "scored.jsonl"]["quality"] == "recorded score"
    assert found["cloud", "problems.jsonl"]["quality"] == "correctness"
    text = (tmp_path / "best_of_n.md").read_text()
    for said in (
        "| random (any of the N) |",
        "3 problems have more than 3 candidates",
        "2 seed(s) from 4",
        "over seeds",
    ):
        assert said in text
    for picture in ("best_of_n.png", "best_of_n_scored.jsonl.png"):
        assert picture in text and (tmp_path / picture).stat().st_size > 5000


def test_ensembles_choose_like_models(models, data, tmp_path):
    """A classic model scores once, whatever the number of seeds."""
    options = {"num_seeds": 2, "temperature": 1.0, "ensembles": ["mean:cloud,classic"]}
    report = choose(models, tmp_path, "cloud", "classic", dataset_name=[str(data / "problems.jsonl")], **options)
    assert {result["model"].rpartition("/")[2] for result in report["results"]} == {
        "cloud",
        "classic",
        "mean(cloud,classic)",
    }
    chosen = {name: read_selected(tmp_path, name) for name in ("cloud", "classic", "mean(cloud,classic)")}
    assert [len(rows) for rows in chosen.values()] == [12, 6, 12]


def test_a_model_with_the_name_of_an_ensemble_is_refused(models, tmp_path):
    (tmp_path / "mean(cloud,classic)").symlink_to(models / "classic")
    names = ["cloud", "classic", str(tmp_path / "mean(cloud,classic)")]
    with pytest.raises(ValueError, match="is also the name of the judge, an ensemble or a cascade"):
        arguments(models, tmp_path, *names, dataset_name=["x"], ensembles=["mean:cloud,classic"])


def test_halving_is_reported(models, data, tmp_path):
    options = {"num_critiques": 4, "temperature": 1.0, "halving": ["cloud", "classic,cloud"]}
    report = choose(models, tmp_path, "cloud", "classic", dataset_name=[str(data / "problems.jsonl")], **options)
    alone, after_classic = report["halving"]
    assert alone["name"] == "halving(cloud)" and after_classic["name"] == "halving(classic,cloud)"
    assert after_classic["share_of_tokens"] < alone["share_of_tokens"] < 1 and alone["num_critiques"] == 4
    assert "## Successive halving" in (tmp_path / "best_of_n.md").read_text()
    with pytest.raises(ValueError, match="`halving` needs critiques, but classic writes none"):
        choose(models, tmp_path, "cloud", "classic", dataset_name=["x"], halving=["cloud,classic"])


def test_where_the_curve_ends(models, data, tmp_path):
    """At the fewest candidates of a problem, or before."""
    for largest_n, end in ((16, 3), (2, 2)):
        page = choose(models, tmp_path, "classic", dataset_name=[str(data / "problems.jsonl")], largest_n=largest_n)
        [result] = page["results"]
        assert list(result["rates"])[-1] == str(end)
        assert any(f'The curve ends at {end}; the column "all"' in note for note in result["notes"])


def test_problems_left_out_are_counted(models, tmp_path):
    problem = {"prompt": "1+1?", "responses": ["2", "3"], "correct": [True, False]}
    rows = [{**problem, "prompt": None}, problem, {**problem, "correct": [True]}, {**problem, "prompt": "1 + 1?"}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    page = choose(models, tmp_path / "out", "classic", dataset_name=[file], bad_rows="drop")
    [result] = page["results"]
    assert (result["problems"], result["bad"]) == (2, 2)
    assert [row["id"] for row in read_selected(tmp_path / "out", "classic")] == ["1", "3"]
    text = (tmp_path / "out" / "best_of_n.md").read_text()
    assert "Some rows were left out: see the notes on each set." in text and "All rows were scored" not in text
    assert "- Problems left out because they cannot be used: 2." in text


def test_a_second_run_scores_nothing(models, data, tmp_path, monkeypatch):
    first = choose(models, tmp_path, "classic", dataset_name=[str(data / "problems.jsonl")])
    monkeypatch.setattr(TransformersScorer, "score", None)
    assert choose(models, tmp_path, "classic", dataset_name=[str(data / "problems.jsonl")]) == first
    monkeypatch.undo()
    other = tmp_path / "other"
    make_model(models / "base", seed=5, critique=False).save_pretrained(other / "classic")
    make_tokenizer("llama3").save_pretrained(other / "classic")
    with pytest.raises(JournalError, match="has changed since it was scored"):
        choose(other, tmp_path, "classic", dataset_name=[str(data / "problems.jsonl")])


def test_models_choose_from_the_same_problems(models, data, tmp_path):
    """What does not fit one of them is left out for all, and counted."""
    rows = [
        {"id": "short", "prompt": "a", "responses": ["x", "y"], "correct": [True, False]},
        {"id": "long", "prompt": "a", "responses": ["x", "word " * 480], "correct": [True, False]},
    ]
    long = {"dataset_name": [str(write_rows(tmp_path / "long.jsonl", rows))]}
    with pytest.raises(
        ValueError, match=r"long.jsonl, row 1 \(id 'long'\): 1968 tokens .* To keep 95%, .* use a limit of 1968"
    ):
        choose(models, tmp_path, "cloud", **long)
    page = choose(models, tmp_path, "cloud", "classic", overlong_policy="drop", **long)
    assert [(result["problems"], result["dropped"]) for result in page["results"]] == [(1, 1), (1, 1)]
    assert page["results"][0]["standard_errors"]["1"] is None


def test_rewards_that_are_no_numbers(models, data, tmp_path):
    model = make_model(models / "base", critique=False)
    torch.nn.init.constant_(model.reward_head.out_proj.weight, 3e38)
    model.save_pretrained(tmp_path / "broken")
    make_tokenizer("llama3").save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"not finite numbers. The first: .*problems.jsonl, row 'p0', candidate 0"):
        choose(tmp_path, tmp_path / "out", "broken", dataset_name=[str(data / "problems.jsonl")])


# ------------------------------------------------------------------------------------------------------ ArenaHard


def is_judged(body):
    return "<response_a>" in body["messages"][-1]["content"]


def shown(body):
    """What a judge sees: the question's text, and the responses."""
    text = body["messages"][-1]["content"]
    return tuple(
        text.split(f"<{name}>\n")[1].split(f"\n</{name}>")[0] for name in ("conversation", "response_a", "response_b")
    )


def taste(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) % 4


def verdict(first, second):
    return ("B>>A", "B>A", "A=B", "A>B", "A>>B")[max(-2, min(2, taste(first) - taste(second))) + 2]


def write(body):
    """Candidates, and a judge with its own taste that never decides about question 5 and hesitates elsewhere."""
    text, _ = default_answer(body)
    if not is_judged(body):
        return text, "stop"
    question, first, second = shown(body)
    if question == "Question 5?" or (body["temperature"] == 0 and taste(text) == 0):
        return f"{text} Hard to say.", "stop"
    return f"{text}\n[[{verdict(first, second)}]]", "stop"


def arena(server, data, **options):
    return {
        "arena_hard": str(data / "questions.jsonl"),
        "baseline_answers": [f"{name}={data}/{name}.jsonl" for name in ("math", "poem")],
        "gen_base_url": [server.url],
        "judge_base_url": [server.url],
        "num_candidates": CANDIDATES,
        "judge_tries": 4,
        "max_retries": 2,
        **options,
    }


def expected_votes(question, text):
    """From the judge's taste alone."""
    if question == "q5":
        return Votes()
    baseline = f"{'Math' if int(question[1:]) % 2 else 'Poem'} {question}."
    return Votes.of(verdict(baseline, text), verdict(text, baseline))


def test_arena_hard(models, data, tmp_path):
    with serve_completions(write=write) as server:
        page = choose(models, tmp_path, "cloud", "classic", **arena(server, data))
        candidates = {row["id"]: row for row in load_from_disk(tmp_path / "arena_hard_candidates")}
        asked = server.requests.total()
        assert choose(models, tmp_path, "cloud", "classic", **arena(server, data)) == page
        assert server.requests.total() == asked
        everything = choose(models, tmp_path, "cloud", "classic", **arena(server, data, judge_all=True))
        # Every candidate in both orders, besides those that were judged before
        assert page["arena_hard"]["judged"] < everything["arena_hard"]["judged"] == 6 * CANDIDATES
    assert len(candidates) == 6 and all(len(set(row["responses"])) == CANDIDATES for row in candidates.values())
    assert page["arena_hard"]["failed"] == 0 and page["arena_hard"]["without_verdict"] > 0
    scorers = {
        name: TransformersScorer(*load_reward_model(str(models / name)), batch_size=4) for name in ("cloud", "classic")
    }
    for result in page["results"]:
        name, category = Path(result["model"]).name, result["title"].removeprefix("ArenaHard, ")
        votes = {n: [] for n in range(1, CANDIDATES + 1)}
        for question, row in candidates.items():
            if row["category"] != category:
                continue
            scores = scorers[name].score([row["prompt"]] * CANDIDATES, row["responses"], max_new_tokens=BUDGET)
            for n in votes:
                best = max(range(n), key=lambda place: scores[place].reward)
                votes[n].append(expected_votes(question, row["responses"][best]))
        expected = {n: win_rate(found) for n, found in votes.items()}
        assert result["rates"] == {str(n): pytest.approx(found.value) for n, found in expected.items()}
        errors = {str(n): pytest.approx(found.standard_error) for n, found in expected.items()}
        # A question without votes is left out of the win rate, while the curve keeps it without weight
        if category == "poem":
            assert result["standard_errors"] == errors
        assert result["win_rate"] == json.loads(json.dumps(expected[CANDIDATES].summary()))
        assert result["win_rate_of_first_candidates"]["value"] == pytest.approx(expected[1].value)
    lines = [line for line in read_selected(tmp_path, "cloud") if line["id"] != "q5"]
    assert len(lines) == 5
    for line in lines:
        assert Votes(**line["votes"]) == expected_votes(line["id"], line["response"]) and line["worth"] is None
    text = (tmp_path / "best_of_n.md").read_text()
    assert "## ArenaHard, math" in text and "without a readable verdict" in text and "95 %, official" in text
    assert "that of this package, not Arena-Hard's, so win rates are not comparable with the leaderboard." in text


def test_all_draws_are_the_mean_over_them(models, data, tmp_path):
    """With every candidate judged, N = 1 is the win rate of all candidates, and N = all that of the chosen one."""
    with serve_completions(write=write) as server:
        page = choose(models, tmp_path, "classic", **arena(server, data, judge_all=True))
    rows = [row for row in load_from_disk(tmp_path / "arena_hard_candidates") if row["category"] == "poem"]
    [result] = [one for one in page["results"] if one["title"] == "ArenaHard, poem"]
    points = [expected_votes(row["id"], text) for row in rows for text in row["responses"]]
    assert result["rates"]["1"] == pytest.approx(sum(v.points for v in points) / sum(v.number for v in points))
    assert result["rates"][str(CANDIDATES)] == pytest.approx(result["win_rate"]["value"])
    yardsticks = {found["name"]: found for found in result["yardsticks"]}
    assert yardsticks["perfect"]["rate_of_all"] >= result["rate_of_all"]
    assert yardsticks["random"]["rates"] == pytest.approx(dict.fromkeys(result["rates"], result["rates"]["1"]))


def test_candidates_from_a_file(models, data, tmp_path):
    """Repeated ones are judged once, one that is the baseline's ties unasked, and without a judge nobody is asked."""
    rows = [
        {"id": f"q{n}", "prompt": f"Question {n}?", "responses": ["One.", "One.", f"Poem q{n}."]} for n in range(6)
    ]
    path = str(write_rows(tmp_path / "candidates.jsonl", rows))
    with serve_completions(write=write) as server:
        options = arena(server, data, gen_base_url=[], candidates=path)
        page = choose(models, tmp_path / "judged", "classic", judge_all=True, **options)
        judged = load_from_disk(tmp_path / "judged" / "arena_hard_judgements")
        # "One." for all questions; "Poem" for the odd ones, whose baseline is another
        assert len(judged) == 6 + 3 and page["arena_hard"]["like_the_baseline"] == 3
        counts = page["results"][0]
        assert counts["repeated_candidates"] == 3 and counts["problems"] == 3
        alone = {**options, "judge_base_url": [], "baseline_answers": []}
        before = server.requests.total()
        assert choose(models, tmp_path / "alone", "classic", **alone)["results"] == []
        assert server.requests.total() == before
    assert [line["votes"] for line in read_selected(tmp_path / "alone", "classic")] == [None] * 6
    write_rows(tmp_path / "candidates.jsonl", rows[:4])
    with pytest.raises(ValueError, match=r"no candidates for 2 of 6 questions \(first: 'q4'\)"):
        choose(models, tmp_path / "alone", "classic", **alone)
    write_rows(tmp_path / "candidates.jsonl", [{**row, "prompt": row["prompt"].replace("5", "6")} for row in rows])
    with pytest.raises(
        ValueError, match=r"another prompt for question 'q5': 'Question 6\?' instead of 'Question 5\?'"
    ):
        choose(models, tmp_path / "alone", "classic", **alone)


def test_the_report_names_the_judges_text(models, data, tmp_path):
    counts = {"judged": 1, "candidates_cut": 0, "like_the_baseline": 0, "without_verdict": 0, "failed": 0}
    prompt, system = {"judge_prompt_file": "judge.txt"}, {"judge_system_file": ["system.txt"]}
    for options, words, turn in (
        (prompt, "judge.txt", "the user's turn"),
        (system, "system.txt", "a system message"),
        ({**prompt, **system}, "system.txt, judge.txt", "a system message"),
        ({**system, "judge_system_role": False}, "system.txt", "the user's turn"),
        ({"judge_system_role": False}, "not comparable with the leaderboard", "the user's turn"),
        ({}, "not comparable with the leaderboard", "a system message"),
    ):
        with_judge = {"judge_base_url": ["x"], "baseline_answers": ["x"], **options}
        args = arguments(models, tmp_path, "classic", arena_hard="x", candidates="x", **with_judge)
        assert best_of_n.arena_notes(counts, args)[0].endswith(f"{words}. The instructions are in {turn}.")


def test_where_the_judge_is_told_what_to_do(models, data, tmp_path):
    """In a system message, that of its category; without a system role the same chats hold user messages alone."""
    system = tmp_path / "poems.txt"
    system.write_text("Judge poems: [[A>B]] or [[B>A]].")
    plain = tmp_path / "plain.txt"
    plain.write_text("Judge sums: [[A>B]] or [[B>A]].")
    files = {"judge_system_file": [str(plain), f"poem={system}"]}
    roles = {}
    for name, options in (("default", {}), ("none", {"judge_system_role": False}), ("own", files)):
        with serve_completions(write=write) as server:
            choose(models, tmp_path / name, "classic", **arena(server, data, num_candidates=2, **options))
            chats = [json.loads(body)["messages"] for body in server.requests.elements()]
        judged = [chat for chat in chats if "<response_a>" in chat[-1]["content"]]
        roles[name] = {tuple(message["role"] for message in chat) for chat in judged}
        if name == "own":
            for chat in judged:
                is_poem = int(chat[-1]["content"].split("Question ")[1][0]) % 2 == 0
                assert chat[0]["content"].startswith("Judge poems" if is_poem else "Judge sums")
    assert roles == {"default": {("system", "user")}, "none": {("user",)}, "own": {("system", "user")}}


def test_a_category_without_verdicts_costs_no_other_figure(models, data, tmp_path):
    """The judge never decides about question 5, which is all that there is of its category."""
    rows = [{"uid": f"q{n}", "category": "math" if n % 2 else "poem", "prompt": f"Question {n}?"} for n in (0, 2, 5)]
    questions = str(write_rows(tmp_path / "questions.jsonl", rows))
    sets = [str(data / "scored.jsonl")]
    with serve_completions(write=write) as server:
        options = arena(server, data, arena_hard=questions, num_candidates=2)
        page = choose(models, tmp_path / "some", "classic", dataset_name=sets, **options)
        assert [result["title"] for result in page["results"]] == ["scored.jsonl", "ArenaHard, poem"]
        [note] = page["unjudged"]
        assert note.startswith("ArenaHard, math: no win rate (questions: 1)")
        assert note in (tmp_path / "some" / "best_of_n.md").read_text()
        write_rows(tmp_path / "questions.jsonl", rows[2:])
        page = choose(models, tmp_path / "none", "classic", **options)
    assert page["results"] == [] and page["unjudged"] == [note]
    assert "without a judge" not in (tmp_path / "none" / "best_of_n.md").read_text()
    assert read_selected(tmp_path / "none", "classic")[0]["votes"] == vars(Votes())


def test_empty_answers_fail_their_question_only(models, data, tmp_path, capsys):
    """The others are judged; the status says that something failed, and the same command asks for that alone."""
    broken = {"gen": True, "judge": True}

    def answer(body):
        if not is_judged(body) and broken["gen"] and "Question 2?" in body["messages"][-1]["content"]:
            return "", "stop"
        if is_judged(body) and broken["judge"] and shown(body)[0] == "Question 3?":
            return None, "stop"
        return write(body)

    with serve_completions(write=answer) as server:
        options = arena(server, data, max_retries=0)
        with pytest.raises(SystemExit) as ended:
            choose(models, tmp_path, "classic", **options)
        assert ended.value.code == 3 and "failed" in capsys.readouterr().out
        page = json.loads((tmp_path / "best_of_n.json").read_text())
        assert page["arena_hard"]["failed"] >= 2
        assert sum(result["problems"] for result in page["results"]) == 5
        assert "requests failed" in (tmp_path / "best_of_n.md").read_text()
        before, kept = server.requests.copy(), texts(tmp_path)
        broken.update(gen=False, judge=False)
        page = choose(models, tmp_path, "classic", **options)
        check_not_asked_again(server, before, kept)
    assert page["arena_hard"]["failed"] == 0 and sum(result["problems"] for result in page["results"]) == 6


def test_more_candidates_and_models_join(models, data, tmp_path):
    with serve_completions(write=write) as server:
        choose(models, tmp_path, "classic", **arena(server, data, num_candidates=2))
        before, kept = server.requests.copy(), texts(tmp_path)
        page = choose(models, tmp_path, "classic", "cloud", **arena(server, data))
        check_not_asked_again(server, before, kept)
        before_again = server.requests.total()
        with pytest.raises(SystemExit, match=r"`temperature` was 1\.0 and is now 0\.5"):
            choose(models, tmp_path, "classic", **arena(server, data, gen_temperature=0.5))
        assert server.requests.total() == before_again
    assert {result["most_candidates"] for result in page["results"]} == {CANDIDATES}


def texts(folder):
    return journaled_texts(folder / "arena_hard_candidates") | journaled_texts(folder / "arena_hard_judgements")


def command(models, data, server, out):
    options = arena(server, data)
    lists = {"gen_base_url", "judge_base_url", "baseline_answers"}
    words = ["--models", models / "classic", "--output_dir", out, "--max_new_tokens", BUDGET, "--batch_size", 4]
    for name, value in options.items():
        words += [f"--{name}", *(value if name in lists else [value])]
    return words


@pytest.mark.full
def test_killed_twice_it_ends_the_same(models, data, tmp_path):
    """Once while candidates are written, once while they are judged. Nothing that was journaled is asked for again."""
    generator = random.Random(0)
    with serve_completions(write=write, latency=0.1) as server:
        whole = tmp_path / "whole"
        choose(models, whole, "classic", **arena(server, data, max_concurrency=4))
        requests, out = server.requests.total(), tmp_path / "out"
        words = [*command(models, data, server, out), "--max_concurrency", 4]
        for number in (generator.randint(3, 20), 6 * CANDIDATES + generator.randint(3, 10)):
            before, kept = server.requests.copy(), texts(out)
            # Requests of this folder in all its runs; equal ones were asked by the whole run too
            enough = requests + number
            builder = Builder("best_of_n", *words, log_dir=tmp_path)
            while builder.process.is_alive() and server.requests.total() < enough:
                time.sleep(0.001)
            assert builder.process.is_alive(), builder.log.read_text()
            builder.kill()
            check_not_asked_again(server, before, kept)
        before, kept = server.requests.copy(), texts(out)
        assert journaled_texts(out / "arena_hard_judgements")
        ended = run_script("best_of_n", *words, log_dir=tmp_path)
        assert ended.status == 0, ended.output
        check_not_asked_again(server, before, kept)
    pages = [json.loads((folder / "best_of_n.json").read_text()) for folder in (whole, out)]
    assert pages[0]["results"] == pages[1]["results"] and pages[0]["arena_hard"] == pages[1]["arena_hard"]
    assert read_selected(whole, "classic") == read_selected(out, "classic")


def test_a_dead_server_ends_the_run(models, data, tmp_path):
    with serve_completions(write=write) as server:
        options = arena(server, data)
    with pytest.raises(SystemExit, match="does not answer"):
        choose(models, tmp_path, "classic", **options)


CRITIQUES = {"num_critiques": 2, "temperature": 1.0}
ASKED = {"arena_hard": "x", "candidates": "y", "judge_base_url": ["z"], "baseline_answers": ["a"]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "no candidates to choose from"),
        ({"dataset_name": ["x"], "num_seeds": 2}, "`num_seeds` needs a `temperature`"),
        ({"dataset_name": ["x"], "largest_n": 0}, "must be at least 1"),
        (
            {"dataset_name": ["x"], **CRITIQUES, "combine": "vote"},
            "`largest_n` is 16: set it to 1 and read the column",
        ),
        (
            {"dataset_name": ["x"], "halving": ["classic"], **CRITIQUES, "combine": "median"},
            "`halving` decides by the mean reward of several critiques, but `combine` is 'median'",
        ),
        ({"dataset_name": ["x"], "candidates": "y"}, "`candidates` requires `arena_hard`"),
        ({"arena_hard": "x"}, "needs either `gen_base_url` or `candidates`"),
        ({"arena_hard": "x", "candidates": "y", "judge_base_url": ["z"]}, "go together"),
        ({"arena_hard": "x", "candidates": "y", "judge_all": True}, "`judge_all` requires a judge"),
        ({"arena_hard": "x", "candidates": "y", "judge_model": "z"}, "`judge_model` requires a judge"),
        ({"arena_hard": "x", "candidates": "y", "judge_prompt_file": "z"}, "`judge_prompt_file` requires a judge"),
        ({"arena_hard": "x", "candidates": "y", "judge_system_file": ["z"]}, "`judge_system_file` requires a judge"),
        ({"dataset_name": ["x"], "judge_system_role": False}, "`judge_system_role` requires a judge"),
        ({**ASKED, "judge_prompt_file": "z", "judge_system_role": False}, "`judge_system_role` has no effect"),
        ({"dataset_name": ["x"], "baseline_model": "z"}, "`baseline_model` requires a judge"),
        (
            {"arena_hard": "x", "gen_base_url": ["y"], "gen_temperature": 0.0},
            "candidates for a question are identical",
        ),
        ({"arena_hard": "x", "candidates": "y", "judge_tries": 0}, "`judge_tries` is 0"),
    ],
)
def test_arguments_that_do_not_go_together(options, says, models, tmp_path):
    with pytest.raises(ValueError, match=says):
        arguments(models, tmp_path, "classic", **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"baseline_answers": ["math={data}/math.jsonl"]}, "no file for questions in the category 'poem'"),
        ({"baseline_answers": ["{data}/math.jsonl", "{data}/poem.jsonl"]}, "'q0' has a second answer"),
        ({"arena_hard": "{data}/absent.jsonl"}, "no such file"),
        ({"judge_prompt_file": "{data}/math.jsonl"}, "it must occur exactly once"),
        ({"judge_system_file": ["{data}/math.jsonl"]}, "does not mention the verdict"),
        ({"judge_base_url": ["nowhere"]}, "must start with http"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(options, says, models, data, tmp_path):
    options = {
        key: [text.format(data=data) for text in value] if isinstance(value, list) else value.format(data=data)
        for key, value in options.items()
    }
    with serve_completions(write=write) as server:
        with pytest.raises(ValueError, match=says):
            choose(models, tmp_path, "classic", **arena(server, data, **options))
        assert not server.requests


def test_figures_are_finite(models, data, tmp_path):
    """JSON has no NaN: one problem has no standard error."""
    page = choose(models, tmp_path, "classic", dataset_name=[str(data / "scored.jsonl")])
    [result] = page["results"]
    assert result["standard_errors"] == {"1": None, "2": None, "3": None} and math.isfinite(result["rates"]["3"])
