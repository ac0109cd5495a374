"""One launch of each kernel, small, for what is looked for in its text rather than in its result."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from hotcold.kernels.cuda.attention import Rounded, Scores, attention, attention_part
from hotcold.kernels.cuda.candidates import candidates
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.expert_rows import ExpertProducts
from hotcold.kernels.cuda.expert_tiles import expert_tiles
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_few import matmul_few
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.cuda.matvec3 import CACHES
from hotcold.kernels.cuda.scale import scale
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import ACTIVATIONS, CANDIDATE_WORDS, candidate_parts_bytes, n_parts

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
    arguments = (q, k, k, table, put(device, np.zeros(1, "i4")), q, keys, values, 1, 4, 2, 32, 16, 1, 1, 1)
    device.launch("rope_kv_store_f16", 3, 64, arguments, device.compute)


def run_attention(device: Device, put: Put) -> None:
    n, n_ctx = 16, 300  # two tiles, of which the second has 40 positions
    q, cache = put(device, floats(5 * n)), put(device, floats(n_ctx * n))
    positions = put(device, np.arange(295, 300, dtype="i4"))
    scores = Scores.plain(q, n)
    y = device.empty(5 * n, "f4")
    sizes = 5, 1, 1, n, n_ctx
    arguments = (q, cache, cache, positions, y, *sizes, *scores.arguments, *Rounded.nowhere(y))
    attention("f32", 5, 1, 1, n, n_ctx).launch(device, arguments, device.compute)


def run_attention_window(device: Device, put: Put) -> None:
    """Position 25 sees 12, which go round the 20 rows of the cache."""
    n, window = 16, 12
    q, cache, y = put(device, floats(n)), put(device, floats(20 * n)), device.empty(n, "f4")
    scores = Scores(q, 0, window, n**-0.5)
    places = put(device, np.array([25], "i4")), y, 1, 1, 1, n, 20
    arguments = (q, cache, cache, *places, *scores.arguments, *Rounded.nowhere(y))
    attention("f32", 1, 1, 1, n, 20).launch(device, arguments, device.compute)


def run_scale(device: Device, put: Put) -> None:
    arguments = put(device, floats(300)), device.empty(300, "f4"), 300, 0.5
    scale(300).launch(device, arguments, device.compute)


def run_attention_odd(device: Device, put: Put) -> None:
    n, cache = 6, put(device, floats(3 * 6))
    q, positions, y = put(device, floats(n)), put(device, np.array([2], "i4")), device.empty(n, "f4")
    scores = Scores.plain(q, n)
    arguments = (q, cache, cache, positions, y, 1, 1, 1, n, 3, *scores.arguments, *Rounded.nowhere(y))
    attention("f32", 1, 1, 1, n, 3).launch(device, arguments, device.compute)


def run_attention_parts(device: Device, put: Put) -> None:
    n, n_ctx = 32, 1100  # five parts, of which position 550 uses three
    q, cache, position = (
        put(device, floats(2 * n)),
        put(device, floats(n_ctx * n)),
        put(device, np.array([550], "i4")),
    )
    partial, y, parts = device.empty(2 * 5 * (n + 2), "f4"), device.empty(2 * n, "f4"), n_parts(n_ctx)
    scores = Scores.plain(q, n)
    places = position, partial, put(device, np.zeros(1, "u4")), y, 2, 1, n, n_ctx, parts
    outs = device.empty(2 * n, "i1"), device.empty(2 * n // 32, "f4"), device.empty(2 * n // 32, "i4")
    arguments = (q, cache, cache, *places, *scores.arguments, *outs, 1)
    attention_part("f32", 2, 1, n, parts, 551, True).launch(device, arguments, device.compute)


def all_listed(device: Device, put: Put, n: int) -> tuple[Any, Any, Any]:
    """A mask of all of n neurons, all of which are here, and a place for their number."""
    bits = put(device, np.full(n // 32, 0xFFFFFFFF, "u4"))
    return bits, bits, put(device, np.zeros(1, "u4"))


def run_compact(device: Device, put: Put) -> None:
    n = 512
    mask, held, total = all_listed(device, put, n)
    outs = device.empty(n, "i4"), device.empty(1, "i4"), total
    device.launch("compact", 1, 256, (mask, held, *outs, n, n // 32), device.compute)


def run_matvec(device: Device, put: Put) -> None:
    rows, n = 16, 64
    w, x, y = put(device, floats(rows * n).astype("f2")), put(device, floats(n)), device.empty(rows, "f4")
    device.launch("matvec_f16", 2, 256, (w, x, y, y, y, rows, n, 0), device.compute)


def run_matvec3(device: Device, put: Put) -> None:
    """Three heads of q, one of k and v, whose pairs turn, into a cache of one position."""
    n, head_dim, counts = 32, 4, (12, 4, 4)
    matrices = [put(device, floats(count * n)) for count in counts]
    outs = [device.empty(count, "f4") for count in counts]
    table, position = put(device, floats(4)), put(device, np.zeros(1, "i4"))
    caches = [device.empty(4 * head_dim, "u1") for _ in range(2)]
    rooms = table, position, *caches, head_dim, 2, 0, 1, 1, CACHES["f32"]
    arguments = (*matrices, put(device, floats(n)), *outs, *outs, *counts, n, 0, *rooms)
    device.launch("matvec3_f32", 3, 256, arguments, device.compute)


def run_short_rows(device: Device, put: Put) -> None:
    """Five rows of 64 numbers: four of them share a warp, and three places of the next warp are nobody's."""
    y = device.empty((2, 5), "f4")
    _run_short("matvec_q8_0", (1, 2), 5, 64, (y, y, y, 5, 64, 0), device, put)


