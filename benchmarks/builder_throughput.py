"""
Measure the speed and memory of a data builder that sends 64 concurrent requests to a loopback server, which responds after 200 ms.

- builder: `build_dataset`, from the first request to the written dataset; `asking` is the time until the last response arrives.
- client: a bare asyncio loop over the same client library, with the same requests.
- aiohttp: a bare asyncio loop over aiohttp.
- memory: the peak resident memory of a builder with 300,000 rows and a server that responds immediately, and the journal's bytes
  per row.

The physical limit is 64 / 0.2 s = 320 requests per second.

python benchmarks/builder_throughput.py
python benchmarks/builder_throughput.py --memory_rows 0   # skip the slow memory measurement
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from datasets import Dataset, Features, Value
from openai import AsyncOpenAI, DefaultAioHttpClient
from recording import save

from cloud_hf.data.build_run import JournaledClient, build_dataset
from cloud_hf.data.completions import CompletionClient
from cloud_hf.data.critique_prompt import messages_for_critic
from cloud_hf.data.dataset_folder import JOURNAL, DatasetFolder


CAPACITY = 64
LATENCY = 0.2  # seconds
ANSWER = "The response is right, and says why. " * 20
LIMITS = {"builder / client": 0.95, "builder / aiohttp": 0.88}
MEMORY_LIMIT_MB = 1000


def serve(connection, latency: float):
    """Serve in a separate process, and send the server's address over `connection`."""

    async def main():
        places = asyncio.Semaphore(CAPACITY)
        body = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}]}
        text = json.dumps(body)

        async def answer(request: web.Request) -> web.Response:
            await request.read()
            async with places:
                await asyncio.sleep(latency)
            return web.Response(text=text, content_type="application/json")

        async def models(request: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "tiny"}]})

        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        connection.send(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1")
        await asyncio.Event().wait()

    asyncio.run(main())


def start_server(latency: float) -> tuple[multiprocessing.Process, str]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, latency), daemon=True)
    process.start()
    return process, ours.recv()


def make_rows(count: int) -> Dataset:
    return Dataset.from_dict(
        {"id": [str(index) for index in range(count)], "prompt": [f"What is {index}?" for index in range(count)]}
    )


def messages_of(row: dict) -> list[dict]:
    return messages_for_critic(row["prompt"], f"It is {row['id']}. " * 20)


# ----------------------------------------------------------------------------------------------------------- sides


def run_builder(rows: Dataset, url: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        last_asked = start = time.perf_counter()

        def make_work(critic: JournaledClient):
            async def work(row: dict) -> list[dict]:
                nonlocal last_asked
                before = client.counts.answered
                answer = await critic.chat([row["id"]], messages_of(row), max_tokens=256)
                if client.counts.answered > before:
                    last_asked = time.perf_counter()
                return [{**row, "critique": answer.text}]

            return work

        features = Features({**rows.features, "critique": Value("string")})
        client = CompletionClient([url], "tiny", max_concurrency=CAPACITY)
        output = DatasetFolder(folder, "Throughput", {})
        asyncio.run(build_dataset(output, rows, features, {"critic": client}, make_work))
        return {
            "seconds": time.perf_counter() - start,
            "asking_seconds": last_asked - start,
            "journal_bytes_per_row": Path(folder, JOURNAL).stat().st_size / len(rows),
        }


def run_loop(rows: Dataset, open_asking) -> dict[str, float]:
    """Send requests from `CAPACITY` workers that do nothing else."""

    async def main():
        indices = iter(range(len(rows)))
        async with open_asking() as ask:

            async def work():
                for index in indices:
                    await ask(messages_of(rows[index]))

            await asyncio.gather(*(work() for _ in range(CAPACITY)))

    start = time.perf_counter()
    asyncio.run(main())
    return {"seconds": time.perf_counter() - start}


def run_client(rows: Dataset, url: str) -> dict[str, float]:
    @asynccontextmanager
    async def open_asking():
        async with AsyncOpenAI(base_url=url, api_key="none", http_client=DefaultAioHttpClient()) as client:

            async def ask(messages: list[dict]) -> str:
                answer = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=256)
                return answer.choices[0].message.content

            yield ask

    return run_loop(rows, open_asking)


def run_aiohttp(rows: Dataset, url: str) -> dict[str, float]:
    @asynccontextmanager
    async def open_asking():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CAPACITY)) as session:

            async def ask(messages: list[dict]) -> str:
                body = {"model": "tiny", "messages": messages, "max_tokens": 256}
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    return (await response.json())["choices"][0]["message"]["content"]

            yield ask

    return run_loop(rows, open_asking)


SIDES = {"builder": run_builder, "client": run_client, "aiohttp": run_aiohttp}


# ------------------------------------------------------------------------------------------------------- measuring


def in_process(function, *args):
    """Return the result of a function in a fresh process, so that no side warms up another."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def measure_side(name: str, count: int, url: str) -> dict[str, float]:
    rows = make_rows(count)
    SIDES[name](make_rows(CAPACITY), url)  # warm up connections and imports
    return SIDES[name](rows, url)


def measure_memory(count: int, url: str) -> dict[str, float]:
    result = run_builder(make_rows(count), url)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        **result,
        "rows": count,
        "peak_resident_mb": peak,
        "limit_mb": MEMORY_LIMIT_MB,
        "reached": peak < MEMORY_LIMIT_MB,
    }


def measure(args: argparse.Namespace) -> dict:
    server, url = start_server(LATENCY)
    runs: dict[str, list[dict]] = {name: [] for name in SIDES}
    for number in range(args.rounds):
        shift = number % len(SIDES)
        for name in [*SIDES][shift:] + [*SIDES][:shift]:
            run = in_process(measure_side, name, args.rows, url)
            runs[name].append(run)
            print(f"round {number}: {name} {args.rows / run['seconds']:.1f} requests/s", flush=True)
    server.terminate()
    rates = {name: [args.rows / run["seconds"] for run in of_side] for name, of_side in runs.items()}
    asking = [args.rows / run["asking_seconds"] for run in runs["builder"]]
    ratios = {}
    for label, limit in LIMITS.items():
        other = rates[label.split(" / ")[1]]
        for name, ours in ((label, rates["builder"]), (f"{label}, while asking", asking)):
            value = statistics.median(a / b for a, b in zip(ours, other, strict=True))
            ratios[name] = {"value": value, "limit": limit, "reached": value >= limit}
    return {
        "rows": args.rows,
        "rounds": args.rounds,
        "physical_limit_requests_per_second": CAPACITY / LATENCY,
        "requests_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "builder_while_asking": statistics.median(asking),
        "ratios": ratios,
        "journal_bytes_per_row": runs["builder"][0]["journal_bytes_per_row"],
        "answer_bytes": len(ANSWER),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory_rows", type=int, default=300_000)
    parser.add_argument("--output", default="benchmarks/results/builder_throughput.json")
    args = parser.parse_args()
    result = measure(args)
    if args.memory_rows:
        server, url = start_server(0.0)
        result["memory"] = in_process(measure_memory, args.memory_rows, url)
        server.terminate()
    print(save(args.output, result))


if __name__ == "__main__":
    main()
