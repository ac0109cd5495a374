"""How long a context is, and how many tokens run together."""

import pytest

from hotcold.engine.model.context import ContextLength, batch_length, context_length
from hotcold.errors import SettingError


def test_context_is_the_models_up_to_4096() -> None:
    assert context_length(None, 512) == ContextLength(512)
    assert context_length(None, 131072) == ContextLength(4096)
    assert context_length(8192, 131072) == ContextLength(8192)


def test_a_longer_context_than_trained_warns() -> None:
    context = context_length(513, 512)
    assert context.n_ctx == 513
    assert "513" in context.warning
    assert "512" in context.warning


def test_batch_is_clamped_to_the_context() -> None:
    assert batch_length(512, 100) == 100
    assert batch_length(7, 100) == 7
    with pytest.raises(SettingError, match="n_batch: 0"):
        batch_length(0, 100)
