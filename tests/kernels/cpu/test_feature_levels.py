"""The same checks on code for other CPUs than this one, really run, each in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.codegen import get_host_cpu_features

AVX2 = "+avx,+avx2,+fma,+f16c,+bmi2,+sse4.2"
LEVELS = {
    "generic": "",
    "haswell": AVX2,
    "skylake-avx512": f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512dq",
    "alderlake": f"{AVX2},+avxvnni",
}

# instructions, conversions, extremes of bytes, every size: kernels called by address
BY_ADDRESS = ("simd", "pack", "rows", "elementwise", "oracles", "attention", "experts")
# whole programs of every op, sparse ones with NaN in unread rows, bits for all team sizes
PROGRAMS = ("program", "ffn", "tiles", "order_of_sums")
PYTEST = ("-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "--tb=short")

pytestmark = pytest.mark.slow  # each level compiles everything anew


def run_at(name: str, folder: Path, *arguments: str | Path) -> str:
    """Run Python at a feature level with a cache in this folder; what it printed.

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


def files_at(names: tuple[str, ...]) -> list[Path]:
    return [Path(__file__).with_name(f"test_{name}.py") for name in names]


@pytest.mark.parametrize("name", LEVELS)
def test_the_kernels_of_a_level(name: str, tmp_path: Path) -> None:
    """The host's own tests, on code that is compiled once."""
    printed = run_at(name, tmp_path, *PYTEST, *files_at(BY_ADDRESS))
    assert " passed" in printed and "skipped" not in printed
    run_at(name, tmp_path, *PYTEST, *files_at(PROGRAMS))
