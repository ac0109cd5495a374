"""Whole ops as records: each row of the table in `program.py`, for one token and for odd numbers of them.

Every op is walked by several teams and cut into several numbers of chunks; the bits never change.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpu_operands as checks
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cpu import op_kernels, program, rows, sizes
from hotcold.kernels.cpu.compiled import FAMILIES
from hotcold.kernels.cpu.kernel_files import OPS

F32 = NDArray[np.float32]
Near = Callable[[Any, Any], None]
Walk = Callable[..., None]
Results = Callable[..., F32]

ALL_TYPES = (*checks.SPARSE_TYPES, rows.Q5_0_ID, rows.Q6_K_ID)
A_TYPE_A_KIND = (rows.F32_ID, rows.Q4_0_ID, rows.Q6_K_ID)  # of the others the tiles and rows are tested
N_TOKENS = (1, 3, 7)


def type_name(value: object) -> str | None:
    """A type's name in a test's name."""
    return GGMLQuantizationType(value).name if value in ALL_TYPES else None


def at(name: str, array: NDArray[Any], stride: int | None = None) -> dict[str, int]:
    """Record fields of one vector a token."""
    return {name: array.ctypes.data, f"{name}_stride": array.strides[0] if stride is None else stride}


@pytest.fixture
def result_of(run_ops: Walk) -> Results:
    """result_of(op, y, **run): what an op leaves in y, the same for every team and cut."""

    def run(op: dict[str, Any], y: F32, chunks: tuple[int, ...] = (1, 2, 5), **parameters: int) -> F32:
        seen = set()
        for n_chunks in chunks:
            for n_threads in (1, 2, 3, 5, 2):
                y.view(np.uint8)[:] = 0xFF
                run_ops([op | {"chunks": n_chunks}], n_threads, **parameters)
                seen.add(y.tobytes())
        assert len(seen) == 1
        return y

    return run


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("type_id", ALL_TYPES, ids=type_name)
def test_embed(type_id: int, n_tokens: int, result_of: Results, assert_near: Near) -> None:
    raw, w = checks.weights(type_id, 11, 512)
    ids, y = np.arange(10, 10 - n_tokens, -1, dtype=np.int32), checks.vectors(n_tokens, 512)
    op = {"code": program.EMBED, "k": 512, **checks.matrix("w", raw, type_id), **at("y", y)}
    assert_near(result_of(op, y, n_tokens=n_tokens, token_ids=ids.ctypes.data), w[ids])


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("type_id", ALL_TYPES, ids=type_name)
def test_positions(type_id: int, n_tokens: int, result_of: Results, assert_near: Near) -> None:
    raw, w = checks.weights(type_id, 20, 512)
    y = checks.vectors(n_tokens, 512)
    op = {"code": program.POSITIONS, "k": 512, "first": 2, **checks.matrix("w", raw, type_id), **at("y", y)}
    assert_near(result_of(op, y, n_tokens=n_tokens, n_past=11), w[13 : 13 + n_tokens])


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("k", [1, 17, 100, 256])
def test_ops_on_vectors(k: int, n_tokens: int, result_of: Results, assert_near: Near) -> None:
    x, z, weight = checks.vectors(n_tokens, k, 1), checks.vectors(n_tokens, k, 2), checks.vectors(1, k, 3)
    y = checks.vectors(n_tokens, k)
    common = {"k": k, **at("x", x), **at("z", z), **at("y", y)}

    def got(code: int, **fields: Any) -> F32:
        return result_of({"code": code, **common, **fields}, y, n_tokens=n_tokens)

    wide = x.astype(np.float64)
    whole = {"w": weight.ctypes.data, "eps": 1e-5}
    assert_near(got(program.RMS_NORM, **whole, n_rows=1), ref.rms_norm(x, weight[0], 1e-5))
    both = {"w": weight.ctypes.data, "w1": z.ctypes.data}
    assert_near(got(program.LAYER_NORM, **both, eps=1e-5), ref.layer_norm(x, weight[0], z[0], 1e-5))
    assert_near(got(program.ADD), wide + z)
    assert_near(got(program.ADD, z_stride=0), wide + z[0])
    assert_near(got(program.GELU), ref.gelu(wide))
    assert np.array_equal(got(program.RELU), np.maximum(x, 0))
    assert np.array_equal(got(program.SCALE, factor=0.4), ref.scale(x, 0.4))
    assert_near(got(program.ACT_MUL, activation=program.GELU_ACTIVATION), ref.gelu(wide) * z)
    assert_near(got(program.ACT_MUL, activation=program.SILU_ACTIVATION), ref.silu(wide) * z)
    if (x > 0).any():
        assert_near(got(program.ACT_MUL, activation=program.RELU_ACTIVATION), ref.relu(wide) * z)


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize(("n_head", "head_dim"), [(4, 24), (3, 17), (5, 128), (2, 1)])
def test_rms_norm_of_heads(
    n_head: int, head_dim: int, n_tokens: int, result_of: Results, assert_near: Near
) -> None:
    x, weight = checks.vectors(n_tokens, n_head * head_dim, 1), checks.vectors(1, head_dim, 3)
    y = checks.vectors(n_tokens, n_head * head_dim)
    op = {"code": program.RMS_NORM, "n_rows": n_head, "k": head_dim, "w": weight.ctypes.data, "eps": 1e-6}
    heads = ref.rms_norm(x.reshape(n_tokens, n_head, head_dim), weight[0], 1e-6)
    assert_near(result_of(op | at("x", x) | at("y", y), y, n_tokens=n_tokens), heads.reshape(x.shape))


@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_pack(n_tokens: int, result_of: Results) -> None:
    x = checks.vectors(n_tokens, 352)
    wanted, stride = checks.operand(rows.Q4_0_ID, x)
    y = program.aligned(n_tokens * stride).view(np.float32)
    op = {"code": program.PACK, "k": 352, **at("x", x), **at("y", y, sizes.packed_bytes(352))}
    assert result_of(op, y, n_tokens=n_tokens).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("n_rows", [1, 16, 203])
@pytest.mark.parametrize("type_id", A_TYPE_A_KIND, ids=type_name)
def test_mat_vec(type_id: int, n_rows: int, result_of: Results, assert_near: Near) -> None:
    for k in (256,) if type_id == rows.Q6_K_ID else checks.ODD[sizes.is_quantised(type_id)]:
        raw, w = checks.weights(type_id, n_rows, k)
        x, y = checks.vectors(1, k), checks.vectors(1, n_rows)
        operand, _ = checks.operand(type_id, x)
        op = {"code": program.MAT_VEC, "n_rows": n_rows, "k": k, **checks.matrix("w", raw, type_id)}
        got = result_of(op | at("x", operand, 0) | at("y", y), y)
        assert_near(got, ref.mul_mat(w, x, sizes.is_quantised(type_id)))


@pytest.mark.parametrize(
    ("type_id", "n_tokens"),
    [(t, n) for t in A_TYPE_A_KIND for n in (1, 4, 5, 9)],
)
def test_mul_mat_and_logits(type_id: int, n_tokens: int, result_of: Results, assert_near: Near) -> None:
    k, n_rows = 512 if type_id in checks.K_TYPES else 160, 133
    raw, w = checks.weights(type_id, n_rows, k)
    x, y = checks.vectors(n_tokens, k), checks.vectors(n_tokens, n_rows)
    operand, stride = checks.operand(type_id, x)
    op = {"n_rows": n_rows, "k": k, **checks.matrix("w", raw, type_id), **at("x", operand, stride)}
    wanted = ref.mul_mat(w, x, sizes.is_quantised(type_id))
    assert_near(result_of(op | {"code": program.MUL_MAT} | at("y", y), y, n_tokens=n_tokens), wanted)
    op |= {"code": program.LOGITS, "y_stride": 4 * n_rows}
    for start in {0, n_tokens - 1, n_tokens // 2}:
        out = checks.vectors(n_tokens - start, n_rows)
        where = {"logits_address": out.ctypes.data, "logits_from": start}
        assert_near(result_of(op, out, n_tokens=n_tokens, **where), wanted[start:])


def test_logits_that_nobody_wants_are_not_computed(run_ops: Walk) -> None:
    op = {"code": program.LOGITS, "chunks": 2, "n_rows": 64, "k": 64, "w_type": rows.F32_ID}
    run_ops([op], n_tokens=3)  # every address is 0: touching one ends the process


def test_a_token_in_a_batch_has_the_bits_of_its_own_place(run_ops: Walk) -> None:
    """Neighbours in a batch do not show in a token's result."""
    raw, _ = checks.weights(rows.Q4_0_ID, 70, 352)
    x = checks.vectors(9, 352)
    results = []
    for other in (1.0, -3.0):
        changed = x.copy()
        changed[:4] *= other
        operand, stride = checks.operand(rows.Q4_0_ID, changed)
        y = checks.vectors(9, 70)
        op = {"code": program.MUL_MAT, "chunks": 3, "n_rows": 70, "k": 352}
        run_ops(
            [op | checks.matrix("w", raw, rows.Q4_0_ID) | at("x", operand, stride) | at("y", y)], n_tokens=9
        )
        results.append(y[4:].tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(
    "types",
    [*((t, t) for t in checks.SPARSE_TYPES), (rows.F16_ID, rows.Q8_0_ID), (rows.Q4_0_ID, rows.BF16_ID)],
    ids=lambda types: "-".join(GGMLQuantizationType(t).name for t in types),
)
def test_gated(types: tuple[int, int], activation: str, result_of: Results, assert_near: Near) -> None:
    k, n_rows = 352, 203
    (gate, g), (up, u) = (checks.weights(t, n_rows, k, i) for i, t in enumerate(types))
    x, y, ups = checks.vectors(1, k), checks.vectors(1, n_rows), checks.vectors(1, n_rows)
    (a, _), (b, _) = (checks.operand(t, x) for t in types)
    op = {"code": program.GATED, "n_rows": n_rows, "k": k, "scratch": ups.ctypes.data, **at("y", y)}
    op |= (
        checks.matrix("w", gate, types[0]) | checks.matrix("w1", up, types[1]) | at("x", a, 0) | at("z", b, 0)
    )
    op["activation"] = {"relu": program.RELU_ACTIVATION, "silu": program.SILU_ACTIVATION}[activation]
    products = [ref.mul_mat(w, x, sizes.is_quantised(t)) for w, t in zip((g, u), types, strict=True)]
    assert_near(result_of(op, y), ref.ACTIVATIONS[activation](products[0]) * products[1])


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_turns_by_position(
    interleaved: bool, n_tokens: int, result_of: Results, assert_near: Near
) -> None:
    x, y = checks.vectors(n_tokens, 3 * 20), checks.vectors(n_tokens, 3 * 20)
    frequencies = ref.rope_frequencies(12, 500000.0)
    angles = np.arange(40)[:, None] * frequencies
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    op = {
        "code": program.ROPE,
        "n_head": 3,
        "head_dim": 20,
        "n_pairs": 6,
        "interleaved": int(interleaved),
        **at("x", x),
        **at("y", y),
    }
    got = result_of(op | at("w", table), y, n_tokens=n_tokens, n_past=31)
    wanted = ref.rope(x.reshape(n_tokens, 3, 20), 31 + np.arange(n_tokens), frequencies, interleaved)
    assert_near(got.reshape(n_tokens, 3, 20), wanted)


@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_predictor(n_tokens: int, run_ops: Walk) -> None:
    """MUL_MAT, RELU, MUL_MAT and MASK together, in Q8_0: the oracle's list but for ties in rounding."""
    k, rank, n_ff, threshold = 96, 64, 205, 0.5
    (fc1, w1), (fc2, w2) = (
        checks.weights(rows.Q8_0_ID, rank, k, 1),
        checks.weights(rows.Q8_0_ID, n_ff, rank, 2),
    )
    x, hidden, z = checks.vectors(n_tokens, k), checks.vectors(n_tokens, rank), checks.vectors(n_tokens, n_ff)
    (a, a_stride), stride = checks.operand(rows.Q8_0_ID, x), sizes.packed_bytes(rank)
    packed, bits = program.aligned(n_tokens * stride), np.full((n_tokens, 4), -1)
    in_place = {"k": rank, **at("x", hidden), **at("y", hidden)}
    first = {"code": program.MUL_MAT, "chunks": 2, "n_rows": rank, "k": k, **at("x", a, a_stride)}
    second = {"code": program.MUL_MAT, "chunks": 2, "n_rows": n_ff, "k": rank, **at("x", packed, stride)}
    ops: list[dict[str, Any]] = [
        first | checks.matrix("w", fc1, rows.Q8_0_ID) | at("y", hidden),
        {"code": program.RELU, "chunks": 1, **in_place},
        {"code": program.PACK, "chunks": 1, **in_place, **at("y", packed, stride)},
        second | checks.matrix("w", fc2, rows.Q8_0_ID) | at("y", z),
        {
            "code": program.MASK,
            "chunks": n_tokens,
            "n_rows": n_ff,
            "threshold": threshold,
            **at("x", z),
            **at("y", bits),
        },
    ]
    run_ops(ops, 2, n_tokens=n_tokens)
    exact = ref.mul_mat(w2, hidden, quantised=True)
    sure = np.abs(exact - threshold) > 1e-5 * np.abs(exact).max()
    assert sure.mean() > 0.99
    got = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :n_ff].astype(bool)
    assert np.array_equal(got[sure], ref.predictor(x, w1, w2, threshold, quantised=True)[sure])
    assert not np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, n_ff:].any()


