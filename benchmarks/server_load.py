"""
Test a reward server under load: many concurrent clients send requests of mixed sizes, some of which are cancelled, malformed or over
the limits. Each reward is compared with the reward of the same chat when scored alone in this process. The test then checks the server's
memory, and that a shutdown under load leaves no response half-written. Writes a JSON summary, and fails if any check fails.

python benchmarks/server_load.py --requests 5000 --backend transformers
python benchmarks/server_load.py --requests 5000 --backend vllm
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import httpx
import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cloud_hf import CLoudForRewardModeling
from cloud_hf.data.shell_game import build_model_config, build_tokenizer


URL = "/v1/rewards"
MAX_NEW_TOKENS = 24
TOLERANCE = 1e-4
SERVER_LIMITS = {"max_queue": 48, "max_batch": 32, "max_body_bytes": 200_000, "max_new_tokens": MAX_NEW_TOKENS}
WORDS = [
    "cup",
    "ball",
    "swap",
    "under",
    "where",
    "is",
    "the",
    "now",
    "A",
    "B",
    "C",
    "D",
    "and",
    "<|im_end|>",
    "<|im_start|>",
    "naïve",
    "正しい",
    "42",
    ",",
    ".",
    "\n",
]

# Relative frequency of each kind of request
KINDS = {"single": 60, "batch": 10, "given": 5, "stream": 5, "cancelled": 8, "malformed": 7, "over_limits": 5}


@dataclass(frozen=True)
class Chat:
    """A prompt and a response, with the response's reward when scored alone, and its reward with a given critique."""

    prompt: object
    response: str
    reward: float
    critique: str
    given_reward: float


@dataclass
class Tally:
    """Outcomes of the requests."""

    kinds: Counter = field(default_factory=Counter)
    statuses: Counter = field(default_factory=Counter)
    outcomes: Counter = field(default_factory=Counter)
    rewards: int = 0
    worst: float = 0.0
    other_critiques: int = 0
    faults: list[str] = field(default_factory=list)

    def compare(self, chat: Chat, result: dict, given: bool):
        expected = chat.given_reward if given else chat.reward
        self.rewards += 1
        self.worst = max(self.worst, abs(result["reward"] - expected))
        if not given and result["critique"] != chat.critique:
            self.other_critiques += 1
        if abs(result["reward"] - expected) > TOLERANCE:
            self.fault(f"reward {result['reward']} instead of {expected}")

    def fault(self, what: str):
        self.faults.append(what[:300])


# ------------------------------------------------------------------------------------------------------- preparation


def make_model(folder: Path) -> CLoudForRewardModeling:
    """Save a random model with a large standard deviation of weights, so that greedy choices and rewards differ by more than rounding."""
    tokenizer = build_tokenizer()
    config = build_model_config(tokenizer)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = CLoudForRewardModeling.from_base(folder / "base", dtype=torch.float32).eval()
    torch.nn.init.normal_(model.reward_head.out_proj.weight, std=0.5)
    with torch.no_grad():  # so that some critiques end on their own
        model.get_output_embeddings().weight[model.config.critique_end_token_id] *= 1.5
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return model


def make_chats(model: CLoudForRewardModeling, tokenizer, count: int) -> list[Chat]:
    """Generate chats of 5 to about 300 tokens, and score each one alone."""
    generator = random.Random(0)

    def text(longest: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(1, longest)))

    chats = []
    for number in range(count):
        prompt = f"{number}: {text(generator.choice((5, 30, 120)))}"
        if number % 3 == 0:
            turns = [("system", text(10)), ("user", text(20) + "?"), ("assistant", text(20)), ("user", prompt)]
            prompt = [{"role": role, "content": content} for role, content in turns]
        response = text(generator.choice((5, 30, 60)))
        options = {"batch_size": 1, "max_new_tokens": MAX_NEW_TOKENS}
        [score] = model.score([prompt], [response], tokenizer, **options)
        [given] = model.score([prompt], [response], tokenizer, critiques=[GIVEN], **options)
        chats.append(Chat(prompt, response, score.reward, score.critique, given.reward))
    return chats


GIVEN = "The ball is under cup A."

MALFORMED = [
    b"{",
    b"[]",
    b'{"inputs": []}',
    b'{"inputs": [{"prompt": "x", "response": "y"}], "unknown": 1}',
    b'{"inputs": [{"prompt": "", "response": "y"}]}',
    b'{"inputs": [{"prompt": "x", "response": "y"}, {"prompt": " ", "response": "y"}]}',
    b'{"inputs": [{"prompt": "x\\ud800", "response": "y"}]}',
    b'{"inputs": [{"prompt": [{"role": "nobody", "content": 1}], "response": "y"}]}',
    b'{"inputs": [{"prompt": "x", "response": "y"}], "temperature": NaN}',
    b'{"inputs": [{"prompt": "x", "response": "y"}], "max_new_tokens": 0}',
    b'{"chats": [[{"role": "user", "content": "x"}]]}',
    b"\xff\xfe\x00",
]
OVER_LIMITS = [
    json.dumps({"inputs": [{"prompt": "x" * 300_000, "response": "y"}]}).encode(),
    json.dumps({"inputs": [{"prompt": "x", "response": "y"}] * 33}).encode(),
    json.dumps({"inputs": [{"prompt": "x", "response": "y"}], "max_new_tokens": MAX_NEW_TOKENS + 1}).encode(),
    json.dumps({"inputs": [{"prompt": "x y " * 20_000, "response": "y"}]}).encode(),
]


