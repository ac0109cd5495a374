"""bench/train.py says what training takes, on a shape that takes a moment."""

import re

import pytest
import train


def test_a_planted_layer_is_learned_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TILE_SECONDS", 0.0)
    monkeypatch.setattr(train, "TILE_ROWS", 256)
    lines = train.report(train.Shape(n_embd=128, n_ff=256, rank=128, n_tokens=4096, epochs=40))
    recall, listed, firing = (float(n) for n in re.findall(r"([\d.]+)%", lines[1]))
    assert 5 < firing < 20
    assert recall > 80 and listed < 40  # a table of no use would list as much as it recalls
    assert "4096 tokens, 220 steps" in lines[0] and "GFLOP/s" in lines[3]
