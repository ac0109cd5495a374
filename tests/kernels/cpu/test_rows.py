"""Dot products, tiles, scaled sums and widening of rows, for every weight type."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from random_weights import HALFS

from hotcold.kernels import ref
from hotcold.kernels.cpu import rows, sizes
from hotcold.kernels.cpu.rows import BF16_ID, F16_ID, F32_ID
from hotcold.kernels.cpu.weight_types import BLOCK_TYPES

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
MakeWeights = Callable[[int, int, int], tuple[U8, F32]]
MakeInputs = Callable[..., F32]
Near = Callable[[Any, Any], None]
Packed = Callable[[F32], U8]
Place = Callable[[NDArray[Any]], NDArray[Any]]

FLOAT_SIZES = (1, 2, 15, 16, 17, 31, 64, 65, 100, 130, 4097)
BLOCK_SIZES = (32, 64, 96, 128, 160, 256, 288, 352, 768, 1024, 4128)
K_SIZES = (256, 512, 768, 4352)
SIZES = {
    **dict.fromkeys((F32_ID, F16_ID, BF16_ID), FLOAT_SIZES),
    **{kind.type_id: BLOCK_SIZES if kind.block == 32 else K_SIZES for kind in BLOCK_TYPES},
}
HALFS_AT: dict[GGMLQuantizationType, Iterable[int]] = {
    kind: range(place.start, place.stop, 2)
    for kind, place in HALFS.items()
    if kind != GGMLQuantizationType.IQ1_M
}
HALFS_AT |= {GGMLQuantizationType.Q4_1: (0, 2), GGMLQuantizationType.Q5_1: (0, 2)}
HALFS_AT |= {GGMLQuantizationType.TQ1_0: (52,), GGMLQuantizationType.TQ2_0: (64,)}


def cases(types: Any = tuple(SIZES)) -> list[Any]:
    """Every type with every size of a row."""
    names = {type_id: GGMLQuantizationType(type_id).name for type_id in types}
    return [pytest.param(t, k, id=f"{names[t]}-{k}") for t in types for k in SIZES[t]]


def of_type(types: Any = tuple(SIZES)) -> list[Any]:
    """Every type."""
    return [pytest.param(t, id=GGMLQuantizationType(t).name) for t in types]


@pytest.fixture
def operand(packed: Packed) -> Callable[[int, F32], NDArray[Any]]:
    """operand(type_id, x): inputs as this weight type wants them."""
    return lambda type_id, x: packed(x) if sizes.is_quantised(type_id) else np.ascontiguousarray(x)


@pytest.mark.parametrize("type_id", of_type())
def test_sizes_are_those_of_gguf(type_id: int) -> None:
    assert (rows.BLOCK_SIZE[type_id], rows.TYPE_SIZE[type_id]) == GGML_QUANT_SIZES[
        GGMLQuantizationType(type_id)
    ]


@pytest.mark.parametrize(("type_id", "k"), cases())
def test_dot_row(
    type_id: int,
    k: int,
    make_weights: MakeWeights,
    make_inputs: MakeInputs,
    operand: Callable[[int, F32], NDArray[Any]],
    before_a_hole: Place,
    assert_near: Near,
) -> None:
    raw, w = make_weights(type_id, 7, k)
    raw, x = before_a_hole(raw), make_inputs(1, k)
    at = before_a_hole(operand(type_id, x))
    got = [rows.dot_row(type_id, row.ctypes.data, at.ctypes.data, k, rows.AHEAD) for row in raw]
    assert_near(got, ref.mul_mat(w, x, sizes.is_quantised(type_id))[0])
    # listed, more than are folded at once, whatever is asked for
    listed = np.array([0, 6, 1, 5, 2, 4, 3, 3, 0, 6, 6, 2, 1, 4, 5, 0, 3, 2, -(1 << 40)])
    where = type_id, raw.ctypes.data, raw.shape[1], listed.ctypes.data
    for n, ahead in ((1, 2), (18, 2), (18, 40), (5, 0)):
        out = np.full(n + 1, 7, np.float32)
        rows.dot_listed(*where, n, at.ctypes.data, k, ahead, out.ctypes.data)
        wanted = np.array(got, np.float32)[listed[:n]]
        assert out[:n].tobytes() == wanted.tobytes() and out[n] == 7


def tile_addresses(at: NDArray[Any]) -> NDArray[np.int64]:
    """Where the four columns of a tile lie."""
    return np.array([row.ctypes.data for row in at], np.int64)


@pytest.mark.parametrize(("type_id", "k"), cases())
def test_dot_strips(
    type_id: int,
    k: int,
    make_weights: MakeWeights,
    make_inputs: MakeInputs,
    operand: Callable[[int, F32], NDArray[Any]],
    before_a_hole: Place,
    assert_near: Near,
) -> None:
    raw, w = make_weights(type_id, 5, k)
    raw, x = before_a_hole(raw), make_inputs(16, k)
    at = before_a_hole(operand(type_id, x))
    columns = tile_addresses(at)
    wanted = ref.mul_mat(w, x, sizes.is_quantised(type_id))
    for n in (1, 2, 3, 4, 7, 16):
        out = np.full((16, 7), 9, np.float32)
        where = raw.ctypes.data, raw.shape[1], 5, columns.ctypes.data, n, k, rows.AHEAD
        rows.dot_strips(type_id, *where, out.ctypes.data, out.strides[0])
        assert_near(out[:n, :5], wanted[:n])
        assert (out[n:] == 9).all() and (out[:, 5:] == 9).all()


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("type_id", of_type([kind.type_id for kind in BLOCK_TYPES]))
def test_numbers_at_the_ends_of_their_range(type_id: int, byte: int, packed: Packed) -> None:
    """Where sums of neighbouring bytes would saturate 16 bits."""
    k = 1024
    raw = np.full(sizes.row_bytes(type_id, k), byte, np.uint8)
    half = np.array([0.5], np.float16).view(np.uint8)
    blocks = raw.reshape(-1, rows.TYPE_SIZE[type_id])
    kind = GGMLQuantizationType(type_id)
    if kind == GGMLQuantizationType.IQ1_M:
        blocks[:, 49::2] = (np.array([0x3800]) >> np.arange(0, 16, 4) & 15) << 4 | blocks[:, 49::2] & 15
    elif kind == GGMLQuantizationType.MXFP4:
        blocks[:, 0] = 127
    else:
        for start in HALFS_AT.get(kind, (0,)):
            blocks[:, start : start + 2] = half
    w = dequantize(raw, kind).reshape(1, k)
    for value in (3.0, -3.0):
        x = np.full((1, k), value, np.float32)
        at = packed(x)
        got = rows.dot_row(type_id, raw.ctypes.data, at.ctypes.data, k, 0)
        wanted = ref.mul_mat(w, x, quantised=True)[0, 0]
        assert abs(got - wanted) <= 1e-5 * abs(wanted)


@pytest.mark.parametrize(("type_id", "k"), cases())
def test_widen_row(type_id: int, k: int, make_weights: MakeWeights, before_a_hole: Place) -> None:
    raw, w = make_weights(type_id, 3, k)
    raw, out = before_a_hole(raw), np.full(k + 1, 7, np.float32)
    for row, numbers in zip(raw, w, strict=True):
        rows.widen_row(type_id, row.ctypes.data, k, out.ctypes.data)
        assert np.array_equal(out[:k], numbers)
        assert out[k] == 7


@pytest.mark.parametrize(("type_id", "k"), cases())
def test_add_rows(
    type_id: int,
    k: int,
    make_weights: MakeWeights,
    make_inputs: MakeInputs,
    before_a_hole: Place,
    assert_near: Near,
) -> None:
    raw, w = make_weights(type_id, 4, k)
    raw, before, c = before_a_hole(raw), make_inputs(k), make_inputs(4)
    acc, ahead = before_a_hole(before), np.zeros(4, np.int64)
    where = tile_addresses(raw)
    four = (where.ctypes.data, c.ctypes.data)
    rows.add_rows(type_id, acc.ctypes.data, *four, 0, k, ahead.ctypes.data)
    assert_near(acc, before.astype(np.float64) + c.astype(np.float64) @ w.astype(np.float64))


@pytest.mark.parametrize("type_id", of_type())
def test_add_rows_keeps_to_its_columns(
    type_id: int, make_weights: MakeWeights, make_inputs: MakeInputs, assert_near: Near
) -> None:
    unit = max(32, rows.BLOCK_SIZE[type_id])
    k, first, last = 6 * unit, unit, 4 * unit
    raw, w = make_weights(type_id, 4, k)
    acc, c, ahead = np.full(k, 5, np.float32), make_inputs(4), np.zeros(4, np.int64)
    where = tile_addresses(raw)
    four = (where.ctypes.data, c.ctypes.data)
    rows.add_rows(type_id, acc.ctypes.data, *four, first, last, ahead.ctypes.data)
    assert (acc[:first] == 5).all() and (acc[last:] == 5).all()
    assert_near(acc[first:last], 5 + c.astype(np.float64) @ w[:, first:last].astype(np.float64))


def test_bytes_of_a_float() -> None:
    assert [rows.row_bytes_of_float(t) for t in (F32_ID, F16_ID, BF16_ID)] == [4, 2, 2]