class Server:
    """The server in a separate process."""

    def __init__(self, folder: Path, args: argparse.Namespace, options: Sequence[str] = ()):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        command = [sys.executable, "-m", "cloud_hf.serving.server.app", str(folder), "--port", str(self.port)]
        command += ["--backend", args.backend, "--dtype", "float32"]
        command += options or [text for name, value in SERVER_LIMITS.items() for text in (f"--{name}", str(value))]
        if args.backend == "vllm":
            command += ["--vllm_options", args.vllm_options]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
        self.log_path = folder.parent / "server.log"
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait()

    def _wait(self):
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"The server exited: {self.log_path.read_text()[-3000:]}")
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise SystemExit("The server did not start in five minutes.")

    def memory_mb(self) -> float:
        """Return the resident memory of the process and its children."""
        root = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (root, *root.children(recursive=True))) / 2**20

    def log_lines(self) -> list[str]:
        return self.log_path.read_text().splitlines()


# ------------------------------------------------------------------------------------------------------------ clients


class Clients:
    """Many concurrent clients, each with one request in flight."""

    def __init__(self, server: Server, chats: list[Chat], args: argparse.Namespace):
        self.server = server
        self.chats = chats
        self.count = args.clients
        self.tally = Tally()

    async def run(self, requests: int, seed: int):
        """Send `requests` requests."""
        numbers = iter(range(requests))

        async def client(http: httpx.AsyncClient):
            for number in numbers:
                await self._send(http, random.Random(f"{seed}/{number}"))

        async with self._connections() as http:
            await asyncio.gather(*(client(http) for _ in range(self.count)))

    def _connections(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=self.count, max_keepalive_connections=self.count)
        return httpx.AsyncClient(base_url=self.server.url, timeout=300, limits=limits)

    async def _send(self, http: httpx.AsyncClient, generator: random.Random):
        [kind] = generator.choices(list(KINDS), KINDS.values())
        self.tally.kinds[kind] += 1
        if kind in ("malformed", "over_limits"):
            await self._send_bad(http, generator.choice(MALFORMED if kind == "malformed" else OVER_LIMITS))
            return
        chats = generator.choices(self.chats, k=generator.randint(2, 8) if kind == "batch" else 1)
        inputs = [{"prompt": chat.prompt, "response": chat.response} for chat in chats]
        if kind == "given":
            inputs[0]["critiques"] = [GIVEN]
        body = {"inputs": inputs}
        if kind == "stream":
            await self._send_stream(http, chats[0], {**body, "stream": True})
        elif kind == "cancelled":
            await self._send_cancelled(http, body, generator.uniform(0.0, 0.3))
        else:
            await self._send_good(http, chats, body, kind == "given")

    async def _send_good(self, http: httpx.AsyncClient, chats: list[Chat], body: dict, given: bool):
        while (response := await http.post(URL, json=body)).status_code == 429:
            self.tally.statuses[429] += 1
            await asyncio.sleep(float(response.headers["Retry-After"]) * random.uniform(0.1, 0.5))
        self.tally.statuses[response.status_code] += 1
        if response.status_code != 200:
            self.tally.fault(f"status {response.status_code}: {response.text}")
            return
        for chat, result in zip(chats, response.json()["results"], strict=True):
            self.tally.compare(chat, result, given)

    async def _send_stream(self, http: httpx.AsyncClient, chat: Chat, body: dict):
        while True:
            async with http.stream("POST", URL, json=body) as response:
                text = "".join([piece async for piece in response.aiter_text()])
            self.tally.statuses[response.status_code] += 1
            if response.status_code != 429:
                break
            await asyncio.sleep(0.3)
        *events, last, end = [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]
        result = json.loads(last).get("result")
        if end != "[DONE]" or result is None:
            self.tally.fault(f"a stream ends with {text[-200:]}")
            return
        if "".join(json.loads(event)["critique"] for event in events) != result["critique"]:
            self.tally.fault("the pieces of a stream do not add up to its critique")
        self.tally.compare(chat, result, given=False)

    async def _send_cancelled(self, http: httpx.AsyncClient, body: dict, seconds: float):
        try:
            response = await http.post(URL, json=body, timeout=httpx.Timeout(300, read=seconds))
            self.tally.outcomes["answered before it was cancelled"] += 1
            self.tally.statuses[response.status_code] += 1
        except httpx.ReadTimeout:
            self.tally.outcomes["cancelled"] += 1

    async def _send_bad(self, http: httpx.AsyncClient, content: bytes):
        try:
            response = await http.post(URL, content=content, headers={"Content-Type": "application/json"})
        except httpx.WriteError:
            self.tally.outcomes["cut off while sending too much"] += 1
            return
        self.tally.statuses[response.status_code] += 1
        if response.status_code not in (400, 413, 422, 429) or not response.json()["error"]:
            self.tally.fault(f"status {response.status_code} for {content[:80]!r}")

    async def run_into_shutdown(self, seconds: float) -> Counter:
        """Send requests, tell the server to stop after `seconds`, and continue until it accepts no more connections."""
        seen = Counter()

        async def client(http: httpx.AsyncClient, generator: random.Random):
            while True:
                chat = generator.choice(self.chats)
                body = {"inputs": [{"prompt": chat.prompt, "response": chat.response}]}
                try:
                    response = await http.post(URL, json=body)
                except (httpx.ConnectError, httpx.ReadError, httpx.WriteError):
                    seen["not taken"] += 1
                    return
                except httpx.RemoteProtocolError as error:
                    seen["not taken" if "without sending a response" in str(error) else "half-written"] += 1
                    return
                seen[str(response.status_code)] += 1
                if response.status_code == 200:
                    self.tally.compare(chat, response.json()["results"][0], given=False)
                elif response.status_code == 503:
                    return
                else:
                    await asyncio.sleep(0.2)

        async def stop():
            await asyncio.sleep(seconds)
            self.server.process.send_signal(signal.SIGTERM)

        async with self._connections() as http:
            await asyncio.gather(stop(), *(client(http, random.Random(number)) for number in range(self.count)))
        return seen


