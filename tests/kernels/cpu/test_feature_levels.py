"""The same checks on code for other CPUs than this one, really run, each in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import oracle_checks
import pytest
from numba.core.codegen import get_host_cpu_features

AVX2 = "+avx,+avx2,+fma,+f16c,+bmi2,+sse4.2"
LEVELS = {
    "generic": "",
    "haswell": AVX2,
    "skylake-avx512": f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq",
    "alderlake": f"{AVX2},+avxvnni",
}

# tests that call kernels by address and compile them alone, in seconds
BY_ADDRESS = [f"test_{name}.py" for name in ("simd", "pack", "rows", "elementwise", "attention")]

pytestmark = pytest.mark.slow  # each level compiles everything anew
levels = pytest.mark.parametrize("name", LEVELS)


def run_at(name: str, folder: Path, *arguments: str | Path) -> str:
    """Run Python at a feature level with a cache of its own; what it printed.

    Raises:
        AssertionError: with the last lines printed, when it failed.
    """
    host = get_host_cpu_features().split(",")
    missing = [f for f in LEVELS[name].split(",") if f and f not in host]
    if missing:
        pytest.skip(f"this CPU cannot run {name}: no {', '.join(missing)}")
    environment = os.environ | {
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": LEVELS[name],
        "NUMBA_CACHE_DIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@levels
def test_oracles_hold(name: str, tmp_path: Path) -> None:
    run_at(name, tmp_path, Path(oracle_checks.__file__))


@levels
def test_kernels_by_address(name: str, tmp_path: Path) -> None:
    """Instructions, conversions, extremes of bytes and every size of the host's own tests."""
    files = [Path(__file__).with_name(file) for file in BY_ADDRESS]
    options = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    printed = run_at(name, tmp_path, *options, *files)
    assert " passed" in printed and "skipped" not in printed


@levels
def test_every_op_and_team(name: str, tmp_path: Path) -> None:
    """Whole programs of every op, sparse ones with NaN in unread rows, and bits for all team sizes."""
    files = [
        Path(__file__).with_name(f"test_{file}.py") for file in ("program", "ffn", "tiles", "order_of_sums")
    ]
    run_at(name, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *files)
