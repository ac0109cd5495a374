"""Slots of a server, and files that keep what they hold, as llama-server has them."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread

from hotcold.engine.generation import session
from hotcold.engine.generation.generation import Engine
from hotcold.engine.generation.session import Session
from hotcold.engine.generation.slot import Slot
from hotcold.engine.serve.answer import Heard
from hotcold.engine.serve.fields import RequestFields, shown
from hotcold.engine.serve.responses import Problem
from hotcold.engine.serve.worker import OnSlot, Worker
from hotcold.errors import DoesNotFitError, FileError, SettingError

Result = TypeVar("Result")
ACTIONS = ("save", "restore", "erase")
MAX_NAME = 200  # bytes
FIELD = "filename"


class SlotFiles:
    """What can be done with the slots of a worker; files lie in one folder, and nowhere else."""

    def __init__(self, engine: Engine, worker: Worker, folder: Path | None, drafts: bool) -> None:
        """Take the folder, None for no files.

        Raises:
            FileError: it is no folder.
        """
        self._engine, self._worker, self._drafts = engine, worker, drafts
        self._folder = checked_folder(folder)

    def listed(self) -> list[dict[str, Any]]:
        """Every slot as it is at this moment."""
        busy = {each.slot.number: each.sequence for each in self._worker.running}
        told = []
        for slot in self._worker.slots:
            about: dict[str, Any] = {
                "id": slot.number,
                "n_ctx": self._engine.n_ctx,
                "speculative": self._drafts,
                "is_processing": slot.number in busy,
                "n_cached": len(slot.held),
            }
            if sequence := busy.get(slot.number):
                about["n_prompt_tokens"] = sequence.statistics.n_prompt
                about["next_token"] = {"n_decoded": sequence.statistics.n_generated}
            told.append(about)
        return told

    async def act(self, number: str, fields: RequestFields, action: str) -> dict[str, Any]:
        """Save, restore or erase what a slot holds, once no answer is under way in it.

        Raises:
            SettingError: no such action, slot or name. Problem: no folder was named, or the disk is full.
            FileError, DoesNotFitError: see `session.read` and `session.write`.
        """
        n = len(self._worker.slots)
        if not (number.isascii() and number.isdecimal() and int(number[:9]) < n):
            raise SettingError("slot", number[:20], f"0 to {n - 1}", "see /slots")
        if action not in ACTIONS:
            raise SettingError("action", action[:40], f"known: {', '.join(ACTIONS)}", "such as ?action=save")
        slot = int(number)
        if action == "erase":
            return {"id_slot": slot, "n_erased": await self._on(slot, _erase)}
        name = fields.text(FIELD)
        path, started = self._path(name), time.perf_counter()
        if action == "save":
            found = await self._on(slot, partial(_taken, self._engine))
            await anyio.to_thread.run_sync(self._write, found, path)
            word, amount = "n_saved", "n_written"
        else:
            read = partial(session.read, self._engine, path, FIELD, follows=False)
            found = await anyio.to_thread.run_sync(read)
            await self._on(slot, partial(_put, self._engine, found))
            word, amount = "n_restored", "n_read"
        return {
            "id_slot": slot,
            FIELD: name,
            word: len(found.ids),
            amount: path.lstat().st_size,
            "timings": {f"{action}_ms": round(1e3 * (time.perf_counter() - started), 3)},
        }

    def _write(self, found: Session, path: Path) -> None:
        try:
            session.write(self._engine, found, path, FIELD, follows=False)
        except DoesNotFitError as error:
            raise Problem(507, error, "disk_full") from error

    def _path(self, name: str) -> Path:
        """The file of a name; a name leads nowhere else, and links are not followed where it is opened.

        Raises:
            SettingError: it would. Problem: there is no folder for files.
        """
        if self._folder is None:
            missing = SettingError(
                "slot_save_path", None, "no folder was named", "start with --slot-save-path DIR"
            )
            raise Problem(501, missing, "not_supported")
        if not is_plain(name):
            bound = f"letters and such: no folders, no dot in front, at most {MAX_NAME} bytes"
            raise SettingError(FIELD, shown(name), bound, 'such as "chat.session"')
        return self._folder / name

    async def _on(self, number: int, do: Callable[[Slot], Result]) -> Result:
        heard = Heard(self._worker, [OnSlot(number, do)])
        try:
            result: Result = (await heard.next())[1]
            return result
        finally:
            heard.stop()


def checked_folder(folder: Path | None) -> Path | None:
    """A folder for files, if it is one.

    Raises:
        FileError: it is none.
    """
    if folder is not None and not folder.is_dir():
        raise FileError("slot_save_path", folder, "no folder", "make it, or name another")
    return folder


def is_plain(name: str) -> bool:
    """Whether a text is the name of a file in a folder, wherever that is."""
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return 0 < n_bytes <= MAX_NAME and name[0] != "." and name.isprintable() and not set(name) & set("/\\:")


def _taken(engine: Engine, slot: Slot) -> Session:
    return session.taken(engine, slot.held, slot.number)


def _put(engine: Engine, found: Session, slot: Slot) -> None:
    slot.forget()  # should the rest fail
    session.put(engine, found, slot.number)
    slot.held = list(found.ids)


def _erase(slot: Slot) -> int:
    n = len(slot.held)
    slot.forget()
    return n
