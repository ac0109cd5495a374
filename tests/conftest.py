"""Devices for the tests: emulated everywhere, a real card where one exists."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.build import find_compiler
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

OpenEmulated = Callable[..., Device]
KeepDevice = Callable[[Device], Device]


def pytest_configure() -> None:
    """Let the commands that tests start heed Ctrl-C and a hangup, though the run itself may ignore them.

    A process inherits what its parent ignores, as nohup and a shell's background job do, but no handler.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def compiler() -> str:
    """The C++ compiler; HOTCOLD_REQUIRE_EMULATED forbids to go on without one."""
    try:
        return find_compiler()
    except DeviceError as error:
        if os.environ.get("HOTCOLD_REQUIRE_EMULATED"):
            pytest.fail(f"HOTCOLD_REQUIRE_EMULATED is set, but: {error}")
        pytest.skip(str(error))


@pytest.fixture
def keep_device() -> Iterator[KeepDevice]:
    """Takes devices; they are closed, and must then be empty, when the test ends."""
    with ExitStack() as stack:

        def keep(device: Device) -> Device:
            stack.enter_context(device)
            stack.callback(_check_empty, device)
            return device

        yield keep


def _check_empty(device: Device) -> None:
    device.close()
    assert device.counters.live_bytes == device.counters.pinned_bytes == 0


@pytest.fixture
def open_emulated(compiler: str, keep_device: KeepDevice) -> OpenEmulated:
    """Opens emulated devices for the length of a test; options are those of the emulated driver."""

    def open_device(**options: Any) -> Device:
        return keep_device(Device(EmulatedDriver(**options)))

    return open_device


@pytest.fixture
def card() -> Iterator[Device]:
    """The first CUDA card."""
    try:
        driver = CudaDriver()
    except DeviceError as error:
        pytest.skip(str(error))
    with Device(driver) as device:
        yield device
