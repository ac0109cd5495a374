"""How functions of this folder are compiled, and kept on disk.

Numba's own cache trusts its files: one that is cut, or another's, ends the program with an error of pickle's,
and so does a full disk. Here each file begins with a digest of its name and content. What does not fit it,
or cannot be read, is compiled anew and written again; what cannot be written is not kept. Either is said once.
"""

import hashlib
import logging
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import caching, sigutils
from numba.core.ccallback import CFunc

log = logging.getLogger("hotcold.cpu")

F = TypeVar("F", bound=Callable[..., Any])
DIGEST_BYTES = 16

# Sums keep their order (no "reassoc").
OPTIONS: dict[str, Any] = {
    "fastmath": {"contract", "nsz"},
    "boundscheck": False,
    "error_model": "numpy",
}


def compiled(function: F) -> F:
    """A function that Numba compiles when it is first called with arguments of some types; it does not hold
    the interpreter's lock."""
    dispatcher: Any = njit(**OPTIONS, nogil=True)(function)
    dispatcher._cache = _cache_of(function)
    return cast(F, dispatcher)


def compiled_code(signature: Any) -> Callable[[Callable[..., None]], Any]:
    """A decorator that compiles a function to code which is called by its address, at once."""

    def wrap(function: Callable[..., None]) -> Any:
        code: Any = CFunc(function, sigutils.normalize_signature(signature), locals={}, options=dict(OPTIONS))
        code._cache = _cache_of(function)
        code.compile()
        return code

    return wrap


def _cache_of(function: Callable[..., Any]) -> Any:
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
