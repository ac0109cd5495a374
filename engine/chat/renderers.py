"""Processes that render chat templates: kept for the next conversation, unless a template has exploded in one."""

import json
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("template_process.py")
MAX_KEPT = 2  # processes that wait for work
MAX_RENDERINGS = 1000  # of one process, whatever it has piled up until then


class TemplateFailed(Exception):
    """Why there is no answer, in words."""


class RendererDied(TemplateFailed):
    """The process has ended without an answer, in time."""


class Renderer:
    """A process that renders templates, one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(PROGRAM)]  # -P: our modules must not stand in for Python's
        pipe = subprocess.PIPE
        # a session of its own keeps Ctrl-C from it; the end of its input ends it
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        self._n_done = 0

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer of `template_process`.

        Raises:
            TemplateFailed: it takes too long. RendererDied: the process has ended. It is of no further use then.
        """
        process, is_late = self._process, threading.Event()
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None

        def stop() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it has ended: what it says tells why
                process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        self._n_done += 1
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            if is_late.is_set():
                raise TemplateFailed(f"it runs for more than {seconds:g} seconds") from error
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise RendererDied(said[-1] if said else f"its process ends with {process.wait()}") from error
        return answer

    @property
    def is_worn(self) -> bool:
        """Whether it has done enough."""
        return self._n_done >= MAX_RENDERINGS or self._process.poll() is not None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):  # what was not written any more
                    stream.close()


class Renderers:
    """As many processes as render at a time, begun when they are wanted; from any thread."""

    def __init__(self) -> None:
        self._idle, self._lock = list[Renderer](), threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """See `Renderer.ask`; a process in which a template has exploded is not used again.

        Raises:
            TemplateFailed: it takes too long, or more than it may, or its process has ended twice.
        """
        try:
            return self._ask(request, seconds)
        except RendererDied:  # of what other processes did, maybe, not of the template
            return self._ask(request, seconds)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        with self._lock:
            renderer = self._idle.pop() if self._idle else None
        if renderer is not None and renderer.is_worn:
            renderer.close()
            renderer = None
        renderer = renderer or Renderer()
        is_fine = False
        try:
            answer = renderer.ask(request, seconds)
            is_fine = not answer.get("exploded")
            return answer
        finally:
            with self._lock:
                if is_kept := is_fine and len(self._idle) < MAX_KEPT:
                    self._idle.append(renderer)
            if not is_kept:
                renderer.close()


def _close_all(idle: list[Renderer]) -> None:
    while idle:
        idle.pop().close()
