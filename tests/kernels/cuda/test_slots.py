"""Caches of several sequences, one behind the other: a token writes and reads its own, with the bits it has alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attention_case import Case
from kv_rows import rounded, whole
from operands import Array, Get, Put, empty_quantised, normal

from hotcold.kernels import ref
from hotcold.kernels.cuda.attention import (
    ONE_SEQUENCE,
    Rounded,
    Sequences,
    arrived_bytes,
    attention,
    attention_part,
)
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.formats import KV_TYPES, attention_sums_bytes, n_parts

pytestmark = pytest.mark.pairwise
Open = Callable[..., Device]
OpenChanged = Callable[[str, str, str], Device]
N_SLOTS = 4
SLOTS = 3, 0, 2
"""Of three tokens."""


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_keys_and_values_go_to_the_slot(device: Device, put: Put, get: Get, kv_type: str) -> None:
    """Of a window of 10 positions, whose rows all slots write at different places, or at one."""
    n_head_kv, head_dim, n_rows, places = 2, whole(kv_type, 12), 10, [39, 3, 43, *SLOTS]
    k, v = (normal(3, n_head_kv, head_dim, seed=i) for i in (1, 2))
    shape = N_SLOTS * n_head_kv, n_rows, head_dim
    empty = ref.cached(kv_type, np.full(shape, np.nan, np.float32))
    given, keys, values = put(device, k), put(device, empty), put(device, empty)
    sizes = 3, 0, n_head_kv, head_dim
    arguments = (given, given, put(device, v), given, put(device, np.array(places, "i4")), given)
    work = rope_kv_store(kv_type, *sizes, 0, N_SLOTS)
    work.launch(device, (*arguments, keys, values, *sizes, 0, 1, n_rows, N_SLOTS), device.compute)
    for buffer, wanted in ((keys, k), (values, v)):
        want = np.full((N_SLOTS, n_head_kv, n_rows, head_dim), np.nan, np.float32)
        want[list(SLOTS), :, [9, 3, 3]] = rounded(kv_type, wanted)
        np.testing.assert_array_equal(ref.cache_numbers(get(device, buffer), shape).reshape(want.shape), want)


def three(kv_type: str, n_head: int, n_head_kv: int, head_dim: int, window: int = 0) -> list[Case]:
    """Tokens of three sequences: of a part, of several, and the first of all."""
    sizes = n_head, n_head_kv, head_dim, 620, window, True
    return [Case(kv_type, n_past, 1, *sizes) for n_past in (20, 600, 0)]


def rows_of(case: Case, slot: int, seed: int) -> Array:
    """Keys or values of a sequence, NaN where no position is."""
    rows = np.full((case.n_head_kv, case.n_ctx, case.head_dim), np.nan, np.float32)
    rows[:, : case.n_keys] = normal(case.n_head_kv, case.n_keys, case.head_dim, seed=10 * slot + seed)
    return rows


def q_of(case: Case, slot: int) -> Array:
    return 2 * normal(1, case.n_head, case.head_dim, seed=slot)


def attended(
    device: Device, put: Put, get: Get, cases: Sequence[Case], caches: list[Array], split: bool
) -> list[bytes]:
    """What the tokens of these cases give together, rounded too: of one alone, or of all in their slots."""
    case, n = cases[0], len(cases)
    slots = SLOTS if n > 1 else (0,)
    sequences = Sequences(N_SLOTS, n) if n > 1 else ONE_SEQUENCE
    q = np.concatenate([q_of(each, slot) for each, slot in zip(cases, of_cases(cases), strict=True)])
    places = [each.n_past for each in cases] + (list(slots) if n > 1 else [])
    y, out = device.empty(q.shape, "f4"), empty_quantised(device, n, case.n_head * case.head_dim)
    given = put(device, q), *(put(device, each) for each in caches), put(device, np.array(places, "i4"))
    scores = replace(case.scores(put(device, case.sinks)), sequences=sequences)
    rest = *scores.arguments, *Rounded.to(out)
    if split:
        parts, heads = n_parts(case.n_ctx), case.sizes[:3]
        sums = n * attention_sums_bytes(1, case.n_head, case.head_dim, case.n_ctx) // 4
        arrived = put(device, np.zeros(n * arrived_bytes(case.kv_type, *heads) // 4, "u4"))
        work = attention_part(case.kv_type, *heads, parts, case.n_ctx, True, sequences)
        arguments = (*given, device.empty(sums, "f4"), arrived, y, *case.sizes, parts, *rest)
        work.launch(device, arguments, device.compute)
        assert not get(device, arrived).any()
    else:
        work = attention(case.kv_type, n, *case.sizes[:3], case.n_ctx, True, sequences)
        work.launch(device, (*given, y, n, *case.sizes, *rest), device.compute)
    return [
        b"".join(bytes(get(device, each).reshape(n, -1)[i].tobytes()) for each in (y, *out)) for i in range(n)
    ]


def of_cases(cases: Sequence[Case]) -> tuple[int, ...]:
    """The slots of the cases, by where their tokens are."""
    return tuple({20: 3, 600: 0, 0: 2}[case.n_past] for case in cases)


def both(kv_type: str, cases: Sequence[Case], slots: Sequence[int]) -> list[Array]:
    """Keys and values of these slots, behind each other."""
    by_slot = dict(zip(of_cases(cases), cases, strict=True))
    found = []
    for seed in (2, 3):
        empty = np.full((cases[0].n_head_kv, cases[0].n_ctx, cases[0].head_dim), np.nan, np.float32)
        rows = [rows_of(by_slot[s], s, seed) if s in by_slot else empty for s in slots]
        found.append(ref.cached(kv_type, np.concatenate(rows)))
    return found


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("heads", "window"), [((6, 2), 0), ((2, 2), 0), ((9, 1), 300)])
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_attention_reads_the_slot(
    device: Device, put: Put, get: Get, kv_type: str, heads: tuple[int, int], window: int, split: bool
) -> None:
    cases = three(kv_type, *heads, 32, window)
    wanted = [
        attended(device, put, get, [case], both(kv_type, [case], of_cases([case])), False)[0]
        for case in cases
    ]
    assert attended(device, put, get, cases, both(kv_type, cases, range(N_SLOTS)), split) == wanted


WRONG = {
    "always the first slot": ("positions[n_tokens + token] : 0;", "positions[n_tokens + token] * 0 : 0;"),
    "the first token's slot": ("positions[n_tokens + token] : 0;", "positions[n_tokens] : 0;"),
    "a block with queries of two tokens": (
        "int each = n / n_apart, of_each = blocks / n_apart,",
        "int each = n, of_each = blocks; n_apart = 1; int",
    ),
    "the first token's positions": ("positions[token] + 1;", "positions[0] + 1;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_slot_shows(
    open_emulated: Open, open_changed: OpenChanged, put: Put, get: Get, name: str, split: bool
) -> None:
    """Seven queries a token, so that a block that takes four, or eight, takes them from two."""
    source, cases = program(SOURCES / "attention.cu"), three("f32", 7, 1, 32)
    caches: Any = both("f32", cases, range(N_SLOTS))
    devices = open_emulated(source=source, build_kind="fast"), open_changed(source, *WRONG[name])
    y = [attended(device, put, get, cases, caches, split) for device in devices]
    assert y[0] != y[1]
