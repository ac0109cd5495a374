"""Matrices times many tokens, through an op record, with rows and tokens that fill no tile."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cpu import program, rows, sizes, tiles

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
