"""The folder of a run alone goes at its end, whoever still writes there."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from hotcold import cache_folder


def test_what_is_written_while_the_folder_goes_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a thread that compiles does, when Ctrl-C ends the run."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache_folder.temporary_folder.cache_clear()
    folder, remove, late = cache_folder.temporary_folder(), shutil.rmtree, ["one", "two"]
    assert folder is not None and folder.parent == tmp_path

    def with_a_late_file(path: Path, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        if late:
            path.mkdir(exist_ok=True)
            (path / late.pop()).touch()

    monkeypatch.setattr(shutil, "rmtree", with_a_late_file)
    cache_folder.remove_temporary_folder()
    cache_folder.temporary_folder.cache_clear()
    assert not late and not folder.exists()


def test_there_may_be_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise OSError("read-only")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    cache_folder.temporary_folder.cache_clear()
    assert cache_folder.temporary_folder() is None
    cache_folder.temporary_folder.cache_clear()
