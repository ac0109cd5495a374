"""The oracles themselves, on cases small enough for pencil and paper."""

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from hotcold.kernels import order_of_sums, ref, ref_experts


def f32(*values: object) -> NDArray[np.float32]:
    """An array of float32."""
    return np.array(values, np.float32)


def test_quantise_scales_the_largest_to_127() -> None:
    x = np.zeros(64, np.float32)
    x[:4], x[33] = [254, -127, 1, 2.9], -1
    q, d = ref.quantise(x)
    assert d.tolist() == [2, np.float32(1) / np.float32(127)]
    assert q[:5].tolist() == [127, -64, 0, 1, 0]  # -63.5 and 0.5 are ties, 1.45 is none
    assert q[33] == -127 and np.count_nonzero(q[32:]) == 1


def test_quantise_of_nothing_is_nothing() -> None:
    q, d = ref.quantise(np.zeros((2, 32), np.float32))
    assert q.shape == (2, 32) and d.shape == (2, 1)
    assert not q.any() and not d.any()


def test_rounded_undoes_what_is_exact() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :3] = [127, 3, 0.25]
    assert ref.rounded(x)[0, :3].tolist() == [127, 3, 0]


def test_mul_mat_has_a_row_a_token_and_a_column_a_weight_row() -> None:
    y = ref.mul_mat(f32([1, 2], [3, 4], [5, 6]), f32([1, 10], [0, -1]))
    assert y.dtype == np.float64
    assert y.tolist() == [[21, 43, 65], [-2, -4, -6]]


def test_mul_mat_rounds_the_activations_of_quantised_weights() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :3] = [127, 3, 0.25]
    assert ref.mul_mat(np.ones((1, 32), np.float32), x, quantised=True).tolist() == [[130]]
    assert ref.mul_mat(np.ones((1, 32), np.float32), x).tolist() == [[130.25]]


def test_rms_norm_divides_by_the_root_of_the_mean_square() -> None:
    y = ref.rms_norm(f32([3, 4, 0, 0]), f32(1, 2, 3, 4), eps=0.0)
    assert np.allclose(y, [[3 / 2.5, 2 * 4 / 2.5, 0, 0]])
    assert np.allclose(ref.rms_norm(f32([0, 0]), f32(1, 1), eps=1e-5), 0)
    assert np.allclose(ref.rms_norm(f32([1, 1]), f32(1, 1), eps=3.0), 0.5)


def test_layer_norm_takes_the_mean_off_and_divides_by_the_deviation() -> None:
    assert ref.layer_norm(f32([1, 3]), f32(1, 10), f32(0, 7), eps=0.0).tolist() == [[-1, 17]]
    assert ref.layer_norm(f32([5, 5]), f32(1, 10), f32(0, 7), eps=1e-5).tolist() == [[0, 7]]
    assert ref.layer_norm(f32([1, 3]), f32(2, 2), f32(0, 0), eps=3.0).tolist() == [[-1, 1]]


def test_gelu_is_the_tanh_formula() -> None:
    x = np.array([-10.0, -1.0, 0.0, 1.0, 10.0])
    assert np.allclose(ref.gelu(x), [0, -0.15880801, 0, 0.84119199, 10])


def test_sparse_ffn_leaves_out_what_is_inactive_whatever_its_bias() -> None:
    x, up, down_t = f32([1, 0]), f32([2, 0], [-3, 0], [1, 0]), f32([1, 0], [0, 1], [5, 5])
    assert ref.sparse_ffn(x, up, None, down_t).tolist() == [[7, 5]]
    assert ref.sparse_ffn(x, up, f32(1, 4, 0), down_t).tolist() == [[8, 6]]
    active = np.array([[True, False, False]])
    assert ref.sparse_ffn(x, up, f32(1, 4, 0), down_t, active).tolist() == [[3, 0]]


def test_sparse_gated_ffn_with_a_relu_on_both() -> None:
    x, gate, up, down_t = f32([1]), f32([2], [2], [-1]), f32([3], [-3], [3]), f32([1], [10], [100])
    assert ref.sparse_gated_ffn(x, gate, up, down_t).tolist() == [[-54]]
    assert ref.sparse_gated_ffn(x, gate, up, down_t, activation="relu_both").tolist() == [[6]]


