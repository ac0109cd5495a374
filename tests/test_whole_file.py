"""Files that appear whole or not at all, and what is never replaced by one."""

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hotcold.errors import DoesNotFitError, FileError, HotcoldError, SettingError
from hotcold.whole_file import check_output, whole_file, write_whole


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    folder = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(folder)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("only root makes device nodes")


NOT_REGULAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (make_pipe, "is a pipe"),
    "socket": (make_socket, "is a socket"),
    "directory": (make_directory, "is a directory"),
    "device": (make_device, "is a device"),
}


@pytest.mark.parametrize("kind", NOT_REGULAR)
@pytest.mark.parametrize("through", ["itself", "a link", "a link to a link"])
def test_only_a_regular_file_is_replaced(tmp_path: Path, kind: str, through: str) -> None:
    make, said = NOT_REGULAR[kind]
    path = tmp_path / "there"
    make(path)
    before = os.lstat(path)
    for step in range(["itself", "a link", "a link to a link"].index(through)):
        link = tmp_path / f"link{step}"
        link.symlink_to(path.name)
        path = link
    with pytest.raises(FileError, match=said):
        check_output(path, force=True)
    with pytest.raises(FileError, match=said):
        write_whole(path, b"new")
    assert os.path.samestat(os.lstat(tmp_path / "there"), before)
    assert not list(tmp_path.glob(".*"))


def test_what_a_process_has_open_is_no_place_for_a_file(tmp_path: Path) -> None:
    """As /dev/stdout is when it goes to a file: its link would be replaced, or the file under the shell's hand."""
    with (tmp_path / "redirected").open("wb") as file:
        link = tmp_path / "stdout"
        link.symlink_to(f"/proc/self/fd/{file.fileno()}")
        for path in (link, Path(f"/proc/self/fd/{file.fileno()}")):
            with pytest.raises(FileError, match="has open"):
                check_output(path, force=True)
            with pytest.raises(HotcoldError):
                write_whole(path, b"new")
    assert (tmp_path / "redirected").read_bytes() == b""
    assert link.is_symlink()


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, there: bool) -> None:
    (tmp_path / "other").mkdir()
    target = tmp_path / "other" / "target"
    if there:
        target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("other/target")
    write_whole(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_file_that_is_replaced_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o604)
    write_whole(path, b"new")
    assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o604, b"new")


def test_what_comes_in_between_is_seen(tmp_path: Path) -> None:
    """A pipe that somebody makes while the file is being written."""
    path = tmp_path / "out"
    with pytest.raises(FileError, match="is a pipe"), whole_file(path) as temporary:
        temporary.write_bytes(b"new")
        os.mkfifo(path)
    assert [left.name for left in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("number", "raised", "exit_code"),
    [(errno.ENOSPC, DoesNotFitError, 4), (errno.EDQUOT, DoesNotFitError, 4), (errno.EIO, FileError, 3)],
)
def test_a_failure_names_the_option_and_leaves_nothing(
    tmp_path: Path, number: int, raised: type[HotcoldError], exit_code: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(raised, match="choose another --html") as caught, whole_file(path, option="--html"):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == exit_code
    assert [(left.name, left.read_bytes()) for left in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "no" / "x", tmp_path / "file" / "x"):
        with pytest.raises(FileError, match="must exist"):
            check_output(path)


def test_an_existing_file_wants_force(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    check_output(path)
    path.write_bytes(b"old")
    with pytest.raises(SettingError, match="exists already.*--force"):
        check_output(path, option="--html")
    check_output(path, force=True, option="--html")
