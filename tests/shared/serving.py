"""A server of the engine in this process, and requests to it as they come over the wire."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from hotcold import Engine
from hotcold.engine.serve.app import ServeOptions, app
from hotcold.engine.serve.connection import Connection

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}\"{{ m.content }}\" said Elizabeth.\n"
    "{% elif m.role == 'tool' %}{{ raise_exception('no tools') }}{% else %}{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}\n{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Told:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Of its body."""
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """Of an error."""
        text: str = self.json["error"]["message"]
        return text

    @property
    def events(self) -> list[Any]:
        """Objects of a stream; its end has to be marked."""
        blocks = [block for block in self.body.decode().split("\n\n") if block.startswith("data: ")]
        assert blocks[-1] == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


@dataclass(frozen=True)
class Served:
    """Where a server listens."""

    port: int

    @property
    def base_url(self) -> str:
        """As OpenAI's client wants it."""
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str) -> Told:
        """One request: a body of bytes is sent as it is, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if data is None else "POST"), path, data, named)
            response = connection.getresponse()
            return Told(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def open(self, path: str, body: Any) -> socket.socket:
        """A connection on which a request was sent, and nothing read."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(head.encode() + data)
        return connection


@contextmanager
def served(engine: Engine, **options: Any) -> Iterator[Served]:
    """Serve in a thread of this process, until the block ends."""
    application = app(engine, ServeOptions(**options))
    config = uvicorn.Config(application, http=Connection, ws="none", lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            until(lambda: server.started)
            yield Served(port)
        finally:
            server.should_exit = True
            thread.join()


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
