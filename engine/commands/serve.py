"""`hotcold serve`: a model behind HTTP, for OpenAI's clients."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import ChatTemplateFile, Draft, EngineOptions, NSlots, Quiet, Verbose
from hotcold.engine.commands.reports import note
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.generation.settings import DRAFTS, GenerationSettings
from hotcold.engine.settings import one_of
from hotcold.errors import INTERRUPTED, SettingError
from hotcold.light_gguf import lighten

if TYPE_CHECKING:
    import uvicorn

KEY_VARIABLE = "HOTCOLD_API_KEY"
MISSING = "pip install 'hotcold[serve]'"


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Where requests come from, and who may ask."""

    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine give --api-key.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = 8080
    n_slots: NSlots = RunOptions.n_slots
    draft: Draft = GenerationSettings.draft
    slot_save_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder where /slots may save what slots hold.")
    ] = None
    api_key: Annotated[
        str | None,
        typer.Option(envvar=KEY_VARIABLE, show_envvar=True, help="What clients have to know."),
    ] = None
    chat_template: ChatTemplateFile = None


@dataclass(frozen=True, kw_only=True)
class ServeCommand(EngineOptions, ListenOptions):
    """Answer over HTTP, as OpenAI's clients expect it."""

    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Listen, load, answer until SIGTERM or Ctrl-C; answers that are under way are brought to their end."""
        lighten()
        try:
            from hotcold.engine.chat.template import read_template
            from hotcold.engine.generation.description import description
            from hotcold.engine.serve.app import ServeOptions, app
            from hotcold.engine.serve.connection import bounded
            from hotcold.engine.serve.guard import checked_key
            from hotcold.engine.serve.slot_files import checked_folder
        except ModuleNotFoundError as error:
            raise SettingError("module", error.name, "hotcold serve needs it", MISSING) from error
        one_of("draft", self.draft, DRAFTS)
        checked_folder(self.slot_save_path)
        # typer takes an empty variable for none, which would let in everybody
        api_key = os.environ.get(KEY_VARIABLE) if self.api_key is None else self.api_key
        if api_key is not None:
            checked_key(api_key)
        template = read_template(self.chat_template)
        with bound(self.host, self.port) as listening:
            say_who_may_ask(listening.getsockname()[0], self.api_key)
            # a part of the head for a token by itself: which tokens run by themselves depends on other requests
            with open_engine(self, self.quiet, head_sparsity="off") as engine:
                warn(engine, self.quiet)
                for line in description(engine) if self.verbose else ():
                    note(line)
                options = ServeOptions(
                    api_key=self.api_key or "",
                    chat_template=template,
                    draft=self.draft,
                    slot_save_path=self.slot_save_path,
                    only_local=is_loopback(listening.getsockname()[0]),
                )
                application = app(engine, options)
                try:
                    number = serve(bounded(application), listening, self.quiet)
                finally:
                    application.close()
        if number == signal.SIGINT:
            raise typer.Exit(INTERRUPTED)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address, which is refused before a model is loaded for nothing.

    Raises:
        SettingError: an address that is none, or in use.
    """
    if not 0 <= port <= 65535:
        raise SettingError("port", port, "0 to 65535", "such as --port 8080")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingError("host", host, error.strerror or str(error), "such as --host 127.0.0.1") from error
    with listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            where = f"{host}:{port}"
            raise SettingError("address", where, error.strerror or "", "choose another --port") from error
        yield listening


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return ip_address(address.partition("%")[0]).is_loopback


def say_who_may_ask(address: str, api_key: str | None) -> None:
    """Warn where everybody may; also with -q, since it is about what others can do."""
    if not is_loopback(address) and not api_key:
        note(f"warning: everybody who reaches {address} may ask; --api-key KEY lets in who knows it")


def serve(config: "uvicorn.Config", listening: socket.socket, quiet: bool) -> int:
    """Answer until a signal comes, and give its number."""
    import uvicorn

    heard = list[int]()

    class UvicornServer(uvicorn.Server):
        """One that says where it listens, and leaves it to us what a signal means."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not quiet:
                host, port = listening.getsockname()[:2]
                note(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.hear) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def hear(self, number: int, frame: FrameType | None) -> None:
            """The first one lets answers end, a second one stops them."""
            if heard and not quiet:
                note("answers are stopped")
            heard.append(number)
            self.force_exit, self.should_exit = self.should_exit, True

    server: Any = UvicornServer(config)
    server.run([listening])
    return heard[0] if heard else 0
