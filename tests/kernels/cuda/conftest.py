"""Devices for the kernels' tests, and arrays to and from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stub_cupy import StubCupy

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.nvrtc import Nvrtc, load_nvrtc
from hotcold.kernels.cuda.device.sources import program
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

HERE = Path(__file__).parent
OpenEmulated = Callable[..., Device]


@pytest.fixture(scope="session")
def nvrtc() -> Nvrtc:
    """NVRTC, if its wheels are installed."""
    try:
        return load_nvrtc()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def open_stub(compiler: str, nvrtc: Nvrtc, keep_device: Callable[[Device], Device]) -> OpenEmulated:
    """Opens the CUDA driver on a stand-in for CuPy; options are those of the emulated driver."""

    def open_device(index: int = 0, cards: int = 1, **options: Any) -> Device:
        emulated = EmulatedDriver(**options)
        cupy = StubCupy(emulated, cards=cards)
        return keep_device(Device(CudaDriver(index, options.get("source"), cupy, cupy.libcuda)))

    return open_device


@pytest.fixture
def open_changed(
    open_emulated: OpenEmulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, str], Device]:
    """Opens emulated devices with one place of their source changed; what they compile is not kept for anybody."""

    def open_device(source: str, old: str, new: str) -> Device:
        assert source.count(old) == 1
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return open_emulated(source=source.replace(old, new), build_kind="fast")

    return open_device


ORDERS = (0, 1, 7, 1234)
"""Of threads and blocks: forward, backward, and two shuffles."""
QUICK_ORDERS = (0, 1234)


@pytest.fixture(
    params=[
        *(f"checked-{order}" for order in QUICK_ORDERS),
        *(
            pytest.param(f"checked-{order}", marks=pytest.mark.slow)
            for order in ORDERS
            if order not in QUICK_ORDERS
        ),
        *(pytest.param(f"races-{order}", marks=pytest.mark.slow) for order in ORDERS[:3]),
        pytest.param("stub-0", marks=pytest.mark.slow),  # NVRTC compiles every type for it
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Device:
    """A device with all kernels.

    Emulated, in several orders of threads and blocks; the CUDA driver on a stand-in for CuPy; and a card.
    """
    if request.param == "cuda":
        opened: Device = request.getfixturevalue("card")
    elif request.param == "stub-0":
        opened = request.getfixturevalue("open_stub")()
    else:
        build_kind, order = request.param.split("-")
        opened = request.getfixturevalue("open_emulated")(build_kind=build_kind, order=int(order))
    return opened


@pytest.fixture(scope="session")
def seam_source() -> str:
    """The program of seam.cu."""
    return program(HERE / "seam.cu")


@pytest.fixture
def put() -> Callable[[Device, NDArray[Any]], Buffer]:
    """Uploads an array and waits."""
    return put_array


@pytest.fixture
def get() -> Callable[[Device, Buffer], NDArray[Any]]:
    """Downloads a buffer and waits."""
    return get_array


def put_array(device: Device, array: NDArray[Any]) -> Buffer:
    """A device buffer with an array's content."""
    host, buffer = device.pinned(array.shape, array.dtype), device.empty(array.shape, array.dtype)
    host.array[...] = array
    device.upload(buffer, host, device.compute)
    device.compute.synchronize()
    host.free()
    return buffer


def get_array(device: Device, buffer: Buffer) -> NDArray[Any]:
    """A device buffer's content."""
    host = device.pinned(buffer.shape, buffer.dtype)
    device.download(host, buffer, device.compute)
    device.compute.synchronize()
    array = host.array.copy()
    host.free()
    return np.asarray(array)
