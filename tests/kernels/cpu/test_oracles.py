"""Every CPU kernel against its oracle on random and odd sizes."""

import attention_checks
import expert_checks
import numpy as np
import oracle_checks as checks
import pytest

from hotcold.kernels import formats, ref
from hotcold.kernels.cpu import elementwise, program, rows, sizes

pytestmark = pytest.mark.pairwise
NAMES = {0: "F32", 1: "F16", 30: "BF16", 8: "Q8_0", 2: "Q4_0", 6: "Q5_0", 14: "Q6_K"}
NAMES |= {3: "Q4_1", 7: "Q5_1", 12: "Q4_K", 13: "Q5_K"}
SIZES = [
    (t, k) for t in (*checks.SPARSE_TYPES, *checks.OFFSET_TYPES) for k in checks.ODD[sizes.is_quantised(t)]
]


@pytest.mark.parametrize(
    ("type_id", "k"),
    [*SIZES, *((t, k) for t in checks.K_TYPES for k in (256, 1024))],
    ids=lambda v: NAMES.get(v, str(v)),
)
def test_rows(type_id: int, k: int) -> None:
    checks.check_rows(type_id, k)


@pytest.mark.parametrize("k", [32, 64, 96, 128, 352, 4096])
def test_packed_inputs(k: int) -> None:
    checks.check_pack(k)


@pytest.mark.parametrize("type_id", checks.SPARSE_TYPES, ids=NAMES.get)
@pytest.mark.parametrize("n_tokens", [1, 2, 4, 7])
@pytest.mark.parametrize("n_rows", [1, 16, 37, 130])
def test_matrices(type_id: int, n_tokens: int, n_rows: int) -> None:
    checks.check_mul_mat(type_id, n_rows, 96, n_tokens)


@pytest.mark.parametrize("type_id", [*checks.OFFSET_TYPES, *checks.K_TYPES], ids=NAMES.get)
def test_matrices_of_types_outside_a_sparse_ffn(type_id: int) -> None:
    checks.check_mul_mat(type_id, 37, 512, 5)


@pytest.mark.parametrize("n", [1, 15, 16, 31, 40, 1000])
def test_elementwise(n: int) -> None:
    checks.check_elementwise(n)


@pytest.mark.parametrize(("head_dim", "n_rot"), [(2, 2), (20, 12), (64, 64)])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope(head_dim: int, n_rot: int, interleaved: bool) -> None:
    checks.check_rope(head_dim, n_rot, interleaved)


CACHED = [(t, d) for t in (rows.F16_ID, rows.F32_ID) for d in (1, 2, 17, 24, 64, 80, 96, 112, 128, 192, 256)]
CACHED += [(rows.Q8_0_ID, d) for d in (32, 64, 96, 128, 192, 256)]


@pytest.mark.parametrize(("kv_type", "head_dim"), CACHED, ids=lambda v: NAMES.get(v, str(v)))
def test_attention(kv_type: int, head_dim: int) -> None:
    for n_past, n_tokens in ((0, 1), (0, 5), (63, 1), (70, 3)):
        attention_checks.check_attention(kv_type, (4, 2), head_dim, n_past, n_tokens)


@pytest.mark.parametrize("kv_type", [rows.F16_ID, rows.F32_ID, rows.Q8_0_ID], ids=NAMES.get)
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 1), (5, 1), (12, 2), (7, 1), (16, 2), (13, 1)])
@pytest.mark.parametrize(("n_past", "n_tokens"), [(511, 1), (511, 2), (1030, 1), (500, 17), (100, 60)])
def test_attention_of_groups(kv_type: int, heads: tuple[int, int], n_past: int, n_tokens: int) -> None:
    attention_checks.check_attention(kv_type, heads, 32, n_past, n_tokens)


@pytest.mark.parametrize("window", [1, 63, 64, 100, 512, 2000])
@pytest.mark.parametrize(("n_past", "n_tokens"), [(0, 1), (0, 70), (1030, 1), (1030, 5), (500, 40)])
def test_attention_of_a_window_and_sinks(window: int, n_past: int, n_tokens: int) -> None:
    attention_checks.check_attention(rows.F16_ID, (6, 2), 20, n_past, n_tokens, window)


