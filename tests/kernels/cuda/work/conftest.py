"""A device that notes every byte that is touched."""

from collections.abc import Callable
from typing import Any

import pytest
from touched_bytes import Touched

from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver
from hotcold.kernels.cuda.work import Work


@pytest.fixture
def device(open_emulated: Callable[..., Device]) -> Device:
    return open_emulated(build_kind="races", policy="eager")


@pytest.fixture
def touched(device: Device) -> Touched:
    """Launches some work: the bytes that it read and wrote."""

    def run(work: Work, arguments: tuple[Any, ...]) -> tuple[int, int]:
        work.launch(device, arguments, device.compute)
        assert isinstance(device.driver, EmulatedDriver)
        return device.driver.touched()

    return run
