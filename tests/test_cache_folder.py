"""The folder of a run alone goes at its end."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from hotcold import cache_folder


def test_the_folder_goes_with_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache_folder.temporary_folder.cache_clear()
    folder = cache_folder.temporary_folder()
    assert folder is not None and folder.parent == tmp_path and cache_folder.is_for_this_run(folder)
    (folder / "kernels").mkdir()
    (folder / "kernels" / "one").touch()
    cache_folder.remove_temporary_folder()
    cache_folder.temporary_folder.cache_clear()
    assert not folder.exists()


def test_there_may_be_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> str:
        raise OSError("read-only")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    cache_folder.temporary_folder.cache_clear()
    assert cache_folder.temporary_folder() is None
    cache_folder.temporary_folder.cache_clear()
