"""The bytes that a kernel says it reads and writes are the bytes that it touches.

The race build of the emulated device notes every byte. Sizes are such that no row needs padding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from operands import Array, Matrix, block_of, each_type, empty_quantised, listing, random_matrix

from hotcold.kernels import ref
from hotcold.kernels.cuda.add import HAS_BIAS, HAS_OTHER, HAS_RESIDUAL, add, merge
from hotcold.kernels.cuda.attention import Rounded, Scores, attention, attention_part
from hotcold.kernels.cuda.candidates import candidates
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.dense_gated_ffn import gated_ffn_hidden
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver
from hotcold.kernels.cuda.expert_neurons import expert_down, expert_gates, expert_ups
from hotcold.kernels.cuda.expert_rows import ExpertProducts, expert_rows
from hotcold.kernels.cuda.expert_sum import expert_sum, mul_sigmoid
from hotcold.kernels.cuda.expert_tiles import expert_tiles
from hotcold.kernels.cuda.hidden_masked import hidden_masked, hidden_masked_gated, hidden_of_experts
from hotcold.kernels.cuda.keep_some import keep_some
from hotcold.kernels.cuda.layer_norm import layer_norm, layer_norm_quantised
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.cuda.matvec import RELU, WHERE_POSITIVE, matvec, matvec_mask
from hotcold.kernels.cuda.matvec3 import CACHES, Rooms, matvec3
from hotcold.kernels.cuda.planes import to_planes
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.cuda.scale import scale
from hotcold.kernels.cuda.sparse_ffn import sparse_ffn
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.top_k import top_k
from hotcold.kernels.cuda.weights import weight_planes
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import (
    ACTIVATIONS,
    CANDIDATE_WORDS,
    KV_TYPES,
    candidate_parts_bytes,
    mask_words,
    n_groups,
    n_parts,
)
from hotcold.kernels.weight_table import QUANTISED, device_row_bytes

pytestmark = pytest.mark.pairwise
Type = GGMLQuantizationType
QUICK = (Type.Q4_0,)  # of each a build that watches every byte takes seconds
Touched = Callable[[Work, tuple[Any, ...]], tuple[int, int]]


@pytest.fixture
def device(open_emulated: Callable[..., Device]) -> Device:
    return open_emulated(build_kind="races", policy="eager")


@pytest.fixture
def touched(device: Device) -> Touched:
    """Launches some work: the bytes that it read and wrote."""

    def run(work: Work, arguments: tuple[Any, ...]) -> tuple[int, int]:
        work.launch(device, arguments, device.compute)
        assert isinstance(device.driver, EmulatedDriver)
        return device.driver.touched()

    return run


def filled(device: Device, array: NDArray[Any]) -> Buffer:
    buffer = device.empty(array.shape, array.dtype)
    buffer.array[...] = array
    return buffer


def ones(device: Device, *shape: int) -> Buffer:
    return filled(device, np.ones(shape, "f4"))


def floats(device: Device, n: int) -> Buffer:
    return device.empty(n, "f4")


def unpadded(weight_type: Type) -> int:
    """A row length that needs no padding in any plane."""
    return 2048 if block_of(weight_type) == 256 else 512


def row_of(weight_type: Type, n: int) -> Matrix:
    """The one row that all weights here are made of."""
    return random_matrix(weight_type, 1, n, seed=5)


def inputs(device: Device, weight_type: Type, n: int, n_tokens: int = 1) -> tuple[Buffer, ...]:
    """+1 and -1, whose product with the row is positive; rounded to themselves where the type wants that."""
    signs = np.where(row_of(weight_type, n).values < 0, -1, 1).repeat(n_tokens, 0)
    if weight_type not in QUANTISED:
        return (filled(device, signs.astype("f4")),)
    sums = signs.reshape(-1, 32).sum(1)
    return (
        filled(device, signs.astype("i1")),
        ones(device, n_tokens * n // 32),
        filled(device, sums.astype("i4")),
    )


def weights(device: Device, weight_type: Type, n_rows: int, n: int, zeros: Any = ()) -> tuple[Buffer, ...]:
    """Equal rows, but for those of zeros."""
    rows = row_of(weight_type, n).rows.repeat(n_rows, 0)
    rows[list(zeros)] = 0
    held = np.empty(n_rows * device_row_bytes(weight_type, n), np.uint8)
    to_planes(rows, weight_type, held)
    return weight_planes(filled(device, held), weight_type, n_rows, n)


def test_rows_and_vectors(device: Device, touched: Touched) -> None:
    tokens, n = 2, 320
    x, w, y = ones(device, tokens, n), ones(device, n), device.empty((tokens, n), "f4")
    bias, other, residual = ones(device, n), ones(device, tokens, n), ones(device, tokens, n)
    out = device.empty(tokens * n, "i1"), device.empty(20, "f4"), device.empty(20, "i4")
    cases: list[tuple[Work, tuple[Any, ...]]] = [
        (rms_norm(tokens, n), (x, w, y, n, 1e-5)),
        (rms_norm_quantised(tokens, n), (x, w, *out, n, 1e-5)),
        (layer_norm(tokens, n), (x, w, bias, y, n, 1e-5)),
        (layer_norm_quantised(tokens, n), (x, w, bias, *out, n, 1e-5)),
        (quantise(tokens, n), (x, *out, tokens * n // 32)),
        (add(tokens * n), (x, x, y, tokens * n)),
        *(
            (merge(tokens, n, flags), (x, bias, other, residual, y, n, flags))
            for flags in (0, HAS_BIAS, HAS_OTHER | HAS_RESIDUAL)
        ),
    ]
    for work, arguments in cases:
        shared_operand = 4 * tokens * n if work.kernel == "add" else 0  # x is given twice
        assert touched(work, arguments) == (work.bytes_read - shared_operand, work.bytes_written), work


def test_compact(device: Device, touched: Touched) -> None:
    n, mask = 320, np.zeros((2, 10), "u4")
    mask[:, ::2] = 0xF0
    arguments = filled(device, mask), filled(device, np.full(10, 0xFFFFFFFF, "u4"))
    outs = device.empty((2, n), "i4"), device.empty(2, "i4"), filled(device, np.zeros(1, "u4"))
    work = compact(2, n, n, n_active=20)
    assert touched(work, (*arguments, *outs, n, 10)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
def test_matvec(device: Device, touched: Touched, weight_type: Type) -> None:
    rows, n = 20, unpadded(weight_type)
    y = device.empty(rows, "f4")
    given = (*weights(device, weight_type, rows, n), *inputs(device, weight_type, n), ones(device, rows))
    for flags in (0, HAS_BIAS | HAS_RESIDUAL | RELU):
        work = matvec(weight_type, 1, rows, n, flags)
        arguments = (*given, ones(device, rows), y, rows, n, flags)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)
    work = matvec(weight_type, 1, rows, n, WHERE_POSITIVE, n_positive=12)
    profile = filled(device, np.repeat([1, -1], [12, 8]).astype("f4"))
    arguments = (*given[:-1], profile, y, y, rows, n, WHERE_POSITIVE)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
def test_matmul(device: Device, touched: Touched, weight_type: Type) -> None:
    tokens, rows, n = 3, 70, unpadded(weight_type)
    y, residual, bias = device.empty(tokens * rows, "f4"), ones(device, tokens * rows), ones(device, rows)
    given = (*weights(device, weight_type, rows, n), *inputs(device, weight_type, n, tokens), bias, residual)
    for flags in (0, HAS_BIAS | HAS_RESIDUAL | RELU):
        work = matmul(weight_type, tokens, rows, n, flags)
        arguments = (*given, y, rows, n, flags, tokens)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
def test_matmul_transposed(device: Device, touched: Touched, weight_type: Type) -> None:
    tokens, rows, n = 3, 70, unpadded(weight_type)
    given = (*weights(device, weight_type, rows, n), ones(device, tokens, rows))
    ids, count = np.tile(np.arange(rows, dtype="i4"), tokens), np.full(tokens, rows, "i4")
    rest = filled(device, ids), filled(device, count), floats(device, tokens * n), rows, n, tokens
    for has_list in (False, True):
        work = matmul_transposed(weight_type, tokens, rows, n, has_list)
        arguments = (*given, *rest, n_groups(rows), int(has_list))
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
def test_three_matrices_at_once(device: Device, touched: Touched, weight_type: Type) -> None:
    rows, n, total = (20, 9, 3), unpadded(weight_type), 32
    planes = [plane for count in rows for plane in weights(device, weight_type, count, n)]
    biases, outs = ([make(device, count) for count in rows] for make in (ones, floats))
    given = (*planes, *inputs(device, weight_type, n), *biases, *outs)
    for flags in (0, HAS_BIAS):
        work = matvec3((weight_type,) * 3, 1, rows, n, flags)
        assert work.bytes_written == 4 * total
        unread = Rooms.none(biases[0]).arguments
        assert touched(work, (*given, *rows, n, flags, *unread)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("n_rot", [0, 32, 64])
@pytest.mark.parametrize("kv_type", list(CACHES))
def test_three_matrices_into_a_cache(device: Device, touched: Touched, kv_type: str, n_rot: int) -> None:
    n, n_rows = 256, (5 * 64, 2 * 64, 2 * 64)
    planes = [plane for count in n_rows for plane in weights(device, Type.Q4_0, count, n)]
    outs = [floats(device, count) for count in n_rows]
    table, position = ones(device, 8, 32, 2), filled(device, np.array([5], "i4"))
    caches = [cache(device, kv_type, 2, 8, 64) for _ in range(2)]
    in_bytes = [each.view(0, each.n_bytes, "u1") for each in caches]
    rooms = Rooms(kv_type, n_rot, (table, position, *in_bytes, 64, n_rot // 2, 1, 8))
    work = matvec3((Type.Q4_0,) * 3, 1, n_rows, n, 0, kv_type, n_rot)
    arguments = (*planes, *inputs(device, Type.Q4_0, n), *outs, *outs, *n_rows, n, 0, *rooms.arguments)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
def test_mask(device: Device, touched: Touched, weight_type: Type) -> None:
    rows, n = 70, unpadded(weight_type)
    mask = device.empty(mask_words(rows), "u4")
    given = (*weights(device, weight_type, rows, n), *inputs(device, weight_type, n), mask)
    work = matvec_mask(weight_type, 1, rows, n)
    assert touched(work, (*given, rows, n, 0.5)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
def test_dense_gated_ffn(device: Device, touched: Touched, weight_type: Type) -> None:
    """The gates of 12 of 20 rows are shut, and their up rows not read, with ReLU."""
    rows, n = 20, unpadded(weight_type)
    gate, up = weights(device, weight_type, rows, n, range(12)), weights(device, weight_type, rows, n)
    h, x = device.empty(rows, "f4"), inputs(device, weight_type, n)
    for activation, n_open in (("relu", 8), ("silu", 20)):
        work = gated_ffn_hidden((weight_type,) * 2, 1, rows, n, n_open)
        arguments = (*gate, *up, *x, h, rows, n, ACTIVATIONS[activation])
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


def active_lists(device: Device, n: int, active: Array) -> tuple[Buffer, ...]:
    """A mask of some of n neurons, all of which are here, and a place for their number."""
    listed = np.isin(np.arange(n), active)[None]
    return *listing(device, filled, listed, np.arange(n)), filled(device, np.zeros(1, "u4"))


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
@pytest.mark.parametrize(("activation", "n_open"), [("relu", 20), ("relu_both", 20), ("silu", 30)])
def test_sparse_gated_ffn(
    device: Device, touched: Touched, weight_type: Type, activation: str, n_open: int
) -> None:
    """30 of 150 rows are active; the gates of ten of them are shut.

    So, but for silu, are their up rows. Down rows whose hidden value is zero are not read.
    """
    rows, n, active = 150, unpadded(weight_type), np.arange(0, 150, 5)
    gate = weights(device, weight_type, rows, n, active[:10])
    up, down = (weights(device, weight_type, rows, n) for _ in range(2))
    lists, positions = active_lists(device, rows, active), filled(device, np.array([8], "i4"))
    partial, x = device.empty((n_groups(rows), n), "f4"), inputs(device, weight_type, n)
    work = sparse_gated_ffn((weight_type,) * 3, 1, rows, n, rows, n_active=30, n_open=n_open)
    unread = (n_open - 20) * device_row_bytes(weight_type, n)  # of down, where silu of the gate is zero
    numbers = mask_words(rows), n, ACTIVATIONS[activation]
    arguments = (*gate, *up, *down, *x, *lists, partial, *numbers)
    assert touched(work, (*arguments, partial, positions, 0)) == (
        work.bytes_read - unread,
        work.bytes_written,
    )
    if activation == "silu":  # of which the ten neurons whose gates are zero are left out
        work = sparse_gated_ffn((weight_type,) * 3, 1, rows, n, rows, 30, 20, has_least=True)
        least = filled(device, np.full(rows, 1e-20, "f4")), positions, 1
        assert touched(work, (*arguments, *least)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
@pytest.mark.parametrize("has_bias", [True, False])
def test_sparse_ffn(device: Device, touched: Touched, weight_type: Type, has_bias: bool) -> None:
    """30 of 150 rows are active; the products of ten of them, and so their hidden values, are zero."""
    rows, n, active = 150, unpadded(weight_type), np.arange(0, 150, 5)
    up, down = (weights(device, weight_type, rows, n, zeros) for zeros in (active[:10], ()))
    lists = active_lists(device, rows, active)
    bias, neurons = filled(device, np.zeros(rows, "f4")), filled(device, np.arange(rows, dtype="i4"))
    partial, x = device.empty((n_groups(rows), n), "f4"), inputs(device, weight_type, n)
    work = sparse_ffn((weight_type,) * 2, 1, rows, n, rows, n_active=30, n_open=20, has_bias=has_bias)
    numbers = mask_words(rows), n, int(has_bias), ACTIVATIONS["relu"]
    arguments = (*up, *down, *x, bias, neurons, *lists, partial, *numbers)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("flags", [0, HAS_BIAS, HAS_BIAS | HAS_OTHER | HAS_RESIDUAL])
def test_sum_groups(device: Device, touched: Touched, flags: int) -> None:
    rows, n, tokens = 150, 256, 2
    bias, other, residual = ones(device, n), ones(device, tokens, n), ones(device, tokens, n)
    partial, y = ones(device, tokens, n_groups(rows), n), device.empty((tokens, n), "f4")
    work = sum_groups(tokens, rows, n, flags)
    arguments = (partial, bias, other, residual, y, n_groups(rows), n, flags)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_hidden_masked_gated(device: Device, touched: Touched, has_mask: bool, has_bias: bool) -> None:
    """Half of 320 neurons are listed, and a quarter of their gates are shut."""
    tokens, rows, words = 2, 320, 10
    mask, gate = np.full((tokens, words), 0x55555555, "u4"), np.ones((tokens, rows), "f4")
    gate[:, ::8] = -1
    listing = filled(device, mask), filled(device, np.arange(rows, dtype="i4"))
    up, bias, h = ones(device, tokens, rows), ones(device, rows), device.empty((tokens, rows), "f4")
    n_listed = tokens * rows // (2 if has_mask else 1)
    work = hidden_masked_gated(tokens, rows, rows, has_mask, n_listed, n_listed - tokens * rows // 8)
    given = (filled(device, gate), up, *listing, h, rows, words, int(has_mask))
    arguments = (*given, ACTIVATIONS["relu"], up, listing[1], 0)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)
    n_open = n_listed - tokens * rows // 8  # silu(-1) is below 0.5, silu(1) is not
    work = hidden_masked_gated(tokens, rows, rows, has_mask, n_listed, n_open, has_least=True)
    least = filled(device, np.full(rows, 0.5, "f4")), filled(device, np.array([8, 9], "i4")), 1
    unread = 4 * rows // 2 * has_mask  # thresholds of neurons that no token lists
    got = touched(work, (*given, ACTIVATIONS["silu"], *least))
    assert got == (work.bytes_read - unread, work.bytes_written)
    work = hidden_masked(tokens, rows, rows, has_mask, has_bias, n_listed)
    numbers = rows, words, int(has_mask), int(has_bias), ACTIVATIONS["relu"]
    unread = 4 * rows // 2 if has_mask and has_bias else 0  # biases of neurons that no token lists
    got = touched(work, (up, bias, *listing, h, *numbers))
    assert got == (work.bytes_read - unread, work.bytes_written)


def cache(device: Device, kv_type: str, n_head_kv: int, n_ctx: int, head_dim: int) -> Buffer:
    return filled(device, ref.cached(kv_type, np.ones((n_head_kv, n_ctx, head_dim), np.float32)))


@pytest.mark.parametrize("n_rot", [0, 32, 64])
@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_rope_kv_store(device: Device, touched: Touched, kv_type: str, n_rot: int) -> None:
    q, k, v = (ones(device, 2, n, 64) for n in (5, 2, 2))
    table, positions = ones(device, 8, 32, 2), filled(device, np.array([3, 5], "i4"))
    keys, values = (cache(device, kv_type, 2, 8, 64) for _ in range(2))
    work = rope_kv_store(kv_type, 2, 5, 2, 64, n_rot)
    for q_out in (q, device.empty((2, 5, 64), "f4")):
        arguments = (q, k, v, table, positions, q_out, keys, values, 2, 5, 2, 64, n_rot // 2, 1, 8)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


def test_rope_kv_store_without_q_touches_the_rest_alone(device: Device, touched: Touched) -> None:
    k, v, positions = ones(device, 2, 2, 64), ones(device, 2, 2, 64), filled(device, np.array([3, 5], "i4"))
    keys, values = (cache(device, "f16", 2, 8, 64) for _ in range(2))
    work = rope_kv_store("f16", 2, 0, 2, 64, 0)
    arguments = (k, k, v, k, positions, k, keys, values, 2, 0, 2, 64, 0, 1, 8)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


def test_scale(device: Device, touched: Touched) -> None:
    x, y = ones(device, 300), device.empty(300, "f4")
    work = scale(300)
    assert touched(work, (x, y, 300, 0.5)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_attention(device: Device, touched: Touched, kv_type: str) -> None:
    """Positions 300 and 301 of 320: a second tile is begun."""
    q, y, positions = (
        ones(device, 2, 4, 32),
        device.empty((2, 4, 32), "f4"),
        filled(device, np.array([300, 301], "i4")),
    )
    keys, values = (cache(device, kv_type, 2, 320, 32) for _ in range(2))
    for rounded in (Rounded.nowhere(y), Rounded.to(empty_quantised(device, 2, 128))):
        work = attention(kv_type, 2, 4, 2, 32, 302, bool(rounded.there))
        sizes = 2, 4, 2, 32, 320
        arguments = (q, keys, values, positions, y, *sizes, *Scores.plain(q, 32).arguments, *rounded)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_attention_in_parts(device: Device, touched: Touched, kv_type: str) -> None:
    """Position 550 of 1100: three of five parts are in use."""
    parts, position = n_parts(1100), filled(device, np.array([550], "i4"))
    partial, q, y = device.empty((4, parts, 34), "f4"), ones(device, 4, 32), device.empty((4, 32), "f4")
    keys, values = (cache(device, kv_type, 2, 1100, 32) for _ in range(2))
    scores, arrived = Scores.plain(q, 32), filled(device, np.zeros(2, "u4"))
    for rounded in (Rounded.nowhere(y), Rounded.to(empty_quantised(device, 1, 128))):
        work = attention_part(kv_type, 4, 2, 32, parts, 551, bool(rounded.there))
        places = position, partial, arrived, y, 4, 2, 32, 1100, parts
        arguments = (q, keys, values, *places, *scores.arguments, *rounded)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


def test_candidates(device: Device, touched: Touched) -> None:
    n = 3000
    parts, arrived = device.empty(candidate_parts_bytes(n) // 8, "u8"), filled(device, np.zeros(1, "u4"))
    work, out = candidates(n), device.empty(CANDIDATE_WORDS, "i4")
    assert touched(work, (ones(device, n), parts, arrived, out, n, 0)) == (
        work.bytes_read,
        work.bytes_written,
    )


def test_keep_some(device: Device, touched: Touched) -> None:
    profile = np.repeat([-1, 1], [1500, 1500]).astype("f4")
    for given, work in ((profile, keep_some(3000, 1500)), (-np.abs(profile), keep_some(3000, 3000))):
        assert touched(work, (filled(device, given), 3000)) == (work.bytes_read, work.bytes_written)


def test_top_k(device: Device, touched: Touched) -> None:
    chosen, work = device.empty((2, 6), "i4"), top_k(2, 40, 3)
    assert touched(work, (ones(device, 2, 40), chosen, 40, 3, 0, 1, 1.0)) == (
        work.bytes_read,
        work.bytes_written,
    )


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
@pytest.mark.parametrize("has_bias", [False, True])
def test_expert_rows(device: Device, touched: Touched, weight_type: Type, has_bias: bool) -> None:
    """One token: experts 0 and 2 of three, of which 2 is not here, so one expert's rows are read."""
    n, n_rows = unpadded(weight_type), 16
    slots, chosen = filled(device, np.array([0, 1, -1], "i4")), filled(device, np.array([0, 2, 0, 0], "i4"))
    bias, y = ones(device, 3, n_rows), device.empty((2, n_rows), "f4")
    products = ExpertProducts(weight_type, 1, 2, n_rows, n)
    work = expert_rows(products, 1, has_bias=has_bias)
    given = (*weights(device, weight_type, 2 * n_rows, n), *inputs(device, weight_type, n), slots, chosen)
    rest = bias, y, n_rows, n, 2, 0, int(has_bias), n_rows
    assert touched(work, (*given, *rest)) == (work.bytes_read, work.bytes_written)
    work = expert_tiles(products, 3, 1, has_bias=has_bias)
    assert touched(work, (*given, *rest, 2)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", each_type(quick=QUICK))
def test_neurons_of_experts(device: Device, touched: Touched, weight_type: Type) -> None:
    """One token's experts 0 and 2: of 0 there are 16 rows, of 2 none; all gates are open."""
    n, n_ff = unpadded(weight_type), 64
    starts, chosen = (
        filled(device, np.array([0, 16, 20, 20], "i4")),
        filled(device, np.array([0, 2, 0, 0], "i4")),
    )
    hidden, partial = ones(device, 2, n_ff), device.empty((2, 1, n), "f4")
    matrix, x = weights(device, weight_type, 20, n), inputs(device, weight_type, n)
    lists = starts, chosen, hidden
    large = np.repeat([0, 1e9], [6, 14]).astype("f4")  # six of the 16 reach their thresholds
    least = filled(device, large), filled(device, np.array([8], "i4")), 1
    products = ExpertProducts(weight_type, 1, 2, n_ff, n)
    for work, arguments in (
        (expert_gates(products, 16), (*matrix, *x, *lists, n_ff, n, 2)),
        (expert_ups(products, 16), (*matrix, *x, *lists, n_ff, n, 2, 1, hidden, chosen, 0)),
        (expert_down(products, 16), (*matrix, *lists, partial, n_ff, n, 2)),
        (expert_ups(products, 16, 6, has_least=True), (*matrix, *x, *lists, n_ff, n, 2, 1, *least)),
    ):
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written), work.kernel


