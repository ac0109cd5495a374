"""Which kernels of which weight types a program's records call, so that only those are compiled."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.kernels.cpu import panels, program, rows
from hotcold.kernels.cpu.variants import Variants
from hotcold.kernels.cpu.weight_types import BLOCK_TYPES, WEIGHT_TYPES

ONE, FEW = (rows.DOT_ROWS,), (rows.DOT_ROWS, rows.DOT_STRIPS, rows.DOT_TILE, panels.STAGE)

CALLED: dict[int, dict[str, tuple[Variants, ...]]] = {
    program.EMBED: {"w": (rows.WIDEN,)},
    program.POSITIONS: {"w": (rows.WIDEN,)},
    program.MAT_VEC: {"w": ONE},
    program.MUL_MAT: {"w": FEW},
    program.LOGITS: {"w": FEW},
    program.GATED: {"w": ONE, "w1": ONE},
    program.SPARSE_FFN: {"w": ONE, "w1": ONE, "w2": (rows.ADD_ROWS, rows.WIDEN)},
    program.GATE_ROWS: {"w": FEW},
    program.UP_ROWS: {"w": FEW},
    program.DOWN_ROWS: {"w": (rows.ADD_ROWS, rows.WIDEN)},
    program.EXPERT_ROWS: {"w": FEW},
    program.EXPERT_UP: {"w": FEW},
}
"""The kernels that an op calls for the type of each of its matrices."""


def prepare(ops: NDArray[Any]) -> None:
    """Compile what these records call, or load it from the disk cache."""
    for code, matrices in CALLED.items():
        of_code = ops[ops["code"] == code]
        for name, kernels in matrices.items():
            for type_id in np.unique(of_code[f"{name}_type"][of_code[name] != 0]):
                for kernel in kernels:
                    _prepare(kernel, int(type_id))


def prepare_all() -> None:
    """Every kernel of every type, for callers without a program."""
    for kind in WEIGHT_TYPES:
        for kernel in (*FEW, rows.ADD_ROWS, rows.WIDEN):
            _prepare(kernel, kind.type_id)


def _prepare(kernel: Variants, type_id: int) -> None:
    kernel.prepare(type_id)
    if kernel is panels.STAGE and type_id in _BLOCK_IDS:
        panels.TILE.prepare(panels.tile_kind(type_id))


_BLOCK_IDS = frozenset(kind.type_id for kind in BLOCK_TYPES)
