"""Compiled objects on disk: made once, checked whenever they are used.

A file's name ends in the digest of its content, so a truncated or altered one is seen before it is
loaded (a shared library that lost its end kills the process when it is touched).
"""

import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hotcold.kernels.cuda.device.sources import digest
from hotcold.whole_file import write_whole

log = logging.getLogger("hotcold.cuda")


def cache_directory() -> Path:
    """Where compiled objects are kept: `hotcold` in `XDG_CACHE_HOME`, else in `~/.cache`; made if need be.

    A temporary folder, with a notice, if that cannot be written.
    """
    configured = os.environ.get("XDG_CACHE_HOME")
    parent = Path(configured) if configured else Path(os.path.expanduser("~")) / ".cache"
    return _writable(parent / "hotcold") or _temporary(parent / "hotcold")


def _writable(directory: Path) -> Path | None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        return None


@cache
def _temporary(instead_of: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="hotcold-"))
    log.warning("cache directory %s cannot be written; using %s for this run", instead_of, directory)
    return directory


def cached(stem: str, key: str, suffix: str, make: Callable[[], bytes]) -> Path:
    """The file of an object, made by `make` unless a good one is there.

    Args:
        stem: for people, who look into the folder.
        key: digest of everything that the object depends on.
        suffix: with its dot.

    Returns:
        A path whose content is what `make` once returned for this key.
    """
    directory = cache_directory()
    for path in directory.glob(f"{stem}-{key}-*{suffix}"):
        if _is_whole(path):
            return path
        log.warning("cache file %s is broken; building it again", path)
        path.unlink(missing_ok=True)
    return _store(directory, f"{stem}-{key}", suffix, make())


def _is_whole(path: Path) -> bool:
    try:
        return path.stem.endswith(digest(path.read_bytes()))
    except OSError:
        return False


def _store(directory: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write beside and rename: two processes may build the same object at once."""
    path = directory / f"{name}-{digest(content)}{suffix}"
    write_whole(path, content)
    return path
