"""The bytes that a kernel says it reads and writes are the bytes that it touches.

The race build of the emulated device notes every byte. Sizes are such that no row needs padding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.kernels.cuda.add import add
from hotcold.kernels.cuda.buffers import Buffer
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.device import Device
from hotcold.kernels.cuda.emulated_driver import EmulatedDriver
from hotcold.kernels.cuda.matvec import matvec
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.repack import packed_bytes
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.rope import rope
from hotcold.kernels.cuda.sparse_ffn import n_groups, sparse_ffn, sum_groups
from hotcold.kernels.cuda.weights import KERNEL_TYPES, QUANTISED, weight_planes
from hotcold.kernels.cuda.work import Work

Type = GGMLQuantizationType
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


def quantised(device: Device, n: int) -> tuple[Buffer, Buffer, Buffer]:
    """One token's rounded activations, all 1."""
    return (
        filled(device, np.ones(n, "i1")),
        ones(device, n // 32),
        filled(device, np.full(n // 32, 32, "i4")),
    )


def inputs(device: Device, weight_type: Type, n: int) -> tuple[Buffer, ...]:
    return quantised(device, n) if weight_type in QUANTISED else (ones(device, n),)


def weights(device: Device, weight_type: Type, n_rows: int, n: int) -> tuple[Buffer, ...]:
    """Positive numbers."""
    packed = filled(device, np.full(packed_bytes(weight_type, n_rows, n), 0x3B, "u1"))
    planes = weight_planes(packed, weight_type, n_rows, n)
    if weight_type == Type.Q4_0:
        planes[1].array[:] = 0xBB  # two nibbles of 11, which stand for 3
    return planes


def test_rows_and_vectors(device: Device, touched: Touched) -> None:
    tokens, n = 2, 320
    x, w, y = ones(device, tokens, n), ones(device, n), device.empty((tokens, n), "f4")
    out = device.empty(tokens * n, "i1"), device.empty(20, "f4"), device.empty(20, "i4")
    table, positions = ones(device, 8, 16, 2), filled(device, np.array([3, 5], "i4"))
    cases: list[tuple[Work, tuple[Any, ...]]] = [
        (rms_norm(tokens, n), (x, w, y, n, 1e-5)),
        (rms_norm_quantised(tokens, n), (x, w, *out, n, 1e-5)),
        (quantise(tokens, n), (x, *out, tokens * n // 32)),
        (add(tokens * n), (x, x, y, tokens * n)),
        (rope(tokens, 5, 32), (x, table, positions, tokens * 5 * 16, 5, 64, 16, 1)),
    ]
    for work, arguments in cases:
        shared_operand = 4 * tokens * n if work.kernel == "add" else 0  # x is given twice
        assert touched(work, arguments) == (work.bytes_read - shared_operand, work.bytes_written), work


def test_compact(device: Device, touched: Touched) -> None:
    n, mask = 320, np.zeros((2, 10), "u4")
    mask[:, ::2] = 0xF0
    arguments = (filled(device, mask), filled(device, np.arange(n, dtype="i4")))
    outs = device.empty((2, n), "i4"), device.empty(2, "i4")
    work = compact(2, n, n, n_active=20)
    assert touched(work, (*arguments, *outs, n, 10)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", list(KERNEL_TYPES), ids=lambda t: t.name)
def test_matvec(device: Device, touched: Touched, weight_type: Type) -> None:
    rows, n = 20, 512
    y = device.empty(rows, "f4")
    arguments = (*weights(device, weight_type, rows, n), *inputs(device, weight_type, n), y, rows, n)
    work = matvec(weight_type, 1, rows, n)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("weight_type", list(KERNEL_TYPES), ids=lambda t: t.name)
def test_sparse_ffn(device: Device, touched: Touched, weight_type: Type) -> None:
    """30 of 150 rows are active; the gates of ten of them, and so their up and down rows, are shut."""
    rows, n, active = 150, 256, np.arange(0, 150, 5)
    gate, up, down = (weights(device, weight_type, rows, n) for _ in range(3))
    values = gate[0]  # the plain values, or the scales: zero shuts the gate
    values.array.reshape(rows, -1)[active[:10]] = 0
    ids, count = device.empty(rows, "i4"), filled(device, np.array([len(active)], "i4"))
    ids.array[: len(active)] = active
    partial, x = device.empty((n_groups(rows), n), "f4"), inputs(device, weight_type, n)
    work = sparse_ffn(weight_type, 1, rows, n, n_active=30, n_positive=20)
    arguments = (*gate, *up, *down, *x, ids, count, partial, rows, n)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)
    work = sum_groups(1, rows, n)
    arguments = (partial, device.empty(n, "f4"), n_groups(rows), n)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)
