"""Where compiled kernels go: named after the sources, usable anywhere."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from llvmlite import binding

from hotcold.cache_folder import temporary_folder
from hotcold.code_files import code_folder, source_hash
from hotcold.kernels.cpu import kernel_files

FOLDER = "from hotcold.kernels.cpu import kernel_files; print(kernel_files.folder())"
SOURCES = Path(kernel_files.__file__).parent
PLACES = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "TMPDIR")


def process_in(environment: dict[str, str]) -> Path:
    """What a fresh process with only this environment uses."""
    environment = environment | {"PYTHONPATH": str(SOURCES.parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", FOLDER], check=True, capture_output=True, text=True, env=environment
    )
    return Path(done.stdout.strip())


def folder_in(environment: dict[str, str]) -> Path:
    """What a process with only these of PLACES would use."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PLACES:
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", None)  # where the temporary folder is, if it was asked for
        temporary_folder.cache_clear()
        found = code_folder(SOURCES)
    assert found is not None
    return found


def test_a_process_uses_its_folder(tmp_path: Path) -> None:
    environment = {"HOME": "/proc", "TMPDIR": str(tmp_path)}
    assert process_in(environment) == folder_in(environment)
    levels = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert process_in(environment | levels) != folder_in(environment)


def test_another_cpu_uses_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a home, of the same model too: a hypervisor may hide features."""
    found = [folder_in({"HOME": str(tmp_path)}) for _ in range(2)]
    features = binding.get_host_cpu_features()
    features["avx2"] = not features.get("avx2", False)
    for name, told in (("get_host_cpu_features", features), ("get_host_cpu_name", "another")):
        monkeypatch.setattr(binding, name, lambda told=told: told)
        found.append(folder_in({"HOME": str(tmp_path)}))
    assert len(set(found)) == 3 and found[0] == found[1]
    assert {path.parent for path in found} == {found[0].parent}


def test_a_cpu_whose_features_are_unknown_has_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> None:
        raise RuntimeError

    here = folder_in({"HOME": str(tmp_path)})
    monkeypatch.setattr(binding, "get_host_cpu_features", unknown)
    assert folder_in({"HOME": str(tmp_path)}).parent == here.parent


def test_a_changed_source_changes_the_name(tmp_path: Path) -> None:
    copy = shutil.copytree(SOURCES, tmp_path / "cpu")
    assert source_hash(copy) == source_hash(SOURCES)
    (copy / "rows.py").write_text((copy / "rows.py").read_text() + "\n")
    assert source_hash(copy) != source_hash(SOURCES)


def test_order_of_places(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    places["HOME"].mkdir()
    environment = {name: str(path) for name, path in places.items()}
    for name, path in places.items():
        expected = path / ".cache" if name == "HOME" else path
        assert folder_in(environment).is_relative_to(expected)
        del environment[name]
    assert folder_in({"TMPDIR": str(tmp_path)}).is_relative_to(tmp_path)


@pytest.mark.parametrize("home", [None, "", "relative", "/proc", "/dev/null", "FILE", "FILE/below"])
def test_an_unusable_home_falls_back_to_the_temporary_folder(tmp_path: Path, home: str | None) -> None:
    (tmp_path / "file").write_text("")
    places = {} if home is None else {"HOME": home.replace("FILE", str(tmp_path / "file"))}
    (tmp_path / "temporary").mkdir()
    found = folder_in({**places, "TMPDIR": str(tmp_path / "temporary")})
    assert found.is_relative_to(tmp_path / "temporary")


@pytest.mark.parametrize("home", ["gone", "gone/below", "link"])
def test_a_home_that_is_not_there_is_not_made(tmp_path: Path, home: str) -> None:
    """Such as /nonexistent, the home of many system users, which root could make."""
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "temporary").mkdir()
    found = folder_in({"HOME": str(tmp_path / home), "TMPDIR": str(tmp_path / "temporary")})
    assert found.is_relative_to(tmp_path / "temporary")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "temporary"]


def test_folders_that_cannot_be_made_are_passed_over(tmp_path: Path) -> None:
    """/proc takes no folders, not even from root."""
    usable = tmp_path / "home"
    usable.mkdir()
    environment = {"NUMBA_CACHE_DIR": "/proc", "XDG_CACHE_HOME": "/proc/1", "HOME": str(usable)}
    assert folder_in(environment).is_relative_to(usable / ".cache")


def test_without_any_place_a_folder_of_this_process_alone_is_used(tmp_path: Path) -> None:
    blocked = tmp_path / f"hotcold-{os.getuid()}"
    blocked.write_text("")
    paths = {folder_in({"HOME": "/proc", "TMPDIR": str(tmp_path)}) for _ in range(2)}
    assert len(paths) == 2
    assert all(path.parent == tmp_path and path.is_dir() for path in paths)


def test_a_folder_of_a_process_is_removed_at_its_end(tmp_path: Path) -> None:
    (tmp_path / f"hotcold-{os.getuid()}").write_text("")
    found = process_in({"HOME": "/proc", "TMPDIR": str(tmp_path)})
    assert found.parent == tmp_path and not found.exists()


@pytest.mark.slow
def test_a_process_without_any_place_runs() -> None:
    """No home, and no folder for temporary files: nothing is kept."""
    code = "import tempfile\ntempfile._candidate_tempdir_list = lambda: ['/proc']\n" + RELU
    environment = {name: value for name, value in os.environ.items() if name not in PLACES} | {
        "HOME": "/proc"
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd="/proc",
    )
    assert done.stdout.strip() == "0.0 3.0", done.stderr


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_passed_over(tmp_path: Path) -> None:
    read_only = tmp_path / "home"
    read_only.mkdir(mode=0o500)
    path = folder_in({"HOME": str(read_only), "TMPDIR": str(tmp_path)})
    assert path.is_relative_to(tmp_path / f"hotcold-{os.getuid()}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_folder_of_another_user_is_not_trusted(above: int, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    environment = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    path = folder_in(environment)
    os.chown([path, *path.parents][above], 12345, 12345)
    assert folder_in(environment).is_relative_to(tmp_path / "hotcold-0")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_another_user_made_in_the_temporary_one_is_not_trusted(tmp_path: Path) -> None:
    foreign = tmp_path / "hotcold-0"
    foreign.mkdir(mode=0o777)
    os.chown(foreign, 12345, 12345)
    path = folder_in({"HOME": "/proc", "TMPDIR": str(tmp_path)})
    assert path.parent == tmp_path and path != foreign


RELU = """
import numpy as np
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program, Team
x = np.array([-2.0, 3.0] * 8, np.float32)
job = Program([{"code": program.RELU, "chunks": 1, "k": 16, "x": x.ctypes.data, "y": x.ctypes.data}])
job.run[program.N_TOKENS] = 1
Team(1).walk(job)
print(x[0], x[1])
"""
MATRICES = """
import sys
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program
types = [{"w": 64, "w_type": i} for i in (1, 2, 8, 14)]
Program([{"code": code, **kind} for code in (program.MUL_MAT, program.EMBED) for kind in types])
print("numba" in sys.modules)
"""


@pytest.mark.slow
def test_code_of_a_changed_module_is_not_run_on(tmp_path: Path) -> None:
    """`relu` lies in another file than the vector operation that it calls, whose change must show."""
    package = SOURCES.parents[1]
    copy = tmp_path / "hotcold"
    for name in ("__init__.py", "errors.py", "closing.py", "cache_folder.py", "code_files.py"):
        copy.mkdir(exist_ok=True)
        shutil.copy(package / name, copy / name)
    shutil.copytree(package / "kernels", copy / "kernels")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    printed = []
    for relu_of in ("0.0", "1.0"):
        operations = copy / "kernels" / "cpu" / "operations.py"
        before = operations.read_text()
        operations.write_text(
            before.replace(
                "larger(b, x, constant(F32, 16, 0.0))", f"larger(b, x, constant(F32, 16, {relu_of}))"
            )
        )
        assert relu_of == "0.0" or operations.read_text() != before
        for _ in range(2):  # compiled, then read from the cache
            printed.append(
                subprocess.run(
                    [sys.executable, "-c", RELU], check=True, capture_output=True, text=True, env=environment
                ).stdout.strip()
            )
    assert printed == ["0.0 3.0", "0.0 3.0", "1.0 3.0", "1.0 3.0"]


@pytest.mark.slow
def test_two_processes_may_fill_an_empty_folder_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        pair = [
            subprocess.Popen([sys.executable, "-c", RELU], stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(2)
        ]
        assert [process.communicate(timeout=120)[0].strip() for process in pair] == ["0.0 3.0"] * 2
        assert [process.returncode for process in pair] == [0] * 2
    assert len({path.parent for path in tmp_path.rglob("*.kernel")}) == 1
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.slow
def test_two_processes_may_compile_the_same_kernels(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    pair = [subprocess.Popen([sys.executable, "-c", MATRICES], env=environment) for _ in range(2)]
    assert [process.wait(300) for process in pair] == [0, 0]


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    """It does not even import what compiles."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    printed, stamps = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", MATRICES], check=True, env=environment, capture_output=True
        )
        printed.append(done.stdout.strip())
        stamps.append({path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.kernel")})
    assert printed == [b"True", b"False"]
    assert stamps[0] == stamps[1]


@pytest.mark.slow
def test_what_a_program_does_not_call_is_not_compiled(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", RELU], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert {path.name for path in tmp_path.rglob("*.kernel")} == {"lead.kernel", "op_relu.kernel"}


def test_a_folder_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "hotcold").mkdir()
    (tmp_path / "hotcold").chmod(0o777)
    path = folder_in({"NUMBA_CACHE_DIR": str(tmp_path), "TMPDIR": str(tmp_path)})
    assert not path.is_relative_to(tmp_path / "hotcold")


LEVEL = """
import sys
from hotcold.kernels.cpu import kernel_files, prefetch_level, simd
before = kernel_files.noted_level()
prefetch_level.choose()
with simd.asking_into(7):
    inside = simd.stream_locality()
print(before, kernel_files.noted_level(), simd.stream_locality(), inside)
"""


def test_the_level_of_prefetches_is_measured_once(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", LEVEL], check=True, env=environment, capture_output=True, text=True
        )
        return done.stdout.split()

    before, noted, used, inside = run()
    assert before == "None" and noted in ("2", "3") and used == noted and inside == "7"
    assert run() == [noted, noted, noted, "7"]
