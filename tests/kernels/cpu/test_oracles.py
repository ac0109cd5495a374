"""Kernels of the CPU against their oracles, on random and odd sizes; attention and experts have files of their own."""

import cpu_operands as checks
import numpy as np
import pytest
from numpy.typing import NDArray

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import ref, ref_experts
from hotcold.kernels.cpu import elementwise, program, rows, sizes
from hotcold.kernels.formats import EXACT_POSITIONS

pytestmark = pytest.mark.pairwise
NAMES = {0: "F32", 1: "F16", 30: "BF16", 8: "Q8_0", 2: "Q4_0", 6: "Q5_0", 14: "Q6_K"}
NAMES |= {3: "Q4_1", 7: "Q5_1", 12: "Q4_K", 13: "Q5_K"}
SIZES = [
    (t, k) for t in (*checks.SPARSE_TYPES, *checks.OFFSET_TYPES) for k in checks.ODD[sizes.is_quantised(t)]
]
Array = NDArray[np.float32]


@pytest.mark.parametrize(
    ("type_id", "k"),
    [*SIZES, *((t, k) for t in checks.K_TYPES for k in (256, 1024))],
    ids=lambda v: NAMES.get(v, str(v)),
)
def test_rows(type_id: int, k: int) -> None:
    """Dot products of one row and of strips, a row as float32, the sum of four rows."""
    quantised = sizes.is_quantised(type_id)
    data, w = checks.weights(type_id, 8, k)
    x = checks.vectors(4, k)
    at, stride = checks.operand(type_id, x)
    wanted = ref.mul_mat(w, x, quantised)
    base, size = data.ctypes.data, data.shape[1]
    got = [
        [rows.dot_row(type_id, base + r * size, at.ctypes.data + c * stride, k, rows.AHEAD) for r in range(8)]
        for c in range(4)
    ]
    checks.close(np.array(got), wanted, "row")
    wide = np.zeros(k, np.float32)
    rows.widen_row(type_id, base + 3 * size, k, wide.ctypes.data)
    # two ways to multiply three factors
    checks.close(wide, w[3], "widened row")
    columns = np.array([at.ctypes.data + c * stride for c in range(4)])
    for n in (1, 3, 4):
        out = np.zeros((n, 5), np.float32)
        where = (base + size, size, 5, columns.ctypes.data, n, k, rows.AHEAD)
        rows.dot_strips(type_id, *where, out.ctypes.data, out.strides[0])
        checks.close(out, wanted[:n, 1:6], "strips")
    picked, coefficients = [0, 3, 5, 7], np.array([1, 2, -3, 0.5], np.float32)
    acc = np.ones(k, np.float32)
    addresses, ahead = np.array([base + r * size for r in picked]), np.zeros(4, np.int64)
    four = (addresses.ctypes.data, coefficients.ctypes.data)
    rows.add_rows(type_id, acc.ctypes.data, *four, 0, k, ahead.ctypes.data)
    checks.close(acc, 1 + coefficients.astype(np.float64) @ w[picked], "sum of rows")


@pytest.mark.parametrize("n", [1, 15, 16, 31, 40, 1000])
def test_elementwise(n: int) -> None:
    """Norm, sums, activations."""
    x, z = checks.vectors(1, n, 2)[0], checks.vectors(1, n, 3)[0]
    y = np.zeros(n, np.float32)
    px, pz, py = x.ctypes.data, z.ctypes.data, y.ctypes.data
    elementwise.rms_norm(px, pz, n, 1e-5, py)
    checks.close(y, ref.rms_norm(x, z, 1e-5), "rms_norm")
    elementwise.layer_norm(px, pz, px, n, 1e-5, py)
    checks.close(y, ref.layer_norm(x, z, x, 1e-5), "layer_norm")
    elementwise.gelu(px, n, py)
    checks.close(y, ref.gelu(x.astype(np.float64)), "gelu")
    elementwise.add(px, pz, n, py)
    checks.close(y, x.astype(np.float64) + z, "add")
    elementwise.scale(px, n, 0.4, py)
    assert np.array_equal(y, ref.scale(x, 0.4))
    elementwise.relu(px, n, py)
    assert np.array_equal(y, np.maximum(x, 0))
    numbers = program.RELU_ACTIVATION, program.SILU_ACTIVATION, program.GELU_ACTIVATION
    for name, number in zip(("relu", "silu", "gelu"), numbers, strict=True):
        elementwise.act_mul(px, pz, n, number, py)
        checks.close(y, ref.ACTIVATIONS[name](x.astype(np.float64)) * z, name)


@pytest.mark.parametrize(("head_dim", "n_rot"), [(2, 2), (20, 12), (64, 64)])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(head_dim: int, n_rot: int, interleaved: bool) -> None:
    """Three heads at two positions."""
    x = checks.vectors(2, 3 * head_dim).reshape(2, 3, head_dim)
    frequencies = ref.rope_frequencies(n_rot, 10000.0)
    angles = np.arange(16)[:, None] * frequencies
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    y = np.zeros_like(x)
    record = {"code": program.ROPE, "chunks": 2, "x": x.ctypes.data, "x_stride": 12 * head_dim}
    record |= {"y": y.ctypes.data, "y_stride": 12 * head_dim, "w": table.ctypes.data}
    record |= {
        "w_stride": 4 * n_rot,
        "n_head": 3,
        "head_dim": head_dim,
        "n_pairs": n_rot // 2,
        "interleaved": int(interleaved),
    }
    checks.run([record], 2, N_PAST=9)
    checks.close(y, ref.rope(x, np.array([9, 10]), frequencies, interleaved), "rope")


