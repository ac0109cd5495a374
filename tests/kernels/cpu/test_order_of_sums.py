"""A token's numbers do not depend on its company: one order of sums in every shape of a kernel.

Each token of a batch has the bits that it has alone, for every type, batch, cut and team.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle_checks as checks
import pytest
import sparse_ffn_cases as sparse
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels import order_of_sums
from hotcold.kernels.cpu import program, rows, simd

F32 = NDArray[np.float32]
Walk = Callable[..., None]

TYPES = [pytest.param(t, id=GGMLQuantizationType(t).name) for t in sorted(rows.TYPE_SIZE)]
LENGTHS = {"float": (1, 33, 100, 576), "32": (32, 160, 512, 576, 1056), "256": (256, 768, 1024)}
BATCHES = (2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 64, 65)


def lengths(type_id: int) -> tuple[int, ...]:
    """Rows that fill steps of a kernel and rows that do not."""
    return LENGTHS["256" if type_id in checks.K_TYPES else "32" if rows.is_quantised(type_id) else "float"]


def products(raw: NDArray[np.uint8], type_id: int, x: F32, walk: Walk, chunks: int, n_threads: int) -> F32:
    """w . x of every token by MAT_VEC or MUL_MAT."""
    (n_tokens, k), n_rows = x.shape, len(raw)
    at, stride = checks.operand(type_id, x)
    y = np.full((n_tokens, n_rows), np.nan, np.float32)
    op = {"code": program.MAT_VEC if n_tokens == 1 else program.MUL_MAT, "chunks": chunks, "n_rows": n_rows}
    op |= {"k": k, "x": at.ctypes.data, "x_stride": stride, "y": y.ctypes.data, "y_stride": 4 * n_rows}
    walk([op | checks.matrix("w", raw, type_id)], n_threads, n_tokens=n_tokens)
    return y


@pytest.mark.parametrize("type_id", TYPES)
def test_matrices(type_id: int, run_ops: Walk) -> None:
    for k in lengths(type_id):
        raw, _ = checks.weights(type_id, 83, k)
        x = checks.vectors(max(BATCHES), k)
        alone = np.concatenate([products(raw, type_id, x[t : t + 1], run_ops, 3, 1) for t in range(len(x))])
        assert np.isfinite(alone).all()
        for i, n in enumerate(BATCHES):
            got = products(raw, type_id, x[:n], run_ops, 1 + i % 4, 1 + i % 4)
            assert np.array_equal(got.view(np.int32), alone[:n].view(np.int32)), (k, n)


def as_blocks(type_id: int, raw: NDArray[np.uint8], w: F32) -> tuple[NDArray[np.int32], F32, F32 | None]:
    """Rows as `order_of_sums.dots_of_blocks_in_order` takes them: integers, scales, minima, from bytes and their numbers.

    Integers come from exact arithmetic on the numbers that a row holds: (w - minimum) / scale.
    """
    n_rows = len(w)
    blocks = raw.reshape(n_rows, -1, rows.TYPE_SIZE[type_id])

    def half(at: int) -> NDArray[np.float64]:
        return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float64)

    minima = None
    if type_id in (rows.Q4_K_ID, rows.Q5_K_ID):
        six = six_bits(blocks[..., 4:16])
        scales, minima = ((half(at)[..., None] * six[i]).reshape(n_rows, -1) for i, at in enumerate((0, 2)))
        minima = -minima
    elif type_id == rows.Q6_K_ID:
        scales = np.repeat(half(208), 8, axis=1)
    else:
        scales = half(0)
        minima = half(2) if type_id in (rows.Q4_1_ID, rows.Q5_1_ID) else None
    wide = w.astype(np.float64).reshape(n_rows, -1, 32)
    if minima is not None:
        wide = wide - minima[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = np.where(scales[..., None] == 0, 0, wide / scales[..., None])
    integers = np.rint(numbers)
    assert np.abs(numbers - integers).max() < 0.01
    kept = None if minima is None else minima.astype(np.float32)
    return integers.astype(np.int32), scales.astype(np.float32), kept


def six_bits(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The 8 scales and the 8 minima in a K block's 12 bytes, [2, ..., 8]."""
    b = packed.astype(np.int64)
    first, second, third = b[..., :4], b[..., 4:8], b[..., 8:]
    low = [first & 63, second & 63]
    high = [third & 15 | first >> 6 << 4, third >> 4 | second >> 6 << 4]
    return np.stack([np.concatenate(both, -1) for both in zip(low, high, strict=True)])


