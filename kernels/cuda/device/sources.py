"""The CUDA sources as programs: both drivers compile the same text.

Kernels that multiply weights are written once, and made for the types that a program is asked for: what stands in
front of it says which (parameters.h).
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.tables import tables_of
from hotcold.kernels.weight_table import WEIGHT_TYPES

SOURCES = Path(__file__).parent.parent  # kernels/cuda/
INCLUDE = re.compile(r'^#include "(\w+\.h)"$')
BY_TYPES = {"ONE_TYPE": 1, "TWO_TYPES": 2, "THREE_TYPES": 3}
"""What makes a kernel for types, and how many matrices of types of their own it multiplies."""
IS_TYPED = re.compile(rf"^(?:{'|'.join(BY_TYPES)})\(\w+\)", re.MULTILINE)
Types = tuple[str, ...]
"""The types of one kernel's matrices, by the endings of kernels' names; a single one stands for all of them."""

NVRTC_OPTIONS = ("--std=c++17", "--fmad=false")
"""No contraction: a product and a sum become one rounding only where the source says fmaf, so the
card and the emulated device round alike."""


def families() -> tuple[Path, ...]:
    """Every .cu file of the package, in the order of their names: one op family each."""
    return tuple(sorted(SOURCES.glob("*.cu")))


def typed_families() -> tuple[Path, ...]:
    """Those of them whose kernels multiply weights."""
    return tuple(path for path in families() if IS_TYPED.search(_read(path)))


def program(*paths: Path, types: Sequence[Types] = ()) -> str:
    """The text of the given .cu files with our own headers put in once, with typed kernels for these types.

    `#line` directives keep the names and line numbers of the files in every compiler's messages.
    Our headers are taken from this folder, wherever the .cu file lies.
    """
    seen: set[str] = set()
    return "".join([*_prelude(types), *(_expanded(path, seen) for path in paths)])


def _prelude(types: Sequence[Types]) -> Iterator[str]:
    if types:
        yield '#line 1 "types"\n'
    for macro, count in BY_TYPES.items():
        calls = [_call(of_one, count) for of_one in types if len(of_one) in (1, count)]
        if calls:
            yield f"#define {macro}(M) {' '.join(calls)}\n"
    used = {ending for of_one in types for ending in of_one}
    for row in WEIGHT_TYPES.values():
        if row.ending in used:
            kind = "ROUNDED" if row.is_quantised else "FLOATS"
            yield f"#define INPUT_{row.ending} INPUT_{kind}\n#define X_{row.ending} X_{kind}\n"
    if used:
        yield from tables_of(used)


def _call(types: Types, count: int) -> str:
    """M(type), or M(ending, a, b) and so on."""
    each = types * count if len(types) == 1 else types
    return f"M({', '.join(each if count == 1 else (ending(types), *each))})"


def ending(types: Types) -> str:
    """How a kernel for these types is called behind its family: by the one type, or by all in order."""
    return types[0] if len(set(types)) == 1 else "_".join(types)


def _expanded(path: Path, seen: set[str]) -> str:
    out = [f'#line 1 "{path.name}"']
    for number, line in enumerate(_read(path).splitlines(), 1):
        include = INCLUDE.match(line)
        if include is None:
            out.append(line)
        elif include[1] not in seen:
            seen.add(include[1])
            out.append(_expanded(SOURCES / include[1], seen) + f'#line {number + 1} "{path.name}"')
        else:
            out.append("")  # or the lines behind it would be counted wrongly
    return "\n".join("" if line == "#pragma once" else line for line in out) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DeviceError(
            "CUDA source", path, error.strerror or str(error), "install hotcold again"
        ) from error


def digest(*parts: str | bytes) -> str:
    """A short name for what the parts say: 16 hexadecimal digits of their SHA-256."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:16]
