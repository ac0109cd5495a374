"""Where compiled kernels are kept, and whether they still have to be compiled."""

import os
from pathlib import Path

from numba.core import config

from hotcold import compiled_code

FINISHED = "finished"  # marker: every kernel of a walk has been compiled into this folder


def source_hash() -> str:
    """Twelve hex digits over all CPU kernel sources and the versions that compile them."""
    return compiled_code.source_hash(Path(__file__).parent)


def folder() -> Path | None:
    """The cache folder of these sources and this CPU, made if it can be; else one for this run, or none."""
    return compiled_code.code_folder(Path(__file__).parent, os.environ.get("HOTCOLD_COUNT_BYTES", ""))


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
