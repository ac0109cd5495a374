"""CPU kernels against their oracles, as functions that raise; attention and experts have files of their own.

Plain modules, so that the host's level and every other feature level run the very same checks: pytest imports
them, and `python all_oracle_checks.py` runs all of them in a process with another NUMBA_CPU_NAME.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_weights import random_weights

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import ref
from hotcold.kernels.cpu import elementwise, pack, program, rows, sizes
from hotcold.kernels.cpu.team import Program, Team
from hotcold.kernels.formats import ACTIVATIONS, EXACT_POSITIONS

BOUND = 1e-5
FLOAT_TYPES = (rows.F32_ID, rows.F16_ID, rows.BF16_ID)
BLOCK_TYPES = (rows.Q8_0_ID, rows.Q4_0_ID)
SPARSE_TYPES = FLOAT_TYPES + BLOCK_TYPES
ODD = {True: (32, 96, 352, 2048), False: (1, 17, 100, 352)}
K_TYPES = tuple(i for i, block in rows.BLOCK_SIZE.items() if block == 256)
OFFSET_TYPES = tuple(i for i, block in rows.BLOCK_SIZE.items() if block == 32 and i not in BLOCK_TYPES)
Array = NDArray[np.float32]
Record = dict[str, Any]


def close(got: NDArray[np.floating], wanted: NDArray[np.floating], what: str) -> None:
    """Largest difference against the largest number."""
    top = np.abs(wanted).max()
    error = np.abs(np.asarray(got, np.float64) - wanted).max()
    assert error <= BOUND * max(top, 1e-30), f"{what}: {error} of {top}"


def vectors(n: int, k: int, seed: int = 0) -> Array:
    """Random float32 [n, k] that starts on a cache line."""
    out = program.aligned(4 * n * k).view(np.float32).reshape(n, k)
    out[:] = np.random.default_rng(seed).standard_normal((n, k))
    return out


def weights(type_id: int, n_rows: int, k: int, seed: int = 1) -> tuple[NDArray[np.uint8], Array]:
    """Random rows of a type as bytes, and the numbers they hold."""
    return random_weights(GGMLQuantizationType(type_id), n_rows, k, np.random.default_rng(seed))


def operand(type_id: int, x: Array) -> tuple[NDArray[np.uint8], int]:
    """Inputs as a weight type wants them, and their row stride."""
    n, k = x.shape
    if not sizes.is_quantised(type_id):
        return x.view(np.uint8), 4 * k
    stride = sizes.packed_bytes(k)
    out = program.aligned(n * stride)
    for t in range(n):
        pack.pack_row(x[t].ctypes.data, k, out.ctypes.data + t * stride)
    return out, stride


def matrix(name: str, data: NDArray[np.uint8], type_id: int) -> dict[str, int]:
    """Record fields of a matrix."""
    return {name: data.ctypes.data, f"{name}_type": type_id, f"{name}_stride": data.shape[1]}


def run(records: list[Record], n_tokens: int = 1, n_threads: int = 2, **parameters: int) -> None:
    """Walk the records once."""
    job, team = Program(records), Team(n_threads)
    job.run[program.N_TOKENS] = n_tokens
    for name, value in parameters.items():
        job.run[getattr(program, name)] = value
    try:
        team.walk(job)
    finally:
        team.close()


def check_rows(type_id: int, k: int) -> None:
    """Dot products of one row and a tile, a row as float32; a strip and the sum of four rows."""
    quantised = sizes.is_quantised(type_id)
    data, w = weights(type_id, 8, k)
    x = vectors(4, k)
    at, stride = operand(type_id, x)
    wanted = ref.mul_mat(w, x, quantised)
    base, size = data.ctypes.data, data.shape[1]
    got = [
        [rows.dot_row(type_id, base + r * size, at.ctypes.data + c * stride, k, rows.AHEAD) for r in range(8)]
        for c in range(4)
    ]
    close(np.array(got), wanted, "row")
    wide = np.zeros(k, np.float32)
    rows.widen_row(type_id, base + 3 * size, k, wide.ctypes.data)
    # two ways to multiply three factors
    close(wide, w[3], "widened row")
    columns = np.array([at.ctypes.data + c * stride for c in range(4)])
    for n in (1, 3, 4):
        out = np.zeros((n, 5), np.float32)
        where = (base + size, size, 5, columns.ctypes.data, n, k, rows.AHEAD)
        rows.dot_strips(type_id, *where, out.ctypes.data, out.strides[0])
        close(out, wanted[:n, 1:6], "strips")
    if type_id in FLOAT_TYPES:
        tile = np.zeros((4, 4), np.float32)
        rows.dot_tile(type_id, base + size, size, columns.ctypes.data, k, tile.ctypes.data)
        close(tile.T, wanted[:, 1:5], "tile")
    picked, coefficients = [0, 3, 5, 7], np.array([1, 2, -3, 0.5], np.float32)
    acc = np.ones(k, np.float32)
    addresses, ahead = np.array([base + r * size for r in picked]), np.zeros(4, np.int64)
    four = (addresses.ctypes.data, coefficients.ctypes.data)
    rows.add_rows(type_id, acc.ctypes.data, *four, 0, k, ahead.ctypes.data)
    close(acc, 1 + coefficients.astype(np.float64) @ w[picked], "sum of rows")


def check_pack(k: int) -> None:
    """Packed inputs hold the oracle's int8 and scales, in the documented places."""
    x = vectors(1, k)
    x[0, :32] = 0
    out, _ = operand(rows.Q8_0_ID, x)
    q, d = ref.quantise(x[0])
    windows = out.reshape(-1, 768)
    groups = windows[:, :512].view(np.int8).reshape(-1, 4, 2, 4, 16)
    got = groups.transpose(0, 1, 3, 2, 4).reshape(-1, 2, 16)
    assert np.array_equal(got.reshape(-1)[:k], q)
    assert not got.reshape(-1)[k:].any()
    n = k // 32

    def blocks(vector: int, kind: Any) -> NDArray[Any]:
        """A window's vector, block c from lane 4 (c mod 4) + c / 4."""
        lanes: NDArray[Any] = windows[:, 512 + 64 * vector :][:, :64].copy().view(kind).reshape(-1, 4, 4)
        return lanes.transpose(0, 2, 1).reshape(-1)

    halves = got.sum(-1, dtype=np.int32)
    both = halves.sum(-1, dtype=np.int32)
    assert np.array_equal(blocks(0, np.float32), np.append(d, np.zeros(len(both) - n, np.float32)))
    assert np.array_equal(blocks(1, np.int32), -both)
    assert np.array_equal(blocks(2, np.float32)[:n], d * both[:n].astype(np.float32))
    assert np.array_equal(blocks(3, np.int32).view(np.int16).reshape(-1, 2), -halves)


