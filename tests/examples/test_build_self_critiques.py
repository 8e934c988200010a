import contextlib
import io
import json
import random
import signal
import sys
import time
import traceback

import pytest
from aiohttp import web
from builders_for_tests import Builder, Ended, read_rejects, read_rows
from completion_server import serve_completions
from critics_for_tests import make_pairs, save_critic, save_pairs, score_rows
from scripts_for_tests import command_module
from servers_for_tests import make_engine, serving
from tokenizers_for_tests import make_tokenizer

from cloud_hf import CLoudForRewardModeling, CritiqueFormat, cli
from cloud_hf.data.critiques import CritiqueBuilder, CritiqueOptions
from cloud_hf.data.journal import key_of
from cloud_hf.loading import load_reward_model
from cloud_hf.scoring import TransformersScorer


SCRIPT = "build_self_critiques"
SIDES = ("chosen", "rejected")
BUDGET = 6
KEEP = ("--longer_tries", 0, "--truncated", "keep")


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    return save_critic(tmp_path_factory.mktemp("critic"))


@pytest.fixture
def pairs(tmp_path):
    return save_pairs(tmp_path / "pairs.jsonl", make_pairs(12))


def options(critic, pairs, out, *more):
    return [
        "--model_name_or_path", critic, "--dataset_name", pairs, "--output_dir", out, "--max_new_tokens", BUDGET,
        "--batch_size", 4, *more,
    ]  # fmt: skip


def run(script, *options) -> Ended:
    """Run a script in this process, where the libraries are loaded."""
    output, status, command_line = io.StringIO(), 0, sys.argv
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            cli.run(command_module(script).__name__, list(map(str, options)))
        except SystemExit as error:
            status = error.code
        except Exception:
            status = 1
            traceback.print_exc()
    sys.argv = command_line
    return Ended(status, output.getvalue())


def with_critiques(rows, scores, several=False):
    """The rows that follow from scores."""
    built = []
    for row, both in zip(rows, scores, strict=True):
        new = dict(row)
        for side, score in zip(SIDES, both, strict=True):
            values = {
                f"{side}_feedback": list(score.critiques),
                f"{side}_feedback_ids": list(map(list, score.critique_ids)),
                f"{side}_finish_reason": list(score.finish_reasons),
            }
            new |= values if several else {name: value[0] for name, value in values.items()}
        built.append(new)
    return built


def journaled_keys(folder):
    return [json.loads(line)["key"] for line in (folder / "journal.jsonl").read_text().splitlines()[1:]]


def test_critiques_are_those_of_one_call(critic, pairs, tmp_path):
    """Chunks change nothing, and old columns stay."""
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *KEEP))
    assert ended.status == 0, ended.output
    scores = score_rows(critic, make_pairs(12), max_new_tokens=BUDGET)
    rows = read_rows(tmp_path / "out")
    assert rows == with_critiques(make_pairs(12), scores)
    assert {row["chosen_finish_reason"] for row in rows} == {"stop", "length"}
    stats = json.loads((tmp_path / "out" / "generation.json").read_text())
    reasons = [reason for both in scores for score in both for reason in score.finish_reasons]
    assert stats["critiques"] == 24 and stats["critiques_cut"] == reasons.count("length")
    assert stats["critique_tokens"] == sum(len(score.critique_ids[0]) + 1 for both in scores for score in both)
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["counts"]["rows"] == 12 and record["counts"]["flops"] == stats["flops"] > 0
    assert record["settings"]["model"] == str(critic) and len(record["settings"]["model_version"]) == 32


