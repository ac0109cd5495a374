"""Bugs planted in the real kernels, one at a time: each is found, and named with its lines.

A bug is an edit of the program's text. `race` bugs must be found by the race build in every order of
threads and blocks; the others by the checked build, in the orders that can show them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.attention import attention, attention_join, attention_part
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import KernelFault
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.formats import ACTIVATIONS, n_parts

pytestmark = pytest.mark.slow

ORDERS = (0, 1, 7, 1234)
RELU = ACTIVATIONS["relu"]
Put = Callable[..., Any]
Run = Callable[[Device, Put], None]


def floats(n: int) -> Any:
    return np.random.default_rng(0).standard_normal(n).astype("f4")


def run_rms_norm(device: Device, put: Put) -> None:
    n, rows = 512, 2
    arguments = (put(device, floats(rows * n)), put(device, floats(n)), device.empty(rows * n, "f4"), n, 1e-5)
    device.launch("rms_norm", rows, 256, arguments, device.compute)


def run_quantise(device: Device, put: Put) -> None:
    n = 1024
    outs = device.empty(n, "i1"), device.empty(n // 32, "f4"), device.empty(n // 32, "i4")
    device.launch("quantise", 4, 256, (put(device, floats(n)), *outs, n // 32), device.compute)


def run_add(device: Device, put: Put) -> None:
    n = 512
    x = put(device, floats(n))
    device.launch("add", 2, 256, (x, x, device.empty(n, "f4"), n), device.compute)


def run_rope(device: Device, put: Put) -> None:
    q, k, table = put(device, floats(4 * 32)), put(device, floats(2 * 32)), put(device, floats(16 * 2))
    keys, values = device.empty(2 * 32, "f2"), device.empty(2 * 32, "f2")
    arguments = (q, k, k, table, put(device, np.zeros(1, "i4")), q, keys, values, 1, 4, 2, 32, 16, 1, 1)
    device.launch("rope_kv_store_f16", 3, 64, arguments, device.compute)


def run_attention(device: Device, put: Put) -> None:
    n, n_ctx = 16, 300  # two tiles, of which the second has 40 positions
    q, cache = put(device, floats(5 * n)), put(device, floats(n_ctx * n))
    positions = put(device, np.arange(295, 300, dtype="i4"))
    arguments = (q, cache, cache, positions, device.empty(5 * n, "f4"), 5, 1, 1, n, n_ctx)
    attention("f32", 5, 1, 1, n, n_ctx).launch(device, arguments, device.compute)


def run_attention_odd(device: Device, put: Put) -> None:
    n, cache = 6, put(device, floats(3 * 6))
    q, positions, y = put(device, floats(n)), put(device, np.array([2], "i4")), device.empty(n, "f4")
    arguments = (q, cache, cache, positions, y, 1, 1, 1, n, 3)
    attention("f32", 1, 1, 1, n, 3).launch(device, arguments, device.compute)


def run_attention_parts(device: Device, put: Put) -> None:
    n, n_ctx = 16, 1100  # five parts, of which position 150 uses three
    q, cache, position = (
        put(device, floats(2 * n)),
        put(device, floats(n_ctx * n)),
        put(device, np.array([150], "i4")),
    )
    partial, y, parts = device.empty(2 * 5 * (n + 2), "f4"), device.empty(2 * n, "f4"), n_parts(n_ctx)
    arguments = (q, cache, cache, position, partial, 2, 1, n, n_ctx, parts)
    attention_part("f32", 2, 1, n, n_ctx, 151).launch(device, arguments, device.compute)
    joined = (partial, position, y, 2, n, parts)
    attention_join(2, n, n_ctx, 151).launch(device, joined, device.compute)


def run_compact(device: Device, put: Put, n: int = 512, n_threads: int = 256) -> None:
    mask, neurons = put(device, np.full(n // 32, 0xFFFFFFFF, "u4")), put(device, np.arange(n, dtype="i4"))
    outs = device.empty(n, "i4"), device.empty(1, "i4"), put(device, np.zeros(1, "u4"))
    arguments = (mask, neurons, *outs, n, n // 32)
    device.launch("compact", 1, n_threads, arguments, device.compute)


def run_compact_in_passes(device: Device, put: Put) -> None:
    run_compact(device, put, n=4096, n_threads=64)


def run_matvec(device: Device, put: Put) -> None:
    rows, n = 16, 64
    w, x, y = put(device, floats(rows * n).astype("f2")), put(device, floats(n)), device.empty(rows, "f4")
    device.launch("matvec_f16", 2, 256, (w, x, y, y, y, rows, n, 0), device.compute)


def run_matvec_mask(device: Device, put: Put) -> None:
    rows, n = 64, 64
    w, x = put(device, floats(rows * n)), put(device, floats(n))
    device.launch("matvec_mask_f32", 2, 256, (w, x, device.empty(2, "u4"), rows, n, 0.5), device.compute)


def run_matmul_transposed(device: Device, put: Put) -> None:
    tokens, rows, n = 2, 40, 64
    down, h, y = (put(device, floats(size)) for size in (rows * n, tokens * rows, tokens * n))
    work = matmul_transposed(GGMLQuantizationType.F32, tokens, rows, n)
    work.launch(device, (down, h, y, rows, n, tokens), device.compute)


def run_matmul(device: Device, put: Put) -> None:
    tokens, rows, n = 2, 5, 96
    w, x, y = (put(device, floats(size)) for size in (rows * n, tokens * n, rows * tokens))
    work = matmul(GGMLQuantizationType.F32, tokens, rows, n)
    work.launch(device, (w, x, y, y, y, rows, n, 0, tokens), device.compute)


def run_gated_ffn(device: Device, put: Put) -> None:
    rows, n, groups = 600, 64, 2  # more rows in a group than a tile holds
    w, x = put(device, np.abs(floats(rows * n))), put(device, np.abs(floats(n)))
    ids, count = put(device, np.arange(rows, dtype="i4")), put(device, np.array([rows], "i4"))
    partial = device.empty(groups * n, "f4")
    rows_and_ids = (w, w, w, x, ids, count, partial, rows, n, RELU)
    device.launch("sparse_gated_ffn_f32", groups, 256, rows_and_ids, device.compute)


def run_ffn(device: Device, put: Put) -> None:
    """Rows of which half are open, and a bias for each of exactly 256 neurons."""
    rows, n = 256, 64
    up, x = floats(rows * n), np.abs(floats(n))
    given = put(device, up), put(device, up), put(device, x), put(device, np.zeros(rows, "f4"))
    lists = (put(device, np.arange(rows, dtype="i4")),) * 2
    partial, count = device.empty(n, "f4"), put(device, np.array([rows], "i4"))
    device.launch(
        "sparse_ffn_f32", 1, 256, (*given, *lists, count, partial, rows, n, 1, RELU), device.compute
    )


def run_sum_groups(device: Device, put: Put) -> None:
    n, groups = 64, 9
    partial, addend = put(device, floats(groups * n)), put(device, floats(n))
    arguments = (partial, addend, addend, addend, device.empty(n, "f4"), groups, n, 11)
    device.launch("sum_groups", 2, 256, arguments, device.compute)


def run_merge(device: Device, put: Put) -> None:
    n = 512
    hot, bias, x = put(device, floats(2 * n)), put(device, floats(n)), put(device, floats(2 * n))
    arguments = (hot, bias, x, x, device.empty(2 * n, "f4"), n, 11)
    device.launch("merge", (2, 2), 256, arguments, device.compute)


def run_hidden_masked_gated(device: Device, put: Put) -> None:
    n = 512
    gate, mask = put(device, floats(2 * n)), put(device, np.full(2 * n // 32, 0xFFFFFFFF, "u4"))
    neurons, h = put(device, np.arange(n, dtype="i4")), device.empty(2 * n, "f4")
    arguments = (gate, gate, mask, neurons, h, n, n // 32, 1, RELU)
    device.launch("hidden_masked_gated", (2, 2), 256, arguments, device.compute)


def run_layer_norm(device: Device, put: Put) -> None:
    n, rows = 512, 2
    weight = put(device, floats(n))
    arguments = (put(device, floats(rows * n)), weight, weight, device.empty(rows * n, "f4"), n, 1e-5)
    device.launch("layer_norm", rows, 256, arguments, device.compute)


def run_lanes(device: Device, put: Put) -> None:
    device.launch("lanes", 1, 64, (device.empty((16, 64), "i4"),), device.compute)


def run_places(device: Device, put: Put) -> None:
    arguments = (put(device, np.zeros(6, "i4")), device.empty(24 * 96, "i4"), put(device, np.zeros(1, "u8")))
    device.launch("places", (2, 3, 4), (8, 4, 3), arguments, device.compute)


@dataclass(frozen=True)
class Bug:
    """`old` becomes `new` in the program of `file`; `said` is found in the error, and so is the line of
    each snippet of `lines`, `file:number`, as they stand after the edit."""

    file: str
    run: Run
    old: str
    new: str
    said: str
    lines: Sequence[str] = ()
    build_kind: str = "races"
    orders: Sequence[int] = ORDERS


BARRIER = "    __syncthreads();"
BUGS = {
    "no barrier after the warps' sums": Bug(
        "rms_norm.cu",
        run_rms_norm,
        "of_warp[warp()] = v;\n" + BARRIER,
        "of_warp[warp()] = v;\n",
        "race, |before anybody wrote",
        ["return warp_sum(lane() < n_warps() ? of_warp[lane()] : 0.f);"],
    ),
    "no barrier before the counts are read": Bug(
        "compact.cu",
        run_compact,
        "found[warp()] = up_to_mine;\n    " + BARRIER,
        "found[warp()] = up_to_mine;\n",
        "race, |before anybody wrote",
        [],
    ),
    "no barrier before the counts are written again": Bug(
        "compact.cu",
        run_compact_in_passes,
        BARRIER + "                          // found is about",
        "    // found is about",
        "race, write of what another read|race, read of another's write",
        ["if (lane() == WARP - 1) found[warp()] = up_to_mine;"],
    ),
    "some warps do not write their count": Bug(
        "compact.cu",
        run_compact,
        "if (lane() == WARP - 1) found[warp()]",
        "if (lane() == WARP - 1 && warp() % 2) found[warp()]",
        "shared memory read at .* before anybody wrote it",
    ),
    "no barrier after the hidden values": Bug(
        "sparse_gated_ffn.cu",
        run_gated_ffn,
        "__syncthreads();                          // every hidden value is there",
        "// every hidden value is there",
        "race, |before anybody wrote",
    ),
    "no barrier after the list of rows that count": Bug(
        "sparse_ffn.cu",
        run_ffn,
        "__syncthreads();                          // and the list of those that count",
        "// and the list of those that count",
        "race, |before anybody wrote",
    ),
    "no barrier before the next tile": Bug(
        "sparse_gated_ffn.cu",
        run_gated_ffn,
        "__syncthreads();                          // the tile is",
        "// the tile is",
        "race, ",
    ),
    "no __syncwarp before rows move up": Bug(
        "sparse_ffn.cu",
        run_ffn,
        "__syncwarp();                             // all have read",
        "// all have read",
        "race, ",
        ["if (h != 0.f) tile.hidden[at] = h, tile.row[at] = row;"],
    ),
    "the row numbers are never written": Bug(
        "sparse_gated_ffn.cu",
        run_gated_ffn,
        "tile.hidden[i] = h, tile.row[i] = row;",
        "tile.hidden[i] = h;",
        "shared memory read at .* before anybody wrote it",
        ["int i = first + lane(), row = i < n_tile ? tile.row[i] : 0;"],
    ),
    "all groups write the first one's sums": Bug(
        "sparse_gated_ffn.cu",
        run_gated_ffn,
        "((size_t)token * gridDim.x + blockIdx.x) * down.n;",
        "((size_t)token * gridDim.x) * down.n;",
        r"race, (two writes|read of another's write).* by block [01]",
    ),
    "a bias after the last": Bug(
        "sparse_ffn.cu",
        run_ffn,
        "values[neurons[row]]",
        "values[neurons[row] + 1]",
        "bad memory access to byte 1024 of a buffer of 1024 bytes",
        ["return is_there ? values[neurons[row] + 1] : 0.f;"],
        "checked",
        (0, 7, 1234),
    ),
    "no barrier before the warps' sums are added": Bug(
        "sum_groups.cu",
        run_sum_groups,
        "of_warp[warp()][lane()] = s;\n" + BARRIER,
        "of_warp[warp()][lane()] = s;\n",
        "race, |before anybody wrote",
    ),
    "all blocks sum the same columns": Bug(
        "sum_groups.cu",
        run_sum_groups,
        "int column = (int)blockIdx.x * WARP + lane()",
        "int column = lane()",
        r"race, two writes.* by block [01]",
        ["y[at] = Addends{bias, other, residual, flags}.onto(s, at, column);"],
    ),
    "all tokens write the first one's sums": Bug(
        "add.cu",
        run_merge,
        "size_t at = (size_t)blockIdx.y * n + column;",
        "size_t at = column;",
        r"race, two writes.* by block [0123]",
        ["if (column < n) y[at] ="],
    ),
    "a bias as large as the result": Bug(
        "add.cu",
        run_merge,
        "sum += bias[column];",
        "sum += bias[at];",
        "bad memory access to byte .* of a buffer of 2048 bytes",
        ["if (flags & HAS_BIAS) sum += bias[at];"],
        "checked",
        (0, 7, 1234),
    ),
    "all tokens share the hidden values": Bug(
        "hidden_masked.cu",
        run_hidden_masked_gated,
        "    bool listed = Listed{",
        "    at = row;\n    bool listed = Listed{",
        r"race, two writes.* by block [0123]",
    ),
    "the mask of the token after": Bug(
        "hidden_masked.cu",
        run_hidden_masked_gated,
        "mask + (size_t)blockIdx.y * n_words",
        "mask + (size_t)(blockIdx.y + 1) * n_words",
        "bad memory access to byte .* of a buffer of 128 bytes",
        ["return mask[neuron / 32] >> neuron % 32 & 1;"],
        "checked",
        (0, 7, 1234),
    ),
    "no barrier between two sums over the block": Bug(
        "layer_norm.cu",
        run_layer_norm,
        BARRIER + "                              // block_sum's array",
        "    // block_sum's array",
        "race, ",
        ["if (lane() == 0) of_warp[warp()] = v;"],
    ),
    "two threads turn one pair": Bug(
        "rope.cu",
        run_rope,
        "int first = interleaved ? 2 * i : i,",
        "int first = interleaved ? 2 * (i / 2) : i,",
        "race, ",
        [],
    ),
    "no barrier after the queries": Bug(
        "attention.cu",
        run_attention,
        "    }\n    __syncthreads();\n    float sum[Q][4]",
        "    }\n    float sum[Q][4]",
        "race, |before anybody wrote",
    ),
    "no barrier after the scores": Bug(
        "attention.cu",
        run_attention,
        "n_tile);\n        __syncthreads();\n        if (warp() < Q)",
        "n_tile);\n        if (warp() < Q)",
        "race, |before anybody wrote",
    ),
    "no barrier after the weights": Bug(
        "attention.cu",
        run_attention,
        "        }\n        __syncthreads();\n        for (int j = 0; j < Q; j++)\n",
        "        }\n        for (int j = 0; j < Q; j++)\n",
        "race, |before anybody wrote",
    ),
    "no barrier before the next tile of scores": Bug(
        "attention.cu",
        run_attention,
        "__syncthreads();                          // the scores are",
        "// the scores are",
        "race, ",
    ),
    "no barrier before the next query's sums": Bug(
        "attention.cu",
        run_attention,
        "__syncthreads();                          // the sums are",
        "// the sums are",
        "race, ",
    ),
    "every part writes the first one's record": Bug(
        "attention.cu",
        run_attention_parts,
        "((size_t)row * n_parts + part)",
        "((size_t)row * n_parts + part * 0)",
        r"race, two writes.* by block \d",
    ),
    "keys read after the end of the context": Bug(
        "attention.cu",
        run_attention,
        "int n_tile = min(longest - start, KEYS);",
        "int n_tile = KEYS;",
        r"bad memory access to byte \d+ of a buffer of 19200 bytes",
        ["float4 a = *(const float4*)p;"],
        "checked",
        (0, 7, 1234),
    ),
    "vectors read from rows that are not aligned": Bug(
        "attention.cu",
        run_attention_odd,
        "n % 8 == 0, w);",
        "n % 2 == 0, w);",
        "undefined behaviour",
        [],
        "checked",
    ),
    "two blocks add the same numbers": Bug(
        "add.cu",
        run_add,
        "int i = thread_of_row();",
        "int i = (int)threadIdx.x;",
        r"race, two writes.* by block [01]",
        ["if (i < n) y[i] = a[i] + b[i];"],
    ),
    "two warps quantise one block": Bug(
        "quantise.cu",
        run_quantise,
        "thread_of_row() / WARP;",
        "thread_of_row() / WARP / 2;",
        "race, two writes",
        ["q[(size_t)block * BLOCK + lane()] = (signed char)rounded;"],
    ),
    "no __syncwarp between the lanes": Bug(
        "intrinsics.cu",
        run_lanes,
        "pair[t] = lane();\n    __syncwarp();",
        "pair[t] = lane();\n",
        "race, |before anybody wrote",
        ["out[64 * row++ + t] = pair["],
    ),
    "a counter without an atomic": Bug(
        "intrinsics.cu",
        run_places,
        "atomicAdd(&hits[0], 1);",
        "hits[0] += 1;",
        "race, ",
        ["hits[0] += 1;"],
    ),
    "an atomic beside a plain write": Bug(
        "intrinsics.cu",
        run_places,
        "if (id == 5) atomicExch(&hits[4], 77);",
        "atomicExch(&hits[4], 77); if (id == 5) hits[4] = 1;",
        "race, ",
        ["hits[4] = 1;"],
    ),
    "a write after the end": Bug(
        "rms_norm.cu",
        run_rms_norm,
        "i < n; i += blockDim.x) y[i]",
        "i <= n; i += blockDim.x) y[i]",
        "bad memory access to byte (2048 of a buffer of 2048|4096 of a buffer of 4096) bytes",
        ["y[i] = x[i] * r * weight[i];"],
        "checked",
        (0, 7, 1234),
    ),
    "a read before the start": Bug(
        "add.cu",
        run_add,
        "y[i] = a[i] + b[i];",
        "y[i] = a[i - 1] + b[i];",
        "bad memory access to byte -4 of a buffer of 2048 bytes",
        ["y[i] = a[i - 1] + b[i];"],
        "checked",
        (1,),
    ),
    "ids written after the end": Bug(
        "compact.cu",
        run_compact,
        "ids[begin + __popc",
        "ids[1 + begin + __popc",
        "bad memory access to byte 2048 of a buffer of 2048 bytes",
        ["& ((1u << "],
        "checked",
        (0, 7, 1234),
    ),
    "no barrier before the warps' bits are read": Bug(
        "matvec.cu",
        run_matvec_mask,
        "of_warp[warp()] = bits << 4 * warp();\n" + BARRIER,
        "of_warp[warp()] = bits << 4 * warp();\n",
        "race, |before anybody wrote",
        ["word |= of_warp[w];"],
    ),
    "a tile multiplied before it is there": Bug(
        "matmul.cu",
        run_matmul,
        "unit);\n        __syncthreads();\n        multiply(",
        "unit);\n        multiply(",
        "race, |before anybody wrote",
    ),
    "a tile written while it is read": Bug(
        "matmul.cu",
        run_matmul,
        "__syncthreads();                          // the tile is",
        "// the tile is",
        "race, ",
        [],
    ),
    "down rows added before they are there": Bug(
        "matmul_transposed.cu",
        run_matmul_transposed,
        "n_rows);\n        __syncthreads();\n        UNROLL",
        "n_rows);\n        UNROLL",
        "race, |before anybody wrote",
    ),
    "inputs after the last token": Bug(
        "matmul.cu",
        run_matmul,
        "token < n_tokens && first + 8 <= n &&",
        "first + 8 <= n &&",
        "bad memory access to ",
        [],
        "checked",
    ),
    "a vector load askew": Bug(
        "matvec.cu",
        run_matvec,
        "load8(w + 8 * i, v), load8(x",
        "load8(w + 8 * i + 1, v), load8(x",
        "undefined behaviour",
        ["union { uint4 bits; T values[8]; } u"],
        "checked",
    ),
    "a return before the barrier": Bug(
        "rms_norm.cu",
        run_rms_norm,
        "    if (lane() == 0) of_warp[warp()] = v;",
        "    if (warp() > 3) return v;\n",
        "128 threads wait there, 128 have already returned",
        [],
        "checked",
    ),
    "a barrier in both branches": Bug(
        "rms_norm.cu",
        run_rms_norm,
        "of_warp[warp()] = v;\n    __syncthreads();",
        "of_warp[warp()] = v;\n    if (warp()) __syncthreads(); else {\n        __syncthreads(); }",
        "__syncthreads at .* while others wait at",
        ["if (warp()) __syncthreads();"],
        "checked",
    ),
    "a lane that does not come": Bug(
        "quantise.cu",
        run_quantise,
        "if (block < n_blocks)",
        "if (block < n_blocks && lane() < 31)",
        "deadlock in the warp operation.*lanes 7fffffff came",
        ["v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, d));"],
        "checked",
    ),
    "a mask without its own lane": Bug(
        "quantise.cu",
        run_quantise,
        "v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, d));",
        "v = fmaxf(v, __shfl_xor_sync(0x7fffffffu, v, d));",
        "lane 31 is not in its own mask|shuffle from lane 31, which is not in the mask",
        ["v = fmaxf(v, __shfl_xor_sync(0x7fffffffu, v, d));"],
        "checked",
    ),
    "a shared array too small": Bug(
        "compact.cu",
        run_compact,
        "__shared__ int found[WARP];",
        "__shared__ int found[WARP / 8];",
        "undefined behaviour",
        [],
        "checked",
    ),
    "a shift by a whole word": Bug(
        "compact.cu",
        run_compact,
        "(1u << lane())",
        "(1u << (lane() + 1))",
        "undefined behaviour",
        ["& ((1u << "],
        "checked",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Broken kernels do not go into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def text_of(file: str) -> str:
    path = SOURCES / file
    return program(path if path.is_file() else Path(__file__).with_name(file))


def place_of(source: str, snippet: str) -> str:
    """`file:line` of the only line with a snippet, by the program's own #line directives."""
    found, file, number = [], "", 0
    for line in source.splitlines():
        if line.startswith("#line"):
            _, at, name = line.split(" ", 2)
            file, number = name.strip('"'), int(at)
            continue
        if snippet in line:
            found.append(f"{file}:{number}")
        number += 1
    assert len(found) == 1, f"{snippet!r} stands in {found}"
    return found[0]


def test_there_are_enough_of_them() -> None:
    assert len(BUGS) >= 15


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(open_emulated: Callable[..., Device], put: Put, name: str) -> None:
    bug = BUGS[name]
    source = text_of(bug.file)
    assert source.count(bug.old) == 1
    broken = source.replace(bug.old, bug.new)
    for order in bug.orders:
        device = open_emulated(source=broken, build_kind=bug.build_kind, order=order)
        bug.run(device, put)
        with pytest.raises(KernelFault, match=bug.said) as caught:
            device.synchronize()
        named = re.findall(r"\w+\.(?:cu|h):\d+", str(caught.value))
        assert len(named) >= (2 if "race, " in str(caught.value) else 1)
        assert {place_of(broken, snippet) for snippet in bug.lines} <= set(named)


@pytest.mark.parametrize("name", BUGS)
def test_without_the_bug_nothing_is_found(open_emulated: Callable[..., Device], put: Put, name: str) -> None:
    bug = BUGS[name]
    for order in bug.orders:
        device = open_emulated(source=text_of(bug.file), build_kind=bug.build_kind, order=order)
        bug.run(device, put)
        device.synchronize()