def check_mul_mat(type_id: int, n_rows: int, k: int, n_tokens: int) -> None:
    """MAT_VEC for one token, MUL_MAT for more, LOGITS for the last ones."""
    data, w = weights(type_id, n_rows, k)
    x = vectors(n_tokens, k)
    at, stride = operand(type_id, x)
    wanted = ref.mul_mat(w, x, sizes.is_quantised(type_id))
    y = np.zeros((n_tokens, n_rows), np.float32)
    code = program.MAT_VEC if n_tokens == 1 else program.MUL_MAT
    record = {"code": code, "chunks": 3, **matrix("w", data, type_id), "n_rows": n_rows, "k": k}
    record |= {"x": at.ctypes.data, "x_stride": stride, "y": y.ctypes.data, "y_stride": 4 * n_rows}
    run([record], n_tokens)
    close(y, wanted, "mul_mat")
    last = np.zeros((1, n_rows), np.float32)
    parameters = {"LOGITS_ADDRESS": last.ctypes.data, "LOGITS_FROM": n_tokens - 1}
    run([record | {"code": program.LOGITS}], n_tokens, **parameters)
    close(last, wanted[-1:], "logits")


def check_order(type_id: int, k: int) -> None:
    """A token of a batch has the bits that it has alone."""
    data, _ = weights(type_id, 37, k)
    x = vectors(9, k)
    at, stride = operand(type_id, x)
    record = {"chunks": 3, **matrix("w", data, type_id), "n_rows": 37, "k": k, "x_stride": stride}
    together, alone = np.zeros((9, 37), np.float32), np.zeros((9, 37), np.float32)
    batch = {"code": program.MUL_MAT, "x": at.ctypes.data, "y": together.ctypes.data, "y_stride": 4 * 37}
    run([record | batch], 9)
    for t, y in enumerate(alone):
        run([record | {"code": program.MAT_VEC, "x": at.ctypes.data + t * stride, "y": y.ctypes.data}])
    assert np.array_equal(together.view(np.int32), alone.view(np.int32)), f"order of sums of type {type_id}"


