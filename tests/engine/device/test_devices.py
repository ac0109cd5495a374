"""`hotcold devices`: what is there, what is usable, and why not."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from stub_cupy import StubCupy

from hotcold.engine.device import devices
from hotcold.engine.device.choice import DeviceChoice
from hotcold.engine.device.devices import (
    DeviceInfo,
    describe_devices,
    devices_json,
    open_device,
    render_devices,
)
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device import cuda_driver
from hotcold.kernels.cuda.device.sources import SOURCES, program
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy with two cards; nothing can be run on them."""
    memory: Any = SimpleNamespace(free_and_total=lambda: (3 << 30, 8 << 30))
    cupy = StubCupy(memory, cards=2, driver_version=12040)
    cupy.cuda.Device = lambda index: nullcontext()
    monkeypatch.setattr(devices, "load_cupy", lambda: cupy)
    return cupy


def by_name(found: list[DeviceInfo]) -> dict[str, DeviceInfo]:
    return {device.name: device for device in found}


def test_cards_come_with_memory_and_versions(two_cards: Any) -> None:
    found = by_name(describe_devices())
    assert list(found) == ["cpu", "cuda:0", "cuda:1", "emulated"]
    card = found["cuda:1"]
    assert card.usable and card.description == "stub card 1" and card.architecture == 86
    assert (card.memory_free, card.memory_total) == (3 << 30, 8 << 30)
    assert (card.driver_version, card.runtime_version) == ("12.4", "12.9")
    text = render_devices([card])
    assert "3.0 of 8.0 GiB free, sm_86, driver for CUDA 12.4, runtime 12.9, kernels by NVRTC" in text
    wrapped = render_devices([card], 80)
    assert max(map(len, wrapped.splitlines())) <= 80 and wrapped.split() == text.split()


def test_a_card_without_nvrtc_is_not_usable(two_cards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise DeviceError("NVRTC", "not found", "it compiles the kernels", "pip install it")

    monkeypatch.setattr(devices, "load_nvrtc", missing)
    card = by_name(describe_devices())["cuda:0"]
    assert not card.usable and card.problem == "NVRTC: not found (it compiles the kernels); pip install it"


def test_a_card_that_does_not_answer_is_not_usable(two_cards: Any) -> None:
    def broken() -> tuple[int, int]:
        raise two_cards.cuda.runtime.CUDARuntimeError(46)

    two_cards.cuda.runtime.memGetInfo = broken
    card = by_name(describe_devices())["cuda:0"]
    assert not card.usable and "cudaError 46 (it is in exclusive mode, or busy)" in card.problem


def test_the_first_card_is_enough(two_cards: Any) -> None:
    """A context on each card would take memory there that nobody uses."""
    asked: list[int] = []

    def device(index: int) -> Any:
        asked.append(index)
        return nullcontext()

    two_cards.cuda.Device = device
    card = devices.first_card()
    assert card is not None and card.name == "cuda:0" and asked == [0]


def test_a_broken_card_does_not_hide_the_others(two_cards: Any) -> None:
    """Not even its name can be asked for."""
    properties = two_cards.cuda.runtime.getDeviceProperties

    def of_the_second(index: int) -> Any:
        if index == 0:
            raise two_cards.cuda.runtime.CUDARuntimeError(700)
        return properties(index)

    two_cards.cuda.runtime.getDeviceProperties = of_the_second
    found = by_name(describe_devices())
    assert not found["cuda:0"].usable and "cudaError 700 (it does not answer)" in found["cuda:0"].problem
    assert found["cuda:1"].usable and found["cuda:1"].description == "stub card 1"


@pytest.mark.parametrize("status", [2, 46, 700])
def test_auto_takes_the_next_card_or_none(
    compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    small = program(SOURCES / "add.cu")
    monkeypatch.setattr(cuda_driver, "untyped", lambda: SimpleNamespace(source=small))
    cupy = StubCupy(EmulatedDriver(small), cards=2)
    cupy.statuses[0] = status
    monkeypatch.setattr(devices, "load_cupy", lambda: cupy)
    device = open_device(DeviceChoice("auto"))
    assert device is not None and device.name == "cuda:1" and "cuda:0 is not used" in caplog.text
    device.close()
    cupy.statuses[1] = status
    assert open_device(DeviceChoice("auto")) is None and f"cudaError {status}" in caplog.text


def test_without_cupy_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda = by_name(describe_devices())["cuda"]
    assert not cuda.usable and "pip install cupy-cuda12x" in cuda.problem


def test_without_a_compiler_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    emulated = by_name(describe_devices())["emulated"]
    assert not emulated.usable and "install g++" in emulated.problem
    assert "not usable" in render_devices([emulated]) and "install g++" in render_devices([emulated])


def test_the_compiler_is_named(compiler: str) -> None:
    emulated = by_name(describe_devices())["emulated"]
    assert emulated.usable and emulated.compiler and not emulated.problem


def test_the_json_has_every_field() -> None:
    found = devices_json([DeviceInfo("cpu", "a CPU", usable=True)])
    assert json.loads(json.dumps(found)) == found
    assert found["devices"][0] == {
        "name": "cpu",
        "description": "a CPU",
        "usable": True,
        "problem": "",
        "memory_total": 0,
        "memory_free": 0,
        "architecture": 0,
        "driver_version": "",
        "runtime_version": "",
        "compiler": "",
    }


def test_cpu_and_auto_without_a_card_are_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert open_device(DeviceChoice("cpu")) is None and open_device(DeviceChoice("auto")) is None
    with pytest.raises(DeviceError, match="pip install cupy-cuda12x"):
        open_device(DeviceChoice("cuda"))


def test_auto_says_why_a_card_is_not_used(two_cards: Any, caplog: pytest.LogCaptureFixture) -> None:
    old = {"name": b"old", "major": 1, "minor": 0, "multiProcessorCount": 1}
    two_cards.cuda.runtime.getDeviceProperties = lambda index: old
    two_cards.cuda.Device = lambda index: SimpleNamespace(use=lambda: None)
    assert open_device(DeviceChoice("auto")) is None
    assert "cuda:0 is not used: architecture of the card: sm_10 (the kernels need sm_61)" in caplog.text
    assert "cuda:1 is not used" in caplog.text


def test_emulated_opens(compiler: str) -> None:
    device = open_device(DeviceChoice("emulated"))
    assert device is not None and device.name == "emulated"
    device.close()
