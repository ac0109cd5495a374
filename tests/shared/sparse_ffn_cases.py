"""Sparse FFNs with their oracle's result, and the CPU's ways to compute them.

Weights of rows that must not be read are NaN in a second run, whose bits have to be the first run's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cpu_operands as checks
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cpu import program, rows, sizes

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Near = Callable[[Any, Any], None]
Walk = Callable[..., None]

TYPES = [pytest.param((t, t, t), id=GGMLQuantizationType(t).name) for t in checks.SPARSE_TYPES]
Q2_K, Q3_K, IQ4_NL, IQ4_XS, MXFP4 = 10, 11, 20, 23, 39
MIXED = [
    pytest.param(types, id="-".join(GGMLQuantizationType(t).name for t in types))
    for types in (
        (rows.F16_ID, rows.Q4_0_ID, rows.F32_ID),
        (rows.Q8_0_ID, rows.BF16_ID, rows.Q4_0_ID),
        (rows.Q4_0_ID, rows.Q4_0_ID, rows.F16_ID),
        (rows.F32_ID, rows.F16_ID, rows.Q8_0_ID),
        (rows.Q5_0_ID, rows.Q5_0_ID, rows.BF16_ID),
        (rows.Q4_1_ID, rows.Q5_1_ID, rows.Q5_0_ID),
        (rows.Q4_K_ID, rows.Q5_K_ID, rows.Q6_K_ID),
        (rows.Q6_K_ID, rows.Q8_0_ID, rows.Q4_K_ID),
        (MXFP4, IQ4_NL, MXFP4),
        (Q3_K, IQ4_XS, Q2_K),
    )
]
COUNTS = ("none", "one", "some", "all")


@dataclass
class GatedFFN:
    """Weights of a gated ReLU FFN, its input, and which neurons each token looks at.

    Attributes:
        activation: program.RELU_BOTH_ACTIVATION for a ReLU on `up` too.
        firing: positive gates.
        added: neurons whose row of `down` is read.
    """

    types: tuple[int, int, int]
    n_ff: int
    x: F32
    listed: Bools
    activation: int = program.RELU_ACTIVATION
    raw: list[U8] = field(init=False)
    firing: Bools = field(init=False)
    added: Bools = field(init=False)
    wanted: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        k = self.x.shape[1]
        pairs = [checks.weights(t, self.n_ff, k, 20 + i) for i, t in enumerate(self.types)]
        self.raw = [raw.copy() for raw, _ in pairs]
        gate_w, up_w, down_w = (w.copy() for _, w in pairs)
        gate = ref.mul_mat(gate_w, self.x, sizes.is_quantised(self.types[0]))
        # where products cancel, rounding alone decides about the sign: other rows stand in
        up = ref.mul_mat(up_w, self.x, sizes.is_quantised(self.types[1]))
        for product, matrices in ((gate, (self.raw[0], gate_w)), (up, (self.raw[1], up_w))):
            sure = (np.abs(product) > 1e-4 * np.abs(product).max()).all(0)
            if sure.any():
                for matrix in (*matrices, product.T):
                    matrix[~sure] = matrix[sure.argmax()]
        both = self.activation == program.RELU_BOTH_ACTIVATION
        self.firing = self.listed & (gate > 0)
        self.added = self.firing & ((up > 0) | (not both))
        self.wanted = np.where(self.added, gate * up, 0) @ down_w.astype(np.float64)

    def poison(self) -> None:
        """NaN into every row that no token reads."""
        for raw, read in zip(self.raw, (self.listed, self.firing, self.added), strict=True):
            raw[~read.any(0)] = 0xFF


@dataclass
class FFN:
    """The same without a gate: `up`, its bias, `down`. Whatever is positive, bias included, is added."""

    types: tuple[int, int]
    n_ff: int
    x: F32
    listed: Bools
    biased: bool = True
    bias: F32 = field(init=False)
    raw: list[U8] = field(init=False)
    firing: Bools = field(init=False)
    wanted: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        k = self.x.shape[1]
        (up, up_w), (down, down_w) = (
            checks.weights(t, self.n_ff, k, 30 + i) for i, t in enumerate(self.types)
        )
        self.raw = [up.copy(), down.copy()]
        quantised = sizes.is_quantised(self.types[0])
        products = ref.mul_mat(up_w, self.x, quantised)
        # every sign is certain: a bias moves products that cancel away from zero
        top = np.abs(products).max()
        unsure = (np.abs(products) < 1e-4 * top).any(0)
        self.bias = np.where(unsure, 2 * top, 0.3 * top).astype(np.float32) * self.biased
        if not self.biased:
            self.listed = self.listed & ~unsure
        self.firing = self.listed & (products + self.bias > 0)
        self.wanted = ref.sparse_ffn(self.x, up_w, self.bias, down_w, self.listed, quantised)

    def poison(self) -> None:
        """NaN into every row that no token reads."""
        for raw, read in zip(self.raw, (self.listed, self.firing), strict=True):
            raw[~read.any(0)] = 0xFF


def listed_neurons(count: str, n_tokens: int, n_ff: int) -> Bools:
    """No neuron, one a token, a third of them, or all."""
    rng = np.random.default_rng(5)
    listed = rng.random((n_tokens, n_ff)) < {"none": 0, "one": 0, "some": 0.3, "all": 1}[count]
    if count == "one":
        listed[np.arange(n_tokens), rng.integers(0, n_ff, n_tokens)] = True
    return listed


def shapes(types: tuple[int, int, int]) -> tuple[int, ...]:
    """Row lengths: a tail for float types alone, blocks that fill no group of four where there are any."""
    if any(t in checks.K_TYPES for t in types):
        return (256, 768)
    return (32, 160) if any(sizes.is_quantised(t) for t in types) else (1, 17, 100)


def filled(*shape: int) -> F32:
    """NaN on a cache line: what no op has written."""
    out = program.aligned(4 * int(np.prod(shape))).view(np.float32).reshape(shape)
    out[:] = np.nan
    return out


def one_token(
    case: GatedFFN, walk: Walk, with_list: bool, skip: bool = True, n_threads: int = 1
) -> tuple[F32, Any]:
    """`pieces` of a gated FFN."""
    (x, _), (z, _) = (checks.operand(t, case.x) for t in case.types[:2])
    op = {"skip": int(skip), "activation": case.activation, "x": x.ctypes.data, "z": z.ctypes.data}
    for name, raw, kind in zip(("w", "w1", "w2"), case.raw, case.types, strict=True):
        op |= checks.matrix(name, raw, kind)
    return pieces(case, op, walk, with_list, n_threads)


def one_token_ffn(case: FFN, walk: Walk, with_list: bool, skip: bool = True) -> tuple[F32, Any]:
    """`pieces` of an FFN without a gate."""
    x, _ = checks.operand(case.types[0], case.x)
    op = {"skip": int(skip), "x": x.ctypes.data, "z": case.bias.ctypes.data if case.biased else 0}
    for name, raw, kind in zip(("w", "w2"), case.raw, case.types, strict=True):
        op |= checks.matrix(name, raw, kind)
    return pieces(case, op, walk, with_list, 2)


def pieces(
    case: GatedFFN | FFN, own: dict[str, int], walk: Walk, with_list: bool, n_threads: int
) -> tuple[F32, Any]:
    """SPARSE_FFN and REDUCE for one token: the result, and the counts."""
    k, n_ff = case.x.shape[1], case.n_ff
    partial, y, counts = filled(program.PIECES, k), filled(k), np.zeros((program.PIECES, 2), np.int64)
    numbers = np.append(np.flatnonzero(case.listed[0]), -(1 << 40)).astype(np.int64)
    length = np.array([numbers.size - 1])
    op = {"code": program.SPARSE_FFN, "chunks": program.PIECES, "n_rows": n_ff, "k": k, **own}
    op |= {"counts": counts.ctypes.data}
    op |= {"scratch": partial.ctypes.data, "scratch_stride": partial.strides[0]}
    if with_list:
        op |= {"listed": numbers.ctypes.data, "n_listed": length.ctypes.data}
    total = {"code": program.REDUCE, "chunks": 2, "x": partial.ctypes.data, "x_stride": partial.strides[0]}
    total |= {"n_parts": program.PIECES, "k": k, "y": y.ctypes.data}
    walk([op, total], n_threads)
    return y, counts.sum(0).tolist()


def mask_bits(listed: Bools) -> U8:
    """A bit a neuron, in words of 64, for each token."""
    n_tokens, n_ff = listed.shape
    wide = np.zeros((n_tokens, -(-n_ff // 64) * 64), bool)
    wide[:, :n_ff] = listed
    return np.packbits(wide, axis=1, bitorder="little")


def batch(case: GatedFFN, walk: Walk, n_threads: int = 1, chunks: int = 5) -> tuple[F32, Any]:
    """GATE_ROWS, UP_ROWS and DOWN_ROWS for several tokens, in so many chunks: the result, and the counts."""
    (n_tokens, k), n_ff = case.x.shape, case.n_ff
    (x, x_stride), (z, z_stride) = (checks.operand(t, case.x) for t in case.types[:2])
    bits, gates, hidden, y = (
        mask_bits(case.listed),
        *(filled(n_tokens, n_ff) for _ in "gh"),
        filled(n_tokens, k),
    )
    counts = np.zeros((16, 2), np.int64)
    both = {"n_rows": n_ff, "k": k, "counts": counts.ctypes.data, "chunks": chunks}
    gate = {"code": program.GATE_ROWS, **both, **checks.matrix("w", case.raw[0], case.types[0])}
    gate |= {"x": x.ctypes.data, "x_stride": x_stride, "z": bits.ctypes.data, "z_stride": bits.strides[0]}
    up = {"code": program.UP_ROWS, **both, **checks.matrix("w", case.raw[1], case.types[1])}
    up |= {"x": z.ctypes.data, "x_stride": z_stride, "z": gates.ctypes.data, "z_stride": 4 * n_ff}
    up |= {"activation": case.activation}
    for op, to in ((gate, gates), (up, hidden)):
        op |= {"y": to.ctypes.data, "y_stride": 4 * n_ff}
    down = {"code": program.DOWN_ROWS, "chunks": 3, "n_rows": n_ff, "k": k, "n_parts": program.PIECES}
    down |= checks.matrix("w", case.raw[2], case.types[2])
    down |= {"x": hidden.ctypes.data, "x_stride": 4 * n_ff, "y": y.ctypes.data, "y_stride": 4 * k}
    walk([gate, up, down], n_threads, n_tokens=n_tokens)
    return y, counts.sum(0).tolist()


def batch_ffn(case: FFN, walk: Walk, n_threads: int = 1) -> tuple[F32, Any]:
    """GATE_ROWS, FIRE_ROWS and DOWN_ROWS for several tokens: the result, and the counts."""
    (n_tokens, k), n_ff = case.x.shape, case.n_ff
    x, x_stride = checks.operand(case.types[0], case.x)
    bits, hidden, y = mask_bits(case.listed), filled(n_tokens, n_ff), filled(n_tokens, k)
    counts = np.zeros((16, 2), np.int64)
    common = {"n_rows": n_ff, "k": k, "counts": counts.ctypes.data, "chunks": 5}
    common |= {"z": bits.ctypes.data, "z_stride": bits.strides[0]}
    common |= {"y": hidden.ctypes.data, "y_stride": 4 * n_ff}
    up = {"code": program.GATE_ROWS, **common, **checks.matrix("w", case.raw[0], case.types[0])}
    up |= {"x": x.ctypes.data, "x_stride": x_stride}
    fire = {"code": program.FIRE_ROWS, **common, "x": hidden.ctypes.data, "x_stride": 4 * n_ff}
    fire |= {"w": case.bias.ctypes.data if case.biased else 0}
    down = {"code": program.DOWN_ROWS, "chunks": 3, "n_rows": n_ff, "k": k, "n_parts": program.PIECES}
    down |= checks.matrix("w", case.raw[1], case.types[1])
    down |= {"x": hidden.ctypes.data, "x_stride": 4 * n_ff, "y": y.ctypes.data, "y_stride": 4 * k}
    walk([up, fire, down], n_threads, n_tokens=n_tokens)
    return y, counts.sum(0).tolist()


def check(case: GatedFFN | FFN, run: Callable[[], tuple[F32, Any]], near: Near) -> None:
    """The oracle's result and counts, and the same bits when unread rows are NaN."""
    y, counts = run()
    assert counts == [case.listed.sum(), case.firing.sum()]
    if case.firing.any():
        near(y.reshape(case.wanted.shape), case.wanted)
    else:
        assert not y.any()
    case.poison()
    again, counts_again = run()
    assert again.tobytes() == y.tobytes()
    assert counts_again == counts
