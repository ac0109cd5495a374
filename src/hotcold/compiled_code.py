"""Numba's files of compiled functions, trusted as `code_files` says. A leaf, as `errors` is.

Numba's own cache looks at a function's own file only, which is why the folder is named after all sources; and it
trusts its files: one that is cut, or another's, ends the program with an error of pickle's, and so does a full
disk.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core import caching, config

from hotcold.code_files import DIGEST_BYTES, digest, say_damaged, say_unwritten


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
        say_unwritten("any folder", error)
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
            say_damaged(self._cache_path, error)
            self._clear()
            return None

    def _save_overload(self, signature: Any, result: Any) -> None:
        try:
            super()._save_overload(signature, result)
        except OSError as error:
            say_unwritten(self._cache_path, error.strerror or error)

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
            file.write(digest(name, content) + content)

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            start, content = file.read(DIGEST_BYTES), file.read()
        if start != digest(name, content):
            raise ValueError(f"{name} is not what was written")
        return pickle.loads(content)
