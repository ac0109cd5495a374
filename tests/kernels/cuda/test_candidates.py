"""The likeliest tokens of a row of logits against their oracle, in four orders of threads and blocks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import Get, Put, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.candidates import candidates
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.formats import CANDIDATE_WORDS, N_CANDIDATES, candidate_parts_bytes

F32 = NDArray[np.float32]
SIZES = (1, 5, 63, 64, 65, 1000, 2048, 2049, 5001)
MANY = 2048 * 33 + 7  # more blocks than lists at once


def found(device: Device, put: Put, get: Get, logits: F32, left_out: int = 0) -> NDArray[np.int32]:
    n = logits.size
    parts = device.empty(candidate_parts_bytes(n) // 8, "u8")
    arrived, out = put(device, np.zeros(1, "u4")), device.empty(CANDIDATE_WORDS, "i4")
    arguments = put(device, logits), parts, arrived, out, n, left_out
    for _ in range(2):  # what counts the blocks is left as it was
        candidates(n).launch(device, arguments, device.compute)
    return get(device, out)


def spread(n: int) -> F32:
    return normal(n)


def tied(n: int) -> F32:
    """Few values, so that most of those in front are equal, over the blocks' bounds too."""
    return np.round(normal(n)).astype("f4")


def zeros(n: int) -> F32:
    """Of both signs, which are equal."""
    return np.where(np.arange(n) % 3 == 1, np.float32(-0.0), np.float32(0.0))


def infinite(n: int) -> F32:
    logits = normal(n)
    logits[::2], logits[n // 3] = -np.inf, np.inf
    return logits


def nan(n: int) -> F32:
    """Mostly NaN, of both signs, so that some are among those found."""
    logits = np.where(np.arange(n) % 50 == 7, normal(n), np.float32(np.nan))
    logits[::4] *= np.float32(-1)
    return logits


def falling(n: int) -> F32:
    """All in front in one block."""
    return -np.arange(n, dtype="f4")


@pytest.mark.pairwise
@pytest.mark.parametrize("make", [spread, tied, zeros, infinite, nan, falling])
@pytest.mark.parametrize("n", [*SIZES, pytest.param(MANY, marks=pytest.mark.slow)])
def test_the_likeliest(device: Device, put: Put, get: Get, make: Callable[[int], F32], n: int) -> None:
    logits = make(n)
    got, want = found(device, put, get, logits), ref.candidates(logits)
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("at", [0, 2047, 2048, 2999])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_one_that_is_not_finite_is_told(device: Device, put: Put, get: Get, at: int, value: float) -> None:
    logits: Any = normal(3000)
    assert found(device, put, get, logits)[0] == 0
    logits[at] = value
    got = found(device, put, get, logits)
    assert got[0] == 1
    assert at not in got[1 : 1 + N_CANDIDATES]


@pytest.mark.parametrize("n_listed", [1, 40, 2990])
def test_what_was_left_out_is_no_fault_and_stands_last(
    device: Device, put: Put, get: Get, n_listed: int
) -> None:
    logits: Any = normal(3000)
    logits[np.random.default_rng(1).permutation(3000)[n_listed:]] = -np.inf
    got = found(device, put, get, logits, left_out=1)
    assert got.tolist() == ref.candidates(logits, left_out=True).tolist() and got[0] == 0
    for fault in (np.inf, np.nan):
        logits[2500] = fault
        assert found(device, put, get, logits, left_out=1)[0] == 1
