"""A token's numbers do not depend on its company: one order of sums in every shape of a kernel.

Each token of a batch has the bits that it has alone, for every type, batch, cut and team.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cpu_operands as checks
import numpy as np
import pytest
import sparse_ffn_cases as sparse
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels import order_of_sums
from hotcold.kernels.cpu import program, rows, simd, sizes

F32 = NDArray[np.float32]
Walk = Callable[..., None]

TYPES = [pytest.param(t, id=GGMLQuantizationType(t).name) for t in sorted(rows.TYPE_SIZE)]
LENGTHS = {"float": (1, 33, 100, 576), "32": (32, 160, 256, 512, 576, 768, 1056), "256": (256, 768, 1024)}
BATCHES = (2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 64, 65)


def lengths(type_id: int) -> tuple[int, ...]:
    """Rows that fill steps of a kernel and rows that do not."""
    return LENGTHS["256" if type_id in checks.K_TYPES else "32" if sizes.is_quantised(type_id) else "float"]


def products(raw: NDArray[np.uint8], type_id: int, x: F32, walk: Walk, chunks: int, n_threads: int) -> F32:
    """w . x of every token by MAT_VEC or MUL_MAT."""
    (n_tokens, k), n_rows = x.shape, len(raw)
    at, stride = checks.operand(type_id, x)
    y = np.full((n_tokens, n_rows), np.nan, np.float32)
    op = {"code": program.MAT_VEC if n_tokens == 1 else program.MUL_MAT, "chunks": chunks, "n_rows": n_rows}
    op |= {"k": k, "x": at.ctypes.data, "x_stride": stride, "y": y.ctypes.data, "y_stride": 4 * n_rows}
    walk([op | checks.matrix("w", raw, type_id)], n_threads, n_tokens=n_tokens)
    return y


@pytest.mark.sample(3)
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


@dataclass
class Blocks:
    """Rows as `dots_of_blocks_in_order` takes them."""

    numbers: NDArray[np.int32]
    scales: F32
    minima: F32 | None = None
    parts: NDArray[np.int32] | None = None


def as_blocks(type_id: int, raw: NDArray[np.uint8], w: F32) -> Blocks:
    """Integers, scales and minima from bytes and the numbers that they hold.

    Integers come from exact arithmetic on the numbers: (w - minimum) / scale.
    """
    n_rows, kind = len(w), GGMLQuantizationType(type_id)
    blocks = raw.reshape(n_rows, -1, rows.TYPE_SIZE[type_id])
    scales, minima, parts = SCALES[kind](blocks) if kind in SCALES else (half(blocks, 0), None, None)
    a_block = rows.BLOCK_SIZE[type_id] // 32
    if scales.ndim == 2:
        scales = np.repeat(scales, a_block, axis=1)
    scales = scales.reshape(n_rows, -1).astype(np.float64)
    wide = w.astype(np.float64).reshape(n_rows, -1, 2, 16)
    if minima is not None:
        minima = np.repeat(minima, a_block, axis=1) if minima.ndim == 2 else minima.reshape(n_rows, -1)
        parts = np.ones((*scales.shape, 2)) if parts is None else parts.reshape(n_rows, -1, 2)
        wide = wide - (minima[..., None] * parts)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = np.where(scales[..., None, None] == 0, 0, wide / scales[..., None, None])
    integers = np.rint(numbers).reshape(*scales.shape, 32)
    assert np.abs(numbers.reshape(integers.shape) - integers).max() < 0.01
    return Blocks(
        integers.astype(np.int32),
        scales.astype(np.float32),
        None if minima is None else minima.astype(np.float32),
        None if parts is None else parts.astype(np.int32),
    )


Bytes = NDArray[np.uint8]
Numbers = NDArray[Any]
T = GGMLQuantizationType


def half(blocks: Bytes, at: int) -> Numbers:
    """The half at a place in each block."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float64)


