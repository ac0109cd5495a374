"""A session's file: what an engine's KV cache holds, and the ids that it is of.

Eight bytes MAGIC, the header's length (uint32, little endian), the header (JSON), and the caches' blocks, a layer after
the other, as the CPU has them: [2, n_head_kv, blocks of 64 positions, bytes]. The header says what the model and its
settings have to be, and the SHA-256 of the blocks: a file of anything else, or a damaged one, is refused.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from hotcold.engine.generation.generation import Engine, Held
from hotcold.errors import DoesNotFitError, FileError
from hotcold.gguf_io import GGUFFile
from hotcold.whole_file import whole_file

MAGIC = b"HOTCOLDS"
MAX_HEADER = 1 << 26
SAMPLE = 1024  # bytes of each tensor that the model's mark is made of, beside the file's header
REMEDY = "name another file, or remove this one"


def save(engine: Engine, held: Held, path: Path) -> None:
    """Write what the first slot holds, whole or not at all.

    Raises:
        SettingError: the caches lie on a device.
        FileError, DoesNotFitError: see `whole_file`.
    """
    engine.check_turn(held.turn)
    blocks = [np.ascontiguousarray(each) for each in engine.executor.host.blocks(len(held.ids))]
    digest = hashlib.sha256()
    for each in blocks:
        digest.update(each.data)
    header = _wanted(engine) | {
        "ids": [int(token) for token in held.ids],
        "oldest": engine.executor.slots.oldest(),
        "sha256": digest.hexdigest(),
    }
    text = json.dumps(header).encode()
    with whole_file(path, option="--session") as temporary, temporary.open("r+b") as file:
        file.write(MAGIC + struct.pack("<I", len(text)) + text)
        for each in blocks:
            file.write(each.data)


def restore(engine: Engine, path: Path) -> Held:
    """Put what a file holds into the first slot.

    Raises:
        FileError: no session's file, one of another model or of other settings, or a damaged one.
        DoesNotFitError: it holds more positions than the context.
        SettingError: the caches lie on a device.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 4)
            if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + 4:
                raise FileError("--session", path, "no session's file", REMEDY)
            (length,) = struct.unpack("<I", start[len(MAGIC) :])
            header = _header(file.read(min(length, MAX_HEADER)), path)
            _check(header, engine, path)
            blocks = engine.executor.host.blocks(len(header["ids"]))
            data = file.read(sum(each.nbytes for each in blocks) + 1)
    except OSError as error:
        raise FileError("--session", path, error.strerror or "cannot be read", REMEDY) from error
    if (
        len(data) != sum(each.nbytes for each in blocks)
        or hashlib.sha256(data).hexdigest() != header["sha256"]
    ):
        raise FileError("--session", path, "damaged", REMEDY)
    at = 0
    for each in blocks:
        each[...] = np.frombuffer(data, np.uint8, each.size, at).reshape(each.shape)
        at += each.size
    engine.executor.slots.set_oldest(header["oldest"])
    return Held(header["ids"], engine.take_turn())


def model_mark(file: GGUFFile) -> str:
    """SHA-256 of a file's header and of the beginning of each tensor."""
    digest = hashlib.sha256(file.header_hash().encode())
    for name in file.tensors:
        digest.update(np.ascontiguousarray(file.data(name)[:1]).reshape(-1)[:SAMPLE].data)
    return digest.hexdigest()


def _wanted(engine: Engine) -> dict[str, Any]:
    """What has to be the same: all that a key or a value depends on, and how it lies."""
    plan = engine.executor.plan
    return {
        "model": model_mark(engine.file),
        "kv_type": plan.kv_type,
        "sparsity": engine.sparsity,
        "threshold": engine.model.sparse_threshold,
        "activation": engine.model.ffn_activation,
        "windows": [c.n_positions for c in plan.caches if engine.model.window(c.layer)],
    }


def _header(text: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
        ids, oldest = header["ids"], header["oldest"]
        if not all(type(token) is int for token in (*ids, oldest)) or not isinstance(header["sha256"], str):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise FileError("--session", path, "damaged", REMEDY) from error
    found: dict[str, Any] = header
    return found


def _check(header: dict[str, Any], engine: Engine, path: Path) -> None:
    for name, value in _wanted(engine).items():
        if header.get(name) != value:
            what = "of another model" if name == "model" else f"{name} {header.get(name)}, not {value}"
            raise FileError("--session", path, what, REMEDY)
    n = len(header["ids"])
    if n > engine.n_ctx:
        bound = f"the context holds {engine.n_ctx}"
        raise DoesNotFitError(
            "--session", f"{path} of {n} tokens", bound, "raise n_ctx, or name another file"
        )
