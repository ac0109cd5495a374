"""Writes a file whole or not at all, and never in the place of anything but a regular file.

What is written goes to a temporary file in the folder of the destination, which is synced and then renamed:
whatever stops the writing, an older file there stays as it was. A link is followed, so that it is its target
that is written.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hotcold.errors import DoesNotFitError, FileError, SettingError

NEW_FILE = 0o666  # less what the umask takes
OPEN_FILES = "/proc/"  # links there, such as /dev/stdout, lead to what a process has open
KINDS = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISLNK, "is a link"),
)


def check_output(
    path: Path, sources: Sequence[Path] = (), force: bool = False, *, option: str = "--outfile"
) -> None:
    """Refuse a destination before any work is done for it.

    Args:
        sources: files that are read, and never written.
        force: whether a file that is there may be replaced.
        option: what named the destination.

    Raises:
        FileError: its folder is missing or cannot be looked at, or something is there that is no regular file.
        SettingError: it is one of `sources`, or it exists and `force` is false.
    """
    another = f"choose another {option}"
    if str(path) == ".":  # also what pathlib makes of ""
        raise SettingError(option, "'' or .", "the name of a file", "name one")
    try:
        if not path.parent.is_dir():
            raise FileError("output folder", str(path.parent), "must exist", f"make it, or {another}")
        if problem := _obstacle(path):
            raise FileError("output file", str(path), problem, another)
        if not path.exists():
            return
        for source in sources:
            if source.exists() and path.samefile(source):
                raise SettingError("output file", str(path), f"is the input {source}", another)
    except OSError as error:
        raise FileError("output file", str(path), error.strerror or "cannot be reached", another) from error
    if not force:
        raise SettingError("output file", str(path), "exists already", "use --force to overwrite it")


def check_two_outputs(one: tuple[str, Path | None], other: tuple[str, Path | None]) -> None:
    """Refuse one file for two options, each with what it names, before any work is done for both.

    Raises:
        SettingError: they name one file.
    """
    (option, path), (other_option, other_path) = one, other
    if path is not None and other_path is not None and os.path.realpath(path) == os.path.realpath(other_path):
        bound = f"is what {option} names too"
        raise SettingError(other_option, str(other_path), bound, f"choose another {other_option}")


def _obstacle(path: Path, follows: bool = True) -> str:
    """What is there in the way of a file, in words; "" for a regular file or none."""
    try:
        mode = os.stat(path, follow_symlinks=follows).st_mode
    except FileNotFoundError:
        return ""
    for is_kind, words in KINDS:
        if is_kind(mode):
            return words
    return "is a file that a process has open" if _leads_to_an_open_file(path) else ""


def _leads_to_an_open_file(path: Path) -> bool:
    """Whether a link on the way is one of the system's own, whose place no file can take."""
    for _ in range(40):
        folder = os.path.realpath(path.parent)
        if (folder + "/").startswith(OPEN_FILES):
            return True
        if not path.is_symlink():
            return False
        path = Path(folder, os.readlink(path))
    return False


@contextmanager
def whole_file(path: Path, *, option: str = "--outfile", follows: bool = True) -> Iterator[Path]:
    """The path of an empty file to write in the block, which then takes the place of `path`.

    It gets the rights of the file that it replaces, else those of any new file.

    Args:
        option: what named the destination.
        follows: whether a link there leads to the file that is meant. If not it is refused, and nothing outside of its
            folder is written, whenever it was made.

    Raises:
        FileError: something is there that is no regular file, or writing fails.
        DoesNotFitError: the disk is full.
    """
    try:
        target = Path(os.path.realpath(path)) if follows and path.is_symlink() else path
        temporary = _make_temporary(target)
        try:
            yield temporary
            _sync(temporary)
            if problem := _obstacle(path, follows):
                raise FileError("output file", str(path), problem, f"choose another {option}")
            if target.exists():
                shutil.copymode(target, temporary, follow_symlinks=follows)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise write_error(path, error, "nothing was kept", option) from error


def write_whole(path: Path, data: bytes, *, option: str = "--outfile") -> None:
    """Write `data` to `path`; errors as `whole_file`."""
    with whole_file(path, option=option) as temporary:
        temporary.write_bytes(data)


def _make_temporary(target: Path) -> Path:
    """An empty file beside the target with the rights that a new file gets."""
    path = target.parent / f".{target.name[:100]}.{secrets.token_hex(6)}.part"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, NEW_FILE))
    return path


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can sync a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError, kept: str, option: str) -> FileError | DoesNotFitError:
    """What a user hears of a file that cannot be written.

    Args:
        kept: what is left of it, in words.
    """
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DoesNotFitError(f"writing {path}", reason, kept, f"free some disk or choose another {option}")
    return FileError(f"writing {path}", reason, kept, f"choose another {option}")
