"""The sparse FFN: against its oracle, and blind to every row that it has no right to read."""

import itertools
from collections.abc import Callable
from typing import Any

import cpu_operands as checks
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from sparse_ffn_cases import (
    COUNTS,
    FFN,
    MIXED,
    TYPES,
    U8,
    GatedFFN,
    Near,
    Walk,
    batch,
    batch_ffn,
    check,
    filled,
    listed_neurons,
    mask_bits,
    one_token,
    one_token_ffn,
    shapes,
)

from hotcold.kernels import ref
from hotcold.kernels.cpu import ffn, program, row_lists, rows


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("types", TYPES + MIXED)
def test_one_token_with_a_list(
    types: tuple[int, int, int], count: str, run_ops: Walk, assert_near: Near
) -> None:
    for k, n_ff in itertools.product(shapes(types), (1, 15, 203)):
        case = GatedFFN(types, n_ff, checks.vectors(1, k, n_ff), listed_neurons(count, 1, n_ff))
        check(case, lambda case=case: one_token(case, run_ops, with_list=True), assert_near)  # type: ignore[misc]


@pytest.mark.parametrize("types", TYPES + MIXED)
def test_one_token_without_a_list(types: tuple[int, int, int], run_ops: Walk, assert_near: Near) -> None:
    for k, n_ff in itertools.product(shapes(types), (1, 15, 203, 1500)):
        case = GatedFFN(types, n_ff, checks.vectors(1, k, n_ff), np.ones((1, n_ff), bool))
        check(case, lambda case=case: one_token(case, run_ops, with_list=False), assert_near)  # type: ignore[misc]


@pytest.mark.parametrize("types", TYPES)
def test_reading_all_rows_gives_the_same(
    types: tuple[int, int, int], run_ops: Walk, assert_near: Near
) -> None:
    case = GatedFFN(types, 203, checks.vectors(1, 160, 1), np.ones((1, 203), bool))
    y, counts = one_token(case, run_ops, with_list=False, skip=False)
    assert counts == [203, 203]
    assert_near(y, case.wanted[0])
    case.poison()
    assert np.isnan(one_token(case, run_ops, with_list=False, skip=False)[0]).any()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("types", TYPES)
def test_a_relu_on_both(types: tuple[int, int, int], count: str, run_ops: Walk, assert_near: Near) -> None:
    """Rows of `down` whose `up` is not positive are not read either."""
    for n_tokens in (1, 5):
        x = checks.vectors(n_tokens, 96, 2)
        listed = listed_neurons(count, n_tokens, 203)
        makers = [lambda case: batch(case, run_ops)]
        if n_tokens == 1:
            makers += [lambda case: one_token(case, run_ops, with_list=True)]
        for run in makers:
            case = GatedFFN(types, 203, x, listed, program.RELU_BOTH_ACTIVATION)
            check(case, lambda run=run, case=case: run(case), assert_near)  # type: ignore[misc]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("types", [*TYPES, MIXED[0], MIXED[1]])
def test_without_a_gate(
    types: tuple[int, int, int], biased: bool, count: str, run_ops: Walk, assert_near: Near
) -> None:
    for k, n_ff, n_tokens in itertools.product(shapes(types), (15, 203), (1, 5)):
        x, listed = checks.vectors(n_tokens, k, n_tokens), listed_neurons(count, n_tokens, n_ff)
        makers = [lambda case: batch_ffn(case, run_ops)]
        if n_tokens == 1:
            makers += [lambda case: one_token_ffn(case, run_ops, with_list=True)]
        for run in makers:
            case = FFN(types[:2], n_ff, x, listed, biased)
            check(case, lambda run=run, case=case: run(case), assert_near)  # type: ignore[misc]


def test_without_a_gate_all_rows_may_be_read(run_ops: Walk, assert_near: Near) -> None:
    """Without a list; and with `down` read whole, as a dense FFN does."""
    for types, skip in itertools.product(((rows.F16_ID,) * 2, (rows.Q4_0_ID,) * 2), (True, False)):
        case = FFN(types, 1500, checks.vectors(1, 160, 1), np.ones((1, 1500), bool))
        y, counts = one_token_ffn(case, run_ops, with_list=False, skip=skip)
        assert counts == [1500, case.firing.sum() if skip else 1500]
        assert_near(y, case.wanted[0])
        case.poison()
        again, _ = one_token_ffn(case, run_ops, with_list=False, skip=skip)
        assert np.isnan(again).any() == (not skip)


