"""Rows repacked for a device by the team: the bytes of `planes.to_planes`, whatever the cut."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from hotcold.kernels.cpu import program
from hotcold.kernels.cuda import planes
from hotcold.kernels.weight_table import WEIGHT_TYPES, block_bytes, device_row_bytes

Walk = Callable[..., None]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", WEIGHT_TYPES, ids=lambda kind: kind.name)
def test_every_type(kind: GGMLQuantizationType, listed: bool, run_ops: Walk) -> None:
    """Padding is 0, rows of a list come in its order, and nothing behind the planes is written."""
    blocks, n_rows = 5, 23
    n = blocks * GGML_QUANT_SIZES[kind][0]
    rng = np.random.default_rng(int(kind))
    rows = rng.integers(0, 256, (40, blocks * block_bytes(kind)), np.uint8)
    chosen = rng.permutation(40)[:n_rows].astype(np.int32) if listed else np.arange(n_rows, dtype=np.int32)
    want = np.empty(n_rows * device_row_bytes(kind, n), np.uint8)
    planes.to_planes(rows[chosen], kind, want)
    parts = planes.planes(kind, n_rows, n)
    entries = np.array([[p.field.start, p.field.n_bytes, p.offset, p.row_bytes] for p in parts], np.int64)
    for chunks, n_threads in ((1, 1), (3, 2), (23, 4)):
        y = program.aligned(want.size + 64)
        y[:] = 0xA5
        record = {
            "code": program.TO_PLANES,
            "chunks": chunks,
            "w": rows.ctypes.data,
            "w_stride": rows.strides[0],
            "n_rows": n_rows,
            "k": blocks,
            "x": entries.ctypes.data,
            "z_stride": block_bytes(kind),
            "listed": chosen.ctypes.data if listed else 0,
            "n_parts": len(parts),
            "y": y.ctypes.data,
        }
        run_ops([record], n_threads)
        assert y[: want.size].tobytes() == want.tobytes()
        assert (y[want.size :] == 0xA5).all()
