"""The index file `<model>.generated.gpuidx`: which neurons of each layer are on the GPU.

PowerInfer's format: magic PWRI, version 3, general.architecture `generic.gpu_index`, the number of
layers, the bytes that the neurons need; then for each layer, by position and not by name, `gpu_idx`
(I32 [n_ff], 1 on the GPU) and `gpu_bucket` (I32 [n_hot], their numbers, ascending). I32 has type id 18.
Files of hotcold have further keys, which say what they were made for.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from hotcold.errors import FileError
from hotcold.gguf_io.reader import GGUFFile, open_gguf
from hotcold.gguf_io.tensors import POWERINFER_I32, TensorInfo
from hotcold.whole_file import write_whole

ENDING = ".generated.gpuidx"
VERSION = 1  # of what hotcold writes
ARCHITECTURE, BLOCK_COUNT = "generic.gpu_index", "generic.gpu_index.block_count"
CAPACITY = "split.vram_capacity"
OURS = "hotcold.gpu_index."
ALIGNMENT = 32
KV_TYPE = "f16"  # of files that do not say
NO_COUNTS = "none"
RESET = "make a new one with --reset-gpu-index"

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Identity:
    """What an index of hotcold was made for.

    Attributes:
        header: SHA-256 of the model's header, in hex.
        size: of the model's file.
        budget: bytes.
        n_ctx, kv_type, n_slots: of the KV cache, which takes its part of the budget.
        counts: SHA-256, in hex, of the counts that the neurons were ranked by; NO_COUNTS; "" in files that do not say.
            It is their maker's choice, and other counts make no index stale.
    """

    header: str
    size: int
    budget: int
    n_ctx: int
    version: int = VERSION
    kv_type: str = KV_TYPE
    n_slots: int = 1
    counts: str = ""

    def stale(self, wanted: "Identity") -> str:
        """What is not as wanted, in words; empty if everything is."""
        names = {
            "version": "version",
            "header": "model",
            "size": "model's size",
            "budget": "budget",
            "n_ctx": "n_ctx",
            "kv_type": "kv_type",
            "n_slots": "n_slots",
        }
        other = [name for field, name in names.items() if getattr(self, field) != getattr(wanted, field)]
        return f"made for another {' and '.join(other)}" if other else ""

    def is_ranked_by_others(self, wanted: "Identity") -> bool:
        """Whether there are counts, and it is known that it was made of others or without any."""
        return wanted.counts not in ("", NO_COUNTS) and self.counts not in ("", wanted.counts)


@dataclass(frozen=True)
class GpuIndex:
    """The content of an index file.

    Attributes:
        hot: ascending neuron numbers of each layer.
        capacity: bytes that PowerInfer needs free for them.
        identity: of a file that hotcold wrote; None for any other.
    """

    hot: tuple[Ids, ...]
    capacity: int
    identity: Identity | None = None


def index_path(model: Path) -> Path:
    """Where PowerInfer looks for the index of a model."""
    return model.with_name(model.name + ENDING)


def read_index(path: Path, n_layer: int, n_ff: int) -> GpuIndex:
    """Read an index, PowerInfer's or ours.

    Raises:
        FileError: no index, a damaged one, or one of another model: other layers or n_ff, numbers that
            are not ascending, or that do not agree with gpu_idx.
    """
    with open_gguf(path) as file:
        if file.get_str("general.architecture", "") != ARCHITECTURE or not file.is_powerinfer:
            raise FileError(path.name, "no index", f"wanted {ARCHITECTURE} with the magic PWRI", RESET)
        infos = list(file.tensors.values())
        if len(infos) != 2 * n_layer:
            raise FileError(
                f"{path.name}: tensors", len(infos), f"two for each of the model's {n_layer} layers", RESET
            )
        pairs = zip(infos[::2], infos[1::2], strict=True)
        hot = tuple(_hot(file, i, idx, bucket, n_ff) for i, (idx, bucket) in enumerate(pairs))
        return GpuIndex(hot, file.get_int(CAPACITY), _identity(file))


def _hot(file: GGUFFile, i: int, idx: TensorInfo, bucket: TensorInfo, n_ff: int) -> Ids:
    """The hot neurons of layer i, checked."""
    what = f"{file.path.name}: layer {i}"
    for info in (idx, bucket):
        if info.type != GGMLQuantizationType.I32 or info.n_rows not in (0, 1):
            raise FileError(
                f"{what}: {info.name}", f"{info.type.name} {list(info.ne)}", "I32 in one row", RESET
            )
    if idx.ne[0] != n_ff:
        raise FileError(f"{what}: gpu_idx", f"{idx.ne[0]} neurons", f"the model has {n_ff}", RESET)
    flags, ids = (file.data(info.name).view("<i4").reshape(-1) for info in (idx, bucket))
    if ids.size and (ids[0] < 0 or ids[-1] >= n_ff or (np.diff(ids) <= 0).any()):
        raise FileError(
            f"{what}: gpu_bucket", f"{ids.size} numbers", f"ascending, from 0 to {n_ff - 1}", RESET
        )
    if not np.isin(flags, (0, 1)).all() or not np.array_equal(np.flatnonzero(flags), ids):
        bound = f"gpu_bucket lists {ids.size}, and must list the same"
        raise FileError(f"{what}: gpu_idx", f"{np.count_nonzero(flags)} neurons marked", bound, RESET)
    return ids.astype(np.int32)


def _identity(file: GGUFFile) -> Identity | None:
    if f"{OURS}version" not in file.metadata:
        return None
    return Identity(
        header=file.get_str(f"{OURS}model_header"),
        size=file.get_int(f"{OURS}model_size"),
        budget=file.get_int(f"{OURS}budget"),
        n_ctx=file.get_int(f"{OURS}n_ctx"),
        version=file.get_int(f"{OURS}version"),
        kv_type=file.get_str(f"{OURS}kv_type", KV_TYPE),
        n_slots=file.get_int(f"{OURS}n_slots", 1),
        counts=file.get_str(f"{OURS}counts", ""),
    )


def is_foreign(path: Path) -> bool:
    """Whether something is there that hotcold did not write, or that cannot be read as an index."""
    if not os.path.lexists(path):
        return False
    try:
        with open_gguf(path) as file:
            return f"{OURS}version" not in file.metadata
    except FileError:
        return True


def write_index(path: Path, index: GpuIndex, n_ff: int) -> None:
    """Write an index, whole or not at all.

    Raises:
        FileError: a file is there that hotcold did not write, or the folder cannot be written.
        DoesNotFitError: the disk is full.
    """
    if is_foreign(path):
        raise FileError("index file", path, "hotcold did not write it", "move it away, or name another")
    write_whole(path, index_bytes(index, n_ff), option="folder")


def index_bytes(index: GpuIndex, n_ff: int) -> bytes:
    """The whole file, little-endian."""
    pairs = [_text_pair("general.architecture", ARCHITECTURE)]
    pairs.append(_pair(BLOCK_COUNT, GGUFValueType.UINT32, struct.pack("<I", len(index.hot))))
    pairs.append(_pair(CAPACITY, GGUFValueType.UINT64, struct.pack("<Q", index.capacity)))
    if index.identity is not None:
        pairs += _identity_pairs(index.identity)
    arrays: list[tuple[str, Ids]] = []
    for i, hot in enumerate(index.hot):
        flags = np.zeros(n_ff, np.int32)
        flags[hot] = 1
        arrays += [(f"blk.{i}.gpu_idx", flags), (f"blk.{i}.gpu_bucket", hot)]
    header = struct.pack("<4sIQQ", b"PWRI", 3, len(arrays), len(pairs)) + b"".join(pairs)
    table, offset = [], 0
    for name, array in arrays:
        table.append(_text(name) + struct.pack("<IQIQ", 1, array.size, POWERINFER_I32, offset))
        offset += _padded(array.nbytes)
    header += b"".join(table)
    return b"".join(_with_padding(part) for part in (header, *(a.astype("<i4").tobytes() for _, a in arrays)))


def _identity_pairs(identity: Identity) -> Sequence[bytes]:
    numbers = {
        "model_size": identity.size,
        "budget": identity.budget,
        "n_ctx": identity.n_ctx,
        "n_slots": identity.n_slots,
    }
    return [
        _pair(f"{OURS}version", GGUFValueType.UINT32, struct.pack("<I", identity.version)),
        _text_pair(f"{OURS}model_header", identity.header),
        _text_pair(f"{OURS}kv_type", identity.kv_type),
        _text_pair(f"{OURS}counts", identity.counts),
        *(
            _pair(OURS + key, GGUFValueType.UINT64, struct.pack("<Q", value))
            for key, value in numbers.items()
        ),
    ]


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, kind: GGUFValueType, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _text_pair(key: str, value: str) -> bytes:
    return _pair(key, GGUFValueType.STRING, _text(value))


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def _with_padding(data: bytes) -> bytes:
    return data + bytes(_padded(len(data)) - len(data))
