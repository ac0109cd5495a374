"""NVRTC by ctypes: the sources compiled for a card, with or without one.

The library and the headers come from NVIDIA's wheels (CUDA 12 or 13), or from where the system's
loader and `CUDA_PATH` find them. No driver is needed.
"""

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.cache import cached
from hotcold.kernels.cuda.device.sources import NVRTC_OPTIONS, digest

WHEELS = (
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "nvidia-cuda-crt",
)
REMEDY = "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12"


OLDEST_ARCHITECTURE = 61
"""The first with `__dp4a`, by which rounded weights and inputs are multiplied."""


@dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
        architecture: 90 for sm_90.
        is_machine_code: else PTX, which the driver compiles for a card that is newer than the compiler.
    """

    architecture: int
    is_machine_code: bool = True

    @property
    def option(self) -> str:
        """As NVRTC's --gpu-architecture."""
        return f"{'sm' if self.is_machine_code else 'compute'}_{self.architecture}"

    @property
    def suffix(self) -> str:
        """Of a file with the code."""
        return ".cubin" if self.is_machine_code else ".ptx"


def target_for(architecture: int, known: Sequence[int]) -> Target:
    """What to compile for a card: its own machine code, else PTX of the newest architecture below it.

    Args:
        architecture: the card's.
        known: to the compiler.

    Raises:
        DeviceError: the card is too old for the kernels, or for the compiler.
    """
    thing, value = "architecture of the card", f"sm_{architecture}"
    if architecture < OLDEST_ARCHITECTURE:
        raise DeviceError(thing, value, f"the kernels need sm_{OLDEST_ARCHITECTURE}", "use --device cpu")
    if architecture in known:
        return Target(architecture)
    below = [number for number in known if number < architecture]
    if not below:
        bound = f"the oldest that this NVRTC knows is sm_{min(known)}"
        raise DeviceError(
            thing, value, bound, "install an older one (pip install cupy-cuda12x), or use --device cpu"
        )
    return Target(max(below), is_machine_code=False)


@dataclass(frozen=True)
class Compiled:
    """Code for one target, and what the compiler said of it."""

    code: bytes
    log: str


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a kernel.

    Attributes:
        registers: of a thread.
        shared: static shared memory, bytes.
        stack: bytes.
        spilled: bytes, stores and loads.
    """

    registers: int
    shared: int
    stack: int
    spilled: int


class Nvrtc:
    """The compiler; `version` is (major, minor).

    Raises:
        DeviceError: the library or the headers are nowhere.
    """

    def __init__(self) -> None:
        self.library = _load_library()
        self.include = _find_headers()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value
        self.architectures = self._architectures()

    def _architectures(self) -> tuple[int, ...]:
        """All that it compiles for, the oldest first."""
        count = ctypes.c_int()
        self.library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self.library.nvrtcGetSupportedArchs(numbers)
        return tuple(sorted(numbers))

    def options(self, target: Target) -> tuple[str, ...]:
        """The one option list: NVRTC_OPTIONS, the architecture and the headers' folders."""
        includes = (f"-I{folder}" for folder in self.include)
        return (*NVRTC_OPTIONS, f"--gpu-architecture={target.option}", *includes)

    def compile(self, source: str, target: Target, extra: Sequence[str] = ()) -> Compiled:
        """Compile a program.

        Raises:
            DeviceError: the source does not compile; the first error is in the text.
        """
        options = (*self.options(target), *extra)
        handle = ctypes.c_void_p()
        self.library.nvrtcCreateProgram(ctypes.byref(handle), source.encode(), b"hotcold.cu", 0, None, None)
        values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.library.nvrtcCompileProgram(handle, len(options), values)
        log = self._get(handle, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        code = b"" if failed else self._code(handle, target)
        self.library.nvrtcDestroyProgram(ctypes.byref(handle))
        if failed:
            bound = f"NVRTC {self.version[0]}.{self.version[1]} refuses them for {target.option}"
            remedy = "install an NVRTC that knows this card" if "gpu-architecture" in log else ""
            raise DeviceError("CUDA sources", _first_error(log), bound, remedy)
        return Compiled(code, log)

    def _code(self, handle: ctypes.c_void_p, target: Target) -> bytes:
        if target.is_machine_code:
            return self._get(handle, "CUBIN")
        return self._get(handle, "PTX").rstrip(b"\0")  # a file of text has no end mark

    def _get(self, handle: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(handle, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self.library, f"nvrtcGet{what}")(handle, text)
        return text.raw


@cache
def load_nvrtc() -> Nvrtc:
    """The compiler, loaded once."""
    return Nvrtc()


def build_code(source: str, architecture: int) -> Path:
    """The program's code for a card as a file, cached by source, options, architecture and version.

    Raises:
        DeviceError: no compiler, a card that it or the kernels are not for, or a source that does not compile.
    """
    nvrtc = load_nvrtc()
    target = target_for(architecture, nvrtc.architectures)
    key = digest(source, *nvrtc.options(target), repr(nvrtc.version))
    return cached(target.option, key, target.suffix, lambda: nvrtc.compile(source, target).code)


def read_resources(log: str) -> dict[str, Resources]:
    """Each kernel's resources from the log of a compilation with --ptxas-options=-v."""
    _, *parts = log.split("Compiling entry function '")
    return {part[: part.index("'")]: _resources(part) for part in parts}


def _resources(text: str) -> Resources:
    def number(pattern: str) -> int:
        found = re.search(pattern, text)
        return int(found[1]) if found else 0

    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    registers, shared = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem")
    return Resources(registers, shared, number(r"(\d+) bytes stack"), spilled)


def _first_error(log: str) -> str:
    lines = [line for line in log.splitlines() if "error" in line]
    return (lines or log.splitlines() or ["no message"])[0]


def _in_wheels(pattern: str) -> Iterator[Path]:
    for wheel in WHEELS:
        try:
            found = files(wheel) or ()
        except PackageNotFoundError:
            continue
        yield from (Path(str(file.locate())) for file in found if re.search(pattern, str(file)))


def _load_library() -> ctypes.CDLL:
    in_wheel = next(_in_wheels(r"lib/libnvrtc\.so\.\d+$"), None)
    name = str(in_wheel) if in_wheel else find_library("nvrtc")
    if name is None:
        raise DeviceError("NVRTC", "not found", "it compiles the kernels", REMEDY)
    try:
        if in_wheel:  # NVRTC 13 does not look for its builtins beside itself
            for builtins in in_wheel.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(name)
    except OSError as error:
        raise DeviceError("NVRTC", name, f"does not load: {error}", REMEDY) from error


def _find_headers() -> tuple[Path, ...]:
    """Folders with cuda_fp16.h and, where a wheel of CUDA 13 has them apart, what it includes."""
    folders = [path.parent for path in _in_wheels(r"include/(cuda_fp16|crt/host_defines)\.h$")]
    folders = [folder.parent if folder.name == "crt" else folder for folder in folders]
    folders += [Path(os.environ.get("CUDA_PATH") or "/usr/local/cuda") / "include"]
    if not any((folder / "cuda_fp16.h").is_file() for folder in folders):
        raise DeviceError("CUDA headers", "cuda_fp16.h not found", "the kernels include it", REMEDY)
    return tuple(dict.fromkeys(folder for folder in folders if folder.is_dir()))
