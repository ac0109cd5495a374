"""Chromium without a window, spoken to over its debugging interface: pages are opened, clicked and looked at."""

import base64
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class BrowserError(Exception):
    """There is a browser, but it does not run here."""


class Page:
    """One page; what is said over the interface is a message and its answer, in a socket's frames (RFC 6455)."""

    def __init__(self, url: str) -> None:
        host, _, path = url.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=60)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self._socket.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass
        self._number, self.said = 0, list[str]()
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method; what the page's console says meanwhile is kept."""
        self._number += 1
        data = json.dumps({"id": self._number, "method": method, "params": parameters}).encode()
        length = (
            struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BH", 0xFE, len(data))
        )
        self._socket.sendall(b"\x81" + length + b"\0\0\0\0" + data)
        while True:
            message = json.loads(self._frame())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            entry = message.get("params", {}).get("entry", {})
            heard = message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
            if heard and entry.get("source") != "recommendation":
                self.said.append(json.dumps(message["params"]))

    def _frame(self) -> bytes:
        data, is_last = b"", False
        while not is_last:
            first, length = self._stream.read(2)
            is_last, length = bool(first & 0x80), length & 0x7F
            if length > 125:
                length = int.from_bytes(self._stream.read(2 if length == 126 else 8), "big")
            data += self._stream.read(length)
        return data

    def run(self, script: str) -> Any:
        """The value of an expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never: {script}"
            time.sleep(0.05)

    def size(self, width: int, height: int) -> None:
        """Of what is seen."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def opened(url: str) -> Iterator[Page]:
    """A page in a browser of its own."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={folder}", "--disable-dev-shm-usage", "--no-first-run", url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                port = _port(Path(folder) / "DevToolsActivePort")
                page = Page(_page_at(port))
                page.until(f"location.href == {url!r} && document.readyState == 'complete'")
                yield page
            finally:
                process.terminate()
                process.wait(30)


def _port(path: Path) -> int:
    end = time.monotonic() + 60
    while not path.exists() or not path.read_text().strip():
        if time.monotonic() > end:
            raise BrowserError("the browser does not start")
        time.sleep(0.05)
    return int(path.read_text().split()[0])


def _page_at(port: int) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
        pages = [each for each in json.load(answer) if each["type"] == "page"]
    url: str = pages[0]["webSocketDebuggerUrl"]
    return url


NO_BROWSER = CHROMIUM is None or "HOTCOLD_NO_BROWSER" in os.environ
