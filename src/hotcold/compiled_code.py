"""Where what Numba has compiled of one folder of sources is kept, and how its files are trusted. A leaf, as `errors` is.

Numba's disk cache looks at a function's own file only: a change in another module that it calls is
not seen and old code would run on. So the folder is named after a hash of all sources beside it, and a
changed source starts an empty one.

Numba's own cache trusts its files: one that is cut, or another's, ends the program with an error of pickle's,
and so does a full disk. Here each file begins with a digest of its name and content. What does not fit it,
or cannot be read, is compiled anew and written again; what cannot be written is not kept. Either is said once.
"""

import hashlib
import logging
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core import caching, config

from hotcold.cache_folder import temporary_folder, temporary_root, user_caches
from hotcold.errors import SettingError

log = logging.getLogger("hotcold.cpu")

DIGEST_BYTES = 16


def source_hash(sources: Path) -> str:
    """Twelve hex digits over the Python files of folder `sources` and the versions that compile them."""
    import llvmlite
    import numba

    digest = hashlib.sha256(f"numba {numba.__version__} llvmlite {llvmlite.__version__}".encode())
    for source in sorted(sources.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


def candidates() -> Iterator[Path]:
    """Parents to try in order: NUMBA_CACHE_DIR, the user's cache folder, the temporary folder."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield from user_caches()
    if (shared := temporary_root()) is not None:
        yield shared / f"hotcold-{os.getuid()}"


def code_folder(sources: Path, variant: str = "") -> Path | None:
    """The folder for code of `sources` for this CPU, made if it can be; else one for this run, or none.

    Args:
        variant: what else it is compiled for.
    """
    # Numba's files know their sources by path, so another installation compiles anew
    cpu = f"{config.CPU_NAME or 'host'} {config.CPU_FEATURES or ''} {variant} {sources}"
    name = f"{source_hash(sources)}-{hashlib.sha256(cpu.encode()).hexdigest()[:6]}"
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


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """What is decorated inside is kept in `folder`; Numba's own setting is as before after it."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")
    try:
        yield
    finally:
        config.CACHE_DIR = before


def cache_of(function: Callable[..., Any]) -> Any:
    """The files of a function; nothing is kept where none can be written."""
    try:
        return KernelCache(function)
    except RuntimeError as error:  # Numba has found no place
        _say_once("unwritten", "compiled kernels cannot be kept: %s", error)
        return caching.NullCache()


class KernelCache(caching.FunctionCache):  # type: ignore[misc]
    """The files of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = KernelFiles(self._cache_path, self._impl.filename_base, stamp)

    def _load_overload(self, signature: Any, target: Any) -> Any:
        """What was compiled for these types; None if it was not, or is no good."""
        try:
            return super()._load_overload(signature, target)
        except Exception as error:  # noqa: BLE001 - of whatever kind, for broken bytes
            _say_once(
                "damaged", "compiled kernels in %s are damaged: compiling again (%s)", self._cache_path, error
            )
            self._clear()
            return None

    def _save_overload(self, signature: Any, result: Any) -> None:
        try:
            super()._save_overload(signature, result)
        except OSError as error:
            reason = error.strerror or error
            _say_once("unwritten", "compiled kernels cannot be kept in %s: %s", self._cache_path, reason)

    def _clear(self) -> None:
        try:
            self.flush()
        except OSError:
            self.disable()


class KernelFiles(caching.IndexDataCacheFile):  # type: ignore[misc]
    """An index and the code that it names, each with a digest in front."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(_digest(name, content) + content)

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            digest, content = file.read(DIGEST_BYTES), file.read()
        if digest != _digest(name, content):
            raise ValueError(f"{name} is not what was written")
        return pickle.loads(content)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.blake2b(name.encode() + b"\0" + content, digest_size=DIGEST_BYTES).digest()


_said: set[str] = set()


def _say_once(what: str, message: str, *values: object) -> None:
    if what not in _said:
        _said.add(what)
        log.warning(message, *values)
