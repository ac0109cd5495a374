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
QUICK = {"generic", "haswell"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in LEVELS]
)
def test_oracles_hold(name: str, tmp_path: Path) -> None:
    host = get_host_cpu_features().split(",")
    missing = [f for f in LEVELS[name].split(",") if f and f not in host]
    if missing:
        pytest.skip(f"this CPU cannot run {name}: no {', '.join(missing)}")
    environment = os.environ | {
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": LEVELS[name],
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    script = Path(__file__).with_name("oracle_checks.py")
    done = subprocess.run(
        [sys.executable, script], check=False, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
