"""Bugs for attention by tensor cores."""

from typing import Any

import numpy as np
from kernel_launches import Put, floats
from planted_bug import Bug

from hotcold.kernels.cuda.attention import Rounded, Scores, attention
from hotcold.kernels.cuda.device.device import Device


def _attend(device: Device, put: Put, n: int, n_past: int) -> None:
    """Five tokens after n_past, of two heads each: ten queries of one key/value head. The cache ends with the last."""
    n_ctx = n_past + 5
    q, y = put(device, floats(10 * n)), device.empty(10 * n, "f4")
    keys, values = (put(device, floats(n_ctx * n).astype("f2")) for _ in range(2))
    positions = put(device, np.arange(n_past, n_ctx, dtype="i4"))
    sizes: tuple[Any, ...] = 5, 2, 1, n, n_ctx
    scores, nowhere = Scores.plain(q, n), Rounded.nowhere(y)
    arguments = (q, keys, values, positions, y, *sizes, *scores.arguments, *nowhere)
    attention("f16", 5, 2, 1, n, n_ctx).launch(device, arguments, device.compute)


def run_tiles(device: Device, put: Put) -> None:
    """Two parts, of which the second has 12 positions."""
    _attend(device, put, 48, 263)


def run_tiles_odd(device: Device, put: Put) -> None:
    _attend(device, put, 6, 2)


FILE, RACE = "attention.cu", "race, |before anybody wrote"
BUGS = {
    "no barrier after the columns": Bug(
        FILE,
        run_tiles,
        "    __syncthreads();\n    if (own == 0) columns",
        "    if (own == 0) columns",
        RACE,
    ),
    "no barrier after the halves of queries": Bug(
        FILE,
        run_tiles,
        "    __syncthreads();\n    for (int part = columns",
        "    for (int part = columns",
        RACE,
    ),
    "no barrier after the warps' maxima": Bug(
        FILE,
        run_tiles,
        "    __syncthreads();\n    for (int j = 0; j < TILES; j++) {\n        for (int e",
        "    for (int j = 0; j < TILES; j++) {\n        for (int e",
        RACE,
    ),
    "no barrier after the halves of weights": Bug(
        FILE,
        run_tiles,
        "__syncthreads();                          // the weights are",
        "// the weights are",
        RACE,
    ),
    "sums in place of weights that are still read": Bug(
        FILE,
        run_tiles,
        "__syncthreads();                          // and are not",
        "// and are not",
        "race, ",
    ),
    "no barrier before groups are added": Bug(
        FILE,
        run_tiles,
        "__syncthreads();                          // the sums are there",
        "// the sums are there",
        RACE,
    ),
    "answers of columns that are no queries": Bug(
        FILE,
        run_tiles,
        "for (int c = warp(); c < n_columns; c += n_warps()) {\n            Factors",
        "for (int c = warp(); c < room.COLUMNS; c += n_warps()) {\n            Factors",
        "race, two writes",
    ),
    "vectors read from halves that are not aligned": Bug(
        FILE,
        run_tiles_odd,
        "bool whole = n % 4 == 0;",
        "bool whole = n % 2 == 0;",
        "undefined behaviour",
        [],
        "checked",
    ),
}
