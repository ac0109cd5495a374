"""Mixtures of experts against their oracles, in four orders of threads and blocks."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operands import Get, Put, Type, each_type, inputs, normal, random_matrix, worst_error

from hotcold.kernels import ref, ref_experts
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.expert_neurons import expert_down, expert_gates, expert_ups
from hotcold.kernels.cuda.expert_rows import ExpertProducts, expert_rows
from hotcold.kernels.cuda.expert_sum import expert_sum, mul_sigmoid
from hotcold.kernels.cuda.expert_tiles import batch_of_experts, expert_few, expert_tiles
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.top_k import top_k
from hotcold.kernels.formats import ACTIVATIONS, EXACT_POSITIONS, GATINGS, n_groups
from hotcold.kernels.weight_table import QUANTISED

pytestmark = pytest.mark.pairwise
F32 = NDArray[np.float32]
N_EXPERT, N_USED = 6, 3
TILES = expert_tiles, expert_few
SLOTS = np.array([2, -1, 0, -1, 1, 3], "i4")  # experts 2, 4, 0 and 5 are here, in this order


def packed(ids: NDArray[np.int32], weights: NDArray[Any]) -> NDArray[np.int32]:
    """What top_k leaves."""
    return np.concatenate([ids, weights.astype("f4").view("i4")], axis=1)


def chosen_of(n_tokens: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    return ref_experts.top_k(normal(n_tokens, N_EXPERT, seed=5), N_USED, "softmax")


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("n_expert", "n_used"), [(1, 1), (8, 2), (5, 5), (128, 8)])
def test_top_k(
    device: Device, put: Put, get: Get, gating: str, normed: bool, n_expert: int, n_used: int
) -> None:
    logits = 2 * normal(3, n_expert)
    logits[0, n_expert // 2 :] = logits[0, n_expert // 2]
    chosen = device.empty((3, 2 * n_used), "i4")
    arguments = (put(device, logits), chosen, n_expert, n_used, GATINGS[gating], int(normed), 1.5)
    top_k(3, n_expert, n_used).launch(device, arguments, device.compute)
    got, (ids, weights) = get(device, chosen), ref_experts.top_k(logits, n_used, gating, normed, 1.5)
    raw = np.ascontiguousarray(got).astype("i4")
    assert (raw[:, :n_used] == ids).all()
    assert worst_error(raw[:, n_used:].copy().view("f4"), weights) < 1e-6


def test_nan_is_chosen_last(device: Device, put: Put, get: Get) -> None:
    logits = put(device, np.array([[np.nan, 3, np.nan, 1]], "f4"))
    chosen = device.empty((1, 6), "i4")
    top_k(1, 4, 3).launch(device, (logits, chosen, 4, 3, 0, 0, 1.0), device.compute)
    assert get(device, chosen)[0, :3].tolist() == [0, 1, 3]


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize("per_pair", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_expert_rows(
    device: Device, put: Put, get: Get, weight_type: Type, per_pair: bool, has_bias: bool
) -> None:
    """Rows of the experts that are here, each where its slot says; 0 for the others."""
    n_tokens, n_rows, n = 2, 9, 256
    here = [2, 4, 0, 5]
    w = random_matrix(weight_type, len(here) * n_rows, n)
    ids, weights = chosen_of(n_tokens)
    x, bias = normal(n_tokens * (N_USED if per_pair else 1), n), normal(N_EXPERT, n_rows, seed=3)
    y = device.empty((n_tokens * N_USED, n_rows), "f4")
    given_bias = put(device, bias if has_bias else np.full_like(bias, np.nan))
    given = (*w.planes(device, put), *inputs(device, put, weight_type, x), put(device, SLOTS))
    rest = put(device, packed(ids, weights)), given_bias, y, n_rows, n, N_USED
    products = ExpertProducts(weight_type, n_tokens, N_USED, n_rows, n)
    work = expert_rows(products, per_pair=per_pair, has_bias=has_bias)
    work.launch(device, (*given, *rest, int(per_pair), int(has_bias), n_rows), device.compute)
    want, of_expert = np.zeros((n_tokens * N_USED, n_rows)), w.values.reshape(len(here), n_rows, n)
    for pair, e in enumerate(ids.reshape(-1).tolist()):
        if e in here:
            row = pair if per_pair else pair // N_USED
            product = ref.mul_mat(of_expert[here.index(e)], x[row : row + 1], weight_type in QUANTISED)
            want[pair] = product[0] + (bias[e] if has_bias else 0)
    got = get(device, y)
    assert worst_error(got, want) < 1e-5
    assert (got[~want.any(1)] == 0).all()
    for tiles in TILES:
        batch = tiles(products, N_EXPERT, per_pair=per_pair, has_bias=has_bias)
        again = put(device, np.full((n_tokens * N_USED, n_rows), np.nan, "f4"))
        others = rest[0], given_bias, again, n_rows, n, N_USED, int(per_pair), int(has_bias), n_rows
        batch.launch(device, (*given, *others, n_tokens * N_USED), device.compute)
        assert get(device, again).tobytes() == got.tobytes()


@pytest.mark.parametrize("weight_type", each_type())
def test_tiles_of_an_expert_with_many_tokens(device: Device, put: Put, get: Get, weight_type: Type) -> None:
    """Several tiles of expert 2, which all 70 tokens choose, and some of others; 65 rows are several as well."""
    n_tokens, n_rows, n, n_used = 70, 65, 256, 2
    w, x = random_matrix(weight_type, 4 * n_rows, n), normal(n_tokens, n)
    ids = np.stack([np.full(n_tokens, 2), np.where(np.arange(n_tokens) % 7 < 5, 1, 4)], 1).astype("i4")
    chosen, slots = put(device, packed(ids, np.ones(ids.shape))), put(device, SLOTS)
    products = ExpertProducts(weight_type, n_tokens, n_used, n_rows, n)
    given = *w.planes(device, put), *inputs(device, put, weight_type, x), slots, chosen
    answers, by_expert = [], [tiles(products, N_EXPERT) for tiles in TILES]
    for work, more in ((expert_rows(products), ()), *((work, (n_tokens * n_used,)) for work in by_expert)):
        y = put(device, np.full((n_tokens * n_used, n_rows), np.nan, "f4"))
        work.launch(device, (*given, y, y, n_rows, n, n_used, 0, 0, 0, *more), device.compute)
        answers.append(get(device, y))
    assert len({answer.tobytes() for answer in answers}) == 1
    assert np.isfinite(answers[0]).all() and answers[0][0::2].any(1).all()


def test_a_batch_has_small_tiles_where_experts_have_few_tokens() -> None:
    def kernel(weight_type: Type, n_tokens: int, n_expert: int) -> str:
        return batch_of_experts(ExpertProducts(weight_type, n_tokens, 2, 64, 256), n_expert).kernel

    assert kernel(Type.Q4_0, 64, 8) == "expert_few_q4_0" and kernel(Type.Q4_0, 65, 8) == "expert_tiles_q4_0"


STARTS = np.array([0, 3, 3, 50, 59, 59, 60], "i4")  # of six experts' rows: none of experts 1 and 4


@pytest.mark.parametrize("weight_type", each_type())
@pytest.mark.parametrize(("activation", "has_least"), [("relu", False), ("silu", False), ("silu", True)])
def test_neurons_of_experts(
    device: Device, put: Put, get: Get, weight_type: Type, activation: str, has_least: bool
) -> None:
    """Gate, up and down of the rows that are here, and of no others: what is behind the last one is NaN."""
    n_tokens, n_ff, n = 2, 70, 256
    n_pairs, n_here = n_tokens * N_USED, int(STARTS[-1])
    gate, up, down = (random_matrix(weight_type, n_here, n, seed=i) for i in (1, 2, 3))
    ids, weights = np.array([[0, 2, 4], [1, 3, 5]], np.int32), np.ones((2, N_USED))
    x = normal(n_tokens, n)
    of_x, lists = (
        inputs(device, put, weight_type, x),
        (put(device, STARTS), put(device, packed(ids, weights))),
    )
    hidden = put(device, np.full((n_pairs, n_ff), np.nan, "f4"))
    large = np.abs(normal(n_here, seed=9)) * np.float32(1 if has_least else np.inf)
    positions = np.arange(EXACT_POSITIONS - 1, EXACT_POSITIONS - 1 + n_tokens, dtype="i4")
    least = put(device, large), put(device, positions), int(has_least)
    rest = *lists, hidden, n_ff, n, N_USED
    products = ExpertProducts(weight_type, n_tokens, N_USED, n_ff, n)
    expert_gates(products).launch(device, (*gate.planes(device, put), *of_x, *rest), device.compute)
    expert_ups(products).launch(
        device, (*up.planes(device, put), *of_x, *rest, ACTIVATIONS[activation], *least), device.compute
    )
    partial, y = device.empty((n_pairs, n_groups(n_ff), n), "f4"), device.empty((n_pairs, n), "f4")
    work = expert_down(products)
    given = *down.planes(device, put), *lists, hidden, partial
    work.launch(device, (*given, n_ff, n, N_USED), device.compute)
    sum_groups(n_pairs, n_ff, n).launch(device, (partial, y, y, y, y, n_groups(n_ff), n, 0), device.compute)
    want_hidden, want = np.full((n_pairs, n_ff), np.nan), np.zeros((n_pairs, n))
    for pair, e in enumerate(ids.reshape(-1).tolist()):
        rows, token = slice(STARTS[e], STARTS[e + 1]), x[[pair // N_USED]]
        g, u = (ref.mul_mat(w.values[rows], token, weight_type in QUANTISED) for w in (gate, up))
        small = large[rows] if has_least else None
        h = (ref.keep_large(g, small, activation, int(positions[pair // N_USED])) * u)[0]
        want_hidden[pair, : h.size], want[pair] = h, h @ down.values[rows]
    got = get(device, hidden)
    assert np.array_equal(np.isnan(got), np.isnan(want_hidden))
    assert worst_error(np.nan_to_num(got), np.nan_to_num(want_hidden)) < 1e-5
    assert worst_error(get(device, y), want) < 1e-5


def test_expert_sum(device: Device, put: Put, get: Get) -> None:
    """What is not here is NaN, and never read."""
    n_tokens, n = 3, 300
    ids, weights = chosen_of(n_tokens)
    x, is_here = normal(n_tokens, N_USED, n), SLOTS[ids] >= 0
    assert is_here.any() and not is_here.all()
    poisoned, y = np.where(is_here[..., None], x, np.float32(np.nan)), device.empty((n_tokens, n), "f4")
    given = put(device, poisoned), put(device, SLOTS), put(device, packed(ids, weights))
    expert_sum(n_tokens, N_USED, n).launch(device, (*given, y, n, N_USED), device.compute)
    want = (x * (weights * is_here)[..., None]).sum(1)
    assert worst_error(get(device, y), want) < 1e-6


def test_mul_sigmoid(device: Device, put: Put, get: Get) -> None:
    x, gate, y = normal(3, 300), normal(3, 1, seed=2), device.empty((3, 300), "f4")
    mul_sigmoid(3, 300).launch(device, (put(device, x), put(device, gate), y, 300), device.compute)
    assert worst_error(get(device, y), ref_experts.mul_sigmoid(x, gate)) < 1e-6
