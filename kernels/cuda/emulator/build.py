"""The CUDA sources compiled by g++ for the emulated device."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from hotcold.errors import DeviceError
from hotcold.kernels.cuda.device.cache import cached
from hotcold.kernels.cuda.device.signatures import read_signatures
from hotcold.kernels.cuda.device.sources import digest

HEADERS = Path(__file__).parent

BUILDS = {
    "fast": ("-O3",),
    "checked": (
        "-O2",
        "-fsanitize=alignment,bounds,shift,integer-divide-by-zero",
        "-fsanitize-undefined-trap-on-error",
        "-fno-crossjumping",  # or traps of several lines would become one
        "-fno-tree-tail-merge",
    ),
    "races": ("-O2", "-DEMULATOR_RACES", "-fsanitize=thread"),
}
"""`fast` for engine runs, `checked` traps undefined behaviour, `races` also finds races."""

OPTIONS = (
    "-std=c++17",
    "-g1",  # line tables, for the messages
    "-march=x86-64-v3",  # half precision conversions and fmaf as instructions
    "-ffp-contract=off",  # as --fmad=false
    "-fno-strict-aliasing",
    "-fno-threadsafe-statics",
    "-fvisibility=hidden",  # or all loaded libraries would share one set of fibers
    "-fPIC",
    "-Wall",
)
FEATURES = ("avx2", "fma", "f16c")


def find_compiler() -> str:
    """The C++ compiler: `CXX` or g++.

    Raises:
        DeviceError: none is there, or the machine is not an x86-64 with AVX2.
    """
    _check_machine()
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        raise DeviceError(
            "emulated device", name, "no such C++ compiler", "install g++ or set CXX; or use --device cpu"
        )
    return path


def _check_machine() -> None:
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64") or platform.system() != "Linux":
        bound = "needs x86-64 Linux"
        raise DeviceError("emulated device", f"{machine} {platform.system()}", bound, "use --device cpu")
    missing = [feature for feature in FEATURES if feature not in _cpu_flags()]
    if missing:
        raise DeviceError("emulated device", "this CPU", f"lacks {', '.join(missing)}", "use --device cpu")


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset(FEATURES)
    return frozenset(
        word for line in re.findall(r"^flags\s*:(.*)$", text, re.MULTILINE) for word in line.split()
    )


@cache
def compiler_version(compiler: str) -> str:
    """What the compiler says of itself, first line.

    Raises:
        DeviceError: it does not run.
    """
    try:
        said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(
            "C++ compiler", compiler, f"does not run: {error}", "install g++ or set CXX"
        ) from error
    return (said.splitlines() or ["unknown"])[0]


def build(source: str, kind: str) -> Path:
    """A shared library of the program's kernels, from the cache if it was built before.

    Args:
        source: as `sources.program` returns it.
        kind: one of BUILDS.

    Raises:
        DeviceError: no compiler, shared memory in a template, or the source does not compile (with the
            compiler's first error).
    """
    compiler = find_compiler()
    check_shared_memory(source)
    text = _translation_unit(source)
    command = (compiler, *OPTIONS, *BUILDS[kind], f"-I{HEADERS}")
    headers = [path.read_text(encoding="utf-8") for path in sorted(HEADERS.glob("*.h"))]
    key = digest(text, *headers, compiler_version(compiler), *command[:-1])
    return cached(f"emulated-{kind}", key, ".so", lambda: _compile(command, text))


def check_shared_memory(source: str) -> None:
    """Refuse shared memory in templates.

    g++ ignores the section of a template's variables, so it would be neither poisoned nor watched.
    Top-level definitions begin and end in the first column.
    """
    in_template, file, number = False, "", 0
    for line in source.splitlines():
        number += 1
        if directive := re.match(r'#line (\d+) "(.*)"', line):
            number, file = int(directive[1]) - 1, directive[2]
        in_template = (in_template or line.startswith("template")) and line != "}"
        if in_template and "__shared__" in line:
            remedy = "put it into a function that is no template"
            raise DeviceError("shared memory", f"{file}:{number}", "stands in a template", remedy)
        if line.startswith("template") and line.endswith("}"):
            in_template = False


def _translation_unit(source: str) -> str:
    kernels = "".join(f"EMULATED_KERNEL({name})\n" for name in read_signatures(source))
    table = f"const emulator::Kernel emulator::kernels[] = {{\n{kernels}{{}}}};\n"
    return f'#include "emulator.h"\n{source}#line 1 "kernels"\n{table}'


def _compile(command: tuple[str, ...], text: str) -> bytes:
    """Compile and link in two steps: only the first may see -fsanitize, whose library we replace."""
    with tempfile.TemporaryDirectory() as directory:
        compiled, library = Path(directory) / "kernels.o", Path(directory) / "kernels.so"
        _run((*command, "-c", "-x", "c++", "-", "-o", str(compiled)), text)
        _run((command[0], "-shared", str(compiled), "-o", str(library)), "")
        return library.read_bytes()


def _run(command: tuple[str, ...], text: str) -> None:
    done = subprocess.run(command, check=False, input=text, text=True, capture_output=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[
            -1:
        ]
        raise DeviceError("CUDA sources", errors[0] if errors else command[0], f"{command[0]} refuses them")