def test_sampled_critiques_follow_from_seed_and_text(critic, pairs, tmp_path):
    """Neither chunks, nor shards, nor other rows change them."""
    more = [*KEEP, "--num_critiques", 3, "--temperature", 1.0, "--seed", 5]
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
    assert ended.status == 0, ended.output
    scores = score_rows(critic, make_pairs(12), max_new_tokens=BUDGET, num_critiques=3, temperature=1.0, seed=5)
    rows = read_rows(tmp_path / "out")
    assert rows == with_critiques(make_pairs(12), scores, several=True)
    assert any(len(set(row["chosen_feedback"])) > 1 for row in rows)
    more += ["--batch_size", 7, "--shard", "1/2"]
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "half", *more))
    assert ended.status == 0 and read_rows(tmp_path / "half") == rows[6:], ended.output


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.full)])
def test_a_killed_run_goes_on(kills, critic, pairs, tmp_path):
    arguments = options(critic, pairs, tmp_path / "out", "--batch_size", 1, "--temperature", 0.7)
    generator, killed, journal = random.Random(0), 0, tmp_path / "out" / "journal.jsonl"
    for _ in range(kills):
        before = len(journal.read_bytes()) if journal.exists() else 0
        builder = Builder(SCRIPT, *arguments, log_dir=tmp_path)
        enough = before + generator.randint(1, 3000 // kills)
        while builder.process.is_alive() and (not journal.exists() or journal.stat().st_size < enough):
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.02))
        builder.kill()
        killed += builder.process.exitcode == -signal.SIGKILL
    journal.write_bytes(journal.read_bytes() + b'{"key": "to')  # torn by a crash
    ended = run(SCRIPT, *arguments)
    assert ended.status == 0 and "which an earlier run left incomplete, was removed" in ended.output, ended.output
    assert killed >= kills / 2
    keys = journaled_keys(tmp_path / "out")
    assert len(keys) == len(set(keys)) >= 24, "something was written twice"
    whole = run(SCRIPT, *options(critic, pairs, tmp_path / "whole", *arguments[10:]))
    assert whole.status == 0, whole.output
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "whole")
    assert read_rejects(tmp_path / "out") == read_rejects(tmp_path / "whole")
    assert sorted(journaled_keys(tmp_path / "whole")) == sorted(keys)


def test_a_finished_run_computes_nothing_again(critic, pairs, tmp_path):
    for batch_size in (4, 2):  # which may change
        arguments = options(critic, pairs, tmp_path / "out", *KEEP, "--batch_size", batch_size)
        ended = run(SCRIPT, *arguments)
        assert ended.status == 0, ended.output
    assert "24 answers, 24 of them from earlier runs" in ended.output and len(journaled_keys(tmp_path / "out")) == 24


def longest_try(critic, rows, tries):
    """Scores by row and side, with twice the tokens for what is cut, so many times."""
    scores = score_rows(critic, rows, max_new_tokens=BUDGET)
    for doublings in range(1, tries + 1):
        longer = score_rows(critic, rows, max_new_tokens=BUDGET * 2**doublings)
        scores = [
            tuple(new if old.finish_reasons == ("length",) else old for old, new in zip(*both, strict=True))
            for both in zip(scores, longer, strict=True)
        ]
    return scores


def is_cut(both):
    return any(score.finish_reasons == ("length",) for score in both)


def test_cut_critiques_are_written_longer_or_dropped(critic, pairs, tmp_path):
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out"))
    assert ended.status == 0, ended.output
    rows, scores = make_pairs(12), longest_try(critic, make_pairs(12), 2)
    whole = [(row, both) for row, both in zip(rows, scores, strict=True) if not is_cut(both)]
    assert 0 < len(whole) < 12
    assert any(len(score.critique_ids[0]) > BUDGET for _, both in whole for score in both)
    assert read_rows(tmp_path / "out") == with_critiques(*zip(*whole, strict=True))
    rejects = read_rejects(tmp_path / "out")
    dropped = [row["id"] for row, both in zip(rows, scores, strict=True) if is_cut(both)]
    assert [reject["id"] for reject in rejects] == dropped
    assert {reject["reason"] for reject in rejects} == {f"the critique is truncated at {4 * BUDGET} tokens"}
    stats = json.loads((tmp_path / "out" / "generation.json").read_text())
    cut = sum(score.finish_reasons == ("length",) for both in scores for score in both)
    short = score_rows(critic, rows, max_new_tokens=BUDGET)
    assert stats["critiques_cut"] == 0 and stats["critiques_dropped_as_cut"] == cut
    assert stats["critiques_written_longer"] == sum(
        score.finish_reasons == ("length",) for both in short for score in both
    )
    kept = run(SCRIPT, *options(critic, pairs, tmp_path / "kept", "--truncated", "keep"))
    assert kept.status == 0, kept.output
    assert read_rows(tmp_path / "kept") == with_critiques(rows, scores)
    # As many tries as the context has room for, though `longer_tries` is 0
    more = ["--truncated", "retry", "--longer_tries", 0]
    retried = run(SCRIPT, *options(critic, pairs, tmp_path / "retried", *more))
    assert retried.status == 0, retried.output
    assert len(read_rows(tmp_path / "retried")) >= len(whole)


