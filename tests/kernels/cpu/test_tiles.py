"""Matrices times many tokens, through an op record, with rows and tokens that fill no tile."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels import order_of_sums, ref
from hotcold.kernels.cpu import float_sums, float_tiles, program, rows, simd, sizes, tiles

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

SIZES = {
    rows.F32_ID: (1, 17, 100),
    rows.F16_ID: (1, 17, 100),
    rows.BF16_ID: (17, 128),
    **{i: (512,) if block == 256 else (32, 160, 256) for i, block in rows.BLOCK_SIZE.items() if block > 1},
}
CASES = [
    pytest.param(t, k, id=f"{GGMLQuantizationType(t).name}-{k}") for t, sizes in SIZES.items() for k in sizes
]


@pytest.mark.parametrize(("type_id", "k"), CASES)
@pytest.mark.parametrize(
    ("n_rows", "first", "last", "n_tokens"),
    [(1, 0, 1, 1), (5, 0, 5, 3), (70, 0, 70, 9), (150, 16, 147, 7), (9, 4, 4, 4), (8, 0, 8, 4)],
)
def test_mul_mat(
    type_id: int,
    k: int,
    n_rows: int,
    first: int,
    last: int,
    n_tokens: int,
    make_weights: Callable[[int, int, int], tuple[U8, F32]],
    make_inputs: Callable[..., F32],
    packed: Callable[[F32], U8],
    scratch: U8,
    assert_near: Callable[[Any, Any], None],
) -> None:
    raw, w = make_weights(type_id, n_rows, k)
    x = make_inputs(n_tokens, k)
    at: NDArray[Any] = packed(x) if sizes.is_quantised(type_id) else x
    y = np.full((n_tokens, n_rows + 3), 7, np.float32)
    fields = {"w": raw.ctypes.data, "w_type": type_id, "w_stride": raw.shape[1], "x_stride": at.strides[0]}
    op = program.assemble([{**fields, "n_rows": n_rows, "k": k}])[0]
    tiles.mul_mat(op, first, last, n_tokens, at.ctypes.data, y.ctypes.data, y.strides[0], scratch.ctypes.data)
    assert (y[:, :first] == 7).all() and (y[:, last:] == 7).all()
    if last > first:
        assert_near(y[:, first:last], ref.mul_mat(w, x, sizes.is_quantised(type_id))[:, first:last])


@pytest.mark.parametrize("type_id", [rows.F32_ID, rows.F16_ID, rows.BF16_ID])
@pytest.mark.parametrize("k", [9, 33, 100, 2 * float_sums.STEP * (float_tiles.SLICE + 1) + 5])
@pytest.mark.parametrize("n_tokens", [tiles.FEW_FLOAT_TOKENS + 1, 17, float_tiles.TOKENS + 1])
def test_tiles_of_float_types_are_the_oracles_bit_for_bit(
    type_id: int,
    k: int,
    n_tokens: int,
    make_weights: Callable[[int, int, int], tuple[U8, F32]],
    make_inputs: Callable[..., F32],
    before_a_hole: Callable[[NDArray[Any]], NDArray[Any]],
    scratch: U8,
) -> None:
    """More rows, steps and tokens than are taken at once, and some that fill nothing; none past the end is read."""
    raw, w = make_weights(type_id, float_tiles.PASSING + float_tiles.ROWS + 3, k)
    raw, x = before_a_hole(raw), before_a_hole(make_inputs(n_tokens, k))
    y = np.full((n_tokens, len(w)), np.nan, np.float32)
    fields = {"w": raw.ctypes.data, "w_type": type_id, "w_stride": raw.shape[1], "x_stride": x.strides[0]}
    op = program.assemble([{**fields, "n_rows": len(w), "k": k}])[0]
    assert tiles.has_tiles(op, n_tokens)
    tiles.mul_mat(op, 0, len(w), n_tokens, x.ctypes.data, y.ctypes.data, y.strides[0], scratch.ctypes.data)
    fma = order_of_sums.fma if "fma" in simd.target_features() else order_of_sums.mul_add
    for t in (0, n_tokens // 2, n_tokens - 1):
        wanted = order_of_sums.dots_of_floats_in_order(w, x[t], fma)
        assert np.array_equal(y[t].view(np.int32), wanted.view(np.int32)), t
    assert np.isfinite(y).all()
