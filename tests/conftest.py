"""Devices for the tests: emulated everywhere, a real card where one exists."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator.build import find_compiler
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

STUB_CUPY = Path(__file__).parent / "kernels" / "cuda" / "device" / "stub_cupy.py"
OpenEmulated = Callable[..., Device]
KeepDevice = Callable[[Device], Device]


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


@pytest.fixture(scope="session")
def stub_cupy() -> ModuleType:
    """The module stub_cupy.py: as much of CuPy as the driver needs, on the emulated device."""
    spec = importlib.util.spec_from_file_location("stub_cupy", STUB_CUPY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
