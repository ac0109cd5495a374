"""Brings the kernels that a program calls into this process, compiled if no file holds them yet.

Numba is imported only where something has to be compiled.
"""

import ctypes
import fcntl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cpu.kernel_files import OPS, Code, Kernel, cells, folder, load, loaded, read
from hotcold.kernels.cpu.program import OP

WALK = "lead"  # a kernel that calls the ops of a program

_lock = threading.RLock()
_ready: set[tuple[str, frozenset[int]]] = set()
_around: list[Callable[[], AbstractContextManager[None]]] = []
_builds: list[Callable[[], None]] = []  # what ends those that have begun


def compile_within(around: Callable[[], AbstractContextManager[None]]) -> None:
    """Whenever kernels are compiled, which takes seconds, do it within such a context."""
    _around[:] = [around]


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """One process compiles into a folder at a time: the others find done what they would do again."""
    try:
        file = (place / "compiling.lock").open("w")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _codes(names: list[str]) -> dict[str, Code]:
    """The code of kernels, compiled where it is not kept."""
    found = {name: code for name in names if (code := read(name)) is not None}
    if len(found) == len(names):
        return found
    place = folder()
    if place is None:
        return found | _compiled([name for name in names if name not in found])
    with alone(place):
        found |= {name: code for name in names if name not in found and (code := read(name)) is not None}
        missing = [name for name in names if name not in found]
        return found | (_compiled(missing) if missing else {})


def _compiled(names: list[str]) -> dict[str, Code]:
    from hotcold.kernels.cpu import build

    _builds.append(build.finish)
    with ExitStack() as stack:
        for around in _around:
            stack.enter_context(around())
        return build.compile_all(names)


# ---- loading ------------------------------------------------------------------------


def _load(names: Iterable[str]) -> None:
    """Bring kernels into this process, but not what they call."""
    for name, code in _codes([name for name in names if loaded(name) is None]).items():
        load(name, code)


def _load_called(callers: set[tuple[str, frozenset[int]]]) -> None:
    """Bring in kernels, what they call for some weight types, and so on; fill the cells."""
    try:
        _load_levels(callers)
    finally:
        while _builds:
            _builds.pop()()


def _load_levels(callers: set[tuple[str, frozenset[int]]]) -> None:
    while callers := callers - _ready:
        _load(sorted({name for name, _ in callers}))
        called = set()
        for name, types in callers:
            for family, wanted in _kernel(name).calls.items():
                for key in {*types, *wanted.always} & wanted.members.keys() if family != OPS else ():
                    called.add((family, key, wanted.members[key], types))
        _load(sorted({member for _, _, member, _ in called}))
        for family, key, member, _ in called:
            cells(family)[key] = _kernel(member).address
        _ready.update(callers)
        callers = {(member, types) for _, _, member, types in called}


def _kernel(name: str) -> Kernel:
    kernel = loaded(name)
    assert kernel is not None
    return kernel


def entry(name: str, result: Any, n_arguments: int) -> Any:
    """A kernel as a ctypes function of int64; it does not hold the interpreter's lock."""
    with _lock:
        _load_called({(name, frozenset())})
        kind = ctypes.CFUNCTYPE(result, *[ctypes.c_int64] * n_arguments)
        return kind(_kernel(name).address)


def prepare(ops: NDArray[Any]) -> None:
    """Bring in what a program's ops call for the types of their weights.

    Args:
        ops: records of dtype OP.
    """
    with _lock:
        _load_called({(WALK, frozenset())})
        members = _kernel(WALK).calls[OPS].members
        callers = {(members[code], code, types) for code, types in _wanted(ops)}
        _load_called({(name, types) for name, _, types in callers})
        for name, code, _ in callers:
            cells(OPS)[code] = _kernel(name).address


def _wanted(ops: NDArray[Any]) -> set[tuple[int, frozenset[int]]]:
    """Each op's code and the types of the weights that it has."""
    assert ops.dtype == OP
    columns = [ops["code"].tolist()]
    for name in ("w", "w1", "w2"):
        columns.append(np.where(ops[name] != 0, ops[f"{name}_type"], -1).tolist())
    return {(code, frozenset(types) - {-1}) for code, *types in set(zip(*columns, strict=True))}