def level_fma() -> order_of_sums.FMA:
    """The multiply-add of this CPU level."""
    return order_of_sums.fma if "fma" in simd.target_features() else order_of_sums.mul_add


@pytest.mark.parametrize("type_id", TYPES)
def test_dots_are_the_oracles_bit_for_bit(type_id: int, run_ops: Walk) -> None:
    for k in (*lengths(type_id), 2048):
        raw, w = checks.weights(type_id, 19, k)
        x = checks.vectors(1, k, 2)
        got = products(raw, type_id, x, run_ops, 2, 2)[0]
        if rows.is_quantised(type_id):
            wanted = order_of_sums.dots_of_blocks_in_order(*as_blocks(type_id, raw, w), x[0], level_fma())
        else:
            wanted = order_of_sums.dots_of_floats_in_order(w, x[0], level_fma())
        assert np.array_equal(got.view(np.int32), wanted.view(np.int32)), k


@pytest.mark.parametrize("type_id", TYPES)
def test_sums_of_rows_are_the_oracles_bit_for_bit(type_id: int, run_ops: Walk) -> None:
    for k in lengths(type_id):
        raw, _ = checks.weights(type_id, 203, k)
        w = np.zeros((203, k), np.float32)
        for row, out in zip(raw, w, strict=True):
            rows.widen_row(type_id, row.ctypes.data, k, out.ctypes.data)
        x, y = checks.vectors(3, 203, 5), np.full((3, k), np.nan, np.float32)
        x[np.random.default_rng(6).random(x.shape) < 0.6] = 0
        op = {"code": program.DOWN_ROWS, "chunks": 2, "n_rows": 203, "k": k, "n_parts": program.PIECES}
        op |= {"x": x.ctypes.data, "x_stride": x.strides[0], "y": y.ctypes.data, "y_stride": y.strides[0]}
        run_ops([op | checks.matrix("w", raw, type_id)], 2, n_tokens=3)
        for coefficients, got in zip(x, y, strict=True):
            wanted = order_of_sums.rows_in_order(coefficients, w, program.PIECES, level_fma())
            assert np.array_equal(got.view(np.int32), wanted.view(np.int32)), k


SPARSE = [*sparse.TYPES, *sparse.MIXED]


@pytest.mark.parametrize("types", SPARSE)
def test_sparse_gated_ffn(types: tuple[int, int, int], run_ops: Walk) -> None:
    for k in sparse.shapes(types):
        x = checks.vectors(33, k, 4)
        for both, count in itertools.product(
            (program.RELU_ACTIVATION, program.RELU_BOTH_ACTIVATION), ("some", "all")
        ):
            whole = sparse.GatedFFN(types, 203, x, sparse.listed_neurons(count, 33, 203), both)
            alone = np.stack([sparse.one_token(part(whole, t), run_ops, True)[0] for t in range(33)])
            for n in (2, 5, 16, 33):
                some = part(whole, slice(0, n))
                got, counts = sparse.batch(some, run_ops, 1 + n % 3)
                assert np.array_equal(got.view(np.int32), alone[:n].view(np.int32)), (k, count, n)
                assert counts == [some.listed.sum(), whole.firing[:n].sum()]


@pytest.mark.parametrize("types", [SPARSE[0], SPARSE[3], SPARSE[4], SPARSE[6]])
def test_sparse_ffn(types: tuple[int, int, int], run_ops: Walk) -> None:
    for k in sparse.shapes(types):
        whole = sparse.FFN(types[:2], 203, checks.vectors(9, k, 4), sparse.listed_neurons("some", 9, 203))
        alone = np.stack([sparse.one_token_ffn(part(whole, t), run_ops, True)[0] for t in range(9)])
        for n in (2, 9):
            got, _ = sparse.batch_ffn(part(whole, slice(0, n)), run_ops, 2)
            assert np.array_equal(got.view(np.int32), alone[:n].view(np.int32)), (k, n)


def part(case: Any, which: Any) -> Any:
    """The same FFN for some of its tokens."""
    out = object.__new__(type(case))
    out.__dict__.update(case.__dict__)
    tokens = slice(which, which + 1) if isinstance(which, int) else which
    out.x, out.listed = np.ascontiguousarray(case.x[tokens]), case.listed[tokens]
    return out
