"""Kernels as files, and in this process: their names, what a file holds, and the cells by which they find each other.

A kernel is one C function, in an object file of its own. Those of one *family* do the same for several weight
types, or for several ops. A caller looks up the address in the family's *cells*, an array that is indexed by type
or op, so nothing has to be linked, and what no program needs is neither compiled nor loaded.

A file is a line of JSON, which says what the kernel calls, and then the object code. Reading them takes LLVM
alone, not Numba.
"""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from hotcold.code_files import code_folder, read_code, write_code

N_CELLS = 64  # of a family: more than there are weight types, or ops
OPS = "op"  # the family that the walk calls, by the code of an op
COUNTER = "hotcold_counted_bytes"

# A checking build counts the bytes of every row that is read, in a cell that machine code finds by name.
COUNTING = os.environ.get("HOTCOLD_COUNT_BYTES", "0") not in ("", "0")


@dataclass(frozen=True)
class Family:
    """The kernels of a family.

    Attributes:
        members: names of kernels by weight type, or op.
        always: the types that a caller may want whatever its program's weights are.
    """

    members: dict[int, str]
    always: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A kernel in this process: where it begins, and what it calls."""

    address: int
    calls: dict[str, Family]


Code = bytes
"""What a kernel's file holds."""

_kernels: dict[str, Kernel] = {}


# ---- names that machine code knows ------------------------------------------------


@cache
def _shared(symbol: str, n: int) -> NDArray[np.int64]:
    """n zeros which machine code finds by a symbol."""
    numbers = np.zeros(n, np.int64)
    llvm.add_symbol(symbol, numbers.ctypes.data)
    return numbers


def cells_symbol(family: str) -> str:
    """The symbol of a family's cells."""
    return f"hotcold_cells_{family}"


def cells(family: str) -> NDArray[np.int64]:
    """The addresses of a family's kernels; 0 where none is loaded."""
    return _shared(cells_symbol(family), N_CELLS)


def symbol_of(name: str) -> str:
    """The symbol of a kernel."""
    return f"hotcold_{name}"


def counted_bytes() -> int:
    """Bytes of rows that all kernels have read so far, in a checking build; else 0."""
    return int(_shared(COUNTER, 1)[0])


# ---- files --------------------------------------------------------------------------


@cache
def folder() -> Path | None:
    """The folder of these sources' code for this CPU, made if it can be; else one for this run, or none."""
    return code_folder(Path(__file__).parent, os.environ.get("HOTCOLD_COUNT_BYTES", ""))


def file_of(name: str) -> Path | None:
    """Where a kernel is kept, if anywhere."""
    place = folder()
    return place and place / f"{name}.kernel"


def read(name: str) -> Code | None:
    """What was compiled of a kernel, if it is there and whole."""
    path = file_of(name)
    return read_code(path) if path is not None else None


def write(name: str, code: Code) -> None:
    """Keep what was compiled of a kernel, if there is a place."""
    path = file_of(name)
    if path is not None:
        write_code(path, code)


_LEVEL = "prefetch.level"


@cache
def noted_level() -> int | None:
    """The cache level that suits rows, if it was measured for this CPU (see `prefetch_level.py`)."""
    place = folder()
    level = read_code(place / _LEVEL) if place is not None else None
    return int(level) if level is not None else None


def note_level(level: int) -> None:
    """Keep what was measured, if there is a place."""
    place = folder()
    if place is not None:
        write_code(place / _LEVEL, str(level).encode())
        noted_level.cache_clear()


def packed_code(calls: dict[str, Family], machine_code: bytes) -> Code:
    """What a kernel's file holds."""
    table = {name: [family.members, family.always] for name, family in calls.items()}
    return json.dumps(table).encode() + b"\n" + machine_code


def _unpacked(code: Code) -> tuple[dict[str, Family], bytes]:
    line, _, machine_code = code.partition(b"\n")
    calls = {}
    for name, (members, always) in json.loads(line).items():
        calls[name] = Family({int(key): member for key, member in members.items()}, tuple(always))
    return calls, machine_code


# ---- in this process ------------------------------------------------------------------


@cache
def _engine() -> Any:
    """What loads object code: an empty program for this CPU."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    if COUNTING:
        counted_bytes()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    machine = target.create_target_machine(codemodel="jitdefault", jit=True)
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def loaded(name: str) -> Kernel | None:
    """A kernel, if it is in this process."""
    return _kernels.get(name)


def load(name: str, code: Code) -> Kernel:
    """Bring a kernel into this process, but not what it calls."""
    calls, machine_code = _unpacked(code)
    for family in calls:
        cells(family)
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    kernel = _kernels[name] = Kernel(engine.get_function_address(symbol_of(name)), calls)
    return kernel
