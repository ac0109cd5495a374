"""Attention over the KV cache against its oracle."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attention_case import Case, attend, close
from operands import Get, Put, empty_quantised

from hotcold.kernels import ref
from hotcold.kernels.cuda.attention import Rounded, attention, attention_part
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.formats import (
    KV_TYPES,
    attention_sums_bytes,
    is_split,
    most_parts,
    n_parts,
    part_classes,
    parts_for,
)

pytestmark = pytest.mark.pairwise
Open = Callable[..., Device]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("heads", "head_dim"), [((6, 2), 32), ((5, 1), 64), ((2, 2), 96)])
def test_answers_are_rounded_as_by_a_launch_of_its_own(
    device: Device, put: Put, get: Get, kv_type: str, heads: tuple[int, int], head_dim: int, split: bool
) -> None:
    case = Case(kv_type, 520, 1 if split else 3, *heads, head_dim, 1100, 0, True)
    n_tokens, n = case.n_tokens, heads[0] * head_dim
    fused, apart = empty_quantised(device, n_tokens, n), empty_quantised(device, n_tokens, n)
    y = attend(device, put, get, case, split, Rounded.to(fused))
    arguments = (put(device, y), *apart, y.size // 32)
    quantise(n_tokens, n).launch(device, arguments, device.compute)
    assert close(y, case.want())
    for a, b in zip(apart, fused, strict=True):
        assert get(device, a).tobytes() == get(device, b).tobytes()


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(
    ("n_past", "n_tokens", "n_head", "n_head_kv", "head_dim", "n_ctx"),
    [
        pytest.param(0, 1, 1, 1, 2, 1, id="one position"),
        pytest.param(5, 1, 3, 3, 64, 8, id="one token"),
        pytest.param(300, 1, 6, 2, 80, 301, id="one token, GQA"),
        pytest.param(17, 2, 71, 1, 64, 20, id="MQA"),
        pytest.param(0, 9, 2, 2, 128, 9, id="a prompt"),
        pytest.param(250, 11, 4, 2, 48, 300, id="a batch across two tiles"),
        pytest.param(3, 3, 2, 1, 12, 9, id="rows of half a vector"),
        pytest.param(60, 5, 3, 1, 7, 70, id="odd rows"),
        pytest.param(2, 2, 1, 1, 288, 5, id="wide heads"),
        pytest.param(1, 1, 1, 1, 1024, 3, id="the widest heads"),
    ],
)
def test_attention(
    device: Device,
    put: Put,
    get: Get,
    kv_type: str,
    n_past: int,
    n_tokens: int,
    n_head: int,
    n_head_kv: int,
    head_dim: int,
    n_ctx: int,
) -> None:
    case = Case(kv_type, n_past, n_tokens, n_head, n_head_kv, head_dim, n_ctx)
    assert close(attend(device, put, get, case, split=False), case.want())


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(
    ("n_past", "n_head", "n_head_kv", "head_dim", "n_ctx"),
    [
        pytest.param(0, 2, 2, 64, 1025, id="one position"),
        pytest.param(255, 2, 1, 12, 2000, id="one part"),
        pytest.param(256, 5, 1, 7, 2000, id="two parts"),
        pytest.param(1999, 6, 2, 24, 2000, id="every position"),
        pytest.param(1100, 5, 1, 80, 1200, id="two blocks of queries"),
        pytest.param(4999, 2, 1, 16, 9000, id="thousands"),
    ],
)
def test_attention_in_parts(
    device: Device,
    put: Put,
    get: Get,
    kv_type: str,
    n_past: int,
    n_head: int,
    n_head_kv: int,
    head_dim: int,
    n_ctx: int,
) -> None:
    case = Case(kv_type, n_past, 1, n_head, n_head_kv, head_dim, n_ctx)
    assert is_split(1, n_ctx)
    assert close(attend(device, put, get, case, split=True), case.want())


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("scale", [None, 0.12])
@pytest.mark.parametrize(
    ("n_past", "n_tokens", "heads", "n_ctx", "window"),
    [
        pytest.param(4, 1, (4, 2), 8, 12, id="a window that is not full"),
        pytest.param(300, 1, (4, 2), 301, 12, id="one token"),
        pytest.param(300, 5, (6, 2), 16, 12, id="a cache of the window and the batch"),
        pytest.param(261, 40, (3, 3), 340, 30, id="a batch whose first and last token see nothing in common"),
        pytest.param(1000, 3, (2, 1), 310, 300, id="more than a tile, across the end of the cache"),
        pytest.param(7, 4, (2, 2), 20, 1, id="oneself"),
    ],
)
def test_windows_sinks_and_scale(
    device: Device,
    put: Put,
    get: Get,
    kv_type: str,
    has_sinks: bool,
    scale: float | None,
    n_past: int,
    n_tokens: int,
    heads: tuple[int, int],
    n_ctx: int,
    window: int,
) -> None:
    case = Case(kv_type, n_past, n_tokens, *heads, 24, n_ctx, window, has_sinks, scale)
    assert close(attend(device, put, get, case, split=False), case.want())


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize(
    ("n_past", "n_ctx", "window"), [(900, 2000, 0), (3000, 1200, 1100), (3000, 1100, 70), (40, 1100, 1000)]
)
def test_windows_and_sinks_in_parts(
    device: Device, put: Put, get: Get, kv_type: str, has_sinks: bool, n_past: int, n_ctx: int, window: int
) -> None:
    case = Case(kv_type, n_past, 1, 6, 2, 24, n_ctx, window, has_sinks)
    assert close(attend(device, put, get, case, split=True), case.want())


def test_a_batch_reads_thousands_of_positions_at_once(device: Device, put: Put, get: Get) -> None:
    case = Case("f16", 3000, 3, 2, 1, 16, 4000)
    assert not is_split(3, 4000)
    assert close(attend(device, put, get, case, split=False), case.want())


@pytest.mark.parametrize(("n_head", "n_head_kv"), [(2, 2), (3, 1)])
def test_a_batch_of_512(open_emulated: Open, put: Put, get: Get, n_head: int, n_head_kv: int) -> None:
    case = Case("f16", 7, 512, n_head, n_head_kv, 16, 520)
    assert close(attend(open_emulated(build_kind="fast"), put, get, case, split=False), case.want())


@pytest.mark.sample(5)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(
    ("n_past", "heads", "n_ctx", "window", "has_sinks"),
    [
        pytest.param(254, (3, 3), 300, 0, False, id="two parts"),
        pytest.param(1020, (4, 2), 1100, 0, True, id="many parts"),
        pytest.param(560, (3, 1), 330, 300, False, id="a window"),
        pytest.param(1500, (2, 2), 1100, 1090, True, id="a window of many parts"),
    ],
)
def test_a_token_gets_the_same_bits_alone_and_in_a_batch(
    open_emulated: Open,
    put: Put,
    get: Get,
    kv_type: str,
    n_past: int,
    heads: tuple[int, int],
    n_ctx: int,
    window: int,
    has_sinks: bool,
) -> None:
    """Also from parts that have blocks of their own, and in the bits of the oracle."""
    batch = Case(kv_type, n_past, 6, *heads, 80, n_ctx, window, has_sinks)
    device = open_emulated(build_kind="fast")
    y = attend(device, put, get, batch, split=False)
    assert y.tobytes() == batch.in_order().tobytes()
    for token in range(6):
        # of the batch's cache, whose later positions the token does not see
        alone = replace(batch, n_past=n_past + token, n_tokens=1, of_batch=batch)
        for split in {False, is_split(1, n_ctx)}:
            assert attend(device, put, get, alone, split).tobytes() == y[token].tobytes()


@pytest.mark.parametrize("spoiled", ["keys", "values"])
def test_a_later_token_of_the_batch_does_not_matter(
    open_emulated: Open, put: Put, get: Get, spoiled: str
) -> None:
    """NaN at the third token's position shows in the third alone, although one block reads for all."""
    case, device, y = Case("f32", 5, 3, 2, 2, 64, 8), open_emulated(), []
    for spoil in (False, True):
        cache = {"keys": case.cache(2), "values": case.cache(3)}
        if spoil:
            cache[spoiled][:, 7] = np.nan
        out = device.empty(case.q.shape, "f4")
        given = put(device, case.q), put(device, cache["keys"]), put(device, cache["values"])
        scores = case.scores(given[0])
        places = put(device, case.positions), out, 3, *case.sizes
        arguments = (*given, *places, *scores.arguments, *Rounded.nowhere(out))
        attention("f32", 3, 2, 2, 64, 8).launch(device, arguments, device.compute)
        y.append(get(device, out))
    assert y[0][:2].tobytes() == y[1][:2].tobytes()
    assert np.isnan(y[1][2]).all()


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_the_bits_do_not_depend_on_order_or_build(
    open_emulated: Open, put: Put, get: Get, kv_type: str, split: bool
) -> None:
    case, answers = Case(kv_type, 700, 1 if split else 3, 4, 2, 80, 1100), set()
    for order, build_kind in [(0, "checked"), (1, "checked"), (7, "checked"), (0, "fast"), (1234, "fast")]:
        device = open_emulated(order=order, build_kind=build_kind)
        answers.add(attend(device, put, get, case, split).tobytes())
    assert len(answers) == 1


