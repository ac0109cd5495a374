"""Rounds rows to a block type over all cores: the entry to the kernels."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.gguf_io.quantise.of_32 import q4_0, q4_1, q5_0, q5_1, q8_0
from hotcold.gguf_io.quantise.q2_k import q2_k
from hotcold.gguf_io.quantise.q3_k import q3_k
from hotcold.gguf_io.quantise.q4_k import q4_k, q5_k
from hotcold.gguf_io.quantise.q6_k import q6_k
from hotcold.gguf_io.quantise.tabled import iq4_nl, mxfp4

T = GGMLQuantizationType
F32 = NDArray[np.float32]

KERNELS: dict[GGMLQuantizationType, Callable[[F32, F32, NDArray[np.uint8]], None]] = {
    T.Q4_0: q4_0,
    T.Q4_1: q4_1,
    T.Q5_0: q5_0,
    T.Q5_1: q5_1,
    T.Q8_0: q8_0,
    T.Q2_K: q2_k,
    T.Q3_K: q3_k,
    T.Q4_K: q4_k,
    T.Q5_K: q5_k,
    T.Q6_K: q6_k,
    T.IQ4_NL: iq4_nl,
    T.MXFP4: mxfp4,
}
NOTHING = np.empty(0, np.float32)
TASK_NUMBERS = 64 << 10  # of one task: some tenths of a millisecond at least


def quantise_rows(rows: F32, kind: GGMLQuantizationType, importance: F32 | None = None) -> NDArray[np.uint8]:
    """Rounds float32 [n_rows, n], n whole blocks, to a type of KERNELS: uint8 [n_rows, bytes a row].

    Args:
        importance: float32 [n], how much an error in each column weighs; None: as the type weighs errors itself.
    """
    block, size = GGML_QUANT_SIZES[kind]
    n_rows, n = rows.shape
    out = np.empty((n_rows, n // block * size), np.uint8)
    if not out.size:
        return out
    kernel, weights = KERNELS[kind], NOTHING if importance is None else np.ascontiguousarray(importance)
    rows = np.ascontiguousarray(rows, np.float32)
    rows = rows if rows.flags.writeable else rows.view()
    step = max(1, TASK_NUMBERS // n)
    starts = range(0, n_rows, step)
    n_threads = min(len(starts), len(os.sched_getaffinity(0)))
    if n_threads < 2:
        kernel(rows, weights, out)
        return out
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda i: kernel(rows[i : i + step], weights, out[i : i + step]), starts))
    return out
