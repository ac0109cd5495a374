"""What devices there are, which can be used, and how to open one."""

import logging
import os
import platform
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hotcold.engine.device.choice import DeviceChoice
from hotcold.errors import DeviceError, DoesNotFitError, HotcoldError
from hotcold.kernels.cuda.device.cuda_driver import (
    CudaDriver,
    cannot_open,
    card_facts,
    load_cupy,
    usable_cards,
)
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.driver import Facts
from hotcold.kernels.cuda.device.nvrtc import load_nvrtc, target_for
from hotcold.kernels.cuda.emulator.build import compiler_version, find_compiler
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

log = logging.getLogger("hotcold.engine")

UNWRAPPED = 1 << 16  # columns
MOST_EMULATED = 8  # devices


@dataclass(frozen=True)
class DeviceInfo:
    """One device that --device can name.

    Attributes:
        name: as in --device: "cpu", "cuda:0" ("cuda" where there is none), "emulated".
        description: what it is.
        usable: whether it can be opened.
        problem: why not, with the remedy; empty if it is usable.
        memory_total, memory_free: bytes of device memory, 0 where that says nothing.
        architecture: 90 for sm_90; 0 for no card.
        driver_version, runtime_version: of CUDA, as "12.9"; empty where there is none.
        compiler: what compiles the kernels: NVRTC or a C++ compiler; empty if none was found.
    """

    name: str
    description: str
    usable: bool
    problem: str = ""
    memory_total: int = 0
    memory_free: int = 0
    architecture: int = 0
    driver_version: str = ""
    runtime_version: str = ""
    compiler: str = ""


def describe_devices() -> list[DeviceInfo]:
    """All devices: the CPU, every CUDA card (or why there is none), the emulated device."""
    return [_cpu(), *_cards(), _emulated()]


def first_card() -> DeviceInfo | None:
    """The first CUDA card that can be used, if there is one; those after it are not touched."""
    return next((card for card in _cards() if card.usable), None)


def open_device(choice: DeviceChoice) -> Device | None:
    """The device that was asked for; None means the CPU alone.

    Raises:
        DeviceError: the device cannot be used; the text says why, and the remedy.
    """
    if choice.kind == "auto":
        return _first_card_if_any()
    if choice.kind == "cpu":
        return None
    if choice.kind == "emulated":
        if choice.index is not None and choice.index >= MOST_EMULATED:
            bound = f"there are emulated:0 to emulated:{MOST_EMULATED - 1}"
            raise DeviceError("device", choice.text, bound, "choose one of them")
        return Device(EmulatedDriver(build_kind="fast", index=choice.index))
    return Device(CudaDriver(choice.index or 0))


def open_devices(choices: Sequence[DeviceChoice]) -> tuple[Device, ...]:
    """Those that were asked for; none means the CPU alone. Where one fails none stays open."""
    opened: list[Device] = []
    try:
        for choice in choices:
            if (device := open_device(choice)) is not None:
                opened.append(device)
    except BaseException:
        for device in opened:
            device.close()
        raise
    return tuple(opened)


def _first_card_if_any() -> Device | None:
    """The first card that opens; those before it are named, with the reason."""
    try:
        cupy = load_cupy()
        count = usable_cards(cupy)
    except DeviceError:
        return None
    for index in range(count):
        try:
            return Device(CudaDriver(index, cupy=cupy))
        except (DeviceError, DoesNotFitError) as error:
            log.warning("cuda:%d is not used: %s", index, error)
    return None


def devices_json(devices: Sequence[DeviceInfo]) -> dict[str, Any]:
    """The devices as a JSON object: {"devices": [...]}, the fields of DeviceInfo each."""
    return {"devices": [asdict(device) for device in devices]}


def render_devices(devices: Sequence[DeviceInfo], columns: int = UNWRAPPED) -> str:
    """The devices as text: what each is, and below it its details or its problem, wrapped to `columns`."""
    width = max(len(device.name) for device in devices)
    return "\n".join(line for device in devices for line in _lines(device, width, columns))


def _lines(device: DeviceInfo, width: int, columns: int) -> list[str]:
    state = "usable" if device.usable else "not usable"
    left = f"{device.name:<{width}}  {state:<10}  "
    below = " " * len(left)
    first = textwrap.wrap(device.description, columns, initial_indent=left, subsequent_indent=below)
    second = _details(device) if device.usable else device.problem
    return first + textwrap.wrap(second, columns, initial_indent=below, subsequent_indent=below)


def _details(device: DeviceInfo) -> str:
    parts = []
    if device.memory_total:
        parts.append(f"{_gib(device.memory_free)} of {_gib(device.memory_total)} GiB free")
    if device.architecture:
        parts.append(f"sm_{device.architecture}")
    if device.driver_version:
        parts.append(f"driver for CUDA {device.driver_version}, runtime {device.runtime_version}")
    if device.compiler:
        parts.append(f"kernels by {device.compiler}")
    return ", ".join(parts)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f}"


def _cpu() -> DeviceInfo:
    return DeviceInfo("cpu", f"{platform.machine()}, {os.cpu_count()} logical processors", usable=True)


def _cards() -> Iterator[DeviceInfo]:
    """One after the other: looking at a card's memory takes a context of some hundred MiB there."""
    try:
        cupy = load_cupy()
        count = usable_cards(cupy)
    except DeviceError as error:
        yield DeviceInfo("cuda", "CUDA cards", usable=False, problem=str(error))
        return
    for index in range(count):
        yield _card(cupy, index)


def _card(cupy: Any, index: int) -> DeviceInfo:
    """One card; it is usable if it answers, and NVRTC is there and compiles for it."""
    runtime = cupy.cuda.runtime
    facts = Facts(f"cuda:{index}", "a CUDA card")
    problem, compiler, free, total = "", "", 0, 0
    try:
        facts = card_facts(cupy, index)
        nvrtc = load_nvrtc()
        compiler = "NVRTC {}.{}".format(*nvrtc.version)
        target_for(facts.architecture, nvrtc.architectures)
        with cupy.cuda.Device(index):
            free, total = runtime.memGetInfo()
    except HotcoldError as error:
        problem = str(error)
    except (runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as error:
        problem = str(cannot_open(facts.name, error))
    return DeviceInfo(
        name=facts.name,
        description=facts.description,
        usable=not problem,
        problem=problem,
        memory_total=int(total),
        memory_free=int(free),
        architecture=facts.architecture,
        driver_version=_version(runtime.driverGetVersion()),
        runtime_version=_version(runtime.runtimeGetVersion()),
        compiler=compiler,
    )


def _version(number: int) -> str:
    """CUDA's 12090 as "12.9"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _emulated() -> DeviceInfo:
    description = (
        "CUDA kernels on the CPU, for checking, not for speed; "
        f"emulated:0 to emulated:{MOST_EMULATED - 1} stand in for several"
    )
    try:
        compiler = compiler_version(find_compiler())
    except DeviceError as error:
        return DeviceInfo("emulated", description, usable=False, problem=str(error))
    return DeviceInfo("emulated", description, usable=True, compiler=compiler)