def words(blocks: Bytes, first: int, last: int, kind: Any) -> Numbers:
    """Some bytes of each block as integers of another width."""
    wide: Numbers = np.ascontiguousarray(blocks[..., first:last]).view(kind).astype(np.int64)
    return wide


def nibbles(q: Numbers) -> Numbers:
    """Those of some bytes, low ones first."""
    return np.stack([q & 15, q >> 4], -1).reshape(*q.shape[:-1], -1)


def of_q4_k(blocks: Bytes) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Six bits of scale and of minimum for each 32."""
    six = six_bits(blocks[..., 4:16])
    scales, minima = (half(blocks, at)[..., None] * six[i] for i, at in enumerate((0, 2)))
    return scales, -minima, None


def six_bits(packed: Bytes) -> NDArray[np.int64]:
    """The 8 scales and the 8 minima in a K block's 12 bytes, [2, ..., 8]."""
    b = packed.astype(np.int64)
    first, second, third = b[..., :4], b[..., 4:8], b[..., 8:]
    low = [first & 63, second & 63]
    high = [third & 15 | first >> 6 << 4, third >> 4 | second >> 6 << 4]
    return np.stack([np.concatenate(both, -1) for both in zip(low, high, strict=True)])


def of_iq4_xs(blocks: Bytes) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Six bits for each 32, the upper two in a word."""
    low, high = nibbles(words(blocks, 4, 8, np.uint8)), words(blocks, 2, 4, np.uint16)
    scales = (low | (high >> np.arange(0, 16, 2) & 3) << 4) - 32
    return half(blocks, 0)[..., None] * scales, None, None


def of_mxfp4(blocks: Bytes) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """A power of two."""
    return 2.0 ** (blocks[..., 0].astype(np.float64) - 128), None, None


def odd_scales(factor: float, first: int, last: int, kind: Any, shift: int, mask: int) -> Any:
    """d (2 s + 1) times a factor for each 32, with s in words of the block."""

    def read(blocks: Bytes) -> tuple[Numbers, Numbers | None, Numbers | None]:
        s = words(blocks, first, last, kind) >> shift & mask
        return half(blocks, 0)[..., None] * factor * (2 * s[..., -8:] + 1), None, None

    return read


def of_iq2_xxs(blocks: Bytes) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """The scale is above the signs, every second word."""
    s = words(blocks, 2, 66, np.uint32)[..., 1::2] >> 28
    return half(blocks, 0)[..., None] / 8 * (2 * s + 1), None, None


def of_iq3_s(blocks: Bytes) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """Nibbles at the end."""
    return half(blocks, 0)[..., None] * (2 * nibbles(words(blocks, 106, 110, np.uint8)) + 1), None, None


def of_iq1_m(blocks: Bytes) -> tuple[Numbers, Numbers | None, Numbers | None]:
    """The half is in four words."""
    fours = words(blocks, 48, 56, np.uint16) >> 12 << np.arange(0, 16, 4)
    return fours.sum(-1).astype(np.uint16).view(np.float16).astype(np.float64) / 8, None, None


def half_at(place: int, factor: float = 1.0) -> Any:
    """One half a block."""
    return lambda blocks: (half(blocks, place) * factor, None, None)


SCALES: dict[T, Any] = {
    T.Q4_1: lambda blocks: (half(blocks, 0), half(blocks, 2), None),
    T.Q5_1: lambda blocks: (half(blocks, 0), half(blocks, 2), None),
    T.Q2_K: lambda blocks: (half(blocks, 80), -half(blocks, 82), blocks[..., :16] >> 4),
    T.Q3_K: half_at(108),
    T.Q4_K: of_q4_k,
    T.Q5_K: of_q4_k,
    T.Q6_K: half_at(208),
    T.IQ4_XS: of_iq4_xs,
    T.MXFP4: of_mxfp4,
    T.IQ3_S: of_iq3_s,
    T.IQ3_XXS: odd_scales(1 / 4, 66, 98, np.uint32, 28, 15),
    T.IQ2_S: half_at(0, 1 / 8),
    T.IQ2_XS: half_at(0, 1 / 8),
    T.IQ2_XXS: of_iq2_xxs,
    T.IQ1_M: of_iq1_m,
    T.IQ1_S: odd_scales(1 / 8, 34, 50, np.uint16, 12, 7),
    T.TQ1_0: half_at(52),
    T.TQ2_0: half_at(64),
}
"""Scales, minima and the minima's parts of some blocks; of the others a half at the beginning is all."""