@pytest.mark.parametrize("biased", [True, False])
def test_fire_rows_without_a_mask(biased: bool, run_ops: Walk) -> None:
    x, bias, y = checks.vectors(3, 45), checks.vectors(1, 45, 1)[0], filled(3, 45)
    x[1, 7] = np.nan
    counts = np.zeros((4, 2), np.int64)
    op = {"code": program.FIRE_ROWS, "chunks": 3, "n_rows": 45, "all_listed": 1, "counts": counts.ctypes.data}
    op |= {"x": x.ctypes.data, "x_stride": 180, "y": y.ctypes.data, "y_stride": 180}
    run_ops([op | {"w": bias.ctypes.data if biased else 0}], n_tokens=3)
    wanted = np.nan_to_num(np.maximum(x + bias if biased else x, 0))
    assert np.array_equal(y, wanted)
    assert counts.sum(0).tolist() == [135, (wanted > 0).sum()]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("types", [*TYPES, *MIXED])
def test_a_batch(types: tuple[int, int, int], count: str, run_ops: Walk, assert_near: Near) -> None:
    for k, n_ff, n_tokens in itertools.product(shapes(types), (15, 203), (1, 3, 9)):
        x = checks.vectors(n_tokens, k, n_tokens)
        case = GatedFFN(types, n_ff, x, listed_neurons(count, n_tokens, n_ff))
        check(case, lambda case=case: batch(case, run_ops), assert_near)  # type: ignore[misc]


def test_a_batch_of_one_dead_input(run_ops: Walk) -> None:
    """All gates 0: no neuron fires, and nothing but the gates is read."""
    x = np.zeros((3, 32), np.float32)
    case = GatedFFN((rows.F16_ID,) * 3, 77, x, np.ones((3, 77), bool))
    case.raw[1][:], case.raw[2][:] = 0xFF, 0xFF
    y, counts = batch(case, run_ops)
    assert counts == [3 * 77, 0] and not y.any()


def test_up_rows_counts_listed_neurons_when_every_gate_was(run_ops: Walk) -> None:
    raw, _ = checks.weights(rows.F32_ID, 40, 16)
    x, gates, y = checks.vectors(3, 16), checks.vectors(3, 40, 1), filled(3, 40)
    counts = np.zeros((4, 2), np.int64)
    op = {
        "code": program.UP_ROWS,
        "chunks": 3,
        "n_rows": 40,
        "k": 16,
        "all_listed": 1,
        "counts": counts.ctypes.data,
    }
    op |= checks.matrix("w", raw, rows.F32_ID) | {"x": x.ctypes.data, "x_stride": 64}
    op |= {"z": gates.ctypes.data, "z_stride": 160, "y": y.ctypes.data, "y_stride": 160}
    run_ops([op], n_tokens=3)
    assert counts.sum(0).tolist() == [120, (gates > 0).sum()]


@pytest.mark.parametrize("with_list", [True, False])
def test_bits_do_not_depend_on_threads_or_repetition(with_list: bool, run_ops: Walk) -> None:
    for types in ((rows.Q4_0_ID,) * 3, (rows.F16_ID, rows.F32_ID, rows.Q8_0_ID)):
        listed = listed_neurons("some" if with_list else "all", 5, 203)
        single = GatedFFN(types, 203, checks.vectors(1, 160, 3), listed[:1])
        several = GatedFFN(types, 203, checks.vectors(5, 160, 3), listed)
        for n_threads in (1, 2, 3, 5):
            results = {
                (
                    one_token(single, run_ops, with_list, n_threads=n)[0].tobytes(),
                    batch(several, run_ops, n)[0].tobytes(),
                )
                for n in (1, n_threads, n_threads)
            }
            assert len(results) == 1


