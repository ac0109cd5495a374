"""Clients that vanish, a full queue, thoughts, pings, a device that fails, an end while answers run."""

import asyncio
import ctypes
import gc
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from serving import Served, served, until
from table_models import table_model

import hotcold.serve
from hotcold import Engine, load
from hotcold.engine.generation import rows
from hotcold.engine.generation.not_finite import check_finite
from hotcold.engine.serve import connection, responses, worker
from hotcold.errors import DeviceError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = {"prompt": "Emma", "max_tokens": -1, "ignore_eos": True}


def metric(server: Served, name: str) -> float:
    lines = server.ask("/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def n_workers() -> int:
    return sum(thread.name == "hotcold-serve" for thread in threading.enumerate())


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a moment, so that something can happen meanwhile."""

    def wait(*arguments: Any) -> None:
        time.sleep(0.03)
        check_finite(*arguments)

    monkeypatch.setattr(rows, "check_finite", wait)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_waits_for_is_stopped(server: Served, slowly: None, stream: bool) -> None:
    before = metric(server, 'hotcold_answers_total{reason="stopped"}')
    for _ in range(3):
        connection = server.open(TEXT, LONG | {"stream": stream})
        until(lambda: metric(server, "hotcold_running") == 1)
        connection.close()
        until(lambda: metric(server, "hotcold_running") == 0)
    assert metric(server, 'hotcold_answers_total{reason="stopped"}') == before + 3


def test_an_answer_that_waits_can_be_given_up(
    server: Served, slowly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up, stop = list[worker.Task](), worker.Task.stop

    def noted(task: worker.Task) -> None:
        stop(task)
        given_up.append(task)

    monkeypatch.setattr(worker.Task, "stop", noted)
    first = server.open(TEXT, LONG)
    until(lambda: metric(server, "hotcold_running") == 1)
    second = server.open(TEXT, LONG)
    until(lambda: metric(server, "hotcold_waiting") == 1)
    ended = metric(server, "hotcold_answers_total")
    second.close()
    until(lambda: len(given_up) == 1)
    first.close()
    until(lambda: metric(server, "hotcold_waiting") + metric(server, "hotcold_running") == 0)
    assert metric(server, "hotcold_answers_total") == ended + 1
    assert server.ask(TEXT, {"prompt": "Emma", "max_tokens": 1}).status == 200


def test_a_full_queue_is_said(engine: Engine, slowly: None) -> None:
    with served(engine, max_waiting=1) as server:
        held = [server.open(TEXT, LONG) for _ in range(2)]
        until(lambda: metric(server, "hotcold_waiting") == 1)
        told = server.ask(TEXT, LONG)
        assert told.status == 429 and told.json["error"]["code"] == "queue_full"
        assert told.headers["retry-after"] and "at most 2 at a time" in told.message
        for connection in held:
            connection.close()
        until(lambda: server.ask(TEXT, {"prompt": "Emma", "max_tokens": 1}).status == 200)


@pytest.mark.parametrize("n", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_vanish(server: Served, n: int) -> None:
    for i in range(n):
        connection = server.open(TEXT, LONG | {"stream": i % 2 == 0})
        if i % 3 == 0:
            connection.recv(100)
        connection.close()
    until(lambda: metric(server, "hotcold_waiting") + metric(server, "hotcold_running") == 0)
    assert server.ask(TEXT, {"prompt": "Emma", "max_tokens": 1}).status == 200
    assert n_workers() == 1


HALF_OPEN = [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: a\r\n", b"GET /health HTTP/1.1\r\nX: "]


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_a_request_that_never_comes_is_not_waited_for(
    server: Served, slowly: None, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    """Nothing, or a head that is never whole, a byte now and then too; answers take as long as they take."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    answer = server.open(TEXT, LONG | {"max_tokens": 20})
    opened = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in HALF_OPEN]
    for each, head in zip(opened, HALF_OPEN, strict=True):
        each.sendall(before)
        told = b""
        while before and b'"ok"' not in told:
            told += each.recv(1000)
        each.sendall(head)
    for each in opened:
        received = b""
        with suppress(OSError):
            while not received:
                each.sendall(b"a")
                time.sleep(0.02)
                each.settimeout(0.02)
                with suppress(TimeoutError):
                    if not (received := each.recv(1)):
                        break
        assert not received
        each.close()
    whole = b""
    while b'"finish_reason":"length"' not in whole:
        whole += answer.recv(65536)
    answer.close()