def run_short_rows_of_mask(device: Device, put: Put) -> None:
    """32 rows of 288 numbers: a warp takes two at a time, and then two more."""
    rest = device.empty((2, 1), "u4"), 32, 288, 0.5
    _run_short("matvec_mask_q8_0", (2, 1), 32, 288, rest, device, put)


def _run_short(
    kernel: str, grid: tuple[int, int], rows: int, n: int, rest: tuple[Any, ...], device: Device, put: Put
) -> None:
    """With two tokens."""
    scales, quants = np.zeros((rows, -(-n // 256) * 8), "f2"), np.zeros((rows, n), "i1")
    x = np.zeros((2, n), "i1"), np.zeros((2, n // 32), "f4"), np.zeros((2, n // 32), "i4")
    given = (put(device, array) for array in (scales, quants, *x))
    device.launch(kernel, grid, 256, (*given, *rest), device.compute)


def run_matvec_mask(device: Device, put: Put) -> None:
    rows, n = 64, 64
    w, x = put(device, floats(rows * n)), put(device, floats(n))
    device.launch("matvec_mask_f32", (1, 2), 256, (w, x, device.empty(2, "u4"), rows, n, 0.5), device.compute)


def run_matmul_transposed(device: Device, put: Put) -> None:
    tokens, rows, n = 2, 40, 64
    down, h, y = (put(device, floats(size)) for size in (rows * n, tokens * rows, tokens * n))
    work = matmul_transposed(GGMLQuantizationType.F32, tokens, rows, n)
    lists = put(device, np.tile(np.arange(rows, dtype="i4"), tokens)), put(device, np.array([rows, 1], "i4"))
    work.launch(device, (down, h, *lists, y, rows, n, tokens, 3, 1), device.compute)


def run_matmul(device: Device, put: Put) -> None:
    tokens, rows, n = 2, 5, 96
    w, x, y = (put(device, floats(size)) for size in (rows * n, tokens * n, rows * tokens))
    work = matmul(GGMLQuantizationType.F32, tokens, rows, n)
    work.launch(device, (w, x, y, y, y, rows, n, 0, tokens), device.compute)


def run_matmul_of_halves(device: Device, put: Put) -> None:
    tokens, rows, n = 2, 5, 96  # three steps
    w, x, y = (
        put(device, floats(rows * n).astype("f2")),
        put(device, floats(tokens * n)),
        put(device, floats(rows * tokens)),
    )
    work = matmul(GGMLQuantizationType.F16, tokens, rows, n)
    work.launch(device, (w, x, y, y, y, rows, n, 0, tokens), device.compute)


def run_matmul_of_int8(device: Device, put: Put) -> None:
    _run_int8(matmul, 2, 5, 256, device, put)  # two steps


def run_matmul_few(device: Device, put: Put) -> None:
    _run_int8(
        matmul_few, 9, 5, 33 * 32, device, put
    )  # of two eights of tokens, and two steps of the first warp


def _run_int8(sizes: Callable[..., Work], tokens: int, rows: int, n: int, device: Device, put: Put) -> None:
    x, scales = (put(device, np.zeros((tokens, n), dtype)) for dtype in ("i1", "f4"))
    w, halves = put(device, np.zeros((rows, n), "i1")), put(device, np.zeros((rows, -(-n // 256) * 8), "f2"))
    sums, y = put(device, np.zeros((tokens, n), "i4")), put(device, floats(rows * tokens))
    work = sizes(GGMLQuantizationType.Q8_0, tokens, rows, n)
    work.launch(device, (halves, w, x, scales, sums, y, y, y, rows, n, 0, tokens), device.compute)


def run_expert_tiles(device: Device, put: Put) -> None:
    """70 tokens go to one expert: two tiles."""
    tokens, rows, n = 70, 5, 32
    products = ExpertProducts(GGMLQuantizationType.F32, tokens, 1, rows, n)
    w, x, y = (put(device, floats(size)) for size in (rows * n, tokens * n, tokens * rows))
    slots, chosen = (put(device, np.zeros(size, "i4")) for size in (1, 2 * tokens))
    arguments = (w, x, slots, chosen, y, y, rows, n, 1, 0, 0, 0, tokens)
    expert_tiles(products, 1).launch(device, arguments, device.compute)


def run_gated_ffn(device: Device, put: Put) -> None:
    rows, n, groups = 480, 64, 2
    w, x = put(device, np.abs(floats(rows * n))), put(device, np.abs(floats(n)))
    partial, unread = device.empty(groups * n, "f4"), put(device, np.zeros(1, "i4"))
    lists = all_listed(device, put, rows)
    arguments = (w, w, w, x, *lists, partial, rows // 32, n, RELU, partial, unread, 0)
    device.launch("sparse_gated_ffn_f32", groups, 256, arguments, device.compute)


def run_ffn(device: Device, put: Put) -> None:
    """Rows of which half are open, and a bias for each of exactly 256 neurons."""
    rows, n = 256, 64
    up, x = floats(rows * n), np.abs(floats(n))
    given = put(device, up), put(device, up), put(device, x), put(device, np.zeros(rows, "f4"))
    lists = put(device, np.arange(rows, dtype="i4")), *all_listed(device, put, rows)
    arguments = (*given, *lists, device.empty(n, "f4"), rows // 32, n, 1, RELU)
    device.launch("sparse_ffn_f32", 1, 256, arguments, device.compute)


def run_candidates(device: Device, put: Put) -> None:
    n = 3000
    parts, found = device.empty(candidate_parts_bytes(n) // 8, "u8"), device.empty(CANDIDATE_WORDS, "i4")
    arguments = put(device, floats(n)), parts, put(device, np.zeros(1, "u4")), found, n, 0
    candidates(n).launch(device, arguments, device.compute)


def run_keep_some(device: Device, put: Put) -> None:
    """None of 1100 is positive: two steps."""
    n = 1100
    device.launch("keep_some", 1, 256, (put(device, -np.abs(floats(n))), n), device.compute)


def run_sum_groups(device: Device, put: Put, groups: int = 9) -> None:
    n = 64
    partial, addend = put(device, floats(groups * n)), put(device, floats(n))
    arguments = (partial, addend, addend, addend, device.empty(n, "f4"), groups, n, 11)
    device.launch("sum_groups", 2, 256, arguments, device.compute, shared=4 * 32 * min(groups, 128))


def run_many_groups(device: Device, put: Put) -> None:
    run_sum_groups(device, put, 140)


def run_experts(device: Device, put: Put) -> None:
    """Two tokens with two of three experts each, all of 256 rows; one is not here."""
    n, n_rows = 64, 256
    w, x, y = put(device, floats(2 * n_rows * n)), put(device, floats(2 * n)), device.empty(4 * n_rows, "f4")
    slots, chosen = np.array([0, 1, -1], "i4"), np.array([[0, 1, 0, 0], [1, 2, 0, 0]], "i4")
    arguments = (w, x, put(device, slots), put(device, chosen), y, y, n_rows, n, 2, 0, 0, 0)
    device.launch("expert_rows_f32", (32, 4), 256, arguments, device.compute)


def run_expert_sum(device: Device, put: Put) -> None:
    n, x = 512, put(device, floats(4 * 512))
    slots, chosen = np.array([0, 1, -1], "i4"), np.array([[0, 1, 0, 0], [1, 2, 0, 0]], "i4")
    arguments = (x, put(device, slots), put(device, chosen), device.empty(2 * n, "f4"), n, 2)
    device.launch("expert_sum", (2, 2), 256, arguments, device.compute)


def run_merge(device: Device, put: Put) -> None:
    n = 512
    hot, bias, x = put(device, floats(2 * n)), put(device, floats(n)), put(device, floats(2 * n))
    arguments = (hot, bias, x, x, device.empty(2 * n, "f4"), n, 11)
    device.launch("merge", (2, 2), 256, arguments, device.compute)


def run_hidden_masked_gated(device: Device, put: Put) -> None:
    n = 512
    gate, mask = put(device, floats(2 * n)), put(device, np.full(2 * n // 32, 0xFFFFFFFF, "u4"))
    neurons, h = put(device, np.arange(n, dtype="i4")), device.empty(2 * n, "f4")
    arguments = (gate, gate, mask, neurons, h, n, n // 32, 1, RELU, gate, neurons, 0)
    device.launch("hidden_masked_gated", (2, 2), 256, arguments, device.compute)


def run_hidden_of_experts(device: Device, put: Put) -> None:
    """Two tokens with two of three experts each; the last one's thresholds are the last ones that are there."""
    n, gate = 256, put(device, floats(4 * 256))
    slots, chosen = np.array([0, -1, 1], "i4"), np.array([[0, 1, 0, 0], [1, 2, 0, 0]], "i4")
    positions = put(device, np.array([8, 9], "i4"))
    given = gate, gate, put(device, slots), put(device, chosen), put(device, floats(2 * n)), positions
    device.launch(
        "hidden_of_experts", (1, 4), 256, (*given, device.empty(4 * n, "f4"), n, 2, 1), device.compute
    )


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
