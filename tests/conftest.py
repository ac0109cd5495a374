"""Devices for the tests: emulated everywhere, a real card where one exists."""

import fcntl
import functools
import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

# Each process of a run has a core: the threads of BLAS would keep another busy, for the most part with waiting.
# Here, since NumPy reads it once, and processes that tests start inherit it.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from pairwise import covering

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device import nvrtc, signatures
from hotcold.kernels.cuda.device.cache import cache_directory, cached
from hotcold.kernels.cuda.device.cuda_driver import CudaDriver, load_cupy, usable_cards
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator import build
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
    _read_programs_once()


def _read_programs_once() -> None:
    """Hundreds of devices are opened with the same few programs: what a text says is kept."""
    for module, name in ((signatures, "expand"), (signatures, "_parameter"), (build, "check_shared_memory")):
        setattr(module, name, functools.cache(getattr(module, name)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Tens of thousands of cases stay until the end: garbage is not looked for among them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Call cases of tests marked `pairwise` slow, but for some in which every two values meet.

    Of those that are left of a test marked `sample(n)` all are slow but every n-th. A card's cases are not
    counted: they run wherever there is one.
    """
    cases: dict[str, list[pytest.Function]] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if isinstance(item, pytest.Function) and "pairwise" in marks and not marks & {"slow", "gpu"}:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for product in cases.values():
        quick = set(covering([item.callspec.params if hasattr(item, "callspec") else {} for item in product]))
        for i, item in enumerate(product):
            if i not in quick:
                item.add_marker("slow")
    _sample(items)
    # processes begin in different places: while one compiles the CPU's kernels, the next builds the device's
    items.sort(key=lambda item: item.path.parent.as_posix().endswith("kernels/cpu"))


def _sample(items: list[pytest.Item]) -> None:
    seen = Counter[str]()
    for item in items:
        mark, name = item.get_closest_marker("sample"), item.nodeid.partition("[")[0]
        if mark is None or any(item.get_closest_marker(other) for other in ("slow", "gpu")):
            continue
        if seen[name] % mark.args[0]:
            item.add_marker("slow")
        seen[name] += 1


@contextmanager
def one_at_a_time(folder: Path, what: str) -> Iterator[None]:
    """Let one of the run's processes in, the others wait: they find done what they would do again."""
    with (folder / f"tests-{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_compiles_for_all() -> Iterator[None]:
    """A program of the device's kernels is compiled by one process; those that want it too wait for it."""

    def locked(stem: str, key: str, suffix: str, make: Callable[[], bytes]) -> Path:
        with one_at_a_time(cache_directory(), f"programs-{key[0]}"):
            return cached(stem, key, suffix, make)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "cached", locked)
        patch.setattr(nvrtc, "cached", locked)
        yield


@pytest.fixture(scope="session", autouse=True)
def each_compiles_alone() -> None:
    """Where the run has several processes no kernel of the CPU is compiled in one more: the cores are busy."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from hotcold.kernels.cpu import build as cpu_build

        cpu_build.FEW = sys.maxsize


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for `-n auto`: the cores that the run may use, up to 8; this one alone for a file or two."""
    named = [argument for argument in config.args if ".py" in argument]
    if len(named) == len(config.args) <= 2 or config.option.usepdb:
        return 0
    return min(len(os.sched_getaffinity(0)), 8)


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
    """The first CUDA card; a test skips where there is none, not where there is one that does not work.

    HOTCOLD_REQUIRE_GPU forbids to go on without one.
    """
    try:
        usable_cards(load_cupy())
    except DeviceError as error:
        if os.environ.get("HOTCOLD_REQUIRE_GPU"):
            pytest.fail(f"HOTCOLD_REQUIRE_GPU is set, but: {error}")
        pytest.skip(str(error))
    with Device(CudaDriver()) as device:
        yield device
