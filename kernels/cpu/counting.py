"""A checking build counts the bytes of every row that is read, in a cell that machine code finds by name."""

from llvmlite import ir

from hotcold.kernels.cpu.kernel_files import COUNTER, COUNTING
from hotcold.kernels.cpu.simd import I64, Builder, Value
from hotcold.kernels.cpu.weights import WeightType


def emit_count(b: Builder, kind: WeightType, n_rows: Value, k: Value) -> None:
    """In a checking build: add the bytes of k numbers of n_rows rows to the counter."""
    if not COUNTING:
        return
    n_bytes = b.mul(b.mul(b.udiv(k, I64(kind.block)), I64(kind.type_size)), n_rows)
    cell = b.module.globals.get(COUNTER)
    if cell is None:
        cell = ir.GlobalVariable(b.module, I64, COUNTER)
    b.atomic_rmw("add", cell, n_bytes, "monotonic")
