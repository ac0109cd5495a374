"""Files made byte by byte, and what the reader's refusal of one has to say and may cost."""

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from hotcold.errors import printable
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.errors import (
    CountError,
    GGUFError,
    TruncatedError,
)

T, V = GGMLQuantizationType, GGUFValueType
Refused = Callable[..., None]
Build = Any  # the class behind the fixture gguf_bytes

U32_MAX, U63, U64_MAX = 2**32 - 1, 2**63, 2**64 - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def cut_if(possible: bool) -> type[GGUFError]:
    """What a number past the end says: that the file is cut, if a whole one could have it."""
    return TruncatedError if possible else CountError


def refusal_of(path: Path) -> GGUFError:
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    return caught.value


def check_refusal(path: Path, error: type[GGUFError], field: str, value: object, bound: str) -> None:
    """The class, the text's parts, and the cost."""
    start = time.process_time()
    refusal = refusal_of(path)
    seconds = time.process_time() - start
    tracemalloc.start()
    refusal_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert type(refusal) is error, refusal
    assert field in refusal.thing, refusal
    assert str(refusal.value) == str(value), refusal
    assert bound in refusal.bound and bound, refusal
    assert refusal.next_step, refusal
    assert all(printable(str(part)) in str(refusal) for part in (field, value, bound))
    assert str(refusal).isprintable() and len(str(refusal)) < 600
    assert refusal.exit_code == 3
    assert seconds < 1 and peak < 100e6


def small(build: Build, **changes: Any) -> Any:
    """A good file: one pair, two tensors `a` F32 [4, 2] and `b` Q8_0 [32], no padding at the end."""
    fields: dict[str, Any] = {
        "pairs": (build.pair(b"general.architecture", V.STRING, build.text(b"llama")),),
        "tensors": (build.tensor(b"a", (4, 2)), build.tensor(b"b", (32,), T.Q8_0, 32)),
        "data": bytes(32) + b"\x01" * 34,
    }
    return build(**fields | changes)


def with_pairs(build: Build, *pairs: bytes) -> bytes:
    return bytes(build(pairs=pairs).whole())


def with_tensors(build: Build, *tensors: bytes, data: bytes = b"", **changes: Any) -> bytes:
    return bytes(build(tensors=tensors, data=data, **changes).whole())
