"""Compiled objects on disk where there is no room or no home for them."""

from pathlib import Path

import pytest
from commands import left_in

from hotcold.errors import DoesNotFitError
from hotcold.kernels.cuda.device import cache


def test_a_run_without_a_cache_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "from hotcold.kernels.cuda.device.cache import cached\n"
        "path = cached('kernels', 'abc', '.so', lambda: b'code')\n"
        "assert path.read_bytes() == b'code' and path == cached('kernels', 'abc', '.so', lambda: 1 / 0)"
    )
    assert left_in(tmp_path, code, HOME="/proc/none") == []


def test_a_full_disk_keeps_a_kernel_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def full(path: Path, content: bytes) -> None:
        if path.is_relative_to(tmp_path):
            raise DoesNotFitError(f"writing {path}", "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(cache, "write_whole", full)
    path = cache.cached("kernels", "def", ".so", lambda: b"code")
    assert path.read_bytes() == b"code" and not list((tmp_path / "hotcold").iterdir())
