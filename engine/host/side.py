"""The CPU's part of a run: its memory, and its nodes as programs that the thread team walks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.arena import aligned
from hotcold.engine.graph.graph import Graph, Node
from hotcold.engine.graph.placed import CPU
from hotcold.engine.host import workspace
from hotcold.engine.host.cold_rows import ColdRows
from hotcold.engine.host.lowering import lower
from hotcold.engine.host.records import Lowering, Record
from hotcold.engine.host.stores import HostStore, allocate_kv_cache
from hotcold.engine.model.model import Model
from hotcold.engine.plan.plan import GraphPlan
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program
from hotcold.kernels.formats import cos_sin_table


def rope_table(model: Model, n_ctx: int, factors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(cos, sin) of position * scale * base^(-2i / n_rot) / factors[i], float32 [n_ctx, n_rot / 2, 2]."""
    exponents = -np.arange(0, model.n_rot, 2) / model.n_rot
    frequencies = model.rope_freq_scale * model.rope_freq_base**exponents
    if factors is not None:
        frequencies = frequencies / factors
    return cos_sin_table(n_ctx, frequencies)


class HostSide:
    """Memory and programs of the CPU.

    Attributes:
        rope_table: float32 [n_ctx, n_rot / 2, 2]; the device has a copy.
        counts: int64 [n_layer, MAX_CHUNKS, 2], see `Executor`.
        run: the run parameters, which all programs share.
    """

    def __init__(
        self,
        model: Model,
        store: HostStore,
        graphs: Sequence[Graph],
        arena: NDArray[np.uint8],
        n_ctx: int,
        kv_type: str,
        cold: dict[int, ColdRows],
    ) -> None:
        """Allocate.

        Args:
            arena: bytes for the intermediates of every graph; what crosses the bus lies there too.
            cold: of each split layer, the rows that are the CPU's.
        """
        self.store, self.arena, self.cold = store, arena, cold
        self.kv_cache = allocate_kv_cache(model, n_ctx, kv_type)
        factors = None
        if model.rope_freqs is not None:
            factors = store.rows(model.rope_freqs).view(np.float32)[0]
        self.rope_table = rope_table(model, n_ctx, factors)
        self.counts = program.aligned(model.n_layer * program.MAX_CHUNKS * 16).view(np.int64)
        self.counts = self.counts.reshape(model.n_layer, program.MAX_CHUNKS, 2)
        sizes = [workspace.graph_area_bytes(graph, n_ctx) for graph in graphs]
        self._areas = {area: program.aligned(max(size[area] for size in sizes)) for area in workspace.AREAS}
        self.run = np.zeros(program.N_PARAMETERS, np.int64)

    def lowering(self, graph: GraphPlan) -> Lowering:
        """What lowering this graph's nodes starts from."""
        base = self.arena.ctypes.data
        return Lowering(
            n_tokens=graph.placed.n_tokens,
            store=self.store,
            kv_cache=self.kv_cache,
            tensors={entry.name: base + entry.offset for entry in graph.arenas[CPU].entries},
            areas={name: area.ctypes.data for name, area in self._areas.items()},
            rope_table=self.rope_table.ctypes.data,
            counts=self.counts.ctypes.data,
            cold=self.cold,
        )

    def program(self, records: list[Record]) -> Program:
        """Records that the team walks in one go."""
        return Program(records, self.run)

    @staticmethod
    def lower(nodes: Sequence[Node], low: Lowering) -> list[tuple[Node, list[Record]]]:
        """Nodes in order with their records."""
        return [(node, lower(node, low)) for node in nodes]


def host_arena_bytes(graphs: Sequence[GraphPlan]) -> int:
    """Bytes that serve every graph in turn."""
    return max(64, *(aligned(graph.arenas[CPU].n_bytes) for graph in graphs))
