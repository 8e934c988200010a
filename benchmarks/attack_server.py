"""
Attack a reward server on the loopback address: honest clients work while one attacker sends each kind of hostile request in turn. For
each attack, prints the p99 latency of honest requests, the slowest response from `/health`, the memory growth and how much of it remains
afterwards, and the number of wrong rewards. Then prints how long the server takes to stop under attack, after one SIGTERM and after a
second one. Fails if any bound is exceeded.

python benchmarks/attack_server.py --seconds 120 --clients 32
python benchmarks/attack_server.py --seconds 10 --clients 8 --attacks marks turns       # a quick look
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from server_load import MAX_NEW_TOKENS, TOLERANCE, URL, Chat, Server, make_chats, make_model
from transformers import AutoTokenizer


MB = 2**20
GRACE = 4.0

USER, ASSISTANT = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
CONTROL = "<|im_end|><think>x</think>"


def scored(prompt: object, response: object = "y", **fields) -> dict:
    return {"inputs": [{"prompt": prompt, "response": response, **fields}]}


def turns(count: int, content: str, **fields) -> list[dict]:
    return [{**USER, "content": content}, {**ASSISTANT, "content": content, **fields}] * count + [USER]


# Path and body of each request by attack; all bodies are below the default limit of 4 MiB
BODIES = {
    "marks": [
        ("/get_reward", {"query": ["<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n" + "<|im_end|>" * n + "x"]})
        for n in (20_000, 400_000)
    ],
    "turns": [
        (URL, scored(turns(2500, CONTROL))),
        (URL, scored(turns(20_000, CONTROL))),
        (URL, scored([{"role": f"r{n}", "content": "x"} for n in range(20_000)] + [USER])),
        (URL, scored([{**USER, "content": f"<|im_end|>{n}" * 100} for n in range(2000)])),
    ],
    "values": [
        (URL, scored([0] * 2_000_000)),
        (URL, scored([{}] * 1_300_000)),
        (URL, scored([USER], {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "[" + "0," * 1_900_000 + "0]"}}]})),
        ("/get_reward", {"query": [0] * 1_900_000}),
        (URL, {f"k{n}": 0 for n in range(300_000)}),
    ],
    "critiques": [
        (URL, scored("x", "y " * 250_000, critiques=["z"] * 64)),
        (URL, scored([USER, ASSISTANT] * 30_000 + [USER])),
        (URL, scored("x", "y " * 250, critiques=["z" * 10_000] * 256)),
    ],
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- attacker


async def send(port: int, content: bytes, pause: float = 0.0) -> bytes:
    """Send bytes in pieces, and return the start of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for start in range(0, len(content), 2**18):
            writer.write(content[start : start + 2**18])
            await writer.drain()
            await asyncio.sleep(pause)
        return await reader.read(2**12)
    finally:
        writer.close()


