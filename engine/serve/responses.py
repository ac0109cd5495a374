"""Responses: JSON, errors in OpenAI's form, streams of events; and what happens when the client has gone."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hotcold.engine.serve.worker import Busy, Closed
from hotcold.errors import DeviceError, DoesNotFitError, FileError, HotcoldError, SettingError, printable

Result = TypeVar("Result")
STALL_SECONDS = 60.0  # a client that takes nothing for so long is gone
MAX_WARNING = 400  # characters
ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


class Problem(HotcoldError):
    """Something with a status of its own."""

    def __init__(self, status: int, error: HotcoldError, code: str | None = None) -> None:
        self.status, self.code = status, code
        super().__init__(error.thing, error.value, error.bound, error.next_step)


def encoded(value: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: a lone surrogate of somebody's request must not make an answer impossible."""
    return ENCODER.encode(value).encode("ascii")


def json_response(
    value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A whole answer."""
    return Response(encoded(value), status, dict(headers or {}), "application/json")


def warning_headers(warnings: Iterable[str]) -> dict[str, str]:
    """A `Warning` header (RFC 7234) that says all of them; none for none."""
    text = printable("; ".join(warnings)).encode("ascii", "replace").decode().replace('"', "'")
    return {"Warning": f'299 hotcold "{text[:MAX_WARNING]}"'} if text else {}


def status_of(error: Exception) -> tuple[int, str, str | None]:
    """Status, OpenAI's type and code of an error."""
    if isinstance(error, Problem):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        return error.status, kind, error.code
    if isinstance(error, Busy):
        return 429, "rate_limit_error", "queue_full"
    if isinstance(error, Closed | DeviceError):
        return 503, "server_error", "unavailable"
    if isinstance(error, DoesNotFitError):
        return 400, "invalid_request_error", "context_length_exceeded"
    if isinstance(error, SettingError | FileError):
        return 400, "invalid_request_error", "invalid_value"
    return 500, "server_error", None


def error_object(error: Exception) -> dict[str, Any]:
    """An error in OpenAI's form, its message in the four parts of ours."""
    _, kind, code = status_of(error)
    text = str(error)
    if not isinstance(error, HotcoldError):
        logging.getLogger("hotcold.serve").error("a request failed", exc_info=error)
        text = f"unexpected {type(error).__name__}; the server's standard error says where"
    param = error.thing if isinstance(error, SettingError) else None
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}


def error_response(error: Exception) -> Response:
    """The response that says an error."""
    status, _, _ = status_of(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(error_object(error), status, headers)


async def until_gone(
    receive: Receive, work: Coroutine[Any, Any, Result], *watching: Coroutine[Any, Any, None]
) -> Result | None:
    """The result of `work`, which is cancelled when the client has gone, or one of `watching` ends; None then."""
    working = asyncio.ensure_future(work)
    others = [asyncio.ensure_future(each) for each in (_gone(receive), *watching)]
    try:
        await asyncio.wait((working, *others), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, *others):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: objects as they come, a comment whenever nothing came for a while, `[DONE]` at the end.

    Every token comes through here, so there is no task, timer or future for each.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        objects: AsyncIterator[Mapping[str, Any]],
        headers: Mapping[str, str],
        ping_seconds: float,
        ended: Callable[[], None],
    ) -> None:
        """Take what is to come.

        Args:
            ping_seconds: after which it says that it is still there.
            ended: is called once, at the end, whether or not anything could be sent.
        """
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._objects, self._ping_seconds, self._ended = objects, ping_seconds, ended
        self._since, self._is_sending, self._alone = 0.0, False, asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, as long as there is somebody who takes it."""
        self._since = asyncio.get_running_loop().time()
        try:
            await until_gone(receive, self._send_all(send), self._watch(send))
        finally:
            self._ended()

    async def _send_all(self, send: Send) -> None:
        async with self._alone:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
        async for data in self._events():
            await self._send(send, data)
        async with self._alone:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        """Send a part, and keep in mind since when the client has not taken it, or had nothing to take."""
        async with self._alone:
            self._since, self._is_sending = asyncio.get_running_loop().time(), True
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._since, self._is_sending = asyncio.get_running_loop().time(), False

    async def _watch(self, send: Send) -> None:
        """Say that the stream is still there; end when its client has taken nothing for a minute."""
        while True:
            passed = asyncio.get_running_loop().time() - self._since
            if self._is_sending and passed >= STALL_SECONDS:
                return
            if not self._is_sending and passed >= self._ping_seconds:
                with suppress(TimeoutError):
                    async with asyncio.timeout(STALL_SECONDS):
                        await self._send(send, b": ping\n\n")
            else:
                bound = STALL_SECONDS if self._is_sending else self._ping_seconds
                await asyncio.sleep(bound - passed)

    async def _events(self) -> AsyncIterator[bytes]:
        """Objects as events; the status is sent, so what is left of an error is to say it in the stream."""
        objects = aiter(self._objects)
        try:
            async for value in objects:
                yield b"data: " + encoded(value) + b"\n\n"
            yield b"data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 - told to the client, as in a whole answer
            yield b"data: " + encoded(error_object(error)) + b"\n\n"
        finally:
            close = getattr(objects, "aclose", None)
            if close is not None:
                await close()
