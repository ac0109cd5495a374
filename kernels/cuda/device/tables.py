"""Tables of numbers for the device's programs, from the package gguf."""

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import numpy as np
from gguf import quants
from numpy.typing import NDArray

VALUES: dict[str, Any] = {"iq4_nl": quants.IQ4_NL, "mxfp4": quants.MXFP4}
"""Types whose nibbles are places among 16 numbers; their tables stand in every program."""

POINTS: dict[str, tuple[str, Any]] = {
    "iq2_xxs": ("iq2_xxs", quants.IQ2_XXS),
    "iq2_xs": ("iq2_xs", quants.IQ2_XS),
    "iq2_s": ("iq2_s", quants.IQ2_S),
    "iq3_xxs": ("iq3_xxs", quants.IQ3_XXS),
    "iq3_s": ("iq3_s", quants.IQ3_S),
    "iq1_s": ("iq1", quants.IQ1_S),
    "iq1_m": ("iq1", quants.IQ1_S),
}
"""Types whose indices are places among points, with the name of the table and what has it."""


def tables_of(endings: Collection[str]) -> Iterator[str]:
    """The definitions that weights of these types read (tables.h)."""
    for name, kind in VALUES.items():
        yield _definition(name, np.array(kind.kvalues, np.int8))
    for name in sorted({POINTS[ending][0] for ending in endings if ending in POINTS}):
        yield _points(name)


@cache
def _points(name: str) -> str:
    kind = next(kind for table, kind in POINTS.values() if table == name)
    kind.init_grid()
    points = np.asarray(kind.grid).reshape(kind.grid_shape).astype(np.int8)
    if name == "iq1":
        points = 8 * points + 16
    return _definition(name, points)


def _definition(name: str, numbers: NDArray[np.int8]) -> str:
    """Words of four numbers; points of eight are two words in brackets."""
    words = [f"{word:#010x}u" for word in np.ascontiguousarray(numbers, np.int8).view("<u4").ravel()]
    if numbers.shape[-1] == 8:
        words = [f"{{{low}, {high}}}" for low, high in zip(words[::2], words[1::2], strict=True)]
    return f"#define TABLE_{name} {', '.join(words)}\n"
