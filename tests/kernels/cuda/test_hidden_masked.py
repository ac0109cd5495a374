"""Hidden values of many tokens against their oracles, in four orders of threads and blocks."""

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import Get, Put, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.hidden_masked import hidden_masked, hidden_masked_gated, hidden_of_experts
from hotcold.kernels.formats import ACTIVATIONS, EXACT_POSITIONS

pytestmark = pytest.mark.pairwise
SIZES = [(1, 1, 1), (3, 20, 33), (2, 700, 700), (2, 301, 1000)]
"""Tokens, rows on the device, and neurons of the layer."""


class Mask:
    """A mask of a layer's neurons, and the neurons of the rows."""

    def __init__(self, n_tokens: int, n_rows: int, n_ff: int) -> None:
        rng = np.random.default_rng(3)
        self.active = rng.random((n_tokens, n_ff)) < 0.4
        self.neurons = np.sort(rng.permutation(n_ff)[:n_rows]).astype("i4")
        words = np.full((n_tokens, 2 * -(-n_ff // 64)), 0xFFFFFFFF, "u4")  # whole pairs of words
        bits = ref.mask_bits(self.active)
        words[:, : bits.shape[1]] = bits
        self.words = words

    def put(self, device: Device, put: Put) -> tuple[Buffer, Buffer]:
        return put(device, self.words), put(device, self.neurons)

    def of_rows(self, has_mask: bool) -> NDArray[np.bool_]:
        rows = self.active[:, self.neurons]
        return rows if has_mask else np.ones_like(rows)


@pytest.mark.parametrize("activation", ["relu", "silu", "relu_both"])
@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_ff"), SIZES)
def test_hidden_masked_gated(
    device: Device, put: Put, get: Get, n_tokens: int, n_rows: int, n_ff: int, has_mask: bool, activation: str
) -> None:
    mask, act = Mask(n_tokens, n_rows, n_ff), ACTIVATIONS[activation]
    gate, up = np.abs(normal(n_tokens, n_rows)), normal(n_tokens, n_rows, seed=2)
    gate[:, ::3], up[:, 0] = -gate[:, ::3], 2
    words, neurons = mask.put(device, put)
    given, h = (put(device, gate), put(device, up)), device.empty(gate.shape, "f4")
    work = hidden_masked_gated(n_tokens, n_rows, n_ff, has_mask)
    numbers = n_rows, mask.words.shape[1], int(has_mask), act, given[0], neurons, 0
    work.launch(device, (*given, words, neurons, h, *numbers), device.compute)
    want = ref.gated(gate.astype("f8"), up.astype("f8"), activation)
    of_rows = mask.of_rows(has_mask)
    assert np.abs(get(device, h) - ref.listed(want, of_rows)).max() < 1e-6
    assert (get(device, h)[~of_rows] == 0).all()
    work.launch(device, (*given, words, neurons, given[0], *numbers), device.compute)  # onto the gate
    assert get(device, given[0]).tobytes() == get(device, h).tobytes()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_ff"), SIZES)
def test_hidden_masked(
    device: Device,
    put: Put,
    get: Get,
    n_tokens: int,
    n_rows: int,
    n_ff: int,
    has_bias: bool,
    has_mask: bool,
    activation: str,
) -> None:
    mask, act = Mask(n_tokens, n_rows, n_ff), ACTIVATIONS[activation]
    up, bias = normal(n_tokens, n_rows), normal(n_ff, seed=2)
    words, neurons = mask.put(device, put)
    given, h = (put(device, up), put(device, bias), words, neurons), device.empty(up.shape, "f4")
    work = hidden_masked(n_tokens, n_rows, n_ff, has_mask, has_bias)
    numbers = n_rows, mask.words.shape[1], int(has_mask), int(has_bias), act
    work.launch(device, (*given, h, *numbers), device.compute)
    biased = up.astype("f8") + (bias[mask.neurons] if has_bias else 0)
    want, of_rows = ref.ACTIVATIONS[activation](biased), mask.of_rows(has_mask)
    assert np.abs(get(device, h) - ref.listed(want, of_rows)).max() < 1e-6
    assert (get(device, h)[~of_rows] == 0).all()
    work.launch(device, (*given, given[0], *numbers), device.compute)  # onto up
    assert get(device, given[0]).tobytes() == get(device, h).tobytes()


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize(("n_tokens", "n_rows", "n_ff"), SIZES)
def test_small_ones_are_zero_behind_the_first_positions(
    device: Device, put: Put, get: Get, n_tokens: int, n_rows: int, n_ff: int, has_mask: bool, activation: str
) -> None:
    mask, act, n_past = Mask(n_tokens, n_rows, n_ff), ACTIVATIONS[activation], EXACT_POSITIONS - 1
    gate, up = normal(n_tokens, n_rows), normal(n_tokens, n_rows, seed=2)
    least = np.abs(normal(n_rows, seed=3)).astype("f4")
    words, neurons = mask.put(device, put)
    h, positions = device.empty(gate.shape, "f4"), np.arange(n_past, n_past + n_tokens, dtype="i4")
    rest = n_rows, mask.words.shape[1], int(has_mask), act, put(device, least), put(device, positions), 1
    work = hidden_masked_gated(n_tokens, n_rows, n_ff, has_mask, has_least=True)
    work.launch(device, (put(device, gate), put(device, up), words, neurons, h, *rest), device.compute)
    kept = ref.keep_large(gate.astype("f8"), least, activation, n_past)
    want = ref.listed(kept * up, mask.of_rows(has_mask))
    assert np.abs(get(device, h) - want).max() < 1e-6
    if n_rows > 1:
        assert (kept[0] != 0).all() and (n_tokens == 1 or (kept[1] == 0).any())


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("n_rows", [1, 33, 301])
def test_hidden_of_experts(device: Device, put: Put, get: Get, n_rows: int, activation: str) -> None:
    """Thresholds lie in the experts' places; what is not here is NaN, and zero when it is done."""
    n_past, n_used, slots = EXACT_POSITIONS - 1, 2, np.array([1, -1, 0], "i4")
    ids = np.array([[0, 1], [2, 0], [1, 2]], "i4")
    chosen = np.concatenate([ids, np.zeros_like(ids)], axis=1)
    gate, up = normal(6, n_rows), normal(6, n_rows, seed=2)
    least, places = np.abs(normal(2, n_rows, seed=3)).astype("f4"), slots[ids.reshape(-1)]
    gate[places < 0] = up[places < 0] = np.nan
    given, h = (put(device, gate), put(device, up)), device.empty(gate.shape, "f4")
    positions = put(device, np.arange(n_past, n_past + 3, dtype="i4"))
    lists = put(device, slots), put(device, chosen), put(device, least), positions
    work = hidden_of_experts(3, n_used, n_rows)
    numbers = n_rows, n_used, ACTIVATIONS[activation]
    work.launch(device, (*given, *lists, h, *numbers), device.compute)
    want = np.zeros((6, n_rows))
    for pair, place in enumerate(places.tolist()):
        if place >= 0:
            at = gate[[pair]].astype("f8"), least[place], activation, n_past + pair // n_used
            want[pair] = ref.keep_large(*at)[0] * up[pair]
    assert np.abs(get(device, h) - want).max() < 1e-6
    work.launch(device, (*given, *lists, given[0], *numbers), device.compute)  # onto the gate
    assert get(device, given[0]).tobytes() == get(device, h).tobytes()


def test_what_is_not_listed_or_closed_is_zero_whatever_it_holds(device: Device, put: Put, get: Get) -> None:
    nan = np.float32("nan")
    gate, up = np.array([[nan, -1, 1, nan]], "f4"), np.array([[1, nan, 2, 1]], "f4")
    words, neurons = put(device, np.array([[0b0111, 0]], "u4")), put(device, np.arange(4, dtype="i4"))
    h = device.empty(gate.shape, "f4")
    gates, relu = put(device, gate), ACTIVATIONS["relu"]
    arguments = (gates, put(device, up), words, neurons, h, 4, 2, 1, relu, gates, neurons, 0)
    hidden_masked_gated(1, 4, 4).launch(device, arguments, device.compute)
    got = get(device, h)[0]
    assert np.isnan(got[0])
    assert got[1:].tolist() == [0, 2, 0]
