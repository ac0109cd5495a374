"""What threads have in common: cells of 64 bits, and how one waits for another.

Each is one `operation`, as in `operations.py`. On Linux a waiting thread sleeps in the kernel until somebody wakes it;
elsewhere, and on processors whose numbers of system calls are not known here, it looks again after a short nap.
"""

import platform
import sys
import time

from llvmlite import ir
from numba import types
from numba.core import cgutils

from hotcold.kernels.cpu.simd import I32, I64, Builder, Value, address, call, operation, target_is_x86

# futex(2): the number of the system call, and two of its operations within a process
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
_NAP_MICROSECONDS = 50


@operation(types.int64, address)
def atomic_load(b: Builder, at: Value) -> Value:
    """Acquire."""
    return b.load_atomic(b.inttoptr(at, I64.as_pointer()), "acquire", 8)


@operation(types.int64, address, types.int64)
def atomic_add(b: Builder, at: Value, v: Value) -> Value:
    """Add v; gives the value before."""
    return b.atomic_rmw("add", b.inttoptr(at, I64.as_pointer()), v, "acq_rel")


@operation(types.boolean, address, types.int64, types.int64)
def atomic_swap_if(b: Builder, at: Value, old: Value, new: Value) -> Value:
    """Store `new` if the cell holds `old`; whether it did."""
    result = b.cmpxchg(b.inttoptr(at, I64.as_pointer()), old, new, "acq_rel", "acquire")
    return b.extract_value(result, 1)


@operation(types.int32)
def sched_yield(b: Builder) -> Value:
    """Give the core to another thread."""
    return call(b, "sched_yield", I32)


@operation(types.void)
def pause(b: Builder) -> None:
    """Tell the core that this is a waiting loop."""
    if target_is_x86():
        call(b, "llvm.x86.sse2.pause", ir.VoidType())


@operation(types.void, address, types.int64)
def atomic_store(b: Builder, at: Value, v: Value) -> None:
    """Release."""
    b.store_atomic(v, b.inttoptr(at, I64.as_pointer()), "release", 8)


def _futex(b: Builder, at: Value, operation: int, value: Value) -> None:
    kind = ir.FunctionType(I64, [I64], var_arg=True)
    function = b.module.globals.get("syscall") or ir.Function(b.module, kind, "syscall")
    b.call(function, [I64(_FUTEX), at, I64(operation), value, I64(0), I64(0), I64(0)])


@operation(types.void, address, types.int64)
def sleep_while(b: Builder, at: Value, value: Value) -> None:
    """Sleep until `wake`, unless the low half of a cell is no more that of `value`; may end before."""
    if _FUTEX is None:
        call(b, "usleep", I32, I32(_NAP_MICROSECONDS))
    else:
        _futex(b, at, _WAIT_PRIVATE, value)


@operation(types.void, address, types.int64)
def wake(b: Builder, at: Value, n: Value) -> None:
    """Wake up to n of the threads that sleep at a cell."""
    if _FUTEX is not None:
        _futex(b, at, _WAKE_PRIVATE, n)


@operation(types.int64)
def nanoseconds(b: Builder) -> Value:
    """A clock that never goes back."""
    kind = ir.ArrayType(I64, 2)
    at = cgutils.alloca_once(b, kind)
    call(b, "clock_gettime", I32, I32(time.CLOCK_MONOTONIC), b.ptrtoint(at, I64))
    seconds, rest = (b.extract_value(b.load(at), i) for i in range(2))
    return b.add(b.mul(seconds, I64(10**9)), rest)