def check_sparse_gated_ffn(types: tuple[int, int, int], n_tokens: int, share: float) -> None:
    """Nothing but the rows of firing neurons is read, and the sum is the oracle's."""
    k, n_ff = 96, 205
    x = checks.vectors(n_tokens, k, 7)
    active = np.random.default_rng(8).random((n_tokens, n_ff)) < share
    records, y, wanted, keep = checks.sparse_records(types, k, n_ff, x, active, poison=True)
    checks.run(records, n_tokens)
    checks.close(y, wanted, f"sparse_gated_ffn of {share}")
    counts, firing = keep[5], keep[9]
    assert isinstance(counts, np.ndarray)
    assert isinstance(firing, np.ndarray)
    assert counts.sum(0).tolist() == [active.sum(), firing.sum()]


def check_thresholds(
    types: tuple[int, int, int], n_tokens: int, activation: str, n_past: int, share: float = 1.0
) -> None:
    """Rows of neurons below their thresholds are not read, but at the first positions all are."""
    k, n_ff = 96, 205
    x = checks.vectors(n_tokens, k, 7)
    x *= 0.2
    active = np.random.default_rng(8).random((n_tokens, n_ff)) < share
    poison = n_past >= EXACT_POSITIONS or share < 1
    records, y, wanted, keep = checks.sparse_records(types, k, n_ff, x, active, poison, activation, n_past)
    checks.run(records, n_tokens, N_PAST=n_past)
    checks.close(y, wanted, f"thresholds with {activation}")
    counts, firing = keep[5], keep[9]
    assert isinstance(counts, np.ndarray)
    assert isinstance(firing, np.ndarray)
    assert counts.sum(0).tolist() == [active.sum(), firing.sum()]
    n_exact = min(max(EXACT_POSITIONS - n_past, 0), n_tokens)
    assert firing[:n_exact].sum() == active[:n_exact].sum()
    assert n_exact == n_tokens or 0.2 < firing[n_exact:].sum() / active[n_exact:].sum() < 0.8


@pytest.mark.parametrize("type_id", checks.SPARSE_TYPES, ids=NAMES.get)
@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_sparse_gated_ffn_reads_firing_rows_alone(type_id: int, n_tokens: int, share: float) -> None:
    check_sparse_gated_ffn((type_id,) * 3, n_tokens, share)


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_sparse_gated_ffn_of_mixed_types(n_tokens: int) -> None:
    check_sparse_gated_ffn((rows.F16_ID, rows.F32_ID, rows.Q4_0_ID), n_tokens, 0.4)
    check_sparse_gated_ffn((rows.Q4_0_ID, rows.Q8_0_ID, rows.BF16_ID), n_tokens, 0.4)


@pytest.mark.parametrize("type_id", [rows.F32_ID, rows.Q4_0_ID], ids=NAMES.get)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(("n_past", "n_tokens"), [(8, 1), (7, 1), (0, 1), (100, 5), (5, 5), (0, 20)])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_neurons_below_their_thresholds_are_not_read(
    type_id: int, activation: str, n_past: int, n_tokens: int, share: float
) -> None:
    check_thresholds((type_id,) * 3, n_tokens, activation, n_past, share)


def test_thresholds_of_mixed_types() -> None:
    check_thresholds((rows.Q4_0_ID, rows.Q8_0_ID, rows.BF16_ID), 5, "silu", 20)


def test_nan_reaches_every_threshold() -> None:
    x = np.array([np.nan, 3.0, 0.5], np.float32)
    y, least = np.zeros(3, np.float32), np.full(3, 2.0, np.float32)
    elementwise.keep_large(x.ctypes.data, least.ctypes.data, 3, program.SILU_ACTIVATION, y.ctypes.data)
    assert np.isnan(y[0])
    checks.close(y[1:], np.array([3 / (1 + np.exp(-3.0)), 0]), "keep_large")


def test_mul_sigmoid() -> None:
    x, gate = checks.vectors(3, 50, 1), checks.vectors(3, 1, 2)
    record = {"code": program.MUL_SIGMOID, "chunks": 2, "x": x.ctypes.data, "x_stride": 200, "k": 50}
    y = np.zeros_like(x)
    record |= {"z": gate.ctypes.data, "z_stride": 4, "y": y.ctypes.data, "y_stride": 200}
    checks.run([record], 3)
    checks.close(y, ref_experts.mul_sigmoid(x, gate), "mul_sigmoid")


@pytest.mark.parametrize("n_ff", [1, 63, 64, 65, 205])
def test_mask(n_ff: int) -> None:
    """Bits and list of what is not below the threshold; NaN counts as active."""
    z = checks.vectors(1, n_ff, 9)
    z[0, 0] = np.nan
    bits, listed, count = np.zeros(-(-n_ff // 64), np.uint64), np.zeros(n_ff, np.int64), np.zeros(1, np.int64)
    record = {"code": program.MASK, "chunks": 1, "x": z.ctypes.data, "n_rows": n_ff, "threshold": 0.25}
    record |= {"y": bits.ctypes.data, "listed": listed.ctypes.data, "n_listed": count.ctypes.data}
    checks.run([record])
    active = ~(z[0] < np.float32(0.25))
    assert np.array_equal(listed[: count[0]], np.flatnonzero(active))
    unpacked = np.unpackbits(bits.view(np.uint8), bitorder="little")
    assert np.array_equal(unpacked[:n_ff].astype(bool), active)
    assert not unpacked[n_ff:].any()