@pytest.mark.parametrize("type_id", checks.SPARSE_TYPES, ids=NAMES.get)
@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_sparse_gated_ffn_reads_firing_rows_alone(type_id: int, n_tokens: int, share: float) -> None:
    checks.check_sparse_gated_ffn((type_id,) * 3, n_tokens, share)


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_sparse_gated_ffn_of_mixed_types(n_tokens: int) -> None:
    checks.check_sparse_gated_ffn((rows.F16_ID, rows.F32_ID, rows.Q4_0_ID), n_tokens, 0.4)
    checks.check_sparse_gated_ffn((rows.Q4_0_ID, rows.Q8_0_ID, rows.BF16_ID), n_tokens, 0.4)


@pytest.mark.parametrize("type_id", [rows.F32_ID, rows.Q4_0_ID], ids=NAMES.get)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(("n_past", "n_tokens"), [(8, 1), (7, 1), (0, 1), (100, 5), (5, 5), (0, 20)])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_neurons_below_their_thresholds_are_not_read(
    type_id: int, activation: str, n_past: int, n_tokens: int, share: float
) -> None:
    checks.check_thresholds((type_id,) * 3, n_tokens, activation, n_past, share)


def test_thresholds_of_mixed_types() -> None:
    checks.check_thresholds((rows.Q4_0_ID, rows.Q8_0_ID, rows.BF16_ID), 5, "silu", 20)


def test_nan_reaches_every_threshold() -> None:
    x = np.array([np.nan, 3.0, 0.5], np.float32)
    y, least = np.zeros(3, np.float32), np.full(3, 2.0, np.float32)
    elementwise.keep_large(x.ctypes.data, least.ctypes.data, 3, program.SILU_ACTIVATION, y.ctypes.data)
    assert np.isnan(y[0])
    checks.close(y[1:], np.array([3 / (1 + np.exp(-3.0)), 0]), "keep_large")


@pytest.mark.parametrize("n_ff", [1, 63, 64, 65, 205])
def test_mask(n_ff: int) -> None:
    checks.check_mask(n_ff)


@pytest.mark.parametrize("gating", formats.GATINGS)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("n_expert", "n_used"), [(1, 1), (8, 2), (5, 5), (128, 8)])
def test_top_k(n_expert: int, n_used: int, gating: str, normed: bool) -> None:
    expert_checks.check_top_k(n_expert, n_used, gating, normed)


def test_nan_is_chosen_last() -> None:
    logits = np.array([[np.nan, 3, np.nan, 1]], np.float32)
    chosen = expert_checks.chosen_of(logits, 3, "softmax_chosen", False)
    assert chosen[0, :12].view(np.int32).tolist() == [0, 1, 3]
    assert np.isnan(chosen[0, 12:].view(np.float32)).all()


@pytest.mark.parametrize("type_id", checks.SPARSE_TYPES, ids=NAMES.get)
@pytest.mark.parametrize(("activation", "biased"), [("silu", False), ("relu", False), ("swiglu_oai", True)])
@pytest.mark.parametrize("n_tokens", [1, 2, 40])
def test_experts(type_id: int, activation: str, biased: bool, n_tokens: int) -> None:
    expert_checks.check_experts((type_id,) * 3, n_tokens, activation, biased)


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_experts_of_mixed_types(n_tokens: int) -> None:
    expert_checks.check_experts((rows.Q4_0_ID, rows.Q8_0_ID, rows.Q5_0_ID), n_tokens, "silu")


def test_mul_sigmoid() -> None:
    x, gate = checks.vectors(3, 50, 1), checks.vectors(3, 1, 2)
    record = {"code": program.MUL_SIGMOID, "chunks": 2, "x": x.ctypes.data, "x_stride": 200, "k": 50}
    y = np.zeros_like(x)
    record |= {"z": gate.ctypes.data, "z_stride": 4, "y": y.ctypes.data, "y_stride": 200}
    checks.run([record], 3)
    checks.close(y, ref.mul_sigmoid(x, gate), "mul_sigmoid")


def test_halves() -> None:
    attention_checks.check_halves()
