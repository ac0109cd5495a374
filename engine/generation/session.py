"""A session's file: what an engine's KV cache holds, and the ids that it is of.

Eight bytes MAGIC, the header's length (uint32, little endian), the header (JSON), and the caches' blocks, a layer
after the other, as the CPU has them, wherever they were: [2, n_head_kv, blocks of 64 positions, bytes]. The header
says what the model and its settings have to be, and the SHA-256 of ids and blocks: a file of anything else, or a
damaged one, is refused.
"""

import errno
import hashlib
import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine, Held
from hotcold.errors import DoesNotFitError, FileError, SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.whole_file import whole_file

MAGIC = b"HOTCOLDS"
MAX_HEADER = 1 << 26
SAMPLE = 1024  # bytes of each tensor that the model's mark is made of, beside the file's header
REMEDY = "name another file, or remove this one"


@dataclass(frozen=True)
class Session:
    """What a slot's caches hold, apart from any engine.

    Attributes:
        ids: of the tokens. oldest: see `Slots.oldest`.
        blocks: of each layer, uint8, see `Executor.caches`.
    """

    ids: list[int]
    oldest: int
    blocks: list[NDArray[np.uint8]]


def taken(engine: Engine, ids: Sequence[int], slot: int = 0) -> Session:
    """A copy of what a slot holds of these ids."""
    blocks = engine.executor.caches(len(ids), slot)
    return Session([int(token) for token in ids], engine.executor.slots.oldest(slot), blocks)


def put(engine: Engine, session: Session, slot: int = 0) -> None:
    """Fill a slot's caches with what `read` has found for this engine."""
    engine.executor.fill_caches(len(session.ids), session.blocks, slot)
    engine.executor.slots.set_oldest(session.oldest, slot)


def write(
    engine: Engine, session: Session, path: Path, option: str = "--session", *, follows: bool = True
) -> None:
    """Write it, whole or not at all; from any thread.

    Args:
        follows: see `whole_file`.

    Raises:
        FileError, DoesNotFitError: see `whole_file`.
    """
    digest = _digest(session.ids, session.oldest, *(each.data for each in session.blocks))
    header = _wanted(engine) | {"ids": session.ids, "oldest": session.oldest, "sha256": digest}
    text = json.dumps(header).encode()
    with whole_file(path, option=option, follows=follows) as temporary, temporary.open("r+b") as file:
        file.write(MAGIC + struct.pack("<I", len(text)) + text)
        for each in session.blocks:
            file.write(each.data)


def read(engine: Engine, path: Path, option: str = "--session", *, follows: bool = True) -> Session:
    """What a file holds for an engine; from any thread.

    Args:
        follows: whether `path` may be a link.

    Raises:
        FileError: no session's file, one of another model or of other settings, or a damaged one.
        DoesNotFitError: it holds more positions than the context.
    """
    try:
        with _opened(path, follows) as file:
            start = file.read(len(MAGIC) + 4)
            if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 4:
                remedy = "name another file" if start else REMEDY  # it may be anything that somebody needs
                raise FileError(option, path, "no session's file", remedy)
            (length,) = struct.unpack("<I", start[len(MAGIC) :])
            header = _header(file.read(min(length, MAX_HEADER)), path, option)
            _check(header, engine, path, option)
            shapes = [each.shape for each in engine.executor.host.blocks(len(header["ids"]))]
            n_bytes = sum(map(math.prod, shapes))
            data = file.read(n_bytes + 1)
    except FileNotFoundError as error:
        raise FileError(option, path, "No such file or directory", "name a file that was saved") from error
    except OSError as error:
        is_link = error.errno == errno.ELOOP and not follows
        reason = "is a link" if is_link else error.strerror or "cannot be read"
        raise FileError(option, path, reason, REMEDY) from error
    if len(data) != n_bytes or _digest(header["ids"], header["oldest"], data) != header["sha256"]:
        raise FileError(option, path, "damaged", REMEDY)
    blocks, at = list[NDArray[np.uint8]](), 0
    for shape in shapes:
        blocks.append(np.frombuffer(data, np.uint8, math.prod(shape), at).reshape(shape))
        at += math.prod(shape)
    return Session(header["ids"], header["oldest"], blocks)


def _digest(ids: list[int], oldest: int, *blocks: bytes | memoryview) -> str:
    """SHA-256, in hex, of what the caches hold and what they hold it of."""
    digest = hashlib.sha256(json.dumps([ids, oldest]).encode())
    for each in blocks:
        digest.update(each)
    return digest.hexdigest()


def _opened(path: Path, follows: bool) -> BinaryIO:
    """A file to read; of a link only the opening itself can say that it is none, and a pipe is not waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags | (0 if follows else getattr(os, "O_NOFOLLOW", 0))), "rb")


def save(engine: Engine, held: Held, path: Path) -> None:
    """Write what the first slot holds.

    Raises:
        SettingError: another call has written the caches since. Others: see `taken`, `write`.
    """
    with engine.line.alone():
        if held.turn != engine.turn:
            overtaken = "overtaken by a later call of the same engine"
            raise SettingError("generation", overtaken, next_step="save it before that")
        session = taken(engine, held.ids)
    write(engine, session, path)


def restore(engine: Engine, path: Path) -> Held:
    """Put what a file holds into the first slot.

    Raises:
        FileError, DoesNotFitError, SettingError: see `read`.
    """
    session = read(engine, path)
    with engine.line.alone():
        put(engine, session)
        return Held(session.ids, engine.take_turn())


def model_mark(file: GGUFFile) -> str:
    """SHA-256 of a file's header and of the beginning of each tensor."""
    digest = hashlib.sha256(file.header_hash().encode())
    for name in file.tensors:
        digest.update(np.ascontiguousarray(file.data(name)[:1]).reshape(-1)[:SAMPLE].data)
    return digest.hexdigest()


def _wanted(engine: Engine) -> dict[str, Any]:
    """What has to be the same: all that a key or a value depends on, and how it lies."""
    plan = engine.executor.plan
    factors = engine.model.rope_factors(engine.n_ctx)  # of some models other ones in a longer context
    return {
        "model": model_mark(engine.file),
        "kv_type": plan.kv_type,
        "sparsity": engine.sparsity,
        "threshold": engine.model.sparse_threshold,
        "activation": engine.model.ffn_activation,
        "rope_factors": None if factors is None else factors.name,
        "windows": [c.n_positions for c in plan.caches if engine.model.window(c.layer)],
    }


def _header(text: bytes, path: Path, option: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        ids, oldest = header["ids"], header["oldest"]
        if not all(type(token) is int for token in (*ids, oldest)) or not isinstance(header["sha256"], str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(option, path, "damaged", REMEDY) from error
    found: dict[str, Any] = header
    return found


def _check(header: dict[str, Any], engine: Engine, path: Path, option: str) -> None:
    for name, value in _wanted(engine).items():
        if header.get(name) != value:
            what = "of another model" if name == "model" else f"{name} {header.get(name)}, not {value}"
            raise FileError(option, path, what, REMEDY)
    n = len(header["ids"])
    if n > engine.n_ctx:
        bound = f"the context holds {engine.n_ctx}"
        raise DoesNotFitError(option, f"{path} of {n} tokens", bound, "raise n_ctx, or name another file")
