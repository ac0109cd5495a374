"""What --device and --vram-budget mean together, before a device is looked at."""

from typing import Any

import pytest

from hotcold.engine.device.choice import DeviceChoice
from hotcold.engine.run.request import parse_request
from hotcold.errors import DeviceError, SettingError


@pytest.mark.parametrize(
    ("device", "budget", "choice"),
    [
        ("auto", "auto", DeviceChoice("auto")),
        ("cpu", 0, DeviceChoice("cpu")),
        ("cpu", "auto", DeviceChoice("cpu")),
        ("auto", "0G", DeviceChoice("auto")),
        ("cuda", "6G", DeviceChoice("cuda")),
        ("cuda:1", "6G", DeviceChoice("cuda", 1)),
        ("emulated", "80%", DeviceChoice("emulated")),
    ],
)
def test_what_names_a_device_is_accepted(device: str, budget: Any, choice: DeviceChoice) -> None:
    assert parse_request(device, budget).devices == (choice,)


def test_a_list_may_have_spaces() -> None:
    found = parse_request("cuda:1, cuda:0", "6G, 4G").devices
    assert found == (DeviceChoice("cuda", 1), DeviceChoice("cuda", 0))


@pytest.mark.parametrize(
    ("device", "budget", "kind", "message"),
    [
        ("gpu", 0, SettingError, r"^device: gpu \(auto, cpu, cuda, cuda:N, emulated, or cards with commas\)"),
        ("tpu", "auto", SettingError, "^device: tpu"),
        ("cuda:-1", "auto", SettingError, "^device: cuda:-1"),
        ("cuda:1:2", "auto", SettingError, "^device: cuda:1:2"),
        ("", "auto", SettingError, "^device: "),
        ("cuda:", "auto", SettingError, "^device: cuda:"),
        ("cuda:x", "auto", SettingError, "^device: cuda:x"),
        ("cpu", 800_000_000, DeviceError, "^vram_budget: 800000000"),
        ("cpu", "6G", DeviceError, "^vram_budget: 6G .device cpu has no VRAM"),
        ("cuda:0,cuda:0", "6G", SettingError, "the same card twice"),
        ("cuda,cuda:1", "6G", SettingError, "several cards are all cuda:N or all emulated:N"),
        ("cuda:0,emulated:1", "6G", SettingError, "several cards are all cuda:N"),
        ("cuda:0,cpu", "6G", SettingError, "several cards are all cuda:N"),
        ("cuda:0,cuda:1", "6G,0", SettingError, "a card of several has a budget above 0"),
        ("cuda:0,cuda:1", "6G,4G,2G", SettingError, r"3 budgets for 2 cards"),
        ("cuda:0", "6G,4G", SettingError, r"2 budgets for 1 card\)"),
        ("auto", "6G,4G", SettingError, r"2 budgets for 1 card\)"),
        ("cpu", "much", SettingError, "^vram_budget: much"),
    ],
)
def test_what_names_none_is_refused(device: str, budget: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        parse_request(device, budget)
