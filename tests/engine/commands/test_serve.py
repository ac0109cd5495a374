"""`hotcold serve`: where it listens, what signals mean, and how it refuses to begin."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from commands import compile_kernels, run
from serving import Served, until


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Served]]:
    """The command in a process of its own, once it listens."""
    compile_kernels()
    command = [sys.executable, "-m", "hotcold", "serve", "--port", "0", "-t", "1", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"listening on http://[^ ]*:(\d+)$", line.rstrip()):
                    break
            else:
                pytest.fail("it ended before it listened")
            yield process, Served(int(found[1]))
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_answers_end_before_the_server_does(number: signal.Signals, code: int) -> None:
    with serving() as (process, server):
        assert server.ask("/health").json == {"status": "ok"}
        body = {"prompt": "Emma", "max_tokens": 300, "ignore_eos": True, "stream": True}
        connection = server.open("/v1/completions", body)
        answer = connection.recv(2000)
        assert b"200 OK" in answer
        process.send_signal(number)
        while part := connection.recv(65536):
            answer += part
        assert b'"finish_reason":"length"' in answer and b"data: [DONE]" in answer
        assert process.wait(60) == code


def test_a_second_signal_stops_answers() -> None:
    with serving("-c", "4096") as (process, server):
        connection = server.open("/v1/completions", {"prompt": "Emma", "max_tokens": -1, "ignore_eos": True})
        until(lambda: b"hotcold_running 1.0" in server.ask("/metrics").body)
        process.send_signal(signal.SIGTERM)
        until(lambda: not listens(server))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        with suppress(OSError):
            assert b"finish_reason" not in connection.recv(65536)
        connection.close()


@pytest.mark.slow
def test_killed_and_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is free at once, nothing half-written stays, and the answer is the same."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    body = {"prompt": "Emma", "max_tokens": 30, "temperature": 0.8, "seed": 7}
    with serving() as (process, server):
        port, first = server.port, server.ask("/v1/completions", body).json["choices"][0]["text"]
        connection = server.open("/v1/completions", body | {"max_tokens": 400, "stream": True})
        assert b"200 OK" in connection.recv(2000)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        with suppress(OSError):
            while connection.recv(65536):
                pass
        connection.close()
    assert not list(tmp_path.iterdir())
    with serving("--port", str(port)) as (_, server):
        assert server.port == port
        assert server.ask("/v1/completions", body).json["choices"][0]["text"] == first


@pytest.mark.slow
def test_what_is_half_open_ends_with_the_server() -> None:
    """A head that is not whole, and a reader that takes nothing, hold up no end."""
    with serving() as (process, server):
        half = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n")
        idle = server.open("/v1/completions", {"prompt": "Emma", "max_tokens": 5, "stream": True})
        until(lambda: b"hotcold_answers_total" in server.ask("/metrics").body)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert half.recv(10) == b"" and b"data: [DONE]" in idle.recv(65536)
        half.close()
        idle.close()


def listens(server: Served) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", server.port)):
        return True
    return False


def test_it_refuses_to_begin() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", "--port", port)
        assert (
            result.returncode == 2 and f"address: 127.0.0.1:{port} (Address already in use)" in result.stderr
        )
    result = run("serve", "--port", "65536")
    assert result.returncode == 2 and "--port: 65536 (0 to 65535)" in result.stderr
    result = run("serve", "--host", "no.such.host.invalid")
    assert result.returncode == 2 and "--host: no.such.host.invalid" in result.stderr
    result = run("serve", "--port", "0", "-m", "missing.gguf")
    assert result.returncode == 3 and "missing.gguf" in result.stderr
    result = run("serve", "--port", "0", "--chat-template", "missing.jinja")
    assert result.returncode == 3 and "missing.jinja" in result.stderr
    result = run("serve", "--port", "0", "--api-key", "")
    assert result.returncode == 2 and '--api-key: "" (no key); name one, or' in result.stderr
    result = run("serve", "--port", "0", "-m", "missing.gguf", HOTCOLD_API_KEY="")
    assert result.returncode == 2 and "leave out --api-key and HOTCOLD_API_KEY" in result.stderr


def test_a_template_that_is_none_is_refused_before_somebody_asks(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jinja"
    wrong.write_text("{{ foo(")
    result = run("serve", "--port", "0", "--chat-template", str(wrong), "-q")
    assert result.returncode == 3 and "chat template of wrong.jinja: line 1: " in result.stderr


def test_everybody_who_may_ask_is_said() -> None:
    result = run("serve", "--host", "0.0.0.0", "--port", "0", "-m", "missing.gguf", "-q")
    assert "warning: everybody who reaches 0.0.0.0 may ask; --api-key KEY" in result.stderr
    result = run("serve", "--host", "0.0.0.0", "--port", "0", "-m", "missing.gguf", "--api-key", "a")
    assert "warning" not in result.stderr
    result = run("serve", "--host", "0.0.0.0", "--port", "0", "-m", "missing.gguf", HOTCOLD_API_KEY="a")
    assert "warning" not in result.stderr


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(
        sys.modules, "hotcold.engine.serve.connection", raising=False
    )  # which has imported it
    result = run("serve", "--port", "0")
    assert result.returncode == 2 and "pip install 'hotcold[serve]'" in result.stderr