# --------------------------------------------------------------------------------------------------------------- main


def measure(args: argparse.Namespace, folder: Path) -> dict:
    model = make_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    print(f"Scoring {args.chats} chats alone …", flush=True)
    chats = make_chats(model, tokenizer, args.chats)
    del model
    server = Server(folder / "model", args)
    try:
        clients = Clients(server, chats, args)
        memory = [server.memory_mb()]
        tenths, started = 10, time.perf_counter()
        for tenth in range(tenths):
            asyncio.run(clients.run(args.requests // tenths, seed=tenth))
            memory.append(server.memory_mb())
            print(f"{(tenth + 1) * 10} %: {memory[-1]:.0f} MB, {len(clients.tally.faults)} faults", flush=True)
        seconds = time.perf_counter() - started
        queue_length = read_metric(server, "cloud_queue_length")
        shutdown = asyncio.run(clients.run_into_shutdown(seconds=2.0))
        exit_code = server.process.wait(timeout=120)
    finally:
        if server.process.poll() is None:
            server.process.kill()
    tally = clients.tally
    return {
        "backend": args.backend,
        "requests": sum(tally.kinds.values()),
        "clients": args.clients,
        "kinds": dict(sorted(tally.kinds.items())),
        "statuses": {str(status): number for status, number in sorted(tally.statuses.items())},
        "outcomes": dict(sorted(tally.outcomes.items())),
        "rewards_compared": tally.rewards,
        "largest_difference": tally.worst,
        "other_critiques": tally.other_critiques,
        "faults": len(tally.faults),
        "first_faults": tally.faults[:5],
        "seconds": round(seconds, 1),
        "requests_per_second": round(sum(tally.kinds.values()) / seconds, 1),
        "queue_length_afterwards": queue_length,
        "memory_mb_at_start_and_after_each_tenth": [round(value) for value in memory],
        "memory_growth": round(fmean(memory[-3:]) / fmean(memory[-7:-4]) - 1, 4),
        "shutdown_under_load": dict(sorted(shutdown.items())),
        "exit_code": exit_code,
        "log_lines_with_chat_text": sum("im_start" in line or "naïve" in line for line in server.log_lines()),
    }


def read_metric(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def problems(summary: dict) -> list[str]:
    """Return a description of each problem found in a run."""
    found = []
    if summary["faults"]:
        found.append(f"{summary['faults']} faults, the first of which is: {summary['first_faults'][0]}")
    if "500" in summary["statuses"] or "500" in summary["shutdown_under_load"]:
        found.append("there were responses with status 500")
    if summary["queue_length_afterwards"]:
        found.append("places in the queue were not released")
    if summary["memory_growth"] > 0.05:
        found.append(
            f"memory grew by {summary['memory_growth']:.1%} between the fourth to sixth tenths of the run and the last three"
        )
    if summary["shutdown_under_load"].get("half-written") or summary["exit_code"]:
        found.append("the shutdown was not clean")
    if summary["log_lines_with_chat_text"]:
        found.append("the log contains text from chats")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--chats", type=int, default=200, help="Number of distinct chats in the requests.")
    # Use a small KV cache, because vLLM's memory grows until the entire cache has been written once
    parser.add_argument("--vllm_options", default='{"max_model_len": 2048, "num_gpu_blocks_override": 512}')
    parser.add_argument("--output", default="benchmarks/results/server_load.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summary = measure(args, Path(folder))
    output = Path(args.output)
    results = json.loads(output.read_text()) if output.exists() else {}
    output.write_text(json.dumps({**results, args.backend: summary}, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    if found := problems(summary):
        raise SystemExit(f"Checks failed: {'; '.join(found)}.")


if __name__ == "__main__":
    main()
