"""What a run consists of: steps, each of which takes itself. The CPU's is a walk of the thread team.

The device's are in `engine/device/steps.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node
from hotcold.engine.host.records import Record
from hotcold.kernels.cpu.team import Program, Team


@dataclass(frozen=True)
class Context:
    """What steps run with.

    Attributes:
        team: that walks the CPU's records.
        n_tokens: that pass.
        parts: of the context, for which the attention of a decode step on a device has blocks; see `part_classes`.
        logits: float32 [n_out, n_vocab], of the last n_out tokens; None where nobody wants them.
        candidates: int32 [n_out, CANDIDATE_WORDS], filled in the logits' place, of which only rows come that
            are not all finite; None where all logits are wanted.
    """

    team: Team
    n_tokens: int
    parts: int
    logits: NDArray[np.float32] | None
    candidates: NDArray[np.int32] | None = None


class Step(Protocol):
    """One thing after another in a run.

    Attributes:
        nodes: that it carries out.
    """

    @property
    def nodes(self) -> tuple[Node, ...]: ...

    def run(self, context: Context) -> None:
        """Do it, or enqueue it on the device."""


@dataclass(frozen=True)
class Walk:
    """Nodes of the CPU with their records, and the program of them all."""

    lowered: list[tuple[Node, list[Record]]]
    program: Program

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes alone."""
        return tuple(node for node, _ in self.lowered)

    def run(self, context: Context) -> None:
        """Let the team walk the program, and count how long that takes."""
        started = perf_counter()
        context.team.walk(self.program)
        context.team.walked += perf_counter() - started


Taking = Callable[[Sequence[Step], Context], None]
"""Takes all steps of a run in order."""


def take_all(steps: Sequence[Step], context: Context) -> None:
    """One step after another."""
    for step in steps:
        step.run(context)