@pytest.mark.parametrize("n_ff", [1, 63, 64, 65, 200])
def test_mask_token(n_ff: int) -> None:
    z = checks.vectors(1, n_ff, n_ff)[0]
    z[::7] = 0.5
    z[n_ff // 2] = np.nan
    for threshold in (0.5, -1e30, 1e30, np.inf):
        bits, listed = np.full(-(-n_ff // 64), -1), np.full(n_ff + 1, -7)
        n = row_lists.mask_token(z.ctypes.data, n_ff, threshold, bits.ctypes.data, listed.ctypes.data)
        active = ~(z < threshold)
        assert listed[:n].tolist() == np.flatnonzero(active).tolist()
        assert (listed[n:] == -7).all()
        assert np.array_equal(bits.view(np.uint8), mask_bits(active[None])[0])
        assert [row_lists.bit(bits.ctypes.data, i) for i in range(n_ff)] == active.tolist()
        again = np.full(-(-n_ff // 64), -1)
        assert row_lists.mask_token(z.ctypes.data, n_ff, threshold, again.ctypes.data, 0) == n
        assert np.array_equal(again, bits)


def test_a_threshold_is_met_by_the_float_that_it_rounds_to() -> None:
    z, bits = np.array([0.1], np.float32), np.zeros(1, np.int64)
    assert float(z[0]) > 0.1  # as a double; the threshold is rounded as z was
    assert row_lists.mask_token(z.ctypes.data, 1, 0.1, bits.ctypes.data, 0) == 1
    below = np.nextafter(z, np.float32(0))
    assert row_lists.mask_token(below.ctypes.data, 1, 0.1, bits.ctypes.data, 0) == 0


@pytest.mark.parametrize("type_id", sorted(rows.TYPE_SIZE), ids=lambda t: GGMLQuantizationType(t).name)
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 61])
def test_add_listed(
    type_id: int,
    n: int,
    scratch: U8,
    before_a_hole: Callable[[NDArray[Any]], NDArray[Any]],
    assert_near: Near,
) -> None:
    k = 512 if type_id in checks.K_TYPES else 96
    raw, w = checks.weights(type_id, 61, k)
    raw, rng = before_a_hole(raw), np.random.default_rng(n)
    live = np.full(64, -(1 << 40))
    live[:n] = rng.permutation(61)[:n]
    coefficients = np.full(64, np.nan, np.float32)
    coefficients[:n] = rng.standard_normal(n)
    acc = checks.vectors(1, k, 2)[0]
    wanted = acc.astype(np.float64) + coefficients[:n].astype(np.float64) @ w[live[:n]]
    where = raw.ctypes.data, raw.shape[1], live.ctypes.data, coefficients.ctypes.data
    ffn.add_listed(type_id, *where, n, 0, k, scratch.ctypes.data, acc.ctypes.data)
    assert_near(acc, wanted)


@pytest.mark.parametrize("n_ff", [1, 63, 64, 65, 200])
def test_list_rows_is_the_oracles_active_rows(n_ff: int, run_ops: Walk) -> None:
    generator = np.random.default_rng(n_ff)
    active, cold = generator.random((2, 1, n_ff)) < 0.4
    cold[0, -1] = active[0, -1] = True
    bits, others = mask_bits(active), mask_bits(cold)
    for x, wanted in ((0, active), (others.ctypes.data, active & cold)):
        listed = np.full(n_ff + 1, -1, np.int64)
        where = {"listed": listed.ctypes.data + 8, "n_listed": listed.ctypes.data}
        run_ops(
            [{"code": program.LIST_ROWS, "chunks": 1, "z": bits.ctypes.data, "x": x, "n_rows": n_ff, **where}]
        )
        (rows_wanted,) = ref.active_rows(wanted, np.arange(n_ff, dtype=np.int32))
        assert listed[0] == rows_wanted.size
        assert np.array_equal(listed[1 : 1 + rows_wanted.size], rows_wanted)


@pytest.mark.parametrize("n_ff", [1, 64, 200])
def test_and_bits(n_ff: int, run_ops: Walk) -> None:
    active = np.random.default_rng(n_ff).random((3, n_ff)) < 0.5
    cold = np.random.default_rng(n_ff + 1).random((1, n_ff)) < 0.5
    bits, others = mask_bits(active), mask_bits(cold)
    op = {"code": program.AND_BITS, "chunks": 2, "x": others.ctypes.data, "n_rows": n_ff}
    in_place = {"z": bits.ctypes.data, "z_stride": bits.strides[0], "y": bits.ctypes.data}
    run_ops([{**op, **in_place, "y_stride": bits.strides[0]}], n_tokens=3)
    assert np.array_equal(bits, mask_bits(active & cold))
