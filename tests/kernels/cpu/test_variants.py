"""Kernels of weight types: compiled when a program needs them, and no sooner."""

import subprocess
import sys

from hotcold.kernels.cpu import rows

SHOW = """
from hotcold.kernels.cpu import program, rows
from hotcold.kernels.cpu.team import Program
before = [i for i in rows.TYPE_SIZE if rows.DOT_ROWS.is_ready(i)]
Program([{"code": program.MAT_VEC, "w": 64, "w_type": rows.Q5_0_ID}, {"code": program.ADD}])
kernels = rows.DOT_ROWS, rows.DOT_STRIPS, rows.WIDEN
print(before, [[i for i in rows.TYPE_SIZE if kernel.is_ready(i)] for kernel in kernels])
"""


def test_a_program_compiles_what_its_own_ops_call() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"[] [[{rows.Q5_0_ID}], [], []]"