def test_all_tokens_that_are_written_are_counted(critic, pairs, critique_format, tmp_path):
    """A retry writes all critiques of a response again, also those that were complete."""
    more = ["--num_critiques", 3, "--temperature", 1.0, "--longer_tries", 1]
    for _ in range(2):  # a finished run counts the same again
        ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
        assert ended.status == 0, ended.output
        stats = json.loads((tmp_path / "out" / "generation.json").read_text())
        lines = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()[1:]
        entries = [json.loads(line)["value"] for line in lines]
        assert len(entries) > 24 and any({reason for _, reason in entry} == {"stop", "length"} for entry in entries)
        assert stats["critique_tokens"] == sum(len(ids) + 1 for entry in entries for ids, _ in entry)
        lengths = {
            key_of(row["id"], side, max_new_tokens): len(
                critique_format.encode_prefix(row["prompt"], row[side]).input_ids
            )
            for row in make_pairs(12)
            for side in SIDES
            for max_new_tokens in (BUDGET, 2 * BUDGET)
        }
        assert stats["prompt_tokens"] == sum(3 * lengths[key] for key in journaled_keys(tmp_path / "out"))


def test_of_several_critiques_only_the_cut_ones_are_dropped(critic, pairs, tmp_path):
    more = ["--num_critiques", 4, "--temperature", 1.0, "--longer_tries", 0]
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
    assert ended.status == 0, ended.output
    scores = score_rows(critic, make_pairs(12), max_new_tokens=BUDGET, num_critiques=4, temperature=1.0, seed=0)
    rows = read_rows(tmp_path / "out")
    numbers = set()
    for row in rows:
        both = scores[int(row["id"][1:])]
        whole = [
            [
                list(ids)
                for ids, reason in zip(score.critique_ids, score.finish_reasons, strict=True)
                if reason == "stop"
            ]
            for score in both
        ]
        number = min(map(len, whole))
        numbers.add(number)
        assert [row[f"{side}_feedback_ids"] for side in SIDES] == [ids[:number] for ids in whole]
        assert row["chosen_finish_reason"] == row["rejected_finish_reason"] == ["stop"] * number
    assert len(numbers) > 1 and min(numbers) > 0


def test_the_first_interrupt_stops_after_the_batch(critic, pairs, tmp_path, monkeypatch):
    calls, score = [], TransformersScorer.score

    def interrupted(self, prompts, *arguments, **options):
        calls.append(len(prompts))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return score(self, prompts, *arguments, **options)

    monkeypatch.setattr(TransformersScorer, "score", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *KEEP))
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.status == 130 and ended.output.rstrip().endswith(
        "contains 8 answers so far; run the same command to resume."
    )
    assert calls == [4, 4]
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *KEEP))
    assert ended.status == 0 and sum(calls) == 24, ended.output
    scores = score_rows(critic, make_pairs(12), max_new_tokens=BUDGET)
    assert read_rows(tmp_path / "out") == with_critiques(make_pairs(12), scores)


def test_a_prompt_of_messages_and_tools_keeps_its_type(critic, tmp_path):
    rows = make_pairs(4)
    for row in rows:
        messages = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
        row["prompt"] = {"messages": messages, "tools": []}
    ended = run(SCRIPT, *options(critic, save_pairs(tmp_path / "pairs.jsonl", rows), tmp_path / "out", *KEEP))
    assert ended.status == 0, ended.output
    assert [row["prompt"] for row in read_rows(tmp_path / "out")] == [row["prompt"] for row in rows]


def test_overlong_rows(critic, tmp_path):
    rows = make_pairs(3)
    rows[1]["prompt"] = "word " * 600
    pairs = save_pairs(tmp_path / "pairs.jsonl", rows)
    for row in rows:
        row["prompt"] = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    save_pairs(pairs, rows)
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *KEEP))
    assert ended.status == 2 and "(id 'p1'): " in ended.output and "but the limit is 512" in ended.output
    assert "1 of 3 rows are over-long" in ended.output
    more = [*KEEP, "--overlong_policy", "drop"]
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "dropped", *more))
    assert ended.status == 0, ended.output
    assert [row["id"] for row in read_rows(tmp_path / "dropped")] == ["p0", "p2"]
    [reject] = read_rejects(tmp_path / "dropped")
    assert (reject["index"], reject["id"], reject["kind"]) == (1, "p1", "dropped")
    assert "tokens with its critique, but the context holds 512" in reject["reason"]


