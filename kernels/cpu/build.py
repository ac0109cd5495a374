"""Compiles kernels that no file holds yet: some of them here, the others in a second process.

LLVM works for one thread at a time in a process, so a second core takes a process of its own. It begins at the other
end of the list; both pass over what lies there already.
"""

import json
import subprocess
import sys
from contextlib import suppress
from threading import Thread
from typing import IO

from hotcold.cache_folder import is_for_this_run
from hotcold.kernels.cpu import op_kernels as _op_kernels  # noqa: F401 - what is imported here can be compiled
from hotcold.kernels.cpu import prefetch_level
from hotcold.kernels.cpu import sum_shared as _sum_shared  # noqa: F401
from hotcold.kernels.cpu import walk as _walk  # noqa: F401
from hotcold.kernels.cpu.compiled import code_of
from hotcold.kernels.cpu.kernel_files import Code, folder

FEW = 4  # kernels that are compiled sooner than another process is ready
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hotcold.kernels.cpu import build; build.serve()"

_helpers: list[subprocess.Popen[str]] = []


def compile_all(names: list[str]) -> dict[str, Code]:
    """The code of these kernels, which is kept where it can be."""
    prefetch_level.choose()
    if len(names) >= FEW and not is_for_this_run(folder()):  # what is this run's alone no other process finds
        _ask_for_help(names[::-1])
    return {name: code_of(name) for name in names}


def finish() -> None:
    """No more kernels for now: the second process ends, in its own time."""
    while _helpers:
        _hang_up(_helpers.pop())


def serve() -> None:
    """The second process: compile what standard input names."""
    for line in sys.stdin:
        code_of(line.strip())


def _ask_for_help(names: list[str]) -> None:
    """Name kernels to the second process; without it they are all compiled here."""
    try:
        if not _helpers:
            command = [sys.executable, "-c", START, json.dumps(sys.path)]
            # it may end after this one, so whoever reads this one's output must not wait for it
            nowhere = subprocess.DEVNULL
            _helpers.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, text=True)
            )
        stdin = _stdin(_helpers[0])
        stdin.write("".join(f"{name}\n" for name in names))
        stdin.flush()
    except OSError:
        finish()


def _stdin(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin


def _hang_up(process: subprocess.Popen[str]) -> None:
    with suppress(OSError):
        _stdin(process).close()
    # a process that has ended stays in the system's table until somebody asks how
    Thread(target=process.wait, name="hotcold-build", daemon=True).start()