def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not taken is not made, either; one that takes slowly is waited for."""
    monkeypatch.setattr(responses, "STALL_SECONDS", 0.2)
    made, sent = list[int](), list[bytes]()

    async def objects() -> AsyncIterator[dict[str, Any]]:
        for i in range(1000):
            made.append(i)
            yield {"i": i}

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        await asyncio.sleep(0.05 if len(sent) < 10 else 3600)

    stream = responses.EventStream(objects(), {}, ping_seconds=0.3, ended=lambda: sent.append(b"over"))
    asyncio.run(asyncio.wait_for(stream({}, receive, send), 30))
    assert len(sent) == 11 and sent[-1] == b"over" and len(made) == 9


@pytest.mark.slow
def test_a_slow_reader_holds_nobody_up(server: Served) -> None:
    slow = server.open(TEXT, LONG | {"n": 16, "logprobs": 20, "stream": True})
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    assert slow.recv(1)
    until(lambda: metric(server, "hotcold_waiting") == 0)  # all sixteen have begun or ended
    assert server.ask(TEXT, {"prompt": "Emma", "max_tokens": 2}).status == 200
    assert slow.recv(1)
    slow.close()
    until(lambda: metric(server, "hotcold_running") == 0)


@pytest.mark.slow
def test_memory_stays_flat(server: Served) -> None:
    """Two thousand requests, streamed and whole, some of them refused."""
    taken = list[int]()
    for i in range(2000):
        body = {
            "prompt": f"Emma {i}",
            "max_tokens": 2,
            "stream": i % 2 == 0,
            "temperature": (0.5, -1)[i % 5 == 4],
        }
        assert server.ask(TEXT, body).status == (400 if i % 5 == 4 else 200)
        if i % 500 == 499:
            gc.collect()
            taken.append(resident_bytes())
    assert taken[-1] - taken[0] < 1500 * 1024  # less than a KiB a request


def resident_bytes() -> int:
    """Of this process, which has run other tests before: what it has freed is given back first."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_stream_says_that_it_is_there(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*arguments: Any) -> None:
        time.sleep(0.2)
        check_finite(*arguments)

    monkeypatch.setattr(rows, "check_finite", wait)
    told = server.ask(TEXT, {"prompt": "Emma", "max_tokens": 2, "stream": True})
    assert told.headers["content-type"].startswith("text/event-stream")
    assert b": ping\n\n" in told.body and told.events


