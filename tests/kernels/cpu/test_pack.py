"""Packed inputs: the same int8 and scales as the oracle's, and the sums that undo an offset."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.kernels import ref
from hotcold.kernels.cpu import pack, sizes

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Packed = Callable[[F32], U8]


def unpack(raw: U8) -> tuple[NDArray[np.int8], list[F32], NDArray[np.int32], NDArray[np.int16]]:
    """Of one packed row, a block a row: numbers [n, 32]; scales and scaled sums; sums; those of halves."""
    # vectors of 16 dwords; block 4 g + j of a window lies in lane 4 j + g
    dwords = raw.reshape(-1, 12, 4, 4, 4).transpose(0, 3, 2, 1, 4).reshape(-1, 12, 4)
    vectors = dwords[:, 8:].transpose(1, 0, 2)
    return (
        np.ascontiguousarray(dwords[:, :8]).reshape(-1, 32).view(np.int8),
        [np.ascontiguousarray(vectors[i]).view(np.float32)[:, 0] for i in (0, 2)],
        np.ascontiguousarray(vectors[1]).view(np.int32)[:, 0],
        np.ascontiguousarray(vectors[3]).view(np.int16),
    )


def check(x: F32, raw: U8) -> None:
    """Every byte of a packed row is what the oracle says, zero past the row's end."""
    numbers, (scales, scaled_sums), sums, half_sums = unpack(raw)
    n = -(-x.size // 512) * 16
    q, d = np.zeros(n * 32, np.int8), np.zeros(n, np.float32)
    q[: x.size], d[: x.size // 32] = ref.quantise(x)
    if 0 < x.size % 512 <= 128:  # the last group, three times more
        q[-512:], d[-16:] = np.tile(q[-512:-384], 4), np.tile(d[-16:-12], 4)
    assert np.array_equal(numbers.reshape(-1), q)
    assert np.array_equal(scales, d)
    of_halves = numbers.reshape(-1, 2, 16).sum(2, dtype=np.int32)
    of_all = of_halves.sum(1, dtype=np.int32)
    assert np.array_equal(sums, -of_all)
    assert np.array_equal(half_sums, -of_halves)
    assert np.array_equal(scaled_sums, d * of_all.astype(np.float32))


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4, 5, 7, 8, 16, 18, 31])
def test_numbers_scales_and_sums(n_blocks: int, make_inputs: Callable[..., F32], packed: Packed) -> None:
    x = make_inputs(1, 32 * n_blocks)
    check(x[0], packed(x)[0])


def test_ties_go_to_the_even_number(packed: Packed) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 125.5]
    raw = packed(x)[0]
    assert unpack(raw)[0][0, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]
    check(x[0], raw)


def test_zeros_and_wide_ranges(make_inputs: Callable[..., F32], packed: Packed) -> None:
    x = make_inputs(1, 32 * 6)
    x[0, 32:64] = 0
    x[0, 64:96] *= 1e-30
    x[0, 96:128] *= 1e30
    x[0, 128:160] = -0.0
    check(x[0], packed(x)[0])


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 5, 21, 31])
def test_what_is_no_number_stays_none(
    value: float, place: int, make_inputs: Callable[..., F32], packed: Packed
) -> None:
    """Its block's scales say so, and its numbers are 0; the blocks beside it do not change."""
    x = make_inputs(1, 32 * 6)
    held = []
    for number in (x[0, 96 + place], value):
        x[0, 96 + place] = number
        numbers, scales, sums, half_sums = unpack(packed(x)[0])
        held.append((np.concatenate([numbers, sums[:, None], half_sums], 1), np.stack(scales)))
    (clean_integers, clean_scales), (integers, got_scales) = held
    others = np.arange(len(integers)) != 3
    assert np.array_equal(np.isfinite(got_scales), [others, others])
    assert np.array_equal(got_scales[:, others], clean_scales[:, others])
    assert not integers[3].any()
    assert np.array_equal(integers[others], clean_integers[others])


@pytest.mark.parametrize("n_blocks", [1, 3, 4, 9])
def test_what_is_rounded_elsewhere_packs_to_the_same_bytes(
    n_blocks: int, make_inputs: Callable[..., F32], packed: Packed
) -> None:
    x = make_inputs(1, 32 * n_blocks)
    q, d = (np.ascontiguousarray(part) for part in ref.quantise(x[0]))
    again = np.full(sizes.packed_bytes(x.size), 0xFF, np.uint8)
    pack.pack_rounded_row(q.ctypes.data, d.ctypes.data, x.size, again.ctypes.data)
    assert np.array_equal(again, packed(x)[0])


def test_packed_bytes_are_whole_windows() -> None:
    assert [sizes.packed_bytes(k) for k in (32, 512, 544, 4096)] == [768, 768, 1536, 6144]
