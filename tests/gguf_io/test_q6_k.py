"""Rounding to Q6_K against llama.cpp's bytes."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from hotcold.gguf_io import blocks
from hotcold.gguf_io.q6_k import quantize_q6_k

RECORDED = np.load(Path(__file__).parents[1] / "data" / "q6_k" / "recorded.npz")
KINDS = [name for name in RECORDED.files if not name.endswith(".q6_k")]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_llama_cpps(kind: str) -> None:
    assert np.array_equal(quantize_q6_k(RECORDED[kind]), RECORDED[f"{kind}.q6_k"])


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotcold.gguf_io.q6_k.SLAB_BLOCKS", 5)
    assert np.array_equal(quantize_q6_k(RECORDED["mixed"]), RECORDED["mixed.q6_k"])


def test_numbers_come_back_within_half_a_step() -> None:
    """A group's step is at most its largest number / 31 and what the 8 bits of its scale lose."""
    x = RECORDED["normal"]
    back = blocks.dequantize(blocks.quantize(x, GGMLQuantizationType.Q6_K), GGMLQuantizationType.Q6_K)
    groups = np.abs(x).reshape(-1, 16)
    assert (np.abs(back - x).reshape(-1, 16) <= 0.6 / 31 * groups.max(1, keepdims=True)).all()


def test_no_rows() -> None:
    assert quantize_q6_k(np.empty((0, 512), np.float32)).shape == (0, 420)