def test_a_device_that_fails_is_said_and_the_next_request_answered(
    server: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DeviceError("device", "cuda", "it does not answer", "look at dmesg")

    with monkeypatch.context() as patch:
        patch.setattr(engine.executor, "run", fail)
        patch.setattr(engine.first_prompt, "run", fail)
        told = server.ask(TEXT, {"prompt": "Emma"})
        assert told.status == 503 and "it does not answer" in told.message
        streamed = server.ask(TEXT, {"prompt": "Emma", "stream": True})
        assert streamed.status == 200 and b"[DONE]" not in streamed.body
        last = streamed.body.decode().strip().rpartition("data: ")[2]
        assert "it does not answer" in json.loads(last)["error"]["message"]
    assert server.ask(TEXT, {"prompt": "Emma", "max_tokens": 1}).status == 200


@pytest.mark.slow
def test_a_device_fails_under_load(open_emulated: Any) -> None:
    """Once: everybody under way is told, and the next answers are as before. For good: all are told why."""
    asked = [LONG | {"prompt": f"Emma {i}", "max_tokens": 6, "temperature": 0} for i in range(4)]
    options: dict[str, Any] = {"device": "emulated", "vram_budget": "6MiB", "n_slots": 2}
    others = n_workers()
    with (
        load(n_ctx=64, threads=1, **options) as engine,
        served(engine) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        before = [told.json["choices"][0]["text"] for told in pool.map(partial(server.ask, TEXT), asked)]
        assert engine.executor.devices
        driver: Any = engine.executor.devices[0].driver
        enqueue, countdown = driver._enqueue, itertools.count()

        def fail_once(stream: Any, work: Any) -> None:
            if next(countdown) == 200:
                raise DeviceError("emulated device", "copy", "it failed")
            enqueue(stream, work)

        driver._enqueue = fail_once
        found = list(pool.map(partial(server.ask, TEXT), asked))
        assert next(countdown) > 200 and {told.status for told in found} <= {200, 503}
        failed = [told for told in found if told.status == 503]
        assert failed and all("it failed" in told.message for told in failed)
        assert [
            told.json["choices"][0]["text"] for told in pool.map(partial(server.ask, TEXT), asked)
        ] == before
        driver.streams.drop()
        driver.lost = "a fault of the test"
        for told in pool.map(partial(server.ask, TEXT), asked):
            assert told.status == 503 and "lost (after a fault of the test)" in told.message
        assert server.ask("/health").status == 200 and n_workers() == others + 1


def test_what_nobody_foresaw_is_a_500(
    server: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "TokenSequence", fail)
        told = server.ask(TEXT, {"prompt": "Emma"})
    assert told.status == 500 and "ZeroDivisionError" in told.message and "secret" not in told.message
    assert "a request failed" in caplog.text
    assert server.ask(TEXT, {"prompt": "Emma", "max_tokens": 1}).status == 200


def test_thoughts_come_apart(engine: Engine, tmp_path: Path) -> None:
    """The template opens a thought, and nothing closes it: all of the answer is one."""
    path = tmp_path / "thinking.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n")
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Hm"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    with served(engine, chat_template=path) as server:
        message = server.ask(CHAT, asked).json["choices"][0]["message"]
        assert message["content"] == "" and message["reasoning_content"]
        events = server.ask(CHAT, asked | {"stream": True}).events
        deltas = [event["choices"][0]["delta"] for event in events]
        thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
        assert thought == message["reasoning_content"]
        assert not any(delta.get("content") for delta in deltas)


def test_a_template_without_the_system_role_is_told(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "plain.jinja"
    path.write_text("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}
    with served(engine, chat_template=path) as server:
        told = server.ask(CHAT, {"messages": [system, user], "max_tokens": 1})
        assert "no system role" in told.headers["warning"]
        n = len(engine.tokenizer.encode("Be brief.\n\nHm?"))
        assert told.json["usage"]["prompt_tokens"] == n


def test_a_context_that_is_full_ends_with_length(server: Served, engine: Engine) -> None:
    told = server.ask(TEXT, LONG | {"temperature": 0})
    assert told.json["choices"][0]["finish_reason"] == "length"
    assert told.json["usage"]["total_tokens"] == engine.n_ctx


def test_the_end_stops_what_runs(engine: Engine, slowly: None) -> None:
    before = n_workers()
    with served(engine) as server:
        connection = server.open(TEXT, LONG | {"max_tokens": 20})
        until(lambda: metric(server, "hotcold_running") == 1)
    answer = b""
    while part := connection.recv(65536):
        answer += part
    assert b'"finish_reason":"length"' in answer  # it was brought to its end
    assert n_workers() == before
    assert engine.is_open


def test_control_pieces_are_shown_where_that_is_asked_for(tmp_path: Path) -> None:
    following = {"a": "<|x|>", "<|x|>": "Y", "Y": "</s>"}
    path = table_model(tmp_path / "m.gguf", following, control=["<|x|>"])
    asked: dict[str, Any] = {"prompt": "a", "temperature": 0, "max_tokens": 5}
    with load(path, threads=1) as engine, served(engine) as server:
        texts = [server.ask(TEXT, asked | {"special": it}).json["choices"][0]["text"] for it in (False, True)]
    assert texts == ["Y", "<|x|>Y</s>"]


def test_channels_come_apart(tmp_path: Path) -> None:
    """What a model of gpt-oss's kind says in its final channel is the answer, all others are thoughts."""
    marks = ["<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
    chain = ["a", "<|channel|>", "analysis", "<|message|>", "h", "<|end|>", "Y", "</s>"]
    following = dict(itertools.pairwise(chain))
    path = table_model(tmp_path / "m.gguf", following, control=marks, user_defined=["analysis"])
    template = tmp_path / "channels.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{# <|channel|>analysis<|message|> #}"
    )
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0,
        "max_tokens": 20,
    }
    with load(path, threads=1) as engine, served(engine, chat_template=template) as server:
        choice = server.ask(CHAT, asked).json["choices"][0]
        events = server.ask(CHAT, asked | {"stream": True}).events
    assert choice["message"] == {"role": "assistant", "content": "Y", "reasoning_content": "h"}
    assert choice["finish_reason"] == "stop"
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == "Y"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "h"


def test_an_application_of_the_library(engine: Engine) -> None:
    """It answers without a lifespan, and its end leaves the engine as it was."""
    application = hotcold.serve.app(engine)
    try:
        sent = asyncio.run(asked_of(application, TEXT, {"prompt": "Emma", "max_tokens": 2}))
        assert sent[0]["status"] == 200
    finally:
        application.close()
    assert engine.is_open and "".join(engine.generate("Emma", 2))


def test_a_stream_that_never_began_has_no_place(engine: Engine) -> None:
    """A server may let the beginning of a response wait, and the client be gone before anything of it is sent."""
    application = hotcold.serve.app(engine, hotcold.serve.ServeOptions(max_waiting=0))
    body = {"prompt": "Emma", "max_tokens": 2, "stream": True}
    try:
        assert not asyncio.run(asked_of(application, TEXT, body, is_gone=True))
        sent = asyncio.run(asked_of(application, TEXT, body))
        assert sent[0]["status"] == 200
    finally:
        application.close()


async def asked_of(application: Any, path: str, body: dict[str, Any], *, is_gone: bool = False) -> list[Any]:
    """What an application sends; nothing is taken of it, and nobody is there any more, where `is_gone`."""
    incoming, sent = (
        [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}],
        list[Any](),
    )
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        return {"type": "http.disconnect"} if is_gone else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if is_gone:
            await asyncio.Event().wait()
        sent.append(message)

    await application(scope, receive, send)
    return sent
