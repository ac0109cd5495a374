"""Where hotcold keeps what it can make again."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


def user_caches() -> list[Path]:
    """The user's cache folders, the first one first.

    XDG_CACHE_HOME, and .cache in HOME, where they are set to a full path. A home that is not there is none, and is
    not made: root could.
    """
    cache, home = (os.environ.get(name, "") for name in ("XDG_CACHE_HOME", "HOME"))
    found = [Path(cache)] if os.path.isabs(cache) else []
    return [*found, Path(home, ".cache")] if os.path.isabs(home) and os.path.isdir(home) else found


_made: list[Path] = []


@cache
def temporary_folder() -> Path | None:
    """A folder for this run alone, which is removed at its end; None if there can be none."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="hotcold-"))
    except OSError:
        return None
    _made.append(folder)
    atexit.register(remove_temporary_folder)
    return folder


def is_for_this_run(folder: Path | None) -> bool:
    """Whether nothing is kept there: it is this run's own folder, or none."""
    return folder is None or folder in _made


def remove_temporary_folder() -> None:
    """At the end of the run, and by whoever ends it without Python's own end."""
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)


def temporary_root() -> Path | None:
    """The system's folder for temporary files; None if none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None