@pytest.mark.parametrize("n_tokens", [*N_TOKENS, 260])
@pytest.mark.parametrize("type_id", A_TYPE_A_KIND, ids=type_name)
def test_mask_rows(type_id: int, n_tokens: int, result_of: Results) -> None:
    """The bits are those of MUL_MAT's own products, one of which is the threshold; NaN counts as active."""
    n_rows, k = 205, 256
    raw, _ = checks.weights(type_id, n_rows, k, 1)
    x = checks.vectors(n_tokens, k)
    x[0] = np.nan if type_id == rows.F32_ID else x[0]
    a, stride = checks.operand(type_id, x)
    op = {"n_rows": n_rows, "k": k, **at("x", a, stride), **checks.matrix("w", raw, type_id)}
    products = np.zeros((n_tokens, n_rows), np.float32)
    products = result_of({"code": program.MUL_MAT, **op, **at("y", products)}, products, n_tokens=n_tokens)
    threshold = float(products[-1, 70])
    bits: Any = np.zeros((n_tokens, 4), np.uint64)
    masked: dict[str, Any] = {"code": program.MASK_ROWS, "threshold": threshold, **op, **at("y", bits)}
    got = np.unpackbits(result_of(masked, bits, n_tokens=n_tokens).view(np.uint8), axis=1, bitorder="little")
    assert np.array_equal(got[:, :n_rows], ~(products < np.float32(threshold)))
    assert got[-1, 70] and not got[:, n_rows:].any()


def test_records_start_on_cache_lines_and_keep_their_fields() -> None:
    ops = program.assemble(
        [
            {"code": program.RMS_NORM, "eps": 0.5, "w": 1 << 40},
            {"code": program.ATTENTION, "n_head": 4, "n_head_kv": 2, "head_dim": 8, "scale": 0.25},
        ]
    )
    assert ops.ctypes.data % 64 == 0 and ops.itemsize % 64 == 0
    assert ops[0][["code", "eps", "w", "n_head"]].tolist() == (program.RMS_NORM, 0.5, 1 << 40, 0)
    assert ops[1][["n_head", "n_head_kv", "head_dim", "scale", "eps"]].tolist() == (4, 2, 8, 0.25, 0)


@pytest.mark.parametrize("field", ["no_such_field", "eps", "claim"])
def test_a_field_that_an_op_has_not_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        program.assemble([{"code": program.ADD, field: 1}])


def test_every_op_has_a_kernel() -> None:
    """A code without one would leave its result as it was."""
    lines = Path(program.__file__).read_text().splitlines()
    ops = {getattr(program, line.split(" = ")[0]) for line in lines if " = _op(" in line}
    assert op_kernels.__doc__ and ops == FAMILIES[OPS].members.keys()
