"""Attention over a cache of F16 by tensor cores: every size of a head, every grid, and values that are not finite."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attention_case import Case, attend, close
from numpy.typing import NDArray
from operands import Array, Get, Put

from hotcold.kernels import ref
from hotcold.kernels.cuda import attention as module
from hotcold.kernels.cuda.attention import Rounded, attention, queries_at_once
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.tensor_cores import in_tiles

Open = Callable[..., Device]
OpenChanged = Callable[[str, str, str], Device]
QUICK_DIMS = (64, 7, 96)


@pytest.mark.parametrize(
    "head_dim",
    [
        pytest.param(n, marks=[] if n in QUICK_DIMS else [pytest.mark.slow])
        for n in (1, 7, 16, 33, 40, 64, 80, 96, 100, 112, 128, 192, 250, 256)
    ],
)
def test_every_head_has_the_bits_of_the_oracle(
    open_emulated: Open, put: Put, get: Get, head_dim: int
) -> None:
    """Ten queries: of two tiles, and more than a part of positions."""
    case = Case("f16", 258, 5, 2, 1, head_dim, 300, has_sinks=True)
    assert in_tiles("f16", head_dim)
    y = attend(open_emulated(build_kind="fast"), put, get, case, split=False)
    assert y.tobytes() == case.in_order().tobytes()
    assert close(y, case.want())


@pytest.mark.parametrize("head_dim", [64, 80])
def test_a_token_alone_has_the_bits_that_it_has_in_a_batch(
    device: Device, put: Put, get: Get, head_dim: int
) -> None:
    """On a card too, whose order within a product is its own: of one block and of parts, within the oracle's bound."""
    batch = Case("f16", 508, 6, 6, 2, head_dim, 520)
    y = attend(device, put, get, batch, split=False)
    assert close(y, batch.want())
    for token in (0, 4, 5):
        alone = replace(batch, n_past=508 + token, n_tokens=1, of_batch=batch)
        for split in (False, True):
            assert attend(device, put, get, alone, split).tobytes() == y[token].tobytes()


