"""Random operands of the CPU's kernels, their records, and a walk over these."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from random_weights import random_weights

import hotcold.kernels.cpu  # noqa: F401  sets the folder of compiled code
from hotcold.kernels import ref
from hotcold.kernels.cpu import pack, program, rows, sizes
from hotcold.kernels.cpu.team import Program, Team
from hotcold.kernels.formats import ACTIVATIONS

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
