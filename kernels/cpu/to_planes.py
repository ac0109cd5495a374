"""Rows of a file repacked for a device, each field of a block in a plane of its own, as `cuda/planes.py` defines them.

A row is read once, for all of its fields. A type whose blocks are one field is copied as it is.
"""

from typing import Any

from llvmlite import ir
from numba import types

from hotcold.kernels.cpu.compiled import compiled
from hotcold.kernels.cpu.operations import load_i32, load_i64
from hotcold.kernels.cpu.simd import I8, I16, I32, I64, VT, Builder, Value, address, load, operation, store

ENTRY = 32
"""Bytes of a plane's entry: where its field begins in a block, the field's bytes, the plane's first byte, the bytes
from row to row; int64 each."""


def _copying(kind: Any, n: int) -> Any:
    """Code that copies n bytes."""

    def copy(b: Builder, y: Value, x: Value) -> None:
        store(b, load(b, x, kind), y)

    copy.__name__, copy.__module__, copy.__doc__ = f"copy_{n}", __name__, f"{n} bytes from x to y."
    return operation(types.void, address, address)(copy)


_copy_1, _copy_2, _copy_4, _copy_16, _copy_32 = (
    _copying(kind, n) for kind, n in ((I8, 1), (I16, 2), (I32, 4), (VT(I8, 16), 16), (VT(I8, 32), 32))
)


@operation(types.void, address, address, types.int64)
def _copy_run(b: Builder, y: Value, x: Value, n: Value) -> None:
    """n bytes from x to y."""
    pointer = I8.as_pointer()
    function = b.module.globals.get("memcpy")
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(pointer, [pointer, pointer, I64]), "memcpy")
    b.call(function, [b.inttoptr(y, pointer), b.inttoptr(x, pointer), n])


@operation(types.void, address)
def _clear(b: Builder, y: Value) -> None:
    """A byte of 0."""
    store(b, I8(0), y)


@compiled
def _field(x: int, step: int, size: int, n: int, y: int) -> None:
    """One field of the n blocks of a row, `step` bytes from block to block, closely behind each other."""
    if size == step:
        _copy_run(y, x, size * n)
    elif size == 2:
        for i in range(n):
            _copy_2(y + 2 * i, x + step * i)
    elif size == 16:
        for i in range(n):
            _copy_16(y + 16 * i, x + step * i)
    elif size == 32:
        for i in range(n):
            _copy_32(y + 32 * i, x + step * i)
    else:
        _wide(x, step, size, n, y)


@compiled
def _wide(x: int, step: int, size: int, n: int, y: int) -> None:
    """The same for other sizes."""
    if size % 32 == 0:
        for i in range(n):
            for j in range(0, size, 32):
                _copy_32(y + size * i + j, x + step * i + j)
    elif size % 4 == 0:
        for i in range(n):
            for j in range(0, size, 4):
                _copy_4(y + size * i + j, x + step * i + j)
    else:
        for i in range(n):
            for j in range(size):
                _copy_1(y + size * i + j, x + step * i + j)


@compiled
def repack(op, first: int, last: int) -> None:  # type: ignore[no-untyped-def]
    """Rows first to last of a TO_PLANES op, of all or of those that are listed."""
    for i in range(first, last):
        row = op.w + op.w_stride * (load_i32(op.listed + 4 * i) if op.listed != 0 else i)
        for part in range(op.n_parts):
            at = op.x + ENTRY * part
            start, size, row_bytes = load_i64(at), load_i64(at + 8), load_i64(at + 24)
            y, used = op.y + load_i64(at + 16) + row_bytes * i, size * op.k
            _field(row + start, op.z_stride, size, op.k, y)
            for j in range(used, row_bytes):
                _clear(y + j)
