"""Kernel signatures, read from the sources, and the arguments of a launch checked against them.

A GPU takes whatever it is given: a Python float arrives as a double where the kernel reads a
float, a grid of nothing runs once. So each launch is checked here, for both drivers alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.macros import expand, without_comments

MAX_THREADS = 256
"""Threads a block: the launch bound that `KERNEL` in common.h promises the compiler."""
MAX_DYNAMIC_SHARED = 44 << 10
MAX_STATIC_SHARED = 4 << 10
"""Together the 48 KiB of shared memory that every card has without asking. The dynamic part is
checked at each launch, the static part by the compile check."""
MAX_GRID = (2**31 - 1, 65535, 65535)
WARP = 32

SCALARS = {
    "float": "f",
    "int": "i",
    "unsigned": "I",
    "unsigned char": "B",
    "signed char": "b",
    "unsigned short": "H",
    "short": "h",
    "__half": "e",
    "long long": "q",
    "unsigned long long": "Q",
    "double": "d",
    "bool": "?",
}
"""C's types and NumPy's type characters for them."""
VECTORS = {"int2": 8, "uint2": 8, "float2": 8, "int4": 16, "uint4": 16, "float4": 16}
"""Vector types and the alignment in bytes that loading one needs."""

KERNEL_WORDS = frozenset({"KERNEL", "KERNEL_WIDE"})
"""What begins a kernel; common.h has the macros."""

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Parameter:
    """One parameter: `code` is NumPy's type character, "V" for a vector type; what is `const` is only read."""

    name: str
    code: str
    pointer: bool
    alignment: int
    const: bool = False


@dataclass(frozen=True)
class Signature:
    """A kernel's name and its parameters in order."""

    kernel: str
    parameters: tuple[Parameter, ...]

    @property
    def codes(self) -> str:
        """All parameters in one word: "PfPVi" takes float*, a vector pointer and an int."""
        return "".join("P" * p.pointer + p.code for p in self.parameters)


def read_signatures(source: str) -> dict[str, Signature]:
    """The kernels of a source, by name.

    Each `KERNEL name(parameters)`, or `KERNEL_WIDE`, also where a macro makes it.
    """
    text = expand(without_comments(source), keep=KERNEL_WORDS)
    found = re.findall(r"\bKERNEL(?:_WIDE)?\s+(\w+)\(([^)]*)\)", text)
    return {name: Signature(name, tuple(map(_parameter, words.split(",")))) for name, words in found}


def _parameter(text: str) -> Parameter:
    words = re.sub(r"\b(const|__restrict__)\b", "", text).replace("*", " * ").split()
    *kind, name = words
    pointer, const = "*" in kind, text.split()[0] == "const"
    c_type = " ".join(word for word in kind if word != "*")
    if pointer and c_type in VECTORS:
        return Parameter(name, "V", True, VECTORS[c_type], const)
    if c_type not in SCALARS:
        raise DeviceError("kernel parameter", text.strip(), "its type is not known", "add it to SCALARS")
    code = SCALARS[c_type]
    return Parameter(name, code, pointer, np.dtype(code).itemsize, const)


def three(size: Size) -> tuple[int, int, int]:
    """A grid or block size with all three dimensions."""
    x, y, z = (*((size,) if isinstance(size, int) else size), 1, 1)[:3]
    return x, y, z


def check_size(kernel: str, grid: Size, block: Size, shared: int) -> None:
    """Refuse a launch that no card can run, or that would run something else than was meant.

    Raises:
        DeviceError: an empty grid or block, a block that is not whole warps, too many threads,
            blocks or bytes of shared memory.
    """
    blocks, threads = three(grid), three(block)
    n_threads = threads[0] * threads[1] * threads[2]
    if min(blocks + threads) < 1:
        raise DeviceError(f"launch of {kernel}", f"grid {blocks}, block {threads}", "is empty", "skip it")
    if n_threads > MAX_THREADS or n_threads % WARP:
        bound = f"whole warps of {WARP}, at most {MAX_THREADS} threads"
        raise DeviceError(f"block of {kernel}", threads, bound, "choose another block size")
    if any(n > most for n, most in zip(blocks, MAX_GRID, strict=True)):
        raise DeviceError(f"grid of {kernel}", blocks, f"at most {MAX_GRID}", "launch it in parts")
    if not 0 <= shared <= MAX_DYNAMIC_SHARED:
        bound = f"0 to {MAX_DYNAMIC_SHARED} bytes"
        raise DeviceError(f"dynamic shared memory of {kernel}", shared, bound, "use smaller tiles")


def find(signatures: Mapping[str, Signature], kernel: str) -> Signature:
    """The signature of a kernel; DeviceError if there is no such kernel."""
    if kernel not in signatures:
        raise DeviceError(
            "kernel", kernel, "is not in the sources", f"known: {', '.join(sorted(signatures))}"
        )
    return signatures[kernel]


def check_count(signature: Signature, arguments: Sequence[Any]) -> None:
    """Refuse a launch with too few or too many arguments."""
    n = len(signature.parameters)
    if len(arguments) != n:
        wanted = ", ".join(p.name for p in signature.parameters)
        raise DeviceError(f"arguments of {signature.kernel}", len(arguments), f"takes {n}: {wanted}")


def scalar(signature: Signature, parameter: Parameter, value: Any) -> np.generic:
    """A plain number as the very type that the kernel reads.

    Raises:
        DeviceError: the value is no number, or the type cannot hold it.
    """
    thing = f"argument {parameter.name} of {signature.kernel}"
    dtype = np.dtype(parameter.code)
    if not isinstance(value, (bool, int, float, np.number, np.bool_)):
        raise DeviceError(thing, type(value).__name__, f"{dtype} is passed by value")
    if dtype.kind in "iub?" and isinstance(value, (float, np.floating)):
        raise DeviceError(thing, value, f"is a fraction, {dtype} is wanted")
    try:
        with np.errstate(over="raise"):
            return dtype.type(value)  # type: ignore[no-any-return]  # of whatever type
    except (OverflowError, FloatingPointError):
        raise DeviceError(thing, value, f"does not fit {dtype}") from None
