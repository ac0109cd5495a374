"""The bytes that a kernel says it reads and writes are the bytes that it touches: of those that read none.

The race build of the emulated device notes every byte. Sizes are such that no row needs padding.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from operands import empty_quantised
from touched_bytes import Touched, cache, filled, ones

from hotcold.kernels.cuda.add import HAS_BIAS, HAS_OTHER, HAS_RESIDUAL, add, merge
from hotcold.kernels.cuda.attention import Rounded, Scores, Sequences, attention, attention_part
from hotcold.kernels.cuda.candidates import candidates
from hotcold.kernels.cuda.compact import compact
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.expert_sum import expert_sum, mul_sigmoid
from hotcold.kernels.cuda.hidden_masked import hidden_masked, hidden_masked_gated, hidden_of_experts
from hotcold.kernels.cuda.keep_some import keep_some
from hotcold.kernels.cuda.layer_norm import layer_norm, layer_norm_quantised
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.rms_norm import rms_norm, rms_norm_quantised
from hotcold.kernels.cuda.rope import rope_kv_store
from hotcold.kernels.cuda.scale import scale
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.top_k import top_k
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import (
    ACTIVATIONS,
    CANDIDATE_WORDS,
    KV_TYPES,
    candidate_parts_bytes,
    n_groups,
    n_parts,
)

pytestmark = pytest.mark.pairwise


def test_rows_and_vectors(device: Device, touched: Touched) -> None:
    tokens, n = 2, 320
    x, w, y = ones(device, tokens, n), ones(device, n), device.empty((tokens, n), "f4")
    bias, other, residual = ones(device, n), ones(device, tokens, n), ones(device, tokens, n)
    out, of_x = (
        (device.empty(tokens * n, "i1"), device.empty(20, "f4"), device.empty(20, "i4")) for _ in range(2)
    )
    cases: list[tuple[Work, tuple[Any, ...]]] = [
        (rms_norm(tokens, n), (x, w, y, n, 1e-5)),
        (rms_norm_quantised(tokens, n), (x, w, *out * 2, n, 1e-5, 0)),
        (rms_norm_quantised(tokens, n, rounds_x=True), (x, w, *out, *of_x, n, 1e-5, 1)),
        (layer_norm(tokens, n), (x, w, bias, y, n, 1e-5)),
        (layer_norm_quantised(tokens, n), (x, w, bias, *out * 2, n, 1e-5, 0)),
        (layer_norm_quantised(tokens, n, rounds_x=True), (x, w, bias, *out, *of_x, n, 1e-5, 1)),
        (quantise(tokens, n), (x, *out, tokens * n // 32)),
        (add(tokens * n), (x, x, y, tokens * n)),
        *(
            (merge(tokens, n, flags), (x, bias, other, residual, y, n, flags))
            for flags in (0, HAS_BIAS, HAS_OTHER | HAS_RESIDUAL)
        ),
    ]
    for work, arguments in cases:
        shared_operand = 4 * tokens * n if work.kernel == "add" else 0  # x is given twice
        assert touched(work, arguments) == (work.bytes_read - shared_operand, work.bytes_written), work


def test_compact(device: Device, touched: Touched) -> None:
    n, mask = 320, np.zeros((2, 10), "u4")
    mask[:, ::2] = 0xF0
    arguments = filled(device, mask), filled(device, np.full(10, 0xFFFFFFFF, "u4"))
    outs = device.empty((2, n), "i4"), device.empty(2, "i4"), filled(device, np.zeros(1, "u4"))
    work = compact(2, n, n, n_active=20)
    assert touched(work, (*arguments, *outs, n, 10)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("flags", [0, HAS_BIAS, HAS_BIAS | HAS_OTHER | HAS_RESIDUAL])
def test_sum_groups(device: Device, touched: Touched, flags: int) -> None:
    rows, n, tokens = 150, 256, 2
    bias, other, residual = ones(device, n), ones(device, tokens, n), ones(device, tokens, n)
    partial, y = ones(device, tokens, n_groups(rows), n), device.empty((tokens, n), "f4")
    work = sum_groups(tokens, rows, n, flags)
    arguments = (partial, bias, other, residual, y, n_groups(rows), n, flags)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_hidden_masked_gated(device: Device, touched: Touched, has_mask: bool, has_bias: bool) -> None:
    """Half of 320 neurons are listed, and a quarter of their gates are shut."""
    tokens, rows, words = 2, 320, 10
    mask, gate = np.full((tokens, words), 0x55555555, "u4"), np.ones((tokens, rows), "f4")
    gate[:, ::8] = -1
    listing = filled(device, mask), filled(device, np.arange(rows, dtype="i4"))
    up, bias, h = ones(device, tokens, rows), ones(device, rows), device.empty((tokens, rows), "f4")
    n_listed = tokens * rows // (2 if has_mask else 1)
    work = hidden_masked_gated(tokens, rows, rows, has_mask, n_listed, n_listed - tokens * rows // 8)
    given = (filled(device, gate), up, *listing, h, rows, words, int(has_mask))
    arguments = (*given, ACTIVATIONS["relu"], up, listing[1], 0)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)
    n_open = n_listed - tokens * rows // 8  # silu(-1) is below 0.5, silu(1) is not
    work = hidden_masked_gated(tokens, rows, rows, has_mask, n_listed, n_open, has_least=True)
    least = filled(device, np.full(rows, 0.5, "f4")), filled(device, np.array([8, 9], "i4")), 1
    unread = 4 * rows // 2 * has_mask  # thresholds of neurons that no token lists
    got = touched(work, (*given, ACTIVATIONS["silu"], *least))
    assert got == (work.bytes_read - unread, work.bytes_written)
    work = hidden_masked(tokens, rows, rows, has_mask, has_bias, n_listed)
    numbers = rows, words, int(has_mask), int(has_bias), ACTIVATIONS["relu"]
    unread = 4 * rows // 2 if has_mask and has_bias else 0  # biases of neurons that no token lists
    got = touched(work, (up, bias, *listing, h, *numbers))
    assert got == (work.bytes_read - unread, work.bytes_written)


@pytest.mark.parametrize("n_rot", [0, 32, 64])
@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_rope_kv_store(device: Device, touched: Touched, kv_type: str, n_rot: int) -> None:
    q, k, v = (ones(device, 2, n, 64) for n in (5, 2, 2))
    table, positions = ones(device, 8, 32, 2), filled(device, np.array([3, 5, 1, 0], "i4"))
    keys, values = (cache(device, kv_type, 2 * 2, 8, 64) for _ in range(2))
    for q_out, n_slots in ((q, 1), (device.empty((2, 5, 64), "f4"), 2)):
        work = rope_kv_store(kv_type, 2, 5, 2, 64, n_rot, n_slots)
        arguments = (q, k, v, table, positions, q_out, keys, values, 2, 5, 2, 64, n_rot // 2, 1, 8, n_slots)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


def test_rope_kv_store_without_q_touches_the_rest_alone(device: Device, touched: Touched) -> None:
    k, v, positions = ones(device, 2, 2, 64), ones(device, 2, 2, 64), filled(device, np.array([3, 5], "i4"))
    keys, values = (cache(device, "f16", 2, 8, 64) for _ in range(2))
    work = rope_kv_store("f16", 2, 0, 2, 64, 0)
    arguments = (k, k, v, k, positions, k, keys, values, 2, 0, 2, 64, 0, 1, 8, 1)
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


def test_scale(device: Device, touched: Touched) -> None:
    x, y = ones(device, 300), device.empty(300, "f4")
    work = scale(300)
    assert touched(work, (x, y, 300, 0.5)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_attention(device: Device, touched: Touched, kv_type: str) -> None:
    """Positions 300 and 301 of 320: a second tile is begun."""
    q, y, positions = (
        ones(device, 2, 4, 32),
        device.empty((2, 4, 32), "f4"),
        filled(device, np.array([300, 301], "i4")),
    )
    keys, values = (cache(device, kv_type, 2, 320, 32) for _ in range(2))
    for rounded in (Rounded.nowhere(y), Rounded.to(empty_quantised(device, 2, 128))):
        work = attention(kv_type, 2, 4, 2, 32, 302, bool(rounded.there))
        sizes = 2, 4, 2, 32, 320
        arguments = (q, keys, values, positions, y, *sizes, *Scores.plain(q, 32).arguments, *rounded)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("n_apart", [1, 2])
@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_attention_of_slots(device: Device, touched: Touched, kv_type: str, n_apart: int) -> None:
    """Of three: both tokens of the last one, or each of another, at positions 300 and 301 of 320."""
    q, y = ones(device, 2, 4, 32), device.empty((2, 4, 32), "f4")
    positions = filled(device, np.array([301 - (n_apart == 1), 301, 2, 2 if n_apart == 1 else 0], "i4"))
    keys, values = (cache(device, kv_type, 3 * 2, 320, 32) for _ in range(2))
    sequences = Sequences(3, n_apart)
    work = attention(kv_type, 2, 4, 2, 32, 302, False, sequences)
    scores = replace(Scores.plain(q, 32), sequences=sequences)
    sizes = 2, 4, 2, 32, 320
    arguments = (q, keys, values, positions, y, *sizes, *scores.arguments, *Rounded.nowhere(y))
    assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_attention_of_slots_in_parts(device: Device, touched: Touched, kv_type: str) -> None:
    """Position 550 of 1100 in two of three slots."""
    parts, places = n_parts(1100), filled(device, np.array([550, 550, 2, 0], "i4"))
    partial, q, y = (
        device.empty((2, 4, parts, 34), "f4"),
        ones(device, 2, 4, 32),
        device.empty((2, 4, 32), "f4"),
    )
    keys, values = (cache(device, kv_type, 3 * 2, 1100, 32) for _ in range(2))
    sequences, arrived = Sequences(3, 2), filled(device, np.zeros(4, "u4"))
    scores = replace(Scores.plain(q, 32), sequences=sequences)
    rounded = Rounded.to(empty_quantised(device, 2, 128))
    work = attention_part(kv_type, 4, 2, 32, parts, 551, True, sequences)
    given = q, keys, values, places, partial, arrived, y, 4, 2, 32, 1100, parts
    assert touched(work, (*given, *scores.arguments, *rounded)) == (work.bytes_read, work.bytes_written)


@pytest.mark.parametrize("kv_type", list(KV_TYPES))
def test_attention_in_parts(device: Device, touched: Touched, kv_type: str) -> None:
    """Position 550 of 1100: three of five parts are in use."""
    parts, position = n_parts(1100), filled(device, np.array([550], "i4"))
    partial, q, y = device.empty((4, parts, 34), "f4"), ones(device, 4, 32), device.empty((4, 32), "f4")
    keys, values = (cache(device, kv_type, 2, 1100, 32) for _ in range(2))
    scores, arrived = Scores.plain(q, 32), filled(device, np.zeros(2, "u4"))
    for rounded in (Rounded.nowhere(y), Rounded.to(empty_quantised(device, 1, 128))):
        work = attention_part(kv_type, 4, 2, 32, parts, 551, bool(rounded.there))
        places = position, partial, arrived, y, 4, 2, 32, 1100, parts
        arguments = (q, keys, values, *places, *scores.arguments, *rounded)
        assert touched(work, arguments) == (work.bytes_read, work.bytes_written)


def test_candidates(device: Device, touched: Touched) -> None:
    n = 3000
    parts, arrived = device.empty(candidate_parts_bytes(n) // 8, "u8"), filled(device, np.zeros(1, "u4"))
    work, out = candidates(n), device.empty(CANDIDATE_WORDS, "i4")
    assert touched(work, (ones(device, n), parts, arrived, out, n, 0)) == (
        work.bytes_read,
        work.bytes_written,
    )


def test_keep_some(device: Device, touched: Touched) -> None:
    profile = np.repeat([-1, 1], [1500, 1500]).astype("f4")
    for given, work in ((profile, keep_some(3000, 1500)), (-np.abs(profile), keep_some(3000, 3000))):
        assert touched(work, (filled(device, given), 3000)) == (work.bytes_read, work.bytes_written)


def test_top_k(device: Device, touched: Touched) -> None:
    chosen, work = device.empty((2, 6), "i4"), top_k(2, 40, 3)
    assert touched(work, (ones(device, 2, 40), chosen, 40, 3, 0, 1, 1.0)) == (
        work.bytes_read,
        work.bytes_written,
    )


def test_hidden_of_experts(device: Device, touched: Touched) -> None:
    """One token's experts 0 and 2, of which 2 is not here; a quarter of the other's gates stay below."""
    gate, n_ff = np.ones((2, 320), "f4"), 320
    gate[:, ::4] = -1
    lists = filled(device, np.array([0, 1, -1], "i4")), filled(device, np.array([0, 2, 0, 0], "i4"))
    least = filled(device, np.full((2, n_ff), 0.5, "f4")), filled(device, np.array([8], "i4"))
    work = hidden_of_experts(1, 2, n_ff, 1, 240)
    arguments = (filled(device, gate), ones(device, 2, n_ff), *lists, *least, device.empty((2, n_ff), "f4"))
    got = touched(work, (*arguments, n_ff, 2, ACTIVATIONS["silu"]))
    assert got == (work.bytes_read, work.bytes_written)


def test_expert_sum_and_gate(device: Device, touched: Touched) -> None:
    slots, chosen = filled(device, np.array([0, 1, -1], "i4")), filled(device, np.array([0, 2, 0, 0], "i4"))
    x, y = ones(device, 2, 320), device.empty((1, 320), "f4")
    work = expert_sum(1, 2, 320, 1)
    assert touched(work, (x, slots, chosen, y, 320, 2)) == (work.bytes_read, work.bytes_written)
    work = mul_sigmoid(2, 160)
    gated = device.empty((2, 160), "f4")
    assert touched(work, (ones(device, 2, 160), ones(device, 2), gated, 160)) == (
        work.bytes_read,
        work.bytes_written,
    )
