"""Building the emulated device: compiler, cache, messages."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hotcold.errors import DeviceError, SettingError
from hotcold.kernels.cuda.device import cache
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.emulator import build as emulated_build
from hotcold.kernels.cuda.emulator.driver import EmulatedDriver

TINY = '#include "common.h"\nKERNEL tiny(int* x) { if (threadIdx.x == 0) x[0] = 1; }\n'


def program_of(tmp_path: Path, text: str) -> str:
    from hotcold.kernels.cuda.device.sources import program

    path = tmp_path / "tiny.cu"
    path.write_text(text)
    return program(path)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hotcold"


def test_no_compiler_is_exit_5_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match="no-such-compiler.*install g") as caught:
        EmulatedDriver()
    assert caught.value.exit_code == 5


def test_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(DeviceError, match="aarch64.*needs x86-64"):
        emulated_build.find_compiler()


def test_a_cpu_without_avx2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated_build, "_cpu_flags", lambda: frozenset({"sse2", "fma"}))
    with pytest.raises(DeviceError, match="lacks avx2, f16c"):
        emulated_build.find_compiler()


def test_a_compiler_that_does_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(DeviceError, match="does not run"):
        emulated_build.build("", "fast")


def test_an_unknown_build_is_refused() -> None:
    with pytest.raises(SettingError, match="slow.*fast, checked, races"):
        EmulatedDriver(build_kind="slow")


def test_an_error_in_a_source_names_its_line(compiler: str, fresh_cache: Path, tmp_path: Path) -> None:
    text = TINY.replace("x[0] = 1", "x[0] = what")
    with pytest.raises(DeviceError, match="tiny.cu:2.*what"):
        emulated_build.build(program_of(tmp_path, text), "checked")
    assert not list(fresh_cache.glob("emulated-*"))


def test_float_atomics_do_not_compile(compiler: str, fresh_cache: Path, tmp_path: Path) -> None:
    text = '#include "common.h"\nKERNEL tiny(float* x) { atomicAdd(x, 1.f); }\n'
    with pytest.raises(DeviceError, match="float atomics are not deterministic"):
        emulated_build.build(program_of(tmp_path, text), "checked")


def test_shared_memory_in_a_template_is_refused(compiler: str, fresh_cache: Path, tmp_path: Path) -> None:
    text = (
        '#include "common.h"\ntemplate <int N> __device__ int one() {\n'
        "    __shared__ int box[N];\n    return box[0];\n}\nKERNEL tiny(int* x) { x[0] = one<3>(); }\n"
    )
    with pytest.raises(DeviceError, match="tiny.cu:3.*stands in a template"):
        emulated_build.build(program_of(tmp_path, text), "checked")


def test_objects_are_cached_and_rebuilt_when_broken(
    compiler: str,
    fresh_cache: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = program_of(tmp_path, TINY)
    path = emulated_build.build(source, "fast")
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(emulated_build, "_compile", lambda *_: pytest.fail("built twice"))
        assert emulated_build.build(source, "fast") == path
    for broken in (content[: len(content) // 2], b"", content[:-1] + b"x"):
        path.write_bytes(broken)
        with caplog.at_level(logging.WARNING):
            assert emulated_build.build(source, "fast").read_bytes() == content
        assert "is broken; building it again" in caplog.text
        caplog.clear()
    Device(EmulatedDriver(source, build_kind="fast")).close()


def test_every_part_of_the_build_is_in_the_key(
    compiler: str, fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated_build, "_compile", lambda *_: b"library")
    paths = {
        emulated_build.build(program_of(tmp_path, text), kind)
        for text in (TINY, TINY.replace("= 1", "= 2"))
        for kind in ("fast", "checked")
    }
    assert len(paths) == 4


def test_an_unwritable_cache_falls_back_to_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    monkeypatch.setenv("HOME", str(in_the_way))
    with caplog.at_level(logging.WARNING):
        directory = cache.cache_directory()
    assert directory.is_dir() and tmp_path not in directory.parents
    assert "cannot be written; using" in caplog.text
    assert cache.cache_directory() == directory  # the same for the rest of the run


def test_the_cache_lies_where_users_expect_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_directory() == tmp_path / "xdg" / "hotcold"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_directory() == tmp_path / ".cache" / "hotcold"


@pytest.mark.slow
@pytest.mark.parametrize("required", [pytest.param("", marks=pytest.mark.slow), "1"])
def test_without_a_compiler_tests_skip_with_a_reason_unless_that_is_forbidden(required: str) -> None:
    environment = os.environ | {"CXX": "no-such-compiler", "HOTCOLD_REQUIRE_EMULATED": required}
    streams = Path(__file__).with_name("test_streams.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(streams)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert "no such C++ compiler" in done.stdout
    if required:
        assert done.returncode == 1 and "HOTCOLD_REQUIRE_EMULATED is set" in done.stdout
    else:
        assert done.returncode == 0 and "skipped" in done.stdout and "failed" not in done.stdout
