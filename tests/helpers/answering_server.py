"""A server that answers whatever a test wants."""

import json
import threading
import time
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


COLUMNS = ("rewards", "critiques", "critique_ids", "finish_reasons")

GOOD = {
    "reward": 0.5,
    "rewards": [0.5],
    "reward_std": 0.0,
    "critique": "c",
    "critiques": ["c"],
    "finish_reasons": ["stop"],
    "critique_ids": [[1]],
}


@contextmanager
def tricks(*answers):
    """Answers in turn: a status with headers and body, or `None` to hang up; the last one is repeated."""
    times = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = answers[min(len(times), len(answers) - 1)]
            times.append(time.monotonic())
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_header("Content-Length", str(len(content) + (10 if headers.get("X-Cut") else 0)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", times
    finally:
        server.shutdown()
        server.server_close()


def bomb(megabytes: int) -> bytes:
    """A JSON text of zeros, compressed to a thousandth."""
    gzip = zlib.compressobj(9, wbits=31)
    return b"".join(
        [gzip.compress(b'{"x": "'), *(gzip.compress(b"0" * 2**20) for _ in range(megabytes)), gzip.flush()]
    )
