"""Responses: JSON, errors in OpenAI's form, streams of events; and what happens when the client has gone."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hotcold.engine.serve.worker import Busy, Closed
from hotcold.errors import DeviceError, DoesNotFitError, FileError, HotcoldError, SettingError, printable

Result = TypeVar("Result")
STALL_SECONDS = 60.0  # a client that takes nothing for so long is gone
MAX_WARNING = 400  # characters


class Problem(HotcoldError):
    """Something with a status of its own."""

    def __init__(self, status: int, error: HotcoldError, code: str | None = None) -> None:
        self.status, self.code = status, code
        super().__init__(error.thing, error.value, error.bound, error.next_step)


def encoded(value: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: a lone surrogate of somebody's request must not make an answer impossible."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


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


async def until_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result of `work`, which is cancelled when the client has gone; None then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: objects as they come, a comment whenever nothing came for a while, `[DONE]` at the end."""

    media_type = "text/event-stream"

    def __init__(
        self, objects: AsyncIterator[Mapping[str, Any]], headers: Mapping[str, str], ping_seconds: float
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._objects, self._ping_seconds = objects, ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, as long as there is somebody."""
        await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout(None) as clock:
                async for data in self._events():
                    clock.reschedule(asyncio.get_running_loop().time() + STALL_SECONDS)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    clock.reschedule(None)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            pass

    async def _events(self) -> AsyncIterator[bytes]:
        objects = aiter(self._objects)
        coming = asyncio.ensure_future(anext(objects, None))
        try:
            while True:
                done, _ = await asyncio.wait((coming,), timeout=self._ping_seconds)
                if not done:
                    yield b": ping\n\n"
                    continue
                try:
                    value = coming.result()
                except Exception as error:  # noqa: BLE001 - the status is sent: what is left is to say it in the stream
                    yield b"data: " + encoded(error_object(error)) + b"\n\n"
                    return
                if value is None:
                    yield b"data: [DONE]\n\n"
                    return
                yield b"data: " + encoded(value) + b"\n\n"
                coming = asyncio.ensure_future(anext(objects, None))
        finally:
            coming.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await coming
            close = getattr(objects, "aclose", None)
            if close is not None:
                await close()
