"""The bytes that a kernel says it reads and writes are the bytes that it touches: of those that read weights.

The race build of the emulated device notes every byte. Sizes are such that no row needs padding.
"""

import numpy as np
import pytest
from operands import Array, each_type, listing
from touched_bytes import Touched, Type, cache, filled, floats, inputs, ones, unpadded, weights

from hotcold.kernels.cuda.add import HAS_BIAS, HAS_RESIDUAL
from hotcold.kernels.cuda.dense_gated_ffn import gated_ffn_hidden
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.expert_neurons import expert_down, expert_gates, expert_ups
from hotcold.kernels.cuda.expert_rows import ExpertProducts, expert_rows
from hotcold.kernels.cuda.expert_tiles import expert_few, expert_tiles
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_few import matmul_few
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.cuda.matvec import RELU, WHERE_POSITIVE, matvec, matvec_mask
from hotcold.kernels.cuda.matvec3 import CACHES, Rooms, matvec3
from hotcold.kernels.cuda.sparse_ffn import sparse_ffn
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.formats import (
    ACTIVATIONS,
    mask_words,
    n_groups,
)
from hotcold.kernels.weight_table import device_row_bytes

pytestmark = pytest.mark.pairwise
QUICK = (Type.Q4_0,)  # of each a build that watches every byte takes seconds


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
        arguments = (*given, y, rows, n, flags, tokens)
        for sizes in (matmul, matmul_few):
            work = sizes(weight_type, tokens, rows, n, flags)
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
    table, places = ones(device, 8, 32, 2), filled(device, np.array([5, 1], "i4"))
    caches = [cache(device, kv_type, 2 * 2, 8, 64) for _ in range(2)]
    in_bytes = [each.view(0, each.n_bytes, "u1") for each in caches]
    for n_slots in (1, 2):
        rooms = Rooms(kv_type, n_rot, (table, places, *in_bytes, 64, n_rot // 2, 1, 8, n_slots))
        work = matvec3((Type.Q4_0,) * 3, 1, n_rows, n, 0, kv_type, n_rot, n_slots)
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
    for tiles in (expert_tiles, expert_few):
        work = tiles(products, 3, 1, has_bias=has_bias)
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