def post(path: str, body: bytes, length: int | None = None, method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


def hostile_requests(attack: str) -> list[bytes]:
    """Return the requests of an attack."""
    if attack == "connections":
        filler = b" " * (4 * MB - 1000)
        head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"".join(
            b"X-%d: %s\r\n" % (n, b"a" * 8000) for n in range(250)
        )
        return [
            post("/health", filler, len(filler) + 10, "GET"),
            post(URL, filler, len(filler) + 10),
            head,
            post(URL, b"{", 100),
            b"GET /health HTTP/1.1\r\nX",
        ]  # fmt: skip
    return [post(path, json.dumps(body, separators=(",", ":")).encode()) for path, body in BODIES[attack]]


async def attack_server(port: int, attack: str, connections: int):
    """Keep sending the requests of an attack over several concurrent connections, and print the statuses on SIGTERM."""
    requests, seen = hostile_requests(attack), Counter()

    async def attacker(number: int):
        while True:
            try:
                answer = await send(port, requests[number % len(requests)])
                seen[answer[9:12].decode(errors="replace") or "closed"] += 1
            except OSError:
                seen["closed"] += 1
                await asyncio.sleep(0.05)
            number += 1

    print("ready", flush=True)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    count = 16 * connections if attack == "connections" else connections
    attackers = [asyncio.create_task(attacker(number)) for number in range(count)]
    await stopped.wait()
    for task in attackers:
        task.cancel()
    print(json.dumps(seen))


class Attacker:
    """An attacker in a separate process; without an attack, there is no process."""

    def __init__(self, port: int, attack: str | None, connections: int):
        command = [sys.executable, __file__, "--attack_port", str(port), "--attacks", str(attack)]
        command += ["--connections", str(connections)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if attack else None
        if self.process is not None:
            assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.statuses = {}
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.statuses = json.loads(self.process.communicate(timeout=30)[0] or "{}")


# ------------------------------------------------------------------------------------------------------ honest clients


@dataclass
class Phase:
    """Measurements of honest clients during one attack."""

    attack: str | None
    seconds: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: int = 0
    given_back: float = 0.0

    async def work(self, server: Server, chats: list[Chat], clients: int, seconds: float):
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
            await asyncio.gather(
                self._watch(server, end), *(self._ask(http, chats, end, number) for number in range(clients))
            )

    async def _ask(self, http: httpx.AsyncClient, chats: list[Chat], end: float, number: int):
        generator = random.Random(number)
        while time.monotonic() < end:
            chat = generator.choice(chats)
            body = {**scored(chat.prompt, chat.response), "max_new_tokens": MAX_NEW_TOKENS}
            started = time.monotonic()
            try:
                answer = await http.post(URL, json=body)
            except httpx.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.seconds.append(time.monotonic() - started)
            self.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                self.wrong += abs(answer.json()["results"][0]["reward"] - chat.reward) > TOLERANCE

    async def _watch(self, server: Server, end: float):
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
            while time.monotonic() < end:
                for path in ("/health", "/metrics"):
                    started = time.monotonic()
                    (await http.get(path)).raise_for_status()
                    self.health.append(time.monotonic() - started)
                self.memory.append(server.memory_mb())
                await asyncio.sleep(0.1)

    def summary(self, before: float, statuses: dict) -> dict:
        return {
            "honest_requests": len(self.seconds),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "p50": round(float(np.percentile(self.seconds, 50)), 3),
            "p99": round(float(np.percentile(self.seconds, 99)), 3),
            "health_max": round(max(self.health), 3),
            "memory_growth_mb": round(max(self.memory) - before),
            "memory_kept_mb": round(self.given_back - before),
            "wrong_rewards": self.wrong,
            "attacker_statuses": statuses,
        }


def run_phase(server: Server, chats: list[Chat], args: argparse.Namespace, attack: str | None) -> dict:
    phase, before = Phase(attack), server.memory_mb()
    with Attacker(server.port, attack, args.connections) as attacker:
        asyncio.run(phase.work(server, chats, args.clients, args.seconds))
    time.sleep(3)
    phase.given_back = server.memory_mb()
    summary = phase.summary(before, attacker.statuses)
    print(attack, json.dumps(summary), flush=True)
    return summary


def seconds_to_stop(server: Server, args: argparse.Namespace, attack: str, signals: int) -> float:
    """Send one or two SIGTERMs under attack, and return the seconds from the last one until the process exits."""
    with Attacker(server.port, attack, args.connections):
        time.sleep(min(args.seconds, 5.0))
        for _ in range(signals):
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5 * (signals - 1))
        server.process.wait(timeout=120)
        return time.monotonic() - started


def measure(args: argparse.Namespace, folder: Path) -> dict:
    model = make_model(folder)
    chats = make_chats(model, AutoTokenizer.from_pretrained(folder / "model"), args.chats)
    del model
    options = ["--shutdown_grace", str(GRACE), "--max_new_tokens", str(MAX_NEW_TOKENS)]
    server = Server(folder / "model", args, options)
    try:
        phases = {str(attack): run_phase(server, chats, args, attack) for attack in (None, None, *args.attacks)}
        stop = seconds_to_stop(server, args, "turns", 1)
        server = Server(folder / "model", args, options)
        stop_again = seconds_to_stop(server, args, "turns", 2)
    finally:
        if server.process.poll() is None:
            server.process.kill()
    return {
        "backend": args.backend,
        "phases": phases,
        "sigterm": round(stop, 2),
        "second_sigterm": round(stop_again, 2),
    }


def problems(summary: dict) -> list[str]:
    """Return a description of each bound that was exceeded."""
    found, calm = [], summary["phases"]["None"]
    for attack, phase in summary["phases"].items():
        bounds = {
            "p99": 2 * calm["p99"] + 1,
            "health_max": 0.5,
            "memory_growth_mb": 300,
            "memory_kept_mb": 100,
            "wrong_rewards": 0,
        }
        found += [f"{attack}: {name} is {phase[name]}" for name, bound in bounds.items() if phase[name] > bound]
        if set(phase["statuses"]) != {"200"} or "500" in phase["attacker_statuses"]:
            found.append(f"{attack}: statuses {phase['statuses']}, attacker statuses {phase['attacker_statuses']}")
    stops = {"sigterm": GRACE + 1, "second_sigterm": 1.0}
    return found + [f"{name} takes {summary[name]} s" for name, bound in stops.items() if summary[name] > bound]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--seconds", type=float, default=120.0, help="Duration of each attack in seconds.")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--connections", type=int, default=16, help="Number of connections that the attacker opens concurrently."
    )
    parser.add_argument("--attacks", nargs="*", default=[*BODIES, "connections"])
    parser.add_argument("--chats", type=int, default=50, help="Number of distinct chats that honest clients send.")
    parser.add_argument("--vllm_options", default='{"max_model_len": 2048, "num_gpu_blocks_override": 512}')
    parser.add_argument("--attack_port", type=int, help="Only run the attacker, against the server on this port.")
    parser.add_argument("--output", default="benchmarks/results/attack_server.json")
    args = parser.parse_args()
    if args.attack_port:
        asyncio.run(attack_server(args.attack_port, args.attacks[0], args.connections))
        return
    with tempfile.TemporaryDirectory() as folder:
        summary = measure(args, Path(folder))
    output = Path(args.output)
    results = json.loads(output.read_text()) if output.exists() else {}
    output.write_text(json.dumps({**results, args.backend: summary}, indent=2) + "\n")
    if found := problems(summary):
        raise SystemExit(f"Bounds exceeded: {'; '.join(found)}.")


if __name__ == "__main__":
    main()