def test_a_longer_critique_must_fit_the_context(critic, tmp_path):
    """One that does not is dropped for being cut, and the context is not overrun."""
    rows = [row for row in make_pairs(12) if isinstance(row["prompt"], list)][:8]
    for row in rows:
        row["prompt"] = "word " * 470
    pairs = save_pairs(tmp_path / "pairs.jsonl", rows)
    more = ["--overlong_policy", "truncate_prompt", "--longer_tries", 3, "--truncated", "keep"]
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
    assert ended.status == 0, ended.output
    lengths = [
        len(ids)
        for row in read_rows(tmp_path / "out")
        for ids in (row["chosen_feedback_ids"], row["rejected_feedback_ids"])
    ]
    assert max(lengths) <= 4 * BUDGET


def test_other_settings_are_refused(critic, pairs, tmp_path):
    copy = save_critic(tmp_path / "copy")
    arguments = options(copy, pairs, tmp_path / "out", *KEEP)
    assert run(SCRIPT, *arguments).status == 0
    for more, name in ((["--temperature", 0.5], "temperature"), (["--critique_prompt", "Well?"], "critique_prompt")):
        ended = run(SCRIPT, *arguments, *more)
        assert ended.status == 2 and "started with other settings" in ended.output and f"`{name}`" in ended.output
    save_critic(copy, seed=4)
    ended = run(SCRIPT, *arguments)
    assert ended.status == 2 and "`model_version` was" in ended.output and "Traceback" not in ended.output


def test_a_reward_server_writes_the_same(critic, pairs, tmp_path, monkeypatch):
    model, tokenizer = CLoudForRewardModeling.from_base(critic).eval(), make_tokenizer("llama3")
    model.save_pretrained(tmp_path / "cloud")
    tokenizer.save_pretrained(tmp_path / "cloud")
    engine = make_engine(load_reward_model(str(tmp_path / "cloud"))[0])
    with serving(engine, api_key="secret") as (running, _):
        more = ["--backend", "server", "--server_url", running.url]
        arguments = options(tmp_path / "cloud", pairs, tmp_path / "out", *more)
        ended = run(SCRIPT, *arguments)
        assert ended.status == 2 and "status 401" in ended.output and "Traceback" not in ended.output
        monkeypatch.setenv("CLOUD_API_KEY", "secret")
        ended = run(SCRIPT, *arguments)
    assert ended.status == 0, ended.output
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "here"))
    assert ended.status == 0 and read_rows(tmp_path / "out") == read_rows(tmp_path / "here"), ended.output


def test_counts_of_no_rows_are_zero():
    """Every row may fail."""
    assert set(CritiqueBuilder(None, None, CritiqueOptions()).counts().values()) == {0}


# ------------------------------------------------------------------------------------------------ completion servers


def write_ids(critique_format, with_ids=True):
    """A server's answer: ids that follow from the prompt's, cut at `max_tokens`, with the end token if they end."""

    def write(body):
        assert (
            body["return_token_ids"]
            and body["ignore_eos"]
            and body["stop_token_ids"][0] == critique_format.end_token_id
        )
        generator = random.Random(str(body["prompt"]))
        ids = [generator.randrange(20, 200) for _ in range(generator.randint(2, 40))] + [critique_format.end_token_id]
        cut = ids[: body["max_tokens"]]
        choice = {"index": 0, "text": "x", "finish_reason": "stop" if cut == ids else "length"}
        return web.json_response({"choices": [{**choice, "token_ids": cut} if with_ids else choice]})

    return write


def served_rows(critic, rows, tries=2):
    """What the builder must make of them."""
    config = CLoudForRewardModeling.config_from_base(critic)
    critique_format = CritiqueFormat.from_config(config, make_tokenizer("llama3"))
    write = write_ids(critique_format)
    built = []
    for row in rows:
        new = dict(row)
        for side in SIDES:
            prompt = list(critique_format.encode_prefix(row["prompt"], row[side]).input_ids)
            assert prompt.count(critique_format.tokenizer.bos_token_id) == 1
            for budget in (BUDGET, 2 * BUDGET, 4 * BUDGET)[: tries + 1]:
                body = {"prompt": prompt, "max_tokens": budget + 1, "return_token_ids": True, "ignore_eos": True}
                body["stop_token_ids"] = [critique_format.end_token_id]
                choice = json.loads(write(body).text)["choices"][0]
                if choice["finish_reason"] == "stop":
                    break
            ids = choice["token_ids"][:-1]
            new[f"{side}_feedback"] = critique_format.decode(ids)
            new[f"{side}_feedback_ids"] = ids
            new[f"{side}_finish_reason"] = choice["finish_reason"]
        if all(new[f"{side}_finish_reason"] == "stop" for side in SIDES):
            built.append(new)
    return built