def test_rope_frequencies_fall_geometrically() -> None:
    assert np.allclose(ref.rope_frequencies(4, 100.0), [1, 0.1])
    assert np.allclose(ref.rope_frequencies(4, 100.0, scale=0.5), [0.5, 0.05])
    assert np.allclose(ref.rope_frequencies(4, 100.0, factors=f32(1, 4)), [1, 0.025])


def test_rope_turns_neighbours_or_halves() -> None:
    x = f32([[[1, 0, 0, 1, 9]]])
    x = x.reshape(1, 1, 5)
    turn = np.array([math.pi / 2, math.pi])
    position = np.array([1])
    assert np.allclose(ref.rope(x, position, turn), [[[0, 1, 0, -1, 9]]])
    # halves: (x0, x2) = (1, 0) by a quarter, (x1, x3) = (0, 1) by a half turn
    assert np.allclose(ref.rope(x, position, turn, interleaved=False), [[[0, 0, 1, -1, 9]]])


def test_rope_at_position_zero_changes_nothing_and_turns_add_up() -> None:
    x = np.arange(1, 9, dtype=np.float32).reshape(2, 1, 4)
    turn = np.array([0.3, 0.01])
    y = ref.rope(x, np.array([0, 5]), turn)
    assert np.array_equal(y[0], x[0])
    twice = ref.rope(ref.rope(x, np.array([2, 2]), turn).astype(np.float32), np.array([3, 3]), turn)
    assert np.allclose(twice[1], y[1], rtol=1e-6)


def test_attention_weighs_values_by_softmax() -> None:
    # scores 0 and ln 3 * sqrt(2) / sqrt(2): weights 1/4 and 3/4
    q = f32([[1, 0]]).reshape(1, 1, 2)
    k = f32([0, 0], [math.log(3) * math.sqrt(2), 5]).reshape(2, 1, 2)
    v = f32([4, 0], [8, 4]).reshape(2, 1, 2)
    assert np.allclose(ref.attention(q, k, v, n_past=1), [[[7, 3]]])


def test_attention_sees_no_future() -> None:
    q = np.zeros((2, 1, 2), np.float32)
    k, v = np.zeros((3, 1, 2), np.float32), f32([3, 0], [5, 2], [10, 4]).reshape(3, 1, 2)
    assert np.allclose(ref.attention(q, k, v, n_past=1), [[[4, 1]], [[6, 2]]])


def test_attention_groups_query_heads() -> None:
    q = np.zeros((1, 4, 1), np.float32)
    k, v = np.zeros((1, 2, 1), np.float32), f32(7, 9).reshape(1, 2, 1)
    assert ref.attention(q, k, v, n_past=0).ravel().tolist() == [7, 7, 9, 9]


def test_attention_of_a_window_sees_the_last_positions() -> None:
    q = np.zeros((2, 1, 1), np.float32)
    k, v = np.zeros((4, 1, 1), np.float32), f32(1, 10, 100, 1000).reshape(4, 1, 1)
    assert ref.attention(q, k, v, n_past=2, window=2).ravel().tolist() == [55, 550]
    assert ref.attention(q, k, v, n_past=2, window=1).ravel().tolist() == [100, 1000]


def test_a_sink_weighs_as_one_more_position_without_a_value() -> None:
    q, k, v = np.zeros((1, 2, 1), np.float32), np.zeros((2, 1, 1), np.float32), f32(4, 8).reshape(2, 1, 1)
    sinks = f32(0, math.log(2))
    assert np.allclose(ref.attention(q, k, v, 1, sinks=sinks).ravel(), [12 / 3, 12 / 4])


