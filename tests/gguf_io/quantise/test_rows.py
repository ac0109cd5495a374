"""Kernels against their definitions in NumPy and against llama.cpp's bytes."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from hotcold.gguf_io import blocks
from hotcold.gguf_io.quantise.halves import half_bits, half_value
from hotcold.gguf_io.quantise.ref import DEFINITIONS, define
from hotcold.gguf_io.quantise.rows import KERNELS, quantise_rows

T = GGMLQuantizationType
RECORDED = np.load(Path(__file__).parents[2] / "data" / "quantise" / "recorded.npz")
IMPORTANCE = RECORDED["importance"]
NAMES = [name for name in RECORDED.files if "." not in name and name != "importance"]
SLOW = (T.Q2_K, T.Q3_K, T.IQ4_NL)  # nothing else in a quick run compiles these, which takes seconds each
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KERNELS]


def differing(a: NDArray[np.uint8], b: NDArray[np.uint8], kind: T) -> int:
    """How many blocks are not the same."""
    size = GGML_QUANT_SIZES[kind][1]
    return int((a.reshape(-1, size) != b.reshape(-1, size)).any(1).sum())


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_llama_cpps(kind: T, weigh: bool) -> None:
    importance, suffix = (IMPORTANCE, ".importance") if weigh else (None, "")
    for name in NAMES:
        theirs = RECORDED[f"{name}.{kind.name}{suffix}"]
        assert differing(quantise_rows(RECORDED[name], kind, importance), theirs, kind) == 0, name


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("kind", KERNELS)
def test_the_definition_is_llama_cpps_too(kind: T, weigh: bool) -> None:
    importance, suffix = (IMPORTANCE, ".importance") if weigh else (None, "")
    for name in NAMES:
        theirs = RECORDED[f"{name}.{kind.name}{suffix}"]
        assert differing(define(RECORDED[name], kind, importance), theirs, kind) == 0, name


def odd_rows(kind: T, n_blocks: int) -> NDArray[np.float32]:
    """7 rows of so many blocks: sizes that differ by group, outliers, ties, a zero block, a constant one."""
    random, block = np.random.default_rng(n_blocks), GGML_QUANT_SIZES[kind][0]
    sizes = np.exp(2 * random.standard_normal((7, n_blocks, block // 16, 1)))
    rows = np.asarray(sizes * random.standard_normal((7, n_blocks, block // 16, 16)))
    rows[random.random(rows.shape) < 0.01] *= 50
    rows[1] = np.round(rows[1], 1)
    rows[2, 0] = 0
    rows[3, -1] = -1.5
    return np.asarray(rows.reshape(7, n_blocks * block), np.float32)


@pytest.mark.parametrize("n_blocks", [1, 3, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_do_what_is_defined(kind: T, n_blocks: int) -> None:
    rows = odd_rows(kind, n_blocks)
    importance = np.random.default_rng(9).random((rows.shape[1],), np.float32)
    for weights in (None, importance):
        assert differing(quantise_rows(rows, kind, weights), define(rows, kind, weights), kind) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_and_threads_do_not_show(kind: T, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = odd_rows(kind, 2)
    whole = quantise_rows(rows, kind)
    monkeypatch.setattr("hotcold.gguf_io.quantise.rows.TASK_NUMBERS", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3))
    assert np.array_equal(quantise_rows(rows, kind), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_zeros_hold_zeros(kind: T) -> None:
    rows = np.zeros((3, 256), np.float32)
    for weights in (None, np.ones(256, np.float32), np.zeros(256, np.float32)):
        assert not blocks.dequantize(quantise_rows(rows, kind, weights), kind).any()


@pytest.mark.parametrize("kind", KINDS)
def test_importance_lessens_the_error_where_it_is(kind: T) -> None:
    """Not of Q8_0 and MXFP4, which llama.cpp rounds alike with and without it."""
    rows = RECORDED["normal"]
    importance = np.where(np.arange(rows.shape[1]) % 8 == 0, 100, 0.01).astype(np.float32)

    def error(packed: NDArray[np.uint8]) -> float:
        return float((importance * (blocks.dequantize(packed, kind) - rows) ** 2).sum())

    plain, weighed = quantise_rows(rows, kind), quantise_rows(rows, kind, importance)
    if kind in (T.Q8_0, T.MXFP4):
        assert np.array_equal(plain, weighed)
    else:
        assert error(weighed) < 0.9 * error(plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_ends(kind: T, bad: float) -> None:
    """What comes out is not defined; a block beside it is as it was."""
    block = GGML_QUANT_SIZES[kind][0]
    rows = odd_rows(kind, 2)
    whole = quantise_rows(rows, kind)
    rows[:, 5] = bad
    size = whole.shape[1] // 2
    assert np.array_equal(quantise_rows(rows, kind)[:, size:], whole[:, size:])
    assert rows.shape[1] == 2 * block


def test_every_kernel_is_defined() -> None:
    assert KERNELS.keys() == DEFINITIONS.keys()


def test_no_rows() -> None:
    assert quantise_rows(np.empty((0, 512), np.float32), T.Q6_K).shape == (0, 420)
    assert quantise_rows(np.empty((2, 0), np.float32), T.Q4_0).shape == (2, 0)


def test_half_floats() -> None:
    """To the bits that NumPy gives, and back; numbers around the ends of normal and of small halves."""
    random = np.random.default_rng(0)
    ends = [0, -0.0, 65504, 65519.996, 65520, 2**-14, 2**-24, 2**-25, 3 * 2**-25, np.inf, -np.inf, np.nan]
    numbers = np.concatenate(
        (
            random.integers(0, 1 << 32, 500, np.uint32).view(np.float32),
            random.standard_normal(500) * 10.0 ** random.uniform(-9, 6, 500),
            np.array(ends),
        )
    ).astype(np.float32)
    with np.errstate(over="ignore"):
        halves = numbers.astype(np.float16)
    for number, half in zip(numbers, halves, strict=True):
        bits = half_bits(number)
        if np.isnan(number):
            assert bits & 0x7FFF > 0x7C00
        else:
            assert bits == half.view(np.uint16)
            assert np.float16(half_value(bits)) == half