def check_elementwise(n: int) -> None:
    """Norm, sums, activations."""
    x, z = vectors(1, n, 2)[0], vectors(1, n, 3)[0]
    y = np.zeros(n, np.float32)
    px, pz, py = x.ctypes.data, z.ctypes.data, y.ctypes.data
    elementwise.rms_norm(px, pz, n, 1e-5, py)
    close(y, ref.rms_norm(x, z, 1e-5), "rms_norm")
    elementwise.layer_norm(px, pz, px, n, 1e-5, py)
    close(y, ref.layer_norm(x, z, x, 1e-5), "layer_norm")
    elementwise.gelu(px, n, py)
    close(y, ref.gelu(x.astype(np.float64)), "gelu")
    elementwise.add(px, pz, n, py)
    close(y, x.astype(np.float64) + z, "add")
    elementwise.scale(px, n, 0.4, py)
    assert np.array_equal(y, ref.scale(x, 0.4))
    elementwise.relu(px, n, py)
    assert np.array_equal(y, np.maximum(x, 0))
    numbers = program.RELU_ACTIVATION, program.SILU_ACTIVATION, program.GELU_ACTIVATION
    for name, number in zip(("relu", "silu", "gelu"), numbers, strict=True):
        elementwise.act_mul(px, pz, n, number, py)
        close(y, ref.ACTIVATIONS[name](x.astype(np.float64)) * z, name)


def check_rope(head_dim: int, n_rot: int, interleaved: bool) -> None:
    """Three heads at two positions."""
    x = vectors(2, 3 * head_dim).reshape(2, 3, head_dim)
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
    run([record], 2, N_PAST=9)
    close(y, ref.rope(x, np.array([9, 10]), frequencies, interleaved), "rope")


def least_of(gate: Array, x: Array, activation: str, quantised: bool) -> Array:
    """A threshold a neuron that about half of the tokens reach, none of them narrowly: float32 [n_ff]."""
    v = np.abs(ref.ACTIVATIONS[activation](ref.mul_mat(gate, x, quantised)))
    least = np.random.default_rng(11).uniform(0, 2, v.shape[1]) * np.median(v, axis=0)
    least[(np.abs(v - least) < 1e-2 * least).any(0)] = 0
    return np.asarray(least, np.float32)


