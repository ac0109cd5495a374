"""Forms of a budget, and what each of them means."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotcold.engine.plan.budget import (
    GIB,
    MIB,
    DeviceFacts,
    facts_of_card,
    parse_budget,
    parse_budgets,
    parse_size,
    resolve_budget,
)
from hotcold.errors import DeviceError, DoesNotFitError, SettingError

CARD = DeviceFacts("a card", 24 * GIB, 512 * MIB)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("8", 8 * GIB),
        (8, 8 * GIB),
        (0.5, GIB // 2),
        ("8GiB", 8 * GIB),
        ("8 gib", 8 * GIB),
        ("8G", 8 * GIB),
        ("8GB", 8 * 10**9),
        ("6000MiB", 6000 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("123B", 123),
        ("0", 0),
        ("0G", 0),
        ("1T", 1024 * GIB),
    ],
)
def test_sizes(text: Any, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes
    assert resolve_budget(parse_budget(text)).n_bytes == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "-1", -1, "much", "nan", "inf", "8 8", "8GiBs", "1e3", True, "80%%", "-5%", "101%", "9" * 400],
)
def test_nonsense_is_refused(text: Any) -> None:
    with pytest.raises(SettingError, match="^vram_budget: "):
        resolve_budget(parse_budget(text), CARD)


@pytest.mark.parametrize("text", ["101%", "8GB,", ",8GB", "8GB,,6GB"])
def test_nonsense_is_refused_before_a_card_is_asked(text: str) -> None:
    with pytest.raises(SettingError, match=f"^vram_budget: {text} "):
        parse_budgets(text)


@pytest.mark.parametrize("text", ["auto", "80%"])
def test_a_share_of_nothing_names_the_flag(text: str) -> None:
    with pytest.raises(DeviceError, match="--device-memory"):
        resolve_budget(parse_budget(text))


def test_auto_leaves_room_for_the_context() -> None:
    assert resolve_budget(parse_budget("auto"), CARD).n_bytes == 24 * GIB - 512 * MIB
    assert resolve_budget(parse_budget("50%"), CARD).n_bytes == 12 * GIB


def test_a_budget_beyond_the_card_is_refused() -> None:
    assert resolve_budget(parse_budget("23GiB"), CARD).n_bytes == 23 * GIB
    with pytest.raises(DoesNotFitError, match="lower it"):
        resolve_budget(parse_budget("24GiB"), CARD)


def test_what_a_card_keeps_back_is_not_called_its_context_alone() -> None:
    """Its context is there already when it is asked: the margin is what others may take."""
    card = facts_of_card("a card", 10 * GIB, 24 * GIB)
    with pytest.raises(DoesNotFitError, match=f"{64 * MIB} of them for CUDA and others"):
        resolve_budget(parse_budget("24GiB"), card)


@given(st.text(max_size=8))
def test_no_text_ends_in_anything_but_a_size_or_a_refusal(text: str) -> None:
    try:
        assert resolve_budget(parse_budget(text), CARD).n_bytes >= 0
    except (SettingError, DoesNotFitError) as error:
        assert "vram_budget" in str(error)


@pytest.mark.parametrize(
    ("budget", "is_none"), [("0", True), (0, True), ("0%", True), ("auto", False), ("1KiB", False)]
)
def test_no_budget(budget: Any, is_none: bool) -> None:
    assert parse_budget(budget).is_none is is_none


@pytest.mark.parametrize("budget", ["much", -1, "nan", True])
def test_a_budget_that_means_nothing(budget: Any) -> None:
    with pytest.raises(SettingError, match=f"^vram_budget: {budget}"):
        parse_budget(budget)


def test_as_much_as_kernels_took_stays_free_again() -> None:
    facts = [facts_of_card("a card", 10 * GIB, 24 * GIB, taken) for taken in (0, 10 << 20, 100 << 20)]
    assert [10 * GIB - (each.free or 0) for each in facts] == [64 << 20, 64 << 20, 100 << 20]
    assert [each.context_bytes for each in facts] == [64 << 20, 64 << 20, 100 << 20]