@pytest.mark.parametrize("window", [0, 40])
def test_the_bits_do_not_depend_on_who_shares_a_block(
    open_emulated: Open, put: Put, get: Get, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Blocks of up to 8 queries, of up to 16, and of one."""
    case, device = Case("f16", 250, 9, 6, 2, 48, 320, window), open_emulated(build_kind="fast")
    answers = set()
    for at_once in (1, 3, 8, 11, 16):
        monkeypatch.setattr(module, "queries_at_once", lambda *_, n=at_once: n)
        answers.add(attend(device, put, get, case, split=False).tobytes())
    assert answers == {case.in_order().tobytes()}


def answers_of(device: Device, put: Put, get: Get, case: Case, q: Array, keys: Array, values: Array) -> Array:
    out, scores = device.empty(q.shape, "f4"), case.scores(put(device, case.sinks))
    given = put(device, q), put(device, keys), put(device, values), put(device, case.positions)
    arguments = (*given, out, case.n_tokens, *case.sizes, *scores.arguments, *Rounded.nowhere(out))
    work = attention(case.kv_type, case.n_tokens, *case.sizes[:3], case.n_keys)
    work.launch(device, arguments, device.compute)
    return get(device, out)


@pytest.mark.parametrize("spoiled", ["keys", "values"])
@pytest.mark.parametrize("by", [np.nan, np.inf, -np.inf])
def test_what_one_token_does_not_see_leaves_it_alone(
    open_emulated: Open, put: Put, get: Get, spoiled: str, by: float
) -> None:
    """Positions 3 and 9 hold what is not finite; of tokens 6 to 11, with a window of 5, one block has all."""
    case, device = Case("f16", 6, 6, 1, 1, 72, 12, window=5), open_emulated()
    cache = {"keys": case.cache(2), "values": case.cache(3)}
    plain = answers_of(device, put, get, case, case.q, **cache)
    cache[spoiled][:, [3, 9], 70] = by
    y = answers_of(device, put, get, case, case.q, **cache)
    sees = np.array([any(p - 5 < at <= p for at in (3, 9)) for p in range(6, 12)])
    assert sees.tolist() == [True, True, False, True, True, True]
    assert y[~sees].tobytes() == plain[~sees].tobytes()
    spoiled_columns = y[sees][..., 70] if spoiled == "values" else y[sees]
    if spoiled == "values" or np.isnan(by):
        assert not np.isfinite(spoiled_columns).any()


@pytest.mark.parametrize(
    ("size", "scale"),
    [(1e-30, 1e29), (1e-6, 1e5), (300.0, 1e-3), (1e4, 1e-5), (1e37, 1e-38), (1e-39, 1), (1e36, 1)],
)
def test_queries_of_any_size(open_emulated: Open, put: Put, get: Get, size: float, scale: float) -> None:
    """One query's size is not its neighbour's; a scale brings scores back, or leaves all alike or one alone."""
    case = Case("f16", 30, 3, 3, 1, 40, 40, scale=scale)
    q = (case.q * size).astype("f4")
    q[:, 1] *= np.float32(1e-3)
    y = answers_of(open_emulated(build_kind="fast"), put, get, case, q, case.cache(2), case.cache(3))
    assert close(y, ref.attention(q, *case.held(), 30, scale=scale))


def test_a_query_of_zeros_and_one_of_nan(open_emulated: Open, put: Put, get: Get) -> None:
    """Zeros give the mean of the values, NaN shows in its own answer alone."""
    case, q = Case("f16", 20, 2, 4, 2, 32, 30), np.array(Case("f16", 20, 2, 4, 2, 32, 30).q)
    q[0, 1], q[1, 2, 5] = 0, np.nan
    y = answers_of(open_emulated(), put, get, case, q, case.cache(2), case.cache(3))
    means = case.held()[1][:21, 0].astype("f8").mean(0)
    assert close(y[0, 1], means)
    assert np.isnan(y[1, 2]).all() and np.isfinite(np.delete(y.reshape(8, -1), 6, 0)).all()


@pytest.mark.slow
def test_without_tensor_cores_a_block_takes_its_queries_by_four(
    open_emulated: Open, put: Put, get: Get
) -> None:
    """As cards below sm_80 do it, with a grid that does not know of them: the bits of the other order."""
    source = "#define WITHOUT_TENSOR_CORES\n" + program(SOURCES / "attention.cu")
    case = Case("f16", 258, 5, 2, 1, 40, 300, has_sinks=True)
    device = open_emulated(source=source, build_kind="fast")
    y = attend(device, put, get, case, split=False)
    assert y.tobytes() == case.in_order(by_lanes=True).tobytes() != case.in_order().tobytes()
    last = replace(case, n_past=262, n_tokens=1, of_batch=case)
    assert attend(device, put, get, last, split=True).tobytes() == y[4].tobytes()


# Sizes


@pytest.mark.parametrize(
    ("n_queries", "n_head_kv", "at_once"),
    [(1, 8, 8), (4, 8, 8), (64, 8, 8), (256, 8, 16), (2048, 1, 16), (2032, 1, 8), (17, 128, 16)],
)
def test_a_block_takes_sixteen_where_blocks_are_many(n_queries: int, n_head_kv: int, at_once: int) -> None:
    assert queries_at_once("f16", n_queries, n_head_kv, 128) == at_once
    assert queries_at_once("q8_0", n_queries, n_head_kv, 128) == 4
    assert queries_at_once("f16", n_queries, n_head_kv, 288) == 4


# Bugs that give wrong numbers, and no fault

WRONG = {
    "a column sees one position too many": ("position < end[c]; }", "position <= end[c]; }"),
    "a query's low halves are lost": (
        "unit[word] = both.x, unit[2 + word] = both.y;",
        "unit[word] = both.x, unit[2 + word] = 0;",
    ),
    "a weight's low halves are lost": ("high[k] = two.x, low[k] = two.y;", "high[k] = two.x, low[k] = 0;"),
    "the wrong column's total": (
        "columns.totals[warp()][c] = total;",
        "columns.totals[warp()][c ^ 1] = total;",
    ),
    "the wrong column's sums": (
        "room.COLUMNS + 8 * j + lane() % 4 * 2 + e;",
        "room.COLUMNS + 8 * j + lane() % 4 * 2 + (e ^ 1);",
    ),
    "positions in another order than their weights": ("k % 2 + k / 2 * 8; }", "k % 2 + k / 2 * 4; }"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_planted_error_shows_in_the_numbers(
    open_emulated: Open, open_changed: OpenChanged, put: Put, get: Get, name: str
) -> None:
    source, case = program(SOURCES / "attention.cu"), Case("f16", 258, 5, 2, 1, 64, 300)
    devices = open_emulated(source=source, build_kind="fast"), open_changed(source, *WRONG[name])
    y: list[NDArray[Any]] = [attend(device, put, get, case, split=False) for device in devices]
    assert close(y[0], case.want())
    assert not close(y[1], case.want())
