"""Processes that render templates: one serves many conversations, and none that a template has exploded in."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from hotcold.engine.chat import renderers, template_process
from hotcold.engine.chat.renderers import MAX_KEPT, Renderer, Renderers
from hotcold.engine.chat.template import ChatTemplate
from hotcold.errors import FileError

SOURCE = (
    "{% if kept is defined %}{{ raise_exception('it keeps something') }}{% endif %}{% set kept = 1 %}"
    "{% for m in messages %}{% if m.content == 'loop' %}{% for i in range(100000) %}{% for j in range(100000) %}"
    "{% endfor %}{% endfor %}{% elif m.content == 'memory' %}{{ ('a' * 9999999) * 9999 }}"
    "{% elif m.content == 'deep' %}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    "{% elif m.content == 'refuse' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
)


def said(template: ChatTemplate, text: str) -> str:
    (written,) = template.render([{"role": "user", "content": text}])
    return written


def begun(monkeypatch: pytest.MonkeyPatch) -> list[Renderer]:
    """Processes, as they are begun."""
    found = list[Renderer]()

    class Noted(Renderer):
        def __init__(self) -> None:
            super().__init__()
            found.append(self)

    monkeypatch.setattr(renderers, "Renderer", Noted)
    return found


def test_one_process_writes_many_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    found, template = begun(monkeypatch), ChatTemplate("m", SOURCE)
    assert [said(template, str(i)) for i in range(20)] == [str(i) for i in range(20)]
    with pytest.raises(FileError, match="refuses this conversation: no"):
        said(template, "refuse")
    assert said(template, "x") == "x" and len(found) == 1


@pytest.mark.parametrize(
    ("text", "reason"), [("loop", "more than 1 seconds"), ("memory", "512 MiB"), ("deep", "without an end")]
)
def test_what_explodes_is_named_and_the_next_one_has_a_new_process(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text == "memory" and sys.platform != "linux":
        pytest.skip("memory is bounded on Linux")
    found, template = begun(monkeypatch), ChatTemplate("m", SOURCE)
    assert said(template, "x") == "x"
    with pytest.raises(FileError, match=reason):
        said(ChatTemplate("m", SOURCE, seconds=1.0, renderers=template.renderers), text)
    assert said(template, "y") == "y" and len(found) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(found[0]._process.pid, 0)


def test_a_process_that_has_ended_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    found, template = begun(monkeypatch), ChatTemplate("m", SOURCE)
    assert said(template, "x") == "x"
    os.kill(found[0]._process.pid, signal.SIGKILL)
    found[0]._process.wait()
    assert said(template, "y") == "y" and len(found) == 2


def test_a_process_ends_after_many_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderers, "MAX_RENDERINGS", 3)
    found, template = begun(monkeypatch), ChatTemplate("m", SOURCE)
    for _ in range(7):
        said(template, "x")
    assert len(found) == 3


def test_the_time_of_one_conversation_is_not_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system bounds the time of the whole process, which is set anew for each."""
    resource, set_to = pytest.importorskip("resource"), dict[int, tuple[int, int]]()
    monkeypatch.setattr(resource, "setrlimit", set_to.__setitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (5, resource.RLIM_INFINITY))
    for seconds in (0.1, 77.5):
        monkeypatch.setattr(time, "process_time", lambda seconds=seconds: seconds)
        template_process.limit(5.0)
        assert set_to[resource.RLIMIT_CPU] == (int(seconds + 5) + 2, resource.RLIM_INFINITY)
        assert set_to[resource.RLIMIT_AS] == (template_process.MAX_MEMORY,) * 2


def test_threads_have_processes_and_leave_few(monkeypatch: pytest.MonkeyPatch) -> None:
    found, template = begun(monkeypatch), ChatTemplate("m", SOURCE)
    with ThreadPoolExecutor(4) as pool:
        texts = [str(i) for i in range(40)]
        assert list(pool.map(partial(said, template), texts)) == texts
    assert len([each for each in found if each._process.poll() is None]) <= MAX_KEPT
    del template
    assert all(each._process.poll() is not None for each in found)


def killing(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Processes that were killed behind `is_worn`, before the request is written: the first `most`."""
    killed, ask = list[int](), Renderer.ask

    def kill_and_ask(renderer: Renderer, *arguments: Any) -> dict[str, Any]:
        if len(killed) < most:
            renderer._process.kill()
            killed.append(renderer._process.wait())
        return ask(renderer, *arguments)

    monkeypatch.setattr(Renderer, "ask", kill_and_ask)
    return killed


def test_a_process_that_dies_before_it_is_asked_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, template = begun(monkeypatch), ChatTemplate("m", SOURCE)
    assert said(template, "x") == "x"
    killed = killing(monkeypatch, 1)
    assert said(template, "y") == "y" and len(killed) == 1 and len(found) == 2
    killed = killing(monkeypatch, 2)
    with pytest.raises(FileError, match="chat template of m: its process ends with -9"):
        said(template, "z")
    assert said(template, "z") == "z" and len(killed) == 2 and len(found) == 4


def test_no_process_is_begun_before_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = begun(monkeypatch)
    Renderers()
    assert not found