def level_fma() -> order_of_sums.FMA:
    """The multiply-add of this CPU level."""
    return order_of_sums.fma if "fma" in simd.target_features() else order_of_sums.mul_add


@pytest.mark.parametrize("type_id", TYPES)
def test_dots_are_the_oracles_bit_for_bit(type_id: int, run_ops: Walk) -> None:
    for k in (*lengths(type_id), 2048):
        raw, w = checks.weights(type_id, 19, k)
        x = checks.vectors(1, k, 2)
        got = products(raw, type_id, x, run_ops, 2, 2)[0]
        if sizes.is_quantised(type_id):
            blocks = as_blocks(type_id, raw, w)
            numbers = blocks.numbers, blocks.scales, blocks.minima
            wanted = order_of_sums.dots_of_blocks_in_order(*numbers, x[0], level_fma(), blocks.parts)
        else:
            wanted = order_of_sums.dots_of_floats_in_order(w, x[0], level_fma())
        assert np.array_equal(got.view(np.int32), wanted.view(np.int32)), k


@pytest.mark.sample(3)
@pytest.mark.parametrize("type_id", TYPES)
def test_sums_of_rows_are_the_oracles_bit_for_bit(type_id: int, run_ops: Walk) -> None:
    """Few tokens add their own rows; for many a row is widened once, more columns and tokens than go at once."""
    for k in (*lengths(type_id), 1280):
        raw, _ = checks.weights(type_id, 203, k)
        w = np.zeros((203, k), np.float32)
        for row, out in zip(raw, w, strict=True):
            rows.widen_row(type_id, row.ctypes.data, k, out.ctypes.data)
        x = checks.vectors(70, 203, 5)
        x[np.random.default_rng(6).random(x.shape) < 0.6] = 0
        op = {"code": program.DOWN_ROWS, "chunks": 2, "n_rows": 203, "k": k, "n_parts": program.PIECES}
        op |= {"x": x.ctypes.data, "x_stride": x.strides[0], **checks.matrix("w", raw, type_id)}
        for n, some in ((2, [0, 1]), (70, [0, 63, 69])):
            y = np.full((n, k), np.nan, np.float32)
            run_ops([op | {"y": y.ctypes.data, "y_stride": y.strides[0]}], 2, n_tokens=n)
            for t in some:
                wanted = order_of_sums.rows_in_order(x[t], w, program.PIECES, level_fma())
                assert np.array_equal(y[t].view(np.int32), wanted.view(np.int32)), (k, n, t)


SPARSE = [*sparse.TYPES, *sparse.MIXED]


@pytest.mark.sample(4)
@pytest.mark.parametrize("types", SPARSE)
def test_sparse_gated_ffn(types: tuple[int, int, int], run_ops: Walk) -> None:
    for k in sparse.shapes(types):
        x = checks.vectors(33, k, 4)
        for both, count in itertools.product(
            (program.RELU_ACTIVATION, program.RELU_BOTH_ACTIVATION), ("some", "all")
        ):
            whole = sparse.GatedFFN(types, 203, x, sparse.listed_neurons(count, 33, 203), both)
            alone = np.stack([sparse.one_token(part(whole, t), run_ops, True)[0] for t in range(33)])
            for n, chunks in ((2, 5), (5, 5), (16, 5), (33, 5), (33, 1)):  # the last has whole words of rows
                some = part(whole, slice(0, n))
                got, counts = sparse.batch(some, run_ops, 1 + n % 3, chunks)
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
