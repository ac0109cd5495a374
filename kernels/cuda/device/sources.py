"""The CUDA sources as one program: both drivers compile the same text."""

import hashlib
import re
from pathlib import Path

from hotcold.errors import DeviceError

SOURCES = Path(__file__).parent.parent  # kernels/cuda/
INCLUDE = re.compile(r'^#include "(\w+\.h)"$')

NVRTC_OPTIONS = ("--std=c++17", "--fmad=false")
"""No contraction: a product and a sum become one rounding only where the source says fmaf, so the
card and the emulated device round alike."""


def families() -> tuple[Path, ...]:
    """Every .cu file of the package, in the order of their names: one op family each."""
    return tuple(sorted(SOURCES.glob("*.cu")))


def program(*paths: Path) -> str:
    """The text of the given .cu files, or of all of them, with our own headers put in once.

    `#line` directives keep the names and line numbers of the files in every compiler's messages.
    Our headers are taken from this folder, wherever the .cu file lies.
    """
    seen: set[str] = set()
    return "".join(_expanded(path, seen) for path in paths or families())


def _expanded(path: Path, seen: set[str]) -> str:
    out = [f'#line 1 "{path.name}"']
    for number, line in enumerate(_read(path).splitlines(), 1):
        include = INCLUDE.match(line)
        if include is None:
            out.append(line)
        elif include[1] not in seen:
            seen.add(include[1])
            out.append(_expanded(SOURCES / include[1], seen) + f'#line {number + 1} "{path.name}"')
    return "\n".join(line for line in out if line != "#pragma once") + "\n"


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
