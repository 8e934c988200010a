"""
Models and real servers for the tests of serving. As a script, a server that starts when it is sent a line:

python tests/helpers/servers_for_tests.py MODEL PORT SECONDS_PER_BATCH
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from subprocess import PIPE

import httpx
import torch
from models_for_tests import PROMPTS, RESPONSES, make_model, save_language_model
from tokenizers_for_tests import make_tokenizer

from cloud_hf.loading import load_reward_model
from cloud_hf.serving.server.app import make_app, make_server
from cloud_hf.serving.server.engine import TransformersEngine


BUDGET = 12


def tokenizer_of(family: str):
    return make_tokenizer(family)


def make_talker(folder):
    """A model that ends its critiques at different lengths, some of them not within the budget."""
    model = make_model(save_language_model(folder, seed=3))
    with torch.no_grad():
        model.get_output_embeddings().weight[model.config.critique_end_token_id] *= 1.3
    scores = model.score(PROMPTS * 2, RESPONSES + RESPONSES[::-1], make_tokenizer("llama3"), max_new_tokens=BUDGET)
    assert {reason for score in scores for reason in score.finish_reasons} == {"stop", "length"}
    return model


class SlowEngine(TransformersEngine):
    """Takes `seconds` longer over each batch, so that requests meet; `computed` counts its jobs."""

    seconds = 0.0
    computed = 0

    def _compute(self, batch):
        time.sleep(self.seconds)
        scores = super()._compute(batch)
        self.computed += len(batch)
        return scores


def make_engine(model, seconds: float = 0.0, family: str = "llama3", batch_size: int = 16) -> SlowEngine:
    engine = SlowEngine(model, make_tokenizer(family), batch_size)
    engine.seconds = seconds
    return engine


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Running:
    """A server in a thread."""

    def __init__(self, app, port: int | None = None, shutdown_grace: float = 30.0):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = app
        self.server = make_server(app, port=self.port, shutdown_grace=shutdown_grace)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
            assert self.thread.is_alive()

    def terminate(self):
        """What a SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def stop(self):
        self.terminate()
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


@contextmanager
def serving(engine, *, port=None, shutdown_grace=30.0, **options):
    """A running server and a client for it."""
    running = Running(make_app(engine, **options), port, shutdown_grace)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            yield running, http
    finally:
        running.stop()


def start_process(folder, port: int, seconds: float) -> subprocess.Popen:
    """A server in its own process, which loads its model at once."""
    command = [sys.executable, __file__, str(folder), str(port), str(seconds)]
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, text=True)


@contextmanager
def vllm_server(folder, name: str, log, *options):
    """vLLM's own OpenAI server with a model, in its own process. Yields the URL of its API."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        folder,
        "--served-model-name",
        name,
    ]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager"]
    command += ["--no-enable-chunked-prefill", *options]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(list(map(str, command)), env=environment, stdout=out, stderr=out)
    try:
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def listen(process: subprocess.Popen):
    """Let it open its port, once its model is loaded."""
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


if __name__ == "__main__":
    model, _ = load_reward_model(sys.argv[1])
    app = make_app(make_engine(model, float(sys.argv[3]), batch_size=8))
    print("ready", flush=True)
    sys.stdin.readline()
    make_server(app, port=int(sys.argv[2])).run()