def test_fma_rounds_once() -> None:
    """Against exact fractions, sums that cancel and ties of the second rounding among them."""
    generator = np.random.default_rng(0)
    x, y = (generator.standard_normal(4000).astype(np.float32) for _ in range(2))
    z = np.concatenate([-(x * y)[:2000], generator.standard_normal(2000).astype(np.float32) * 2.0**20])
    ties = f32(1 + 2**-12), f32(1 + 2**-12), f32(2.0**-60)  # a hair above the middle of two floats
    got = order_of_sums.fma(
        *(np.concatenate([a, b]).astype(np.float32) for a, b in zip((x, y, z), ties, strict=True))
    )
    assert got[-1] == np.float32(1 + 2**-11 + 2**-23)
    for a, b, c, rounded in zip(x, y, z.astype(np.float32), got[:-1], strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        others = (np.nextafter(rounded, np.float32(s)) for s in (-np.inf, np.inf))
        distance = abs(Fraction(float(rounded)) - exact)
        assert all(distance <= abs(Fraction(float(other)) - exact) for other in others)


@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize(("n_past", "n_tokens"), [(0, 3), (510, 5), (1100, 1)])
def test_attention_in_order_is_attention(n_past: int, n_tokens: int, window: int) -> None:
    generator = np.random.default_rng(1)
    q = generator.standard_normal((n_tokens, 4, 8)).astype(np.float32)
    k, v = (generator.standard_normal((n_past + n_tokens, 2, 8)).astype(np.float32) for _ in range(2))
    sinks = f32(0, 1, 2, 3)
    wanted = ref.attention(q, k, v, n_past, window, sinks)
    for fma in (order_of_sums.fma, order_of_sums.mul_add):
        got = order_of_sums.attention_in_order(q, k, v, n_past, window, sinks, fma)
        assert got.dtype == np.float32
        assert np.abs(got - wanted).max() < 2e-6
    alone = order_of_sums.attention_in_order(
        q[-1:], k, v, n_past + n_tokens - 1, window, sinks, order_of_sums.mul_add
    )
    assert np.array_equal(alone[0], got[-1])


def test_activations() -> None:
    x = np.array([-2.0, 0.0, 2.0])
    assert ref.ACTIVATIONS["relu"](x).tolist() == [0, 0, 2]
    assert np.allclose(ref.ACTIVATIONS["silu"](x), [-2 / (1 + math.e**2), 0, 2 / (1 + math.e**-2)])


def test_predictor_lists_what_reaches_the_threshold_and_nan() -> None:
    fc1 = f32([1, 0], [0, -1])
    fc2 = f32([1, 0], [0, 1], [-1, 0], [np.nan, 0], [2, 0])
    x = f32([0.5, 3])  # hidden: 0.5 and relu(-3) = 0
    assert ref.predictor(x, fc1, fc2, 0.5).tolist() == [[True, False, False, True, True]]
    assert ref.predictor(x, fc1, fc2, 0.0).tolist() == [[True, True, False, True, True]]
    assert ref.predictor(x, fc1, fc2, 0.6).tolist() == [[False, False, False, True, True]]


def test_sparse_gated_ffn_sums_firing_neurons() -> None:
    gate, up = f32([1, 0], [0, 1], [-1, 0]), f32([1, 1], [2, 0], [5, 5])
    down_t = f32([1, 0], [0, 1], [100, 100])
    x = f32([2, 3])  # gates 2 3 -2, ups 5 4 25
    assert ref.sparse_gated_ffn(x, gate, up, down_t).tolist() == [[10, 12]]
    assert ref.sparse_gated_ffn(x, gate, up, down_t, np.array([[False, True, True]])).tolist() == [[0, 12]]
    assert ref.sparse_gated_ffn(x, gate, up, down_t, np.zeros((1, 3), bool)).tolist() == [[0, 0]]


@pytest.mark.parametrize("quantised", [False, True])
def test_dense_gated_ffn_with_relu_equals_sparse_gated_ffn(quantised: bool) -> None:
    rng = np.random.default_rng(0)
    gate, up, down_t = rng.standard_normal((3, 64, 32)).astype(np.float32)
    x = rng.standard_normal((3, 32)).astype(np.float32)
    sparse = ref.sparse_gated_ffn(x, gate, up, down_t, quantised=quantised)
    dense = ref.dense_gated_ffn(x, gate, up, down_t.T, "relu", quantised=quantised)
    # a quantised down matrix rounds the hidden vector, which the transposed one never does
    bound = 0.02 if quantised else 1e-6
    assert np.abs(dense - sparse).max() <= bound * np.abs(sparse).max()
    assert quantised == bool(np.abs(dense - sparse).max() > 1e-6 * np.abs(sparse).max())


def test_top_k_takes_the_largest_and_of_equal_ones_the_first() -> None:
    logits = f32([1, 3, 2, 3, 0])
    ids, weights = ref_experts.top_k(logits, 3, "softmax")
    total = 2 * math.exp(3) + math.exp(2) + math.e + 1
    assert ids.tolist() == [[1, 2, 3]]
    assert np.allclose(weights, [[math.exp(3) / total, math.exp(2) / total, math.exp(3) / total]])
    assert ref_experts.top_k(f32([5, 5, 5]), 2, "softmax")[0].tolist() == [[0, 1]]
    _, normed = ref_experts.top_k(logits, 3, "softmax", normed=True, scale=2)
    assert np.allclose(normed, 2 * weights / weights.sum())
    assert np.allclose(normed, 2 * ref_experts.top_k(logits, 3, "softmax_chosen")[1])
    _, sigmoid = ref_experts.top_k(logits, 2, "sigmoid")
    assert np.allclose(sigmoid, 1 / (1 + math.exp(-3)))
    _, tiny = ref_experts.top_k(f32([-20, -30]), 1, "sigmoid", normed=True)
    assert np.allclose(tiny, math.exp(-20) * 2**14)


def test_expert_ffn_weighs_the_chosen_alone() -> None:
    gate, up, down = (np.array([[[1]], [[2]], [[np.nan]]], np.float32) for _ in range(3))
    chosen = np.array([[0, 1]], np.int32), np.array([[0.25, 3]])
    y = ref_experts.expert_ffn(f32([1]), chosen, gate, up, down, activation="relu")
    assert y.tolist() == [[0.25 * 1 + 3 * 8]]
    bias = f32([1], [10], [0])
    biased = ref_experts.expert_ffn(f32([1]), chosen, gate, up, down, (bias, bias, bias), "relu")
    assert biased.tolist() == [[0.25 * (2 * 2 + 1) + 3 * (12 * 12 * 2 + 10)]]


def test_gpt_oss_limits_gate_and_up() -> None:
    g, u = np.array([8.0, 1.0, -8.0]), np.array([9.0, -9.0, 1.0])
    swish = np.array([7, 1, -8]) / (1 + np.exp(-1.702 * np.array([7, 1, -8])))
    assert np.allclose(ref.gated(g, u, "swiglu_oai"), swish * np.array([8, -6, 2]))


def test_dense_gated_ffn_with_silu() -> None:
    y = ref.dense_gated_ffn(f32([1]), f32([2]), f32([3]), f32([10], [1]))
    h = 2 / (1 + math.exp(-2)) * 3
    assert np.allclose(y, [[10 * h, h]])


@pytest.mark.parametrize("fma", [order_of_sums.fma, order_of_sums.mul_add])
def test_sums_in_order_are_the_sums(fma: order_of_sums.FMA) -> None:
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((7, 100), np.float32), rng.standard_normal(100, np.float32)
    assert np.allclose(order_of_sums.dots_of_floats_in_order(w, x, fma), w.astype(np.float64) @ x, atol=1e-4)
    numbers, scales = (
        rng.integers(-8, 8, (7, 20, 32), np.int32),
        rng.uniform(0.1, 1, (7, 20)).astype(np.float32),
    )
    minima, x = rng.standard_normal((7, 20)).astype(np.float32), rng.standard_normal(640, np.float32)
    held = (numbers * scales[..., None]).astype(np.float64)
    for of_blocks, wide in ((None, held), (minima, held + minima[..., None])):
        got = order_of_sums.dots_of_blocks_in_order(numbers, scales, of_blocks, x, fma)
        assert np.allclose(got, wide.reshape(7, -1) @ ref.rounded(x), atol=1e-3)
    coefficients, w = rng.standard_normal(50, np.float32), rng.standard_normal((50, 9), np.float32)
    got = order_of_sums.rows_in_order(coefficients, w, 16, fma)
    assert np.allclose(got, coefficients.astype(np.float64) @ w, atol=1e-4)
