"""A hub on this machine: the few of its addresses that fetching a model asks for."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by name, each with its files, and what goes wrong.

    Attributes:
        gated: repositories that want a token.
        breaks: how often a file is broken off in the middle before it comes whole.
        wrong_sums: files of which the hub says another SHA-256 than theirs.
        ranges: what was asked for behind a beginning, by file.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.gated: set[str] = set()
        self.breaks: dict[str, int] = {}
        self.wrong_sums: set[str] = set()
        self.missing: set[str] = set()
        self.ranges: list[tuple[str, str]] = []
        self.url = ""

    def digest(self, name: str, data: bytes) -> str:
        """As the hub says it."""
        return hashlib.sha256(data + (b"?" if name in self.wrong_sums else b"")).hexdigest()

    def tree(self, repo: str) -> list[dict[str, Any]]:
        """A repository's files."""
        return [
            {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
                "lfs": {"oid": self.digest(name, data), "size": len(data), "pointerSize": 130},
            }
            for name, data in self.repos[repo].items()
        ]


class _Handler(BaseHTTPRequestHandler):
    """Answers for a hub.

    Attributes:
        hub: set by who serves it.
    """

    hub: Hub

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if found := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            self._tree(found[1])
        elif found := re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)", self.path):
            self._file(found[1], found[2])
        else:
            self._end(404)

    def _allowed(self, repo: str) -> bool:
        if repo in self.hub.gated and self.headers.get("Authorization") != "Bearer hf_right":
            self._end(401, {"X-Error-Code": "GatedRepo"})
            return False
        if repo not in self.hub.repos:
            self._end(404, {"X-Error-Code": "RepoNotFound"})
            return False
        return True

    def _tree(self, repo: str) -> None:
        if self._allowed(repo):
            self._end(200, {"Content-Type": "application/json"}, json.dumps(self.hub.tree(repo)).encode())

    def _file(self, repo: str, name: str) -> None:
        if not self._allowed(repo):
            return
        if name in self.hub.missing:
            self._end(404, {"X-Error-Code": "EntryNotFound"})
            return
        data = self.hub.repos[repo][name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        begin, status = 0, 200
        if (wanted := self.headers.get("Range")) and self.command == "GET":
            begin, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            self.hub.ranges.append((name, wanted))
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        broken = self.command == "GET" and self.hub.breaks.get(name, 0) > 0
        self.hub.breaks[name] = self.hub.breaks.get(name, 0) - broken
        self._end(status, headers, data[begin:], len(data[begin:]) // 2 if broken else None)

    def _end(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        data: bytes = b"",
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True
            self.connection.close()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, listening on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
