"""Every operation that the emulated device offers, against what CUDA's manual says of it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

Array = NDArray[Any]
Open = Callable[..., Device]
SOURCE = Path(__file__).with_name("intrinsics.cu")
RUNS = [
    pytest.param((kind, order), marks=() if kind == "checked" else pytest.mark.slow)
    for kind in ("checked", "fast", "races")
    for order in (0, 1, 7, 1234)
]


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def own_device(request: pytest.FixtureRequest, open_emulated: Open) -> Device:
    build_kind, order = request.param
    return open_emulated(source=program(SOURCE), build_kind=build_kind, order=order)


def test_everything_that_is_offered_is_used_here() -> None:
    text = (SOURCES / "emulator" / "intrinsics.h").read_text()
    offered = set(
        re.findall(
            r"^(?:template <(?:class T|int K)> |inline |ATOMIC_OPERATION |COPIES )+[\w ]*?\b(\w+)\(",
            text,
            re.MULTILINE,
        )
    )
    offered |= set(re.findall(r"^struct alignas\(\d+\) (\w+)", text, re.MULTILINE))
    offered |= {"threadIdx", "blockIdx", "blockDim", "gridDim", "DYNAMIC_SHARED", "__half", "__shared__"}
    assert {
        "__shfl_up_sync",
        "atomicCAS",
        "__dp4a",
        "uint4",
        "min",
        "mma_s8",
        "mma_f16",
        "copy_async",
    } <= offered
    used = SOURCE.read_text()
    assert not [name for name in sorted(offered) if not re.search(rf"\b{name}\b", used)]


def test_the_last_block_sees_what_all_have_written(own_device: Device, get: Callable[..., Array]) -> None:
    zeros = own_device.pinned(1, "i4")
    zeros.array[:] = 0
    counter, total, parts = (own_device.empty(n, "i4") for n in (1, 1, 7))
    for buffer in (counter, total):
        own_device.upload(buffer, zeros, own_device.compute)
    for _ in range(3):
        arguments = (counter.view(0, 1, "u4"), parts, total)
        own_device.launch("arrivals", 7, 32, arguments, own_device.compute)
    assert get(own_device, total)[0] == 3 * 28 and get(own_device, counter)[0] == 0


def test_warp_and_block_operations(own_device: Device, get: Callable[..., Array]) -> None:
    out, lane, thread = own_device.empty((16, 64), "i4"), np.arange(64) % 32, np.arange(64)
    own_device.launch("lanes", 1, 64, (out,), own_device.compute)
    eighth = lane // 8 * 8
    want = [
        lane ^ 5,
        (lane + 3) % 32,
        np.where(lane < 28, lane + 4, lane),
        np.where(lane < 4, lane, lane - 4),
        eighth + 2,
        lane % 16,  # earlier groups of 16 may be read; for later ones the lane gets its own value
        np.where(lane % 8 < 5, lane + 3, lane),
        np.where(lane % 8 < 3, lane, lane - 3),
        lane ^ 1,
        np.full(64, 0x55555555),
        thread < 32,
        thread < 32,
        np.where(lane < 16, 0x1111, 0x44440000),
        eighth + (lane + 1) % 8,
        np.full(64, 3),
        np.full(64, 2),
    ]
    assert get(own_device, out).tolist() == [np.asarray(row, "i4").tolist() for row in want]


def test_places_and_integer_atomics(
    own_device: Device, put: Callable[..., Any], get: Callable[..., Array]
) -> None:
    n = 24 * 96
    hits, place = put(own_device, np.array([0, -1, n, 0, 0, 9], "i4")), own_device.empty(n, "i4")
    wide = put(own_device, np.zeros(1, "u8"))
    own_device.launch("places", (2, 3, 4), (8, 4, 3), (hits, place, wide), own_device.compute)
    assert get(own_device, place).tolist() == list(range(n))
    assert get(own_device, hits).tolist() == [n, n - 1, 0, 0xFFFF, 77, -11]
    assert get(own_device, wide)[0] == n << 33


def test_arithmetic(own_device: Device, put: Callable[..., Any], get: Callable[..., Array]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-(2**31), 2**31, (2, 64)).astype("i4")
    a[:3] = 0, 1, -1
    out = own_device.empty((10, 64), "i4")
    own_device.launch("arithmetic", 1, 64, (put(own_device, a), put(own_device, b), out), own_device.compute)
    bytes_of = [v.view("i1").reshape(-1, 4).astype("i4") for v in (a, b)]
    bits = [f"{int(v) & 0xFFFFFFFF:032b}" for v in a]
    eight = np.concatenate([v.view("u1").reshape(-1, 4) for v in (a, b)], 1)
    selected = [
        [row[(int(x) & 0xFFFFFFFF) >> 4 * i & 7] for i in range(4)]
        for row, x in zip(eight, a ^ b, strict=True)
    ]
    want = [
        (bytes_of[0] * bytes_of[1]).sum(1) + 3,
        a,
        [text.count("1") for text in bits],
        [text[::-1].find("1") + 1 for text in bits],
        [text.find("1") if "1" in text else 32 for text in bits],
        a.astype("f4").view("i4"),
        a >> 8,
        np.minimum(a, b),
        np.maximum(a, b),
        np.array(selected, "u1").view("i4")[:, 0],
    ]
    assert get(own_device, out).tolist() == [np.asarray(row, "i4").tolist() for row in want]


def test_floats(own_device: Device, put: Callable[..., Any], get: Callable[..., Array]) -> None:
    halves = (np.arange(64) / 7).astype("f2")
    x = (np.random.default_rng(1).standard_normal(64) * 10).astype("f4")
    x[:4] = 0.5, 1.5, 2.5, -0.5  # ties go to even
    h, out = put(own_device, halves), own_device.empty((7, 64), "f4")
    own_device.launch("floats", 1, 64, (h, put(own_device, x), out), own_device.compute)
    exact = x.astype("f8") ** 2 - 1
    want = [
        halves.astype("f4") * 2,
        np.rint(x),
        exact.astype("f4"),  # one rounding
        x * x - np.float32(1),  # two: the compiler does not contract
        np.sqrt(np.abs(x)),
        np.maximum(x, np.float32(1 / 3)),
    ]
    assert (want[2] != want[3]).any()
    got = get(own_device, out)
    assert got[:6].tolist() == [row.tolist() for row in want]
    exponentials = np.exp(x.astype("f8"))
    assert (np.abs(got[6] - exponentials) <= np.spacing(exponentials.astype("f4"))).all()
    assert (get(own_device, h) == (halves.astype("f4") * 2).astype("f2")).all()


def test_vectors(own_device: Device, put: Callable[..., Any], get: Callable[..., Array]) -> None:
    rng = np.random.default_rng(2)
    kinds = [("u4", 4), ("f4", 4), ("i4", 4), ("f4", 2), ("i4", 2), ("u4", 2)]
    u, f, i, g, j, v = (rng.integers(0, 1000, (32, n)).astype(kind) for kind, n in kinds)
    out = own_device.empty(32, "u4")
    arguments = (*(put(own_device, a) for a in (u, f, i, g, j, v)), out)
    own_device.launch("vectors", 1, 32, arguments, own_device.compute, shared=4 * 4 * 32)
    want = u[::-1, 3] + f[:, 2] + i[:, 1] + g[:, 1] + j[:, 0] + v[:, 1]
    assert get(own_device, out).tolist() == want.astype("u4").tolist()


@pytest.mark.parametrize("n", [16, 32])
def test_products_of_tiles(
    own_device: Device, put: Callable[..., Any], get: Callable[..., Array], n: int
) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-128, 128, (rows, n)).astype("i1") for rows in (16, 8))
    given = rng.integers(-(2**20), 2**20, (16, 8)).astype("i4")
    c = put(own_device, given)
    own_device.launch(
        "products_of_tiles", 1, 32, (put(own_device, a), put(own_device, b), c, n), own_device.compute
    )
    assert (get(own_device, c).reshape(16, 8) == given + a.astype("i4") @ b.astype("i4").T).all()


@pytest.mark.parametrize("is_f16", [True, False], ids=["f16", "bf16"])
def test_products_of_halves(
    own_device: Device, put: Callable[..., Any], get: Callable[..., Array], is_f16: bool
) -> None:
    """Two halves lie in a word, and the sum is float32: sixteen sums, each cut to 24 bits."""
    rng = np.random.default_rng(4)
    numbers = [rng.standard_normal((rows, 16)).astype("f4") * 100 for rows in (16, 8)]
    if is_f16:
        bits = [n.astype("f2").view("u2") for n in numbers]
        a, b = (h.view("f2").astype("f8") for h in bits)
    else:
        bits = [(n.view("u4") >> 16).astype("u2") for n in numbers]
        a, b = ((h.astype("u4") << 16).view("f4").astype("f8") for h in bits)
    given = rng.standard_normal((16, 8)).astype("f4")
    c = put(own_device, given)
    words = [put(own_device, h.view("u4")) for h in bits]
    own_device.launch("products_of_halves", 1, 32, (*words, c, int(is_f16)), own_device.compute)
    size = np.abs(given) + np.abs(a) @ np.abs(b).T
    assert (np.abs(get(own_device, c).reshape(16, 8) - (given + a @ b.T)) <= 2.0**-20 * size).all()


def test_two_halves_in_a_word(own_device: Device, put: Callable[..., Any], get: Callable[..., Array]) -> None:
    x = (np.random.default_rng(5).standard_normal(64) * 2.0 ** np.arange(-28, 4, 0.5)).astype("f4")
    x[:4] = 1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 0  # ties go to even
    out = own_device.empty(32, "u4")
    own_device.launch("pairs_of_halves", 1, 32, (put(own_device, x), out), own_device.compute)
    assert get(own_device, out).view("f2").tolist() == x.astype("f2").tolist()


def test_asynchronous_copies(own_device: Device, put: Callable[..., Any], get: Callable[..., Array]) -> None:
    """A copy is there behind the wait for its group; until then its target is poison, or an error of the race build."""
    source, out = np.arange(1, 129, dtype="i4").reshape(32, 4), own_device.empty((3, 32), "i4")
    reads_early = isinstance(own_device.driver, EmulatedDriver) and own_device.driver.build_kind != "races"
    arguments = (put(own_device, source), out, int(reads_early))
    own_device.launch("copied", 1, 32, arguments, own_device.compute, shared=32 * 20)
    whole, early, some = get(own_device, out)
    assert whole.tolist() == source[:, 1].tolist()
    assert set(early.tolist()) == {-1 if reads_early else 0}
    assert some.tolist() == [0, 1] * 16
