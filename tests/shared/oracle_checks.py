"""Every CPU kernel against its oracle, as functions that raise.

A plain module, so that the host's level and every other feature level run the very same checks: pytest
imports it, and `python oracle_checks.py` runs all of it in a process with another NUMBA_CPU_NAME.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_weights import random_weights

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import formats, order_of_sums, ref
from hotcold.kernels.cpu import elementwise, pack, program, rows, simd, sizes
from hotcold.kernels.cpu.team import Program, Team

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


class Cache:
    """One layer's keys and values as KV_STORE leaves them, with NaN or the like wherever it writes nothing."""

    def __init__(self, kv_type: int, n_head_kv: int, head_dim: int, n_ctx: int) -> None:
        self.kv_type, self.n_head_kv, self.head_dim, self.n_ctx = kv_type, n_head_kv, head_dim, n_ctx
        name = {rows.F16_ID: "f16", rows.F32_ID: "f32", rows.Q8_0_ID: "q8_0"}[kv_type]
        self.block_bytes = formats.host_kv_block_bytes(name, head_dim)
        head_bytes = formats.host_kv_bytes(name, n_ctx, head_dim)
        self.half, self.n_positions = n_head_kv * head_bytes, -(-n_ctx // 64) * 64
        self.memory = program.aligned(2 * self.half)
        self.memory[:] = 0xFF
        self.where = {"w": self.memory.ctypes.data, "w1": self.memory.ctypes.data + self.half}
        self.where |= {"w_type": kv_type, "w_stride": self.block_bytes, "w1_stride": head_bytes}

    def store(self, k: Array, v: Array, n_past: int = 0) -> None:
        """Keys and values [n_tokens, n_head_kv, head_dim] at positions from n_past on."""
        k, v = (np.ascontiguousarray(a) for a in (k, v))
        record = {
            "code": program.KV_STORE,
            "chunks": 2,
            "n_head_kv": self.n_head_kv,
            "head_dim": self.head_dim,
            "n_positions": self.n_positions,
        }
        record |= {"x": k.ctypes.data, "z": v.ctypes.data, **self.where}
        record |= dict.fromkeys(("x_stride", "z_stride"), 4 * self.n_head_kv * self.head_dim)
        run([record], len(k), N_PAST=n_past)

    def held(self) -> tuple[Array, Array]:
        """The numbers in it, float32 [positions in whole blocks, n_head_kv, head_dim] each."""
        return self._numbers(self.memory[: self.half], True), self._numbers(self.memory[self.half :], False)

    def _numbers(self, memory: NDArray[np.uint8], is_keys: bool) -> Array:
        n, wide = self.head_dim, -(-self.head_dim // 16) * 16
        blocks = memory.reshape(self.n_head_kv, -1, self.block_bytes)
        shape = (*blocks.shape[:2], wide, 64) if is_keys else (*blocks.shape[:2], 64, wide)
        if self.kv_type == rows.Q8_0_ID:
            scales = blocks[..., : 4 * n].copy().view(np.float16).astype(np.float32)
            scales = scales.reshape(*shape[:2], n // 32, 64) if is_keys else scales.reshape(*shape[:3], -1)
            scales = np.repeat(scales, 32, 2 if is_keys else 3)
            numbers = blocks[..., 4 * n :].copy().view(np.int8).reshape(shape) * scales
        else:
            kind = np.float16 if self.kv_type == rows.F16_ID else np.float32
            numbers = blocks.copy().view(kind).reshape(shape).astype(np.float32)
        if is_keys:
            numbers = numbers.swapaxes(2, 3)
        return np.ascontiguousarray(numbers.reshape(self.n_head_kv, -1, wide)[..., :n].swapaxes(0, 1))

    def attend(
        self, q: Array, n_past: int, n_threads: int = 2, window: int = 0, sinks: Array | None = None
    ) -> Array:
        """ATTENTION, and the join of its parts, of queries [n_tokens, n_head, head_dim]."""
        n_tokens, n_head, head_dim = q.shape
        q, y = np.ascontiguousarray(q), np.full(q.shape, np.nan, np.float32)
        head_sizes = (n_tokens, n_head, self.n_head_kv, head_dim, self.n_ctx)
        partial = program.aligned(64 + sizes.attention_partial_bytes(n_tokens, n_head, head_dim, self.n_ctx))
        partial[:] = 0xFF
        record = {"code": program.ATTENTION, "chunks": sizes.attention_chunks(*head_sizes), "n_head": n_head}
        record |= {"n_head_kv": self.n_head_kv, "head_dim": head_dim, "n_positions": self.n_positions}
        record |= {"scale": head_dim**-0.5, **self.where}
        record |= {"x": q.ctypes.data, "y": y.ctypes.data, "scratch": partial.ctypes.data, "k": window}
        record |= dict.fromkeys(("x_stride", "y_stride"), 4 * n_head * head_dim)
        if sinks is not None:
            record["z"] = sinks.ctypes.data
        join = record | {"code": program.ATTENTION_JOIN, "chunks": n_head}
        run([record, join], n_tokens, n_threads, N_PAST=n_past)
        return y


def wanted_bits(
    q: Array, k: Array, v: Array, n_past: int, window: int = 0, sinks: Array | None = None
) -> Array:
    """`order_of_sums.attention_in_order` as this CPU level adds."""
    fma = order_of_sums.fma if "fma" in simd.target_features() else order_of_sums.mul_add
    return order_of_sums.attention_in_order(q, k, v, n_past, window, sinks, fma)


def check_attention(
    kv_type: int, heads: tuple[int, int], head_dim: int, n_past: int, n_tokens: int, window: int = 0
) -> None:
    """Cache and attention: what is held, the distance to the oracle, and the bits of its order of sums."""
    n_head, n_head_kv = heads
    n_keys = n_past + n_tokens
    cache = Cache(kv_type, n_head_kv, head_dim, n_keys + 3)
    given = [vectors(n_keys, n_head_kv * head_dim, s).reshape(n_keys, n_head_kv, head_dim) for s in (4, 5)]
    cache.store(given[0], given[1])
    held = [numbers[:n_keys] for numbers in cache.held()]
    for numbers, x in zip(held, given, strict=True):
        if kv_type == rows.Q8_0_ID:
            bytes_, scales = ref.quantise(x)
            scales = scales.astype(np.float16).astype(np.float32)
            x = (bytes_.reshape(*scales.shape, 32) * scales[..., None]).reshape(x.shape)
        elif kv_type == rows.F16_ID:
            x = x.astype(np.float16).astype(np.float32)
        assert np.array_equal(numbers, x)
    q = vectors(n_tokens, n_head * head_dim, 6).reshape(n_tokens, n_head, head_dim)
    sinks = vectors(1, n_head, 7)[0] if window else None
    y = cache.attend(q, n_past, window=window, sinks=sinks)
    close(y, ref.attention(q, held[0], held[1], n_past, window, sinks), "attention")
    assert np.array_equal(y, wanted_bits(q, held[0], held[1], n_past, window, sinks)), "attention's bits"


def sparse_records(
    types: tuple[int, int, int], k: int, n_ff: int, x: Array, active: NDArray[np.bool_] | None, poison: bool
) -> tuple[list[Record], Array, NDArray[np.float64], list[object]]:
    """Records of a sparse FFN for one token or several, its result, and what the oracle says.

    Args:
        poison: fill every row that must not be read with NaN.
    """
    n_tokens = len(x)
    (gate, g), (up, u), (down, d) = (weights(kind, n_ff, k, 10 + i) for i, kind in enumerate(types))
    quantised = sizes.is_quantised(types[0])
    assert quantised == sizes.is_quantised(types[1])
    wanted = ref.sparse_gated_ffn(x, g, u, d, active, quantised)
    listed = np.ones((n_tokens, n_ff), bool) if active is None else active
    firing = listed & (ref.mul_mat(g, x, quantised) > 0)
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
    keep: list[object] = [gate, up, down, at, y, counts, mask, area, second, firing]
    shape = {"n_rows": n_ff, "k": k, "counts": counts.ctypes.data}
    if n_tokens == 1:
        numbers = np.flatnonzero(listed[0]).astype(np.int64)
        length = np.array([len(numbers)], np.int64)
        keep += [numbers, length]
        which = {} if active is None else {"listed": numbers.ctypes.data, "n_listed": length.ctypes.data}
        three = matrix("w", gate, types[0]) | matrix("w1", up, types[1]) | matrix("w2", down, types[2])
        ffn = {"code": program.SPARSE_FFN, "chunks": program.PIECES, **three, **shape, **which, "skip": 1}
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
    gates = {"z": area.ctypes.data, "z_stride": 4 * n_ff}
    hidden = {"y": second.ctypes.data, "y_stride": 4 * n_ff, "x": at.ctypes.data, "x_stride": stride}
    then = {"code": program.UP_ROWS, "chunks": 4, **matrix("w", up, types[1]), **shape, **hidden, **gates}
    out = {"x": second.ctypes.data, "x_stride": 4 * n_ff, "y": y.ctypes.data, "y_stride": 4 * k}
    last = {
        "code": program.DOWN_ROWS,
        "chunks": 2,
        "n_parts": program.PIECES,
        **matrix("w", down, types[2]),
        **shape,
        **out,
    }
    return [first, then, last], y, wanted, keep


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


def chosen_of(logits: Array, n_used: int, gating: str, normed: bool) -> NDArray[np.uint8]:
    """What TOP_K makes of logits: of each token numbers, then weights."""
    n_tokens, n_expert = logits.shape
    out = np.full((n_tokens, 8 * n_used), 0xFF, np.uint8)
    record = {"code": program.TOP_K, "chunks": 2, "x": logits.ctypes.data, "x_stride": 4 * n_expert}
    record |= {"y": out.ctypes.data, "y_stride": 8 * n_used, "n_rows": n_expert, "k": n_used}
    run([record | {"gating": formats.GATINGS[gating], "normed": int(normed), "weight_scale": 1.5}], n_tokens)
    return out


def check_top_k(n_expert: int, n_used: int, gating: str, normed: bool) -> None:
    """Numbers and weights of the chosen; two equal logits, of which the first counts."""
    logits = 2 * vectors(5, n_expert, 11)
    logits[0, n_expert // 2 :] = logits[0, n_expert // 2]
    out = chosen_of(logits, n_used, gating, normed)
    ids, w = ref.top_k(logits, n_used, gating, normed, 1.5)
    assert np.array_equal(out[:, : 4 * n_used].copy().view(np.int32), ids)
    close(out[:, 4 * n_used :].copy().view(np.float32), w, "weights of experts")


def check_experts(types: tuple[int, int, int], n_tokens: int, activation: str, biased: bool = False) -> None:
    """The chosen experts alone are read; their sum is the oracle's; a token has the bits that it has alone."""
    n_expert, n_used, k, n_ff = 7, 3, 96, 160
    logits = vectors(n_tokens, n_expert, 12)
    logits[:, 4] = -9
    ids, w = ref.top_k(logits, n_used, "softmax", True, 1.5)
    x, shapes = vectors(n_tokens, k, 13), ((n_ff, k), (n_ff, k), (k, n_ff))
    data, numbers = [], []
    for i, (kind, (n_rows, n)) in enumerate(zip(types, shapes, strict=True)):
        raw, values = weights(kind, n_expert * n_rows, n, 20 + i)
        raw.reshape(n_expert, -1)[np.setdiff1d(np.arange(n_expert), ids)] = 0xFF
        data.append(raw)
        numbers.append(values.reshape(n_expert, n_rows, n))
    biases = [vectors(n_expert, n_rows, 30 + i) if biased else None for i, (n_rows, _) in enumerate(shapes)]
    quantised = sizes.is_quantised(types[0])
    assert {sizes.is_quantised(kind) for kind in types} == {quantised}
    gate, up, down = numbers
    wanted = ref.expert_ffn(
        x, (ids, w), gate, up, down, (biases[0], biases[1], biases[2]), activation, quantised
    )
    chosen = chosen_of(logits, n_used, "softmax", True)
    y = _experts(types, data, biases, x, chosen, activation)
    close(y, wanted, f"experts of {types}")
    alone = [
        _experts(types, data, biases, x[t : t + 1], chosen[t : t + 1], activation) for t in range(n_tokens)
    ]
    assert np.array_equal(y.view(np.int32), np.concatenate(alone).view(np.int32)), "bits of experts"


def _experts(
    types: tuple[int, int, int],
    data: list[NDArray[np.uint8]],
    biases: list[Array | None],
    x: Array,
    chosen: NDArray[np.uint8],
    activation: str,
) -> Array:
    """The records of an expert FFN, as `engine/host/expert_lowering.py` makes them, and what they leave."""
    (n_tokens, k), n_used, n_expert = x.shape, chosen.shape[1] // 8, 7
    n_ff, n_pairs = len(data[0]) // n_expert, n_tokens * n_used
    x, chosen = np.ascontiguousarray(x), np.ascontiguousarray(chosen)
    at, stride = operand(types[0], x)
    tables = [np.arange(n_expert) * (each.size // n_expert) + each.ctypes.data for each in data]
    groups = np.full(sizes.group_bytes(n_expert, n_pairs), 0xFF, np.uint8)
    places = np.full(n_pairs, -9, np.int64)
    first, second, sums = vectors(n_pairs, n_ff), vectors(n_pairs, n_ff), vectors(n_pairs, k)
    hidden, gathered, y = (
        program.aligned(n_pairs * 4096),
        program.aligned(n_pairs * stride),
        vectors(n_tokens, k),
    )
    where = {"groups": groups.ctypes.data}

    def strided(name: str, address: int, n_bytes: int) -> Record:
        return {name: address, f"{name}_stride": n_bytes}

    def product(i: int, x: Record, y: Record, shape: tuple[int, int]) -> Record:
        bias = biases[i]
        own = {} if bias is None else {"z": bias.ctypes.data}
        w = {"w": tables[i].ctypes.data, "w_type": types[i], "w_stride": data[i].shape[1]}
        sizes = {"n_rows": shape[0], "k": shape[1]}
        return {"code": program.EXPERT_ROWS, "chunks": 3, **w, **x, **y, **own, **sizes, **where}

    choice = strided("x", chosen.ctypes.data, 8 * n_used)
    group = {"code": program.GROUP, "chunks": 1, **choice, "k": n_used, "n_rows": n_expert}
    group |= {"w": tables[0].ctypes.data, "y": groups.ctypes.data, "z": places.ctypes.data}
    gather = {"code": program.GATHER, "chunks": 2, **strided("x", at.ctypes.data, stride), "k": stride // 4}
    gather |= {**strided("y", gathered.ctypes.data, stride), "n_rows": n_expert, **where}
    inputs = strided("x", gathered.ctypes.data, stride)
    gates, ups = strided("y", first.ctypes.data, 4 * n_ff), strided("y", second.ctypes.data, 4 * n_ff)
    act = {"code": program.ACT_MUL, "chunks": 2, **strided("x", first.ctypes.data, 4 * n_ff), **gates}
    act |= {**strided("z", second.ctypes.data, 4 * n_ff), "k": n_ff, **where}
    act["activation"] = formats.ACTIVATIONS[activation]
    records = [group, gather, product(0, inputs, gates, (n_ff, k)), product(1, inputs, ups, (n_ff, k)), act]
    down = strided("x", first.ctypes.data, 4 * n_ff)
    if sizes.is_quantised(types[2]):
        packed = strided("y", hidden.ctypes.data, sizes.packed_bytes(n_ff))
        records.append({"code": program.PACK, "chunks": 2, **down, **packed, "k": n_ff, **where})
        down = strided("x", hidden.ctypes.data, sizes.packed_bytes(n_ff))
    records.append(product(2, down, strided("y", sums.ctypes.data, 4 * k), (k, n_ff)))
    total = {"code": program.EXPERT_SUM, "chunks": 3, **strided("x", sums.ctypes.data, 4 * k), "k": k}
    total |= {**strided("z", chosen.ctypes.data, 8 * n_used), **strided("y", y.ctypes.data, 4 * k)}
    records.append(total | {"n_used": n_used, "pairs": places.ctypes.data})
    run(records, n_tokens)
    return y


def check_halves() -> None:
    """All 65536 halfs widen as NumPy does; rounding agrees near every half and at the extremes."""
    every = np.arange(65536, dtype=np.uint16)
    data, out = every.copy(), np.zeros(65536, np.float32)
    rows.widen_row(rows.F16_ID, data.ctypes.data, 65536, out.ctypes.data)
    wanted = every.view(np.float16).astype(np.float32)
    assert np.array_equal(out, wanted, equal_nan=True)
    finite = wanted[np.isfinite(wanted)]
    near = np.concatenate([np.nextafter(finite, np.float32(s)) for s in (-np.inf, np.inf)])
    between = (finite + np.roll(finite, 1)) / 2
    tail = np.array([65519.9, 65520, 1e10, -1e10, np.inf, -np.inf, 1e-8, 2.0**-25, np.nan], np.float32)
    x = np.concatenate([finite, near, between, tail]).astype(np.float32)
    x = np.resize(x, (-(-len(x) // 1024), 1, 1024))
    cache = Cache(rows.F16_ID, 1, 1024, len(x))
    cache.store(x, x)
    with np.errstate(over="ignore"):
        wanted = x.astype(np.float16).astype(np.float32)
    for held in cache.held():
        assert np.array_equal(held[: len(x)], wanted, equal_nan=True)


def run_all() -> None:
    """Every check on a range of sizes; for the feature levels."""
    check_halves()
    for type_id in (*SPARSE_TYPES, *OFFSET_TYPES):
        for k in ODD[sizes.is_quantised(type_id)]:
            check_rows(type_id, k)
    for type_id in K_TYPES:
        check_rows(type_id, 512)
    for type_id in rows.TYPE_SIZE:
        check_order(type_id, 768)
    check_pack(352)
    for type_id in SPARSE_TYPES:
        check_mul_mat(type_id, 37, 352, 7)
        check_sparse_gated_ffn((type_id,) * 3, 1, 0.3)
        check_sparse_gated_ffn((type_id,) * 3, 5, 0.3)
    for n in (1, 40, 100):
        check_elementwise(n)
    check_rope(20, 12, True)
    for kv_type, head_dim in ((rows.F16_ID, 24), (rows.F32_ID, 17), (rows.Q8_0_ID, 64)):
        for n_past, n_tokens, window in ((70, 1, 0), (509, 5, 0), (530, 3, 100), (40, 24, 0)):
            check_attention(kv_type, (6, 2), head_dim, n_past, n_tokens, window)
    check_mask(205)
    run_experts()


def run_experts() -> None:
    """Those of mixtures of experts."""
    for gating in formats.GATINGS:
        check_top_k(40, 6, gating, True)
    for type_id in SPARSE_TYPES:
        check_experts((type_id,) * 3, 1, "silu")
        check_experts((type_id,) * 3, 40, "swiglu_oai", biased=True)


if __name__ == "__main__":
    run_all()
