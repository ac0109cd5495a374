"""Compiled objects on disk: made once, checked whenever they are used.

A file's name ends in the digest of its content, so a truncated or altered one is seen before it is
loaded (a shared library that lost its end kills the process when it is touched).
"""

import logging
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hotcold.cache_folder import temporary_folder, user_caches
from hotcold.errors import DoesNotFitError, FileError
from hotcold.kernels.cuda.device.sources import digest
from hotcold.whole_file import write_whole

log = logging.getLogger("hotcold.cuda")


def cache_directory() -> Path:
    """Where compiled objects are kept: `hotcold` in `XDG_CACHE_HOME`, else in `~/.cache`; made if need be.

    A temporary folder, with a notice, if that cannot be written.
    """
    return _user_directory() or _temporary()


def quiet_directory() -> Path:
    """The same without a notice: where a folder has to be, though nothing may be kept in it.

    Raises:
        FileError: there can be no folder at all.
    """
    if (directory := _user_directory() or temporary_folder()) is None:
        bound = "neither the user's nor a temporary one can be written"
        raise FileError("cache folder", None, bound, "set XDG_CACHE_HOME or TMPDIR")
    return directory


def _user_directory() -> Path | None:
    return next(filter(None, (_writable(parent / "hotcold") for parent in user_caches())), None)


def _writable(directory: Path) -> Path | None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        return None


@cache
def _temporary() -> Path:
    directory, places = quiet_directory(), ", ".join(str(parent / "hotcold") for parent in user_caches())
    said = (
        f"cache directory {places} cannot be written" if places else "there is no home for compiled kernels"
    )
    log.warning("%s; using %s for this run", said, directory)
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
    name = f"{name}-{digest(content)}{suffix}"
    try:
        write_whole(directory / name, content)
    except (FileError, DoesNotFitError) as error:
        temporary = temporary_folder()
        if temporary is None or temporary == directory:
            raise
        log.warning("a compiled kernel is kept for this run alone: %s", error)
        write_whole(temporary / name, content)
        return temporary / name
    return directory / name
