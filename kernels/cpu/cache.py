"""Where compiled kernels are kept.

Numba's disk cache looks at a function's own file only: a change in another module that it calls is
not seen and old code would run on. So the folder is named after a hash of all kernel sources, and a
changed source starts an empty one.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from numba.core import config

from hotcold.cache_folder import temporary_folder, temporary_root, user_caches
from hotcold.errors import SettingError

FINISHED = "finished"  # marker: every kernel of a walk has been compiled into this folder


def source_hash() -> str:
    """Twelve hex digits over all CPU kernel sources and the versions that compile them."""
    import llvmlite
    import numba

    digest = hashlib.sha256(f"numba {numba.__version__} llvmlite {llvmlite.__version__}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def candidates() -> Iterator[Path]:
    """Parents to try in order: NUMBA_CACHE_DIR, the user's cache folder, the temporary folder."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield from user_caches()
    if (shared := temporary_root()) is not None:
        yield shared / f"hotcold-{os.getuid()}"


def folder() -> Path | None:
    """The cache folder of these sources and this CPU, made if it can be; else one for this run, or none."""
    counting = os.environ.get("HOTCOLD_COUNT_BYTES", "")
    # Numba's files know their sources by path, so another installation compiles anew
    cpu = f"{config.CPU_NAME or 'host'} {config.CPU_FEATURES or ''} {counting} {Path(__file__).parent}"
    name = f"{source_hash()}-{hashlib.sha256(cpu.encode()).hexdigest()[:6]}"
    for parent in candidates():
        path = parent / "hotcold" / "numba" / name
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for place in (*reversed(path.parents[:2]), path):
                place.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if os.access(path, os.W_OK | os.X_OK) and _is_own(path, parent):
            return path
    return temporary_folder()


def _is_own(path: Path, parent: Path) -> bool:
    """Whether nobody else can have put code there: who may write a folder may swap the folders in it.

    The folders made below `parent` have to be this user's, and `parent` itself where anybody may have
    made it.
    """
    made = [path, *path.parents[:2]]
    if parent.parent == temporary_root():
        made.append(parent)
    others_write = stat.S_IWGRP | stat.S_IWOTH
    states = [place.stat() for place in made]
    return all(state.st_uid == os.getuid() and not state.st_mode & others_write for state in states)


def check_compiling() -> None:
    """Refuse to run where Numba is told not to compile: there is nothing that could run instead."""
    if config.DISABLE_JIT:
        raise SettingError(
            "NUMBA_DISABLE_JIT",
            os.environ.get("NUMBA_DISABLE_JIT"),
            "hotcold's kernels are compiled",
            "unset it",
        )


def use_own_folder() -> None:
    """Point Numba to `folder()`; a process-wide setting, as Numba has no other."""
    config.CACHE_DIR = str(folder() or "")


def needs_compiling() -> bool:
    """Whether the kernels still have to be compiled, which takes some seconds once."""
    return not (Path(config.CACHE_DIR) / FINISHED).exists()


def mark_compiled() -> None:
    """Note that a whole walk has run, so that the next start is quick; a full disk is no error."""
    try:
        (Path(config.CACHE_DIR) / FINISHED).touch()
    except OSError:
        return
