"""Surroundings of the commands."""

import pytest

from hotcold.engine.device import devices


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a card, whatever there is."""
    monkeypatch.setattr(devices, "first_card", lambda: None)
