"""What stands in front of every endpoint: the key, whose page asks, and how long a body may be."""

import asyncio
import hmac
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hotcold.engine.serve.responses import Problem, error_response
from hotcold.errors import SettingError

MAX_BODY = 8 << 20  # bytes; a context of a million tokens takes less
BODY_SECONDS = 60.0
OPEN = ("/health", "/")  # what needs no key
LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """An application that lets through to another what may pass.

    Attributes:
        close: ends what is under way behind it.
    """

    def __init__(
        self, app: ASGIApp, close: Callable[[], None], api_key: str = "", *, only_local: bool = False
    ) -> None:
        """Guard `app`.

        Args:
            close: ends what is under way behind it; a second time does nothing.
            api_key: what a client has to know; "" for nothing.
            only_local: whether a host's name that is not this machine's own is refused: a page that has
                brought its own name to point here would otherwise read what it likes.

        Raises:
            SettingError: see `checked_key`.
        """
        self._app, self.close, self._only_local = app, close, only_local
        self._key = checked_key(api_key) if api_key else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or say why not."""
        if scope["type"] == "http":
            problem = self._problem(Headers(scope=scope), scope["path"])
            if problem is not None:
                await error_response(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, headers: Headers, path: str) -> Problem | None:
        host = headers.get("host", "")
        if self._only_local and (_address(f"//{host}").hostname or "localhost") not in LOCAL:
            bound = f"known: {', '.join(LOCAL)}"
            return Problem(403, SettingError("Host", host[:100], bound, "ask under one of these names"))
        origin = headers.get("origin")
        if origin is not None and _address(origin).netloc != host:
            bound = "pages of other places may not ask"
            return Problem(403, SettingError("Origin", origin[:100], bound, "ask from a program"))
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > MAX_BODY:
            return too_long(length[:20])
        if self._key and path not in OPEN and not self._knows(headers):
            wrong = SettingError(
                "API key", "missing or wrong", "", "send the header `Authorization: Bearer KEY`"
            )
            return Problem(401, wrong, "invalid_api_key")
        return None

    def _knows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.strip().encode(), self._key.encode())


def _address(url: str) -> SplitResult:
    """A URL's parts; of what is none a host that nobody has."""
    try:
        return urlsplit(url)
    except ValueError:  # brackets that do not close, or with something else than an address between them
        return SplitResult("", "?", "", "", "")


def checked_key(key: str) -> str:
    """A key that the header of a request can bring as it is.

    Raises:
        SettingError: it is empty, has blanks at an end, or other characters than ASCII's printable ones.
    """
    if not key:  # of a script's variable that is not set, which is to let in nobody
        raise SettingError(
            "api_key",
            "",
            "no key",
            "name one, or leave out --api-key and HOTCOLD_API_KEY to let in everybody",
        )
    if key != key.strip() or not key.isascii() or not key.isprintable():
        bound = "printable characters of ASCII, no blank in front or behind"
        raise SettingError("api_key", None, bound, "name another one")
    return key


def too_long(n_bytes: str) -> Problem:
    """The refusal of a body."""
    return Problem(413, SettingError("body", f"{n_bytes} bytes", f"at most {MAX_BODY}", "send less"))


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        Problem: too long, or too slow, or broken off.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > MAX_BODY:
                    raise too_long(f"more than {MAX_BODY}")
    except TimeoutError:
        bound = f"whole within {BODY_SECONDS:g} seconds"
        raise Problem(
            408, SettingError("body", f"{len(data)} bytes so far", bound, "send it faster")
        ) from None
    except ClientDisconnect:
        raise Problem(400, SettingError("body", "broken off", "", "send it again")) from None
    return bytes(data)
