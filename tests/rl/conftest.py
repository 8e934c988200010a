"""A reward server in this process, for what talks to one."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from transformers import AutoTokenizer

from cloud_hf.scoring import TransformersScorer
from cloud_hf.serving.server.app import make_app
from cloud_hf.serving.server.engine import TransformersEngine


@contextmanager
def running(app):
    """Serve an application from a thread; gives host and port."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def tokenizer(base_folder):
    return AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture
def scorer(model, tokenizer):
    return TransformersScorer(model, tokenizer)


@pytest.fixture
def classic_scorer(classic_model, tokenizer):
    return TransformersScorer(classic_model, tokenizer)


@pytest.fixture
def classic_server(classic_model, tokenizer):
    """Address of a server of `classic_model`."""
    with running(make_app(TransformersEngine(classic_model, tokenizer))) as address:
        yield address


@pytest.fixture
def reward_server(model, tokenizer):
    """Address of a server of `model`."""
    with running(make_app(TransformersEngine(model, tokenizer))) as address:
        yield address