def test_one_prepared_launch_serves_every_position(open_emulated: Open, put: Put, get: Get) -> None:
    """The position is read from its buffer alone, also how many parts are in use; who counts blocks begins anew."""
    case, device = Case("f16", 1500, 1, 2, 1, 16, 1600), open_emulated()
    full, n = (case.cache(2), case.cache(3)), n_parts(1600)
    q, keys, values, position = (put(device, a) for a in (case.q, *full, case.positions))
    partial, y = device.empty(attention_sums_bytes(1, 2, 16, 1600) // 4, "f4"), device.empty((1, 2, 16), "f4")
    scores = case.scores(q)
    places = position, partial, put(device, np.zeros(1, "u4")), y, *case.sizes, n
    arguments = (q, keys, values, *places, *scores.arguments, *Rounded.nowhere(y))
    launch = attention_part("f16", *case.sizes[:3], n, 1600).prepare(device, arguments)
    for n_past in (1500, 70, 0, 900):
        device.upload(position, host_of(device, n_past), device.compute)
        device.run(launch, device.compute)
        k, v = (cache[:, : n_past + 1].swapaxes(0, 1).astype("f4") for cache in full)
        assert close(get(device, y), ref.attention(case.q, k, v, n_past))


@pytest.mark.slow
def test_a_counter_that_does_not_begin_anew_is_noticed(open_emulated: Open, put: Put, get: Get) -> None:
    """The second launch then has no last block, and no answer."""
    whole = program(SOURCES / "attention.cu")
    broken = whole.replace("atomicInc(counter, n - 1)", "atomicInc(counter, ~0u)")
    case, answers = Case("f16", 700, 1, 2, 1, 16, 1100), []
    for source in (whole, broken):
        device = open_emulated(source=source)
        q, keys, values, position = (
            put(device, a) for a in (case.q, case.cache(2), case.cache(3), case.positions)
        )
        partial, y = (
            device.empty(attention_sums_bytes(1, 2, 16, 1100) // 4, "f4"),
            device.empty((1, 2, 16), "f4"),
        )
        places = position, partial, put(device, np.zeros(1, "u4")), y, *case.sizes, n_parts(1100)
        arguments = (q, keys, values, *places, *case.scores(q).arguments, *Rounded.nowhere(y))
        for _ in range(2):
            nothing = device.pinned(y.shape, "f4")
            nothing.array[:] = np.nan
            device.upload(y, nothing, device.compute)
            attention_part("f16", *case.sizes[:3], 5, 701).launch(device, arguments, device.compute)
        answers.append(get(device, y))
    assert close(answers[0], case.want()) and np.isnan(answers[1]).all()


def host_of(device: Device, position: int) -> Any:
    host = device.pinned(1, "i4")
    host.array[:] = position
    return host


# Sizes


@pytest.mark.parametrize(
    ("n_ctx", "parts"), [(1, 1), (256, 1), (257, 2), (1025, 5), (4096, 16), (1 << 20, 4096)]
)
def test_parts_are_of_256_positions(n_ctx: int, parts: int) -> None:
    assert n_parts(n_ctx) == parts
    assert is_split(1, n_ctx) == (parts > 1)
    assert attention_sums_bytes(1, 3, 64, n_ctx) == (0 if parts == 1 else 4 * 3 * parts * 66)
    assert attention_sums_bytes(2, 3, 64, n_ctx) == 0


@pytest.mark.parametrize(
    ("n_ctx", "classes"),
    [
        (1, (1,)),
        (256, (1,)),
        (300, (1, 2)),
        (1024, (1, 2, 4)),
        (1100, (1, 2, 4, 5)),
        (131072, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
    ],
)
def test_a_token_is_of_the_smallest_class_that_holds_its_positions(
    n_ctx: int, classes: tuple[int, ...]
) -> None:
    assert part_classes(n_ctx) == classes
    borders = {n for parts in classes for n in (256 * parts, 256 * parts + 1) if n <= n_ctx}
    for n in sorted(borders | {1, n_ctx}):
        assert parts_for(n, n_ctx) == min(parts for parts in classes if 256 * parts >= n)


@pytest.mark.parametrize("n_rows", [1, 64, 256, 257, 512, 1100])
def test_a_window_touches_no_more_parts_than_its_cache_has_blocks_for(n_rows: int) -> None:
    for end in range(1, 1101):
        touched = (end - 1) // 256 - max(0, end - n_rows) // 256 + 1
        assert touched <= min(parts_for(end, 1100), most_parts(n_rows, 1100))
