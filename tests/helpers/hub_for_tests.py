"""A Hub on loopback that serves folders as repositories of models and datasets, for tests of what is loaded by a Hub id."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


COMMIT = "0" * 40


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body):
        if match := re.match(r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)", self.path):
            return self._send_info(match[1])
        match = re.match(r"/(?:datasets/)?([\w.-]+/[\w.-]+)/resolve/[\w.-]+/([^?]+)", self.path)
        repo = self.server.repos.get(match[1]) if match else None
        if repo is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        path = repo / match[2]
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status = 200
        if match := re.match(r"bytes=(\d+)-(\d+)?", self.headers.get("Range", "")):
            status, first, last = 206, int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        if with_body:
            self.server.sent[path.name] = self.server.sent.get(path.name, 0) + len(content)
        self._send(status, content, headers, with_body)

    def _send_info(self, name):
        repo = self.server.repos.get(name)
        if repo is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = sorted(str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_file())
        if match := re.search(r"/tree/[\w.-]+/?([^?]*)", self.path):
            if not (repo / match[1]).is_dir():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            if "recursive=true" not in self.path.lower():
                files = sorted(str(path.relative_to(repo)) for path in (repo / match[1]).iterdir())
            info = [_entry(repo, file) for file in files]
        else:
            info = {
                "id": name,
                "sha": COMMIT,
                "siblings": [{"rfilename": file} for file in files],
            }
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers, with_body=True):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


def _entry(repo: Path, path: str) -> dict:
    file = repo / path
    kind = "directory" if file.is_dir() else "file"
    return {"type": kind, "path": path, "size": file.stat().st_size, "oid": COMMIT}


@contextmanager
def serve_hub(repos: dict[str, Path]):
    """Serve folders by repository name; the server's `sent` says how many bytes of each file went out."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.repos, server.sent = repos, {}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def run_with_hub(server, cache: Path, *command: str) -> subprocess.CompletedProcess:
    """Run Python in a process that takes the server for the Hub."""
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    env = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run([sys.executable, *map(str, command)], env=env, capture_output=True, text=True)
