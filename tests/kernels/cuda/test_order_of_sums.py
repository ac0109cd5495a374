"""A token's numbers on the device do not depend on its company: one order of sums alone and in a batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import (
    Array,
    Get,
    Matrix,
    Put,
    Type,
    block_of,
    each_type,
    inputs,
    listing,
    normal,
    random_matrix,
)

from hotcold.kernels import order_of_device_sums as order
from hotcold.kernels import ref
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.hidden_masked import hidden_masked_gated
from hotcold.kernels.cuda.matmul import matmul
from hotcold.kernels.cuda.matmul_transposed import matmul_transposed
from hotcold.kernels.cuda.matvec import matvec
from hotcold.kernels.cuda.sparse_gated_ffn import sparse_gated_ffn
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.weights import kernel_name
from hotcold.kernels.formats import ACTIVATIONS, mask_words, n_groups
from hotcold.kernels.weight_table import QUANTISED, weight_type_row

Open = Callable[..., Device]
OpenChanged = Callable[[str, str, str], Device]
F32 = NDArray[np.float32]
BATCHES = (2, 3, 5, 16, 17, 33, 64, 65)
HALVES = Type.F16, Type.BF16


def lengths(weight_type: Type) -> tuple[int, ...]:
    """Rows of fewer pieces than chains, of as many, and of chains that are not equally long."""
    if weight_type not in QUANTISED:
        return (1, 7, 100, 256, 1025)
    return (256, 768, 2304) if block_of(weight_type) == 256 else (32, 576, 1056)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """The emulated device, and a card, which alone can show in what order its `mma` adds."""
    if request.param == "cuda":
        opened: Device = request.getfixturevalue("card")
    else:
        opened = request.getfixturevalue("open_emulated")(build_kind="fast")
    return opened


def batch(device: Device, put: Put, get: Get, w: Matrix, x: F32) -> F32:
    """Products of all tokens at once."""
    (n_tokens, n), n_rows = x.shape, len(w.rows)
    y = device.empty((n_tokens, n_rows), "f4")
    given = (*w.planes(device, put), *inputs(device, put, w.type, x), y, y, y, n_rows, n, 0, n_tokens)
    matmul(w.type, n_tokens, n_rows, n).launch(device, given, device.compute)
    return get(device, y)


def alone(device: Device, put: Put, get: Get, w: Matrix, x: F32) -> F32:
    """Products of each token."""
    (n_tokens, n), n_rows = x.shape, len(w.rows)
    y = device.empty((n_tokens, n_rows), "f4")
    given = (*w.planes(device, put), *inputs(device, put, w.type, x), y, y, y, n_rows, n, 0)
    matvec(w.type, n_tokens, n_rows, n).launch(device, given, device.compute)
    return get(device, y)


@pytest.mark.parametrize("weight_type", each_type())
def test_products(device: Device, put: Put, get: Get, weight_type: Type) -> None:
    for n in lengths(weight_type):
        w, x = random_matrix(weight_type, 67, n), normal(max(BATCHES), n)
        want = alone(device, put, get, w, x)
        for n_tokens in BATCHES:
            assert batch(device, put, get, w, x[:n_tokens]).tobytes() == want[:n_tokens].tobytes(), n


@pytest.mark.sample(3)
@pytest.mark.parametrize("weight_type", each_type())
def test_products_have_the_bits_of_the_oracle(
    open_emulated: Open, device: Device, put: Put, get: Get, weight_type: Type
) -> None:
    for n in lengths(weight_type):
        w, x = random_matrix(weight_type, 3, n), normal(1, n)
        if weight_type in QUANTISED:
            want = order.device_dots_of_blocks(weight_type, *units(open_emulated, put, get, w), x[0])
        elif weight_type in HALVES and not device.is_emulated:  # a card's mma adds in an order of its own
            exact, size = (of(x.astype("f8")) @ of(w.values.astype("f8")).T for of in (np.positive, np.abs))
            assert (np.abs(alone(device, put, get, w, x) - exact) <= 2.0**-21 * size).all(), n
            continue
        elif weight_type in HALVES:
            want = order.device_dots_of_halves(weight_type, w.values, x[0])
        else:
            want = order.device_dots_of_floats(w.values, x[0])
        assert alone(device, put, get, w, x).tobytes() == want.tobytes(), n


of_halves = pytest.mark.parametrize(
    "weight_type", [Type.F16, pytest.param(Type.BF16, marks=pytest.mark.slow)], ids=lambda t: t.name
)


@pytest.mark.slow
@of_halves
def test_without_tensor_cores_halves_have_the_order_of_floats(
    open_emulated: Open, put: Put, get: Get, weight_type: Type
) -> None:
    """As cards of sm_75 have it: a token alone, in a batch, and the oracle."""
    source = "#define WITHOUT_TENSOR_CORES\n" + products_of(weight_type)
    device = open_emulated(source=source, build_kind="fast")
    for n in lengths(weight_type):
        w, x = random_matrix(weight_type, 67, n), normal(17, n)
        want = alone(device, put, get, w, x)
        assert batch(device, put, get, w, x).tobytes() == want.tobytes(), n
        assert want[0].tobytes() == order.device_dots_of_floats(w.values, x[0]).tobytes(), n


@of_halves
def test_products_of_halves_hold_large_small_and_no_numbers(
    device: Device, put: Put, get: Get, weight_type: Type
) -> None:
    """Inputs above 65504 and near the ends of float32 beside small ones; what is not finite never becomes a number."""
    n, rng = 320, np.random.default_rng(7)
    w, x = random_matrix(weight_type, 3, n), normal(10, n)
    powers = np.array([1e-30, 1e-20, 1e-5, 1, 7e4, 1e20, 1e36], "f4")
    x[:7] *= powers[:, None]
    x[7] *= rng.choice(powers[1:5], n)
    x[8] = 0
    x[9, :32], x[9, 40] = 0, np.finfo(np.float32).max / 1e3
    got = alone(device, put, get, w, x)
    assert got.tobytes() == batch(device, put, get, w, x).tobytes()
    size = np.abs(x).astype("f8") @ np.abs(w.values.astype("f8")).T
    assert (np.abs(got - x.astype("f8") @ w.values.astype("f8").T) <= 2.0**-21 * size).all()
    assert not got[8].any()
    for bad in (np.inf, -np.inf, np.nan):
        y = x[3:4].copy()
        y[0, 300] = bad
        assert not np.isfinite(alone(device, put, get, w, y)).any()
        assert not np.isfinite(batch(device, put, get, w, y.repeat(2, 0))).any()


def products_of(weight_type: Type) -> str:
    """The program of matvec and matmul of a type."""
    paths = (SOURCES / f"{family}.cu" for family in ("matvec", "matmul"))
    return program(*paths, types=[(weight_type_row(weight_type).ending,)])


BUGS_OF_HALVES = {
    "pieces in the chain before theirs": (
        "unit = eights / 8 + lane();",
        "unit = eights / 8 + (lane() + 4) % WARP;",
    ),
    "chains added from the last on": ("? g : CHAINS, CHAINS);", "? 7 - g : CHAINS, CHAINS);"),
    "a chain that ends too late": (
        "return piece + CHAINS >= n_pieces(); }",
        "return piece + CHAINS > n_pieces(); }",
    ),
    "the second term lost": (
        "u, words);\n            for_mma(given, words[0], words[1]);",
        "u, words);\n            words[1][0] = words[1][1] = words[1][2] = 0; for_mma(given, words[0], words[1]);",
    ),
    "the second term lost in a tile": (
        "fmaf(scale, products[k] + products[2 + k], sum)",
        "fmaf(scale, products[k], sum)",
    ),
    "the scale of the token beside": ("tile.scales[at.token(j, 0)]", "tile.scales[at.token(j, 0) ^ 1]"),
    "a scale for half of a piece": ("for (int d = 1; d < 4; d *= 2)", "for (int d = 1; d < 2; d *= 2)"),
    "the scale of the piece beside": (
        "float scale = Split<T>::of(u, words);",
        "float scale = __shfl_xor_sync(ALL_LANES, Split<T>::of(u, words), 4);",
    ),
    "words of the other mma": ("x[0] = {a[0], b[0], a[1], b[1]},", "x[0] = {a[0], b[0], a[2], b[2]},"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS_OF_HALVES)
def test_a_planted_bug_of_halves_changes_the_bits(
    open_changed: OpenChanged, put: Put, get: Get, name: str
) -> None:
    """Each of them is seen by what the tests above compare: a token alone with the oracle, or with a batch."""
    device, n = open_changed(products_of(Type.F16), *BUGS_OF_HALVES[name]), 1027
    w, x = random_matrix(Type.F16, 3, n), normal(3, n)
    sizes = np.random.default_rng(8).integers(-20, 20, (3, n // 32 + 1)).repeat(32, 1)[:, :n]
    x = np.ldexp(x, sizes)  # pieces of different scales
    got = alone(device, put, get, w, x)
    has_bits_of_oracle = got[0].tobytes() == order.device_dots_of_halves(Type.F16, w.values, x[0]).tobytes()
    assert not has_bits_of_oracle or batch(device, put, get, w, x).tobytes() != got.tobytes()


@pytest.mark.slow
def test_a_token_has_its_bits_in_whatever_order_an_mma_adds(
    open_changed: OpenChanged, put: Put, get: Get
) -> None:
    """A card's own order is not published: here the sixteen products are added first, and then to what was there."""
    other = "float d[4] = {}; mma_f16(d, a, b); for (int i = 0; i < 4; i++) c[i] += d[i];"
    device, n = open_changed(products_of(Type.F16), "mma_f16(c, a, b);", other), 1027
    w, x = random_matrix(Type.F16, 67, n), normal(65, n)
    got = alone(device, put, get, w, x)
    assert got.tobytes() == batch(device, put, get, w, x).tobytes()
    assert got[0].tobytes() != order.device_dots_of_halves(Type.F16, w.values, x[0]).tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("weight_type", each_type())