def sparse_records(
    types: tuple[int, int, int],
    k: int,
    n_ff: int,
    x: Array,
    active: NDArray[np.bool_] | None,
    poison: bool,
    activation: str = "relu",
    n_past: int = 0,
) -> tuple[list[Record], Array, NDArray[np.float64], list[object]]:
    """Records of a sparse FFN for one token or several, its result, and what the oracle says.

    Args:
        poison: fill every row that must not be read with NaN.
        activation: with silu or gelu there are thresholds, of tokens from n_past on.
    """
    n_tokens = len(x)
    (gate, g), (up, u), (down, d) = (weights(kind, n_ff, k, 10 + i) for i, kind in enumerate(types))
    quantised = sizes.is_quantised(types[0])
    assert quantised == sizes.is_quantised(types[1])
    least = None if activation == "relu" else least_of(g, x, activation, quantised)
    wanted = ref.sparse_gated_ffn(
        x, g, u, d, active, quantised, activation, None if least is None else (least, n_past)
    )
    listed = np.ones((n_tokens, n_ff), bool) if active is None else active
    products = ref.mul_mat(g, x, quantised)
    gates = products if least is None else ref.keep_large(products, least, activation, n_past)
    firing = listed & (gates > 0 if least is None else gates != 0)
    if poison:
        gate[~listed.any(0)] = 0xFF
        up[~firing.any(0)] = 0xFF
        down[~firing.any(0)] = 0xFF
    at, stride = operand(types[0], x)
    y, counts = vectors(n_tokens, k), np.zeros((program.MAX_CHUNKS, 2), np.int64)
    words = -(-n_ff // 64)
    bits = np.zeros((n_tokens, words * 64), np.uint8)
    bits[:, :n_ff] = listed
    mask = np.packbits(bits, axis=1, bitorder="little").copy()
    area, second = vectors(max(n_tokens, program.PIECES), max(n_ff, k)), vectors(n_tokens, n_ff)
    keep: list[object] = [gate, up, down, at, y, counts, mask, area, second, firing, least]
    rule = {"activation": ACTIVATIONS[activation]}
    thresholds = {} if least is None else {"least": least.ctypes.data}
    shape = {"n_rows": n_ff, "k": k, "counts": counts.ctypes.data}
    if n_tokens == 1:
        numbers = np.flatnonzero(listed[0]).astype(np.int64)
        length = np.array([len(numbers)], np.int64)
        keep += [numbers, length]
        which = {} if active is None else {"listed": numbers.ctypes.data, "n_listed": length.ctypes.data}
        three = matrix("w", gate, types[0]) | matrix("w1", up, types[1]) | matrix("w2", down, types[2])
        ffn = {"code": program.SPARSE_FFN, "chunks": program.PIECES, **three, **shape, **which, "skip": 1}
        ffn |= rule | thresholds
        ffn |= {
            "x": at.ctypes.data,
            "z": at.ctypes.data,
            "scratch": area.ctypes.data,
            "scratch_stride": 4 * k,
        }
        total = {"code": program.REDUCE, "chunks": 3, "x": area.ctypes.data, "x_stride": 4 * k}
        total |= {"n_parts": program.PIECES, "k": k, "y": y.ctypes.data}
        return [ffn, total], y, wanted, keep
    inner = {"y": area.ctypes.data, "y_stride": 4 * n_ff, "x": at.ctypes.data, "x_stride": stride}
    where = {"z": mask.ctypes.data, "z_stride": mask.shape[1]}
    first = {"code": program.GATE_ROWS, "chunks": 4, **matrix("w", gate, types[0]), **shape, **inner, **where}
    at_gates = {"z": area.ctypes.data, "z_stride": 4 * n_ff}
    small = {"x": area.ctypes.data, "x_stride": 4 * n_ff, "y": area.ctypes.data, "y_stride": 4 * n_ff}
    close_small = {"code": program.THRESHOLD, "chunks": 2, "n_rows": n_ff, **small, **rule, **thresholds}
    hidden = {"y": second.ctypes.data, "y_stride": 4 * n_ff, "x": at.ctypes.data, "x_stride": stride}
    then = {
        "code": program.UP_ROWS,
        "chunks": 4,
        **matrix("w", up, types[1]),
        **shape,
        **hidden,
        **at_gates,
        **rule,
    }
    out = {"x": second.ctypes.data, "x_stride": 4 * n_ff, "y": y.ctypes.data, "y_stride": 4 * k}
    last = {
        "code": program.DOWN_ROWS,
        "chunks": 2,
        "n_parts": program.PIECES,
        **matrix("w", down, types[2]),
        **shape,
        **out,
    }
    return [first, *([] if least is None else [close_small]), then, last], y, wanted, keep


def check_sparse_gated_ffn(types: tuple[int, int, int], n_tokens: int, share: float) -> None:
    """Nothing but the rows of firing neurons is read, and the sum is the oracle's."""
    k, n_ff = 96, 205
    x = vectors(n_tokens, k, 7)
    active = np.random.default_rng(8).random((n_tokens, n_ff)) < share
    records, y, wanted, keep = sparse_records(types, k, n_ff, x, active, poison=True)
    run(records, n_tokens)
    close(y, wanted, f"sparse_gated_ffn of {share}")
    counts, firing = keep[5], keep[9]
    assert isinstance(counts, np.ndarray)
    assert isinstance(firing, np.ndarray)
    assert counts.sum(0).tolist() == [active.sum(), firing.sum()]


def check_thresholds(
    types: tuple[int, int, int], n_tokens: int, activation: str, n_past: int, share: float = 1.0
) -> None:
    """Rows of neurons below their thresholds are not read, but at the first positions all are."""
    k, n_ff = 96, 205
    x = vectors(n_tokens, k, 7)
    x *= 0.2
    active = np.random.default_rng(8).random((n_tokens, n_ff)) < share
    poison = n_past >= EXACT_POSITIONS or share < 1
    records, y, wanted, keep = sparse_records(types, k, n_ff, x, active, poison, activation, n_past)
    run(records, n_tokens, N_PAST=n_past)
    close(y, wanted, f"thresholds with {activation}")
    counts, firing = keep[5], keep[9]
    assert isinstance(counts, np.ndarray)
    assert isinstance(firing, np.ndarray)
    assert counts.sum(0).tolist() == [active.sum(), firing.sum()]
    n_exact = min(max(EXACT_POSITIONS - n_past, 0), n_tokens)
    assert firing[:n_exact].sum() == active[:n_exact].sum()
    assert n_exact == n_tokens or 0.2 < firing[n_exact:].sum() / active[n_exact:].sum() < 0.8


def check_mask(n_ff: int) -> None:
    """Bits and list of what is not below the threshold; NaN counts as active."""
    z = vectors(1, n_ff, 9)
    z[0, 0] = np.nan
    bits, listed, count = np.zeros(-(-n_ff // 64), np.uint64), np.zeros(n_ff, np.int64), np.zeros(1, np.int64)
    record = {"code": program.MASK, "chunks": 1, "x": z.ctypes.data, "n_rows": n_ff, "threshold": 0.25}
    record |= {"y": bits.ctypes.data, "listed": listed.ctypes.data, "n_listed": count.ctypes.data}
    run([record])
    active = ~(z[0] < np.float32(0.25))
    assert np.array_equal(listed[: count[0]], np.flatnonzero(active))
    unpacked = np.unpackbits(bits.view(np.uint8), bitorder="little")
    assert np.array_equal(unpacked[:n_ff].astype(bool), active)
    assert not unpacked[n_ff:].any()
