"""Rows so short that a warp has two or four of them, and so long that weights are read ahead: the bits of a tile.

`matmul` takes a row's chains one after the other and knows nothing of either.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import Array, Get, Matrix, Put, Type, block_of, each_type, inputs, normal, random_matrix

from hotcold.kernels import order_of_device_sums as order
from hotcold.kernels import ref
from hotcold.kernels.cuda.dense_gated_ffn import gated_ffn_hidden
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.expert_rows import ExpertProducts
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matvec import WHERE_POSITIVE, matvec, matvec_mask
from hotcold.kernels.cuda.matvec3 import Rooms, matvec3
from hotcold.kernels.cuda.weights import lanes_of_row
from hotcold.kernels.formats import ACTIVATIONS, mask_words
from hotcold.kernels.weight_table import QUANTISED, WEIGHT_TYPES, weight_type_row

Open = Callable[..., Device]
OpenChanged = Callable[[str, str, str], Device]
F32 = NDArray[np.float32]
FLOATS = tuple(kind for kind in WEIGHT_TYPES if kind not in QUANTISED)
BLOCKS_OF_32, BLOCKS_OF_256 = (32, 64, 256, 288, 512, 544), (256, 512, 768, 1024, 1280)
of_types = pytest.mark.parametrize("weight_type", each_type(*FLOATS, quick=(Type.Q4_0, Type.Q4_K, Type.Q6_K)))


def lengths(weight_type: Type) -> tuple[int, ...]:
    """Rows that have eight, 16 or 32 lanes, with and without lanes to spare."""
    return BLOCKS_OF_256 if block_of(weight_type) == 256 else BLOCKS_OF_32


@pytest.fixture
def device(open_emulated: Open) -> Device:
    """The emulated device, with its checks, in an order of threads that is neither forward nor backward."""
    return open_emulated(order=1234)


def alone(device: Device, put: Put, get: Get, w: Matrix, x: F32, n_rows: int) -> F32:
    """Products of the first rows with each token; behind them lies a number that nobody may write."""
    (n_tokens, n), y = x.shape, put(device, np.full(len(x) * n_rows + 1, 7, "f4"))
    given = *w.planes(device, put), *inputs(device, put, w.type, x), y, y, y, n_rows, n, 0
    matvec(w.type, n_tokens, n_rows, n).launch(device, given, device.compute)
    *products, behind = get(device, y)
    assert behind == 7
    return np.array(products, "f4").reshape(n_tokens, n_rows)


def in_a_tile(device: Device, put: Put, get: Get, w: Matrix, x: F32) -> F32:
    """Products of all rows and tokens by `matmul`."""
    (n_tokens, n), n_rows = x.shape, len(w.rows)
    y = device.empty((n_tokens, n_rows), "f4")
    given = *w.planes(device, put), *inputs(device, put, w.type, x), y, y, y, n_rows, n, 0, n_tokens
    matmul(w.type, n_tokens, n_rows, n).launch(device, given, device.compute)
    return get(device, y)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_as_many_lanes_as_pieces(weight_type: Type) -> None:
    """By the oracle's pieces; a block of threads has as many rows as it has lanes for, and an expert's too."""
    for n in lengths(weight_type):
        if weight_type in QUANTISED:
            pieces = len(list(order.pieces(weight_type, n)))
            assert pieces == n // weight_type_row(weight_type).piece
            lanes = next((some for some in (8, 16) if some >= pieces), 32)
        else:
            lanes = 32
        assert lanes_of_row(n, weight_type) == lanes
        for n_rows in (1, 9, 100):
            grid = -(-n_rows * lanes // 256), 2
            assert matvec(weight_type, 2, n_rows, n).grid == grid
            assert gated_ffn_hidden((weight_type,) * 2, 2, n_rows, n).grid == grid
            products = ExpertProducts(weight_type, 2, 1, n_rows, n)
            assert products.work("expert_rows", 2, 0, 0).grid == grid
        places = sum(-(-count * lanes // 32) for count in (20, 9, 3))
        assert matvec3((weight_type,) * 3, 2, (20, 9, 3), n).grid == (-(-places // 8), 2)


def test_matrices_of_one_launch_have_the_lanes_of_the_one_with_most_pieces() -> None:
    assert [lanes_of_row(1024, kind) for kind in (Type.Q4_K, Type.Q5_K)] == [16, 32]
    assert lanes_of_row(1024, Type.Q4_K, Type.Q5_K, Type.Q6_K) == 32


@of_types
def test_a_row_has_the_bits_of_a_tile(device: Device, put: Put, get: Get, weight_type: Type) -> None:
    """Whether its warp has other rows or none."""
    for n in lengths(weight_type):
        w, x = random_matrix(weight_type, 9, n), normal(2, n)
        want = in_a_tile(device, put, get, w, x)
        for n_rows in (1, 2, 3, 4, 5, 7, 9):
            some = Matrix(w.type, w.rows[:n_rows], w.values[:n_rows])
            got = alone(device, put, get, some, x, n_rows)
            assert got.tobytes() == np.ascontiguousarray(want[:, :n_rows]).tobytes(), (n, n_rows)


@of_types
def test_sums_of_zeros(device: Device, put: Put, get: Get, weight_type: Type) -> None:
    """An input of zeros: all lanes that a whole warp would add have 0, and so has what they are added to."""
    n = block_of(weight_type)
    w, x = random_matrix(weight_type, 5, n), np.full((1, n), -0.0, "f4")
    got = alone(device, put, get, w, x, 5)
    assert got.tobytes() == in_a_tile(device, put, get, w, x).tobytes() == np.zeros((1, 5), "f4").tobytes()


@of_types
def test_the_kernels_kin(device: Device, put: Put, get: Get, weight_type: Type) -> None:
    """Mask, gate and up, rows by a profile, and three matrices, of which none ends with a warp."""
    for n in lengths(weight_type):
        n_rows, x = 37, normal(2, n)
        gate, up = (random_matrix(weight_type, n_rows, n, seed) for seed in (1, 2))
        planes, given = gate.planes(device, put), inputs(device, put, weight_type, x)
        g, u = (in_a_tile(device, put, get, w, x) for w in (gate, up))

        mask, threshold = device.empty((2, mask_words(n_rows)), "u4"), float(np.median(g))
        work = matvec_mask(weight_type, 2, n_rows, n)
        work.launch(device, (*planes, *given, mask, n_rows, n, threshold), device.compute)
        want = np.pad(g >= np.float32(threshold), ((0, 0), (0, 32 * mask_words(n_rows) - n_rows)))
        assert get(device, mask).tolist() == ref.mask_bits(want).tolist(), n

        h = device.empty((2, n_rows), "f4")
        arguments = *planes, *up.planes(device, put), *given, h, n_rows, n, ACTIVATIONS["relu"]
        gated_ffn_hidden((weight_type,) * 2, 2, n_rows, n).launch(device, arguments, device.compute)
        assert get(device, h).tobytes() == np.where(g > 0, g * u, np.float32(0)).tobytes(), n

        profile = normal(n_rows, seed=3)
        arguments = *planes, *given, put(device, profile), h, h, n_rows, n, WHERE_POSITIVE
        matvec(weight_type, 2, n_rows, n, WHERE_POSITIVE).launch(device, arguments, device.compute)
        assert get(device, h).tobytes() == np.where(profile > 0, g, np.float32(-np.inf)).tobytes(), n

        assert_three(device, put, get, [gate, up, gate], (9, 3, 6), x)


def assert_three(
    device: Device, put: Put, get: Get, matrices: Sequence[Matrix], n_rows: tuple[int, int, int], x: F32
) -> None:
    """Products of the first rows of three matrices have the bits of tiles."""
    n_tokens, n = x.shape
    some = [Matrix(w.type, w.rows[:r], w.values[:r]) for w, r in zip(matrices, n_rows, strict=True)]
    a, b, c = (w.type for w in some)
    outs = [device.empty((n_tokens, count), "f4") for count in n_rows]
    planes = [plane for w in some for plane in w.planes(device, put)]
    rest = *outs, *outs, *n_rows, n, 0, *Rooms.none(outs[0]).arguments
    work = matvec3((a, b, c), n_tokens, n_rows, n)
    work.launch(device, (*planes, *inputs(device, put, a, x), *rest), device.compute)
    for w, y in zip(some, outs, strict=True):
        assert get(device, y).tobytes() == in_a_tile(device, put, get, w, x).tobytes()


@pytest.mark.parametrize("n", [512, pytest.param(1024, marks=pytest.mark.slow)])
def test_three_types_in_one_warp_after_the_other(device: Device, put: Put, get: Get, n: int) -> None:
    """No warp has rows of two matrices, which would not come together to add."""
    matrices = [random_matrix(kind, 9, n) for kind in (Type.Q4_K, Type.Q4_K, Type.Q6_K)]
    assert_three(device, put, get, matrices, (7, 2, 9), normal(2, n))


READ_AHEAD = (Type.Q4_0, Type.Q5_1, Type.IQ4_NL, Type.MXFP4)
"""Types whose weights of the next pass are on their way while those of a pass are multiplied."""
PIECES = (17, 32, 33, 64, 65, 95, 96, 97, 128, 129, 160, 161, 193, 225, 300)
"""Of long rows: lanes with one to ten, and in one warp with one more or less."""


def test_the_types_that_read_ahead_are_those_of_the_headers() -> None:
    text = "".join(path.read_text() for path in sorted(SOURCES.glob("weights_*.h")))
    found = re.findall(r"struct (\w+) : |READS_AHEAD = (true)", text)
    ahead = [found[i - 1][0] for i, (_, is_ahead) in enumerate(found) if is_ahead]
    assert sorted(ahead) == sorted(kind.name for kind in READ_AHEAD)


@pytest.mark.parametrize(
    "weight_type",
    [pytest.param(t, id=t.name, marks=[] if t == Type.Q4_0 else [pytest.mark.slow]) for t in READ_AHEAD],
)
def test_a_long_row_has_the_bits_of_a_tile(device: Device, put: Put, get: Get, weight_type: Type) -> None:
    for pieces in PIECES:
        w, x = random_matrix(weight_type, 2, 32 * pieces), normal(1, 32 * pieces)
        got = alone(device, put, get, w, x, 2)
        assert got.tobytes() == in_a_tile(device, put, get, w, x).tobytes(), pieces


BUGS = {
    "weights of the pass itself once more": ("type().weights(row, piece + STEP + WARP * k);", "now[k];"),
    "the last piece of a lane left out": ("k < 2 * PASSES - 1; k++)", "k < PASSES; k++)"),
    "the last pass left out": (
        "k < PASSES; k++)\n            if (piece + WARP * k",
        "k < 1; k++)\n            if (piece + WARP * k",
    ),
    "too few lanes": ("n_pieces > 16 ? 5 : n_pieces > 8 ? 4 : 3}", "n_pieces > 16 ? 5 : 3}"),
    "half of the chains are not added": ("if (bits == 4) s = onto(s, fours, 2, 4);", ""),
    "the chains of the row beside": ("(own + (lane() - place()))", "(own + (lane() - place() ^ 1 << bits))"),
    "the piece of another lane": ("int piece = lanes.place();", "int piece = lanes.place() ^ 1;"),
    "chains from the last on": ("own[lane()] = v;\n", "own[lane() ^ 1] = v;\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_changes_the_bits(open_changed: OpenChanged, put: Put, get: Get, name: str) -> None:
    paths = (SOURCES / f"{family}.cu" for family in ("matvec", "matmul", "quantise"))
    device = open_changed(program(*paths, types=[("q4_0",)]), *BUGS[name])
    found: list[Array] = []
    for n in (256, 288, 512, 3232, 4000, 7200):
        w, x = random_matrix(Type.Q4_0, 9, n), normal(1, n)
        found.append(alone(device, put, get, w, x, 9) == in_a_tile(device, put, get, w, x))
    assert not np.concatenate(found).all()