def test_hidden_of_experts(device: Device, touched: Touched) -> None:
    """One token's experts 0 and 2, of which 2 is not here; a quarter of the other's gates stay below."""
    gate, n_ff = np.ones((2, 320), "f4"), 320
    gate[:, ::4] = -1
    lists = filled(device, np.array([0, 1, -1], "i4")), filled(device, np.array([0, 2, 0, 0], "i4"))
    least = filled(device, np.full((2, n_ff), 0.5, "f4")), filled(device, np.array([8], "i4"))
    work = hidden_of_experts(1, 2, n_ff, 1, 240)
    arguments = (filled(device, gate), ones(device, 2, n_ff), *lists, *least, device.empty((2, n_ff), "f4"))
    got = touched(work, (*arguments, n_ff, 2, ACTIVATIONS["silu"]))
    assert got == (work.bytes_read, work.bytes_written)


def test_expert_sum_and_gate(device: Device, touched: Touched) -> None:
    slots, chosen = filled(device, np.array([0, 1, -1], "i4")), filled(device, np.array([0, 2, 0, 0], "i4"))
    x, y = ones(device, 2, 320), device.empty((1, 320), "f4")
    work = expert_sum(1, 2, 320, 1)
    assert touched(work, (x, slots, chosen, y, 320, 2)) == (work.bytes_read, work.bytes_written)
    work = mul_sigmoid(2, 160)
    gated = device.empty((2, 160), "f4")
    assert touched(work, (ones(device, 2, 160), ones(device, 2), gated, 160)) == (
        work.bytes_read,
        work.bytes_written,
    )
