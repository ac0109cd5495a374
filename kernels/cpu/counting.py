"""A checking build counts the bytes of every row that is read, in a cell that machine code finds by name."""

import os

import llvmlite.binding
import numpy as np
from llvmlite import ir

from hotcold.kernels.cpu.simd import I64, Builder, Value
from hotcold.kernels.cpu.weights import WeightType

COUNTING = os.environ.get("HOTCOLD_COUNT_BYTES", "0") not in ("", "0")
_COUNTER = np.zeros(1, np.int64)
_COUNTER_SYMBOL = "hotcold_counted_bytes"
llvmlite.binding.add_symbol(_COUNTER_SYMBOL, _COUNTER.ctypes.data)


def counted_bytes() -> int:
    """Bytes of rows that all kernels have read so far, in a checking build; else 0."""
    return int(_COUNTER[0])


def emit_count(b: Builder, kind: WeightType, n_rows: Value, k: Value) -> None:
    """In a checking build: add the bytes of k numbers of n_rows rows to the counter."""
    if not COUNTING:
        return
    n_bytes = b.mul(b.mul(b.udiv(k, I64(kind.block)), I64(kind.type_size)), n_rows)
    cell = b.module.globals.get(_COUNTER_SYMBOL)
    if cell is None:
        cell = ir.GlobalVariable(b.module, I64, _COUNTER_SYMBOL)
    b.atomic_rmw("add", cell, n_bytes, "monotonic")