@pytest.fixture
def critique_format(critic):
    return CritiqueFormat.from_config(CLoudForRewardModeling.config_from_base(critic), make_tokenizer("llama3"))


@pytest.mark.parametrize("fault_rate", [0.0, 0.3])
def test_critiques_from_completion_servers(fault_rate, critic, pairs, critique_format, tmp_path):
    with serve_completions(write=write_ids(critique_format), fault_rate=fault_rate, stall=1.0) as server:
        more = ["--base_url", server.url, "--model", "tiny", "--request_timeout", 0.5, "--max_retries", 12]
        ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
    assert ended.status == 0, ended.output
    expected = served_rows(critic, make_pairs(12))
    assert 3 < len(expected) < 12 and any(len(row["chosen_feedback_ids"]) > BUDGET for row in expected)
    assert read_rows(tmp_path / "out") == expected
    sent = [json.loads(text) for text in server.requests]
    assert all(body["temperature"] == 0.0 and body["top_k"] == 0 and body["top_p"] == 1.0 for body in sent)
    assert all(list(body["logit_bias"].values()) == [-100.0] for body in sent)
    rejects = read_rejects(tmp_path / "out")
    assert len(rejects) == 12 - len(expected)
    assert all(f"truncated at {4 * BUDGET} tokens" in reject["reason"] for reject in rejects)


def test_samples_of_a_server_have_seeds_of_their_own(critic, pairs, critique_format, tmp_path):
    with serve_completions(write=write_ids(critique_format)) as server:
        more = ["--base_url", server.url, "--temperature", 0.7, "--num_critiques", 3, "--limit", 2, *KEEP]
        ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
        assert ended.status == 0, ended.output
    seeds = [json.loads(text)["seed"] for text in server.requests]
    assert len(set(seeds)) == len(seeds) == 12
    assert all(len(row["chosen_feedback_ids"]) == 3 for row in read_rows(tmp_path / "out"))


def test_a_server_without_token_ids_is_refused(critic, pairs, critique_format, tmp_path):
    with serve_completions(write=write_ids(critique_format, with_ids=False)) as server:
        more = ["--base_url", server.url]
        ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
    assert ended.status == 2 and "does not return token ids" in ended.output and "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"chosen": ""}, [], "row 1 (id 'p1'): `chosen` is empty"),
        ({"prompt": []}, [], "row 1 (id 'p1'): "),
        ({"id": "p0"}, [], "row 1 (id 'p0'): row 0 has the same id"),
        ({}, ["--truncated", "cut"], "`truncated` is 'cut'; use drop, keep or retry"),
        ({}, ["--base_url", "http://x", "--backend", "vllm"], "`base_url` and `backend` are alternatives"),
        ({}, ["--model", "x"], "set `base_url` as well"),
        ({}, ["--num_critiques", 2], "needs a `temperature` above 0"),
        ({}, ["--backend", "server", "--server_url", "http://x"], "a reward server serves CLoud models"),
    ],
)
def test_mistakes_end_with_a_sentence(change, more, message, critic, tmp_path):
    rows = make_pairs(3)
    rows[1] |= change
    pairs = save_pairs(tmp_path / "pairs.jsonl", rows)
    ended = run(SCRIPT, *options(critic, pairs, tmp_path / "out", *more))
    assert ended.status == 2 and message in ended.output
    assert not (tmp_path / "out" / "journal.jsonl").exists() or len(journaled_keys(tmp_path / "out")) == 0


def test_shards_merge_into_one_run(critic, pairs, tmp_path):
    folders = [tmp_path / f"out{index}" for index in range(2)]
    for index, folder in enumerate(folders):
        ended = run(SCRIPT, *options(critic, pairs, folder, "--shard", f"{index}/2"))
        assert ended.status == 0, ended.output
    ended = run("merge_shards", "--shards", *folders, "--output_dir", tmp_path / "merged")
    assert ended.status == 0, ended.output
    assert run(SCRIPT, *options(critic, pairs, tmp_path / "whole")).status == 0
    assert read_rows(tmp_path / "merged") == read_rows(tmp_path / "whole")
    assert read_rejects(tmp_path / "merged") == read_rejects(tmp_path / "whole")
    merged, whole = (
        json.loads((tmp_path / name / "build.json").read_text())["counts"] for name in ("merged", "whole")
    )
    assert dict(sorted(merged.items())) == dict(sorted(whole.items()))