def test_a_card_has_one_order_too(card: Device, put: Put, get: Get, weight_type: Type) -> None:
    """Which one that is within an mma of halves is not published, so kernels are held against each other."""
    for n in lengths(weight_type):
        w, x = random_matrix(weight_type, 67, n), normal(max(BATCHES), n)
        want = alone(card, put, get, w, x)
        for n_tokens in BATCHES:
            assert batch(card, put, get, w, x[:n_tokens]).tobytes() == want[:n_tokens].tobytes(), n


def units(open_emulated: Open, put: Put, get: Get, w: Matrix) -> tuple[Array, F32, F32 | None]:
    """Numbers, scales and minima of each sixteen, as kernels read them."""
    row, (n_rows, n) = weight_type_row(w.type), w.values.shape
    device = open_emulated(source=program(Path(__file__).with_name("units.cu"), types=[(row.ending,)]))
    outs = [device.empty((n_rows, n), "i1"), *(device.empty((n_rows, n // 16), "f4") for _ in range(2))]
    device.launch(
        kernel_name("units", w.type), n_rows, 32, (*w.planes(device, put), *outs, n), device.compute
    )
    numbers, scales, minima = (get(device, out) for out in outs)
    return numbers.reshape(n_rows, -1, 16).astype("i4"), scales, minima if row.has_minima else None


# FFNs with a row a neuron


class Ffn:
    """A gated FFN of random weights and inputs, of which each token's rows are listed."""

    def __init__(self, device: Device, put: Put, weight_type: Type, n_rows: int, n: int, listed: Array):
        self.device, self.put, self.type, self.n_rows, self.n = device, put, weight_type, n_rows, n
        self.listed, self.x = listed, normal(len(listed), n)
        self.weights = [random_matrix(weight_type, n_rows, n, seed) for seed in (4, 5, 6)]
        self.planes = [w.planes(device, put) for w in self.weights]
        ids = np.full(listed.shape, -1, "i4")
        for token, rows in enumerate(ref.active_rows(listed, np.arange(n_rows, dtype="i4"))):
            ids[token, : len(rows)] = rows
        self.lists = put(device, ids), put(device, listed.sum(1, dtype="i4"))
        self.listing = *listing(device, put, listed, np.arange(n_rows)), put(device, np.zeros(1, "u4"))
        self.given, self.relu = inputs(device, put, weight_type, self.x), ACTIVATIONS["relu"]

    def each(self) -> Any:
        """Every token as it is alone: y."""
        device, tokens, groups = self.device, len(self.x), n_groups(self.n_rows)
        partial, y = device.empty((tokens, groups, self.n), "f4"), device.empty((tokens, self.n), "f4")
        planes = [plane for of_one in self.planes for plane in of_one]
        work = sparse_gated_ffn((self.type,) * 3, tokens, self.n_rows, self.n, self.n_rows)
        numbers = mask_words(self.n_rows), self.n, self.relu
        arguments = (*planes, *self.given, *self.listing, partial, *numbers, partial, self.lists[1], 0)
        work.launch(device, arguments, device.compute)
        work = sum_groups(tokens, self.n_rows, self.n)
        work.launch(device, (partial, y, y, y, y, groups, self.n, 0), device.compute)
        return y

    def together(self, has_list: bool) -> Any:
        """All tokens at once: hidden values and y."""
        device, tokens, (rows, n) = self.device, len(self.x), (self.n_rows, self.n)
        gate, up = (device.empty((tokens, rows), "f4") for _ in range(2))
        y, words = device.empty((tokens, n), "f4"), -(-rows // 32)
        for planes, h in zip(self.planes[:2], (gate, up), strict=True):
            arguments = (*planes, *self.given, h, h, h, rows, n, 0, tokens)
            matmul(self.type, tokens, rows, n).launch(device, arguments, device.compute)
        padded = np.pad(self.listed, ((0, 0), (0, 32 * words - rows)))
        mask = self.put(device, ref.mask_bits(padded))
        neurons = self.put(device, np.arange(rows, dtype="i4"))
        arguments = (gate, up, mask, neurons, gate, rows, words, 1, self.relu, gate, neurons, 0)
        hidden_masked_gated(tokens, rows, rows).launch(device, arguments, device.compute)
        work = matmul_transposed(self.type, tokens, rows, n, has_list)
        numbers = rows, n, tokens, n_groups(rows), int(has_list)
        work.launch(device, (*self.planes[2], gate, *self.lists, y, *numbers), device.compute)
        return gate, y


SHARES = (0.0, 0.02, 0.3, 0.9, 1.0)


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize("n_rows", [50, 333])
def test_listed_rows(device: Device, put: Put, get: Get, weight_type: Type, n_rows: int) -> None:
    """Tokens with lists of several lengths, in a batch of more than a tile."""
    shares = np.resize(SHARES, 65)[:, None]
    listed = np.random.default_rng(3).random((65, n_rows)) < shares
    ffn = Ffn(device, put, weight_type, n_rows, block_of(weight_type), listed)
    hidden, y = (get(device, out) for out in ffn.together(has_list=True))
    assert y.tobytes() == get(device, ffn.each()).tobytes()
    down = ffn.weights[2].values
    if weight_type not in QUANTISED:  # whose numbers the kernel makes by fma, not the gguf package
        for token in range(len(SHARES)):
            rows = np.flatnonzero(listed[token]).tolist()
            want = order.device_rows(hidden[token], down, rows, n_groups(n_rows))
            assert y[token].tobytes() == want.tobytes()


def test_all_rows_without_a_list(device: Device, put: Put, get: Get) -> None:
    """The groups are those of a list of all rows."""
    ffn = Ffn(device, put, Type.F16, 333, 40, np.ones((3, 333), bool))
    assert get(device, ffn.together(has_list=False)[1]).tobytes() == get(device, ffn.each()).tobytes()


def down_sums(device: Device, put: Put, get: Get) -> tuple[F32, F32]:
    """Products with down rows of 35 tokens, and what the first and those around the tile's end should be.

    Groups are of two rows, of some, and longer than a step of the kernel.
    """
    n_rows, n, tokens, checked = 700, 72, 35, (0, 1, 2, 3, 4, 31, 32, 33, 34)
    listed = np.random.default_rng(3).random((tokens, n_rows)) < np.resize(SHARES, tokens)[:, None]
    w, h = random_matrix(Type.F16, n_rows, n), np.where(listed, normal(tokens, n_rows), np.float32(0))
    rows = ref.active_rows(listed, np.arange(n_rows, dtype="i4"))
    ids, y = np.full(listed.shape, -1, "i4"), device.empty((tokens, n), "f4")
    for token, own in enumerate(rows):
        ids[token, : len(own)] = own
    lists, groups = (put(device, ids), put(device, listed.sum(1, dtype="i4"))), n_groups(n_rows)
    given = (*w.planes(device, put), put(device, h), *lists, y, n_rows, n, tokens, groups, 1)
    matmul_transposed(Type.F16, tokens, n_rows, n, True).launch(device, given, device.compute)
    want = [order.device_rows(h[token], w.values, rows[token].tolist(), groups) for token in checked]
    return get(device, y)[list(checked)], np.array(want)


def test_down_rows_have_the_bits_of_the_oracle(device: Device, put: Put, get: Get) -> None:
    got, want = down_sums(device, put, get)
    assert got.tobytes() == want.tobytes()


BUGS_OF_DOWN = {
    "a group's first row in the group before": (
        "(first + i) & 1) end_group(j);",
        "(first + i) & 1 && i) end_group(j);",
    ),
    "a beginning passed over": ("row = following, at += size;", "row = following, at += 2 * size;"),
    "beginnings of the tokens beside": (
        "((const uint4*)step.begins)[b] : ",
        "((const uint4*)step.begins)[b ^ 1] : ",
    ),
    "beginnings not looked at": ("if (any & 15) add_four", "if (any & 7) add_four"),
    "the last group lost": ("        sums.end_group(j);\n", ""),
    "hidden values of the step's first rows": ("+ first + r;", "+ r;"),
    "a row that is added twice": ("w = next_w, v = next_v;", "if (i) w = next_w, v = next_v;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS_OF_DOWN)
def test_a_planted_bug_of_down_rows_changes_the_bits(
    open_changed: OpenChanged, put: Put, get: Get, name: str
) -> None:
    source = program(SOURCES / "matmul_transposed.cu", types=[(weight_type_row(Type.F16).ending,)])
    got, want = down_sums(open_changed(source, *BUGS_OF_DOWN[name]), put, get)
    assert got.tobytes() != want.tobytes()
