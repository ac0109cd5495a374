"""The CPU's part of a run: its memory, and its nodes as programs that the thread team walks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.arena import aligned
from hotcold.engine.graph.pack import pack
from hotcold.engine.graph.placed import CPU
from hotcold.engine.graph.segments import segments
from hotcold.engine.host import workspace
from hotcold.engine.host.cold_rows import ColdNeurons, ColdRows, cold_neurons, cold_rows
from hotcold.engine.host.lowering import lower
from hotcold.engine.host.records import Lowering, Record
from hotcold.engine.host.steps import Walk
from hotcold.engine.host.stores import HostStore, allocate_kv_cache
from hotcold.engine.model.model import Model
from hotcold.engine.model.rope import frequencies
from hotcold.engine.plan.plan import GraphPlan, Plan
from hotcold.kernels.cpu import program, sizes
from hotcold.kernels.cpu.team import Program
from hotcold.kernels.formats import cos_sin_table


def rope_table(model: Model, n_ctx: int, factors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(cos, sin) of position * frequency, by the magnitude, float32 [n_rotations, n_ctx, n_rot / 2, 2]."""
    tables = [
        cos_sin_table(
            n_ctx, frequencies(model.n_rot, each.freq_base, each.scaling, factors), each.scaling.magnitude
        )
        for each in model.rotations
    ]
    return np.stack(tables)


class HostSide:
    """Memory and programs of the CPU.

    Attributes:
        rope_table: float32 [n_rotations, n_ctx, n_rot / 2, 2]; the device has a copy.
        counts: int64 [n_layer, MAX_CHUNKS, 2], see `Executor`.
        run: the run parameters, which all programs share.
        runs: those of each token of a run whose tokens belong to sequences of their own.
        slot_bytes: from one sequence's caches to the next one's.
    """

    def __init__(
        self, plan: Plan, store: HostStore, arena: NDArray[np.uint8], reads_disk: bool = False
    ) -> None:
        """Allocate.

        Args:
            arena: bytes for the intermediates of every graph; what crosses the bus lies there too.
            reads_disk: see `Lowering`.
        """
        self._reads_disk = reads_disk
        model, n_ctx = plan.model, plan.n_ctx
        self.store, self.arena = store, arena
        divided = [split for split in plan.layers if 0 < split.n_hot < split.n_ff]
        self._cold, self._cold_neurons = dict[int, ColdRows](), dict[int, ColdNeurons]()
        for split in divided:
            if model.experts is not None and model.experts_by_neuron:
                own = cold_neurons(split.hot, model.experts.n_expert, model.experts.n_ff)
                self._cold_neurons[split.layer] = own
            else:
                self._cold[split.layer] = cold_rows(split.hot, split.n_ff)
        self._kv_cache = allocate_kv_cache(plan)
        weight = model.rope_factors(n_ctx)
        factors = None if weight is None else store.rows(weight).view(np.float32)[0]
        self.rope_table = rope_table(model, n_ctx, factors)
        self.counts = program.aligned(model.n_layer * program.MAX_CHUNKS * 16).view(np.int64)
        self.counts = self.counts.reshape(model.n_layer, program.MAX_CHUNKS, 2)
        sizes = [workspace.graph_area_bytes(each.graph, n_ctx) for each in plan.graphs]
        self._areas = {area: program.aligned(max(size[area] for size in sizes)) for area in workspace.AREAS}
        self.run = np.zeros(program.N_PARAMETERS, np.int64)
        self.runs = np.zeros((plan.n_slots, program.N_PARAMETERS), np.int64)
        self.slot_bytes = self._kv_cache.slot_bytes

    def walks(self, graph: GraphPlan, n_apart: int = 0) -> list[Walk]:
        """The CPU's part of a graph, in order: a walk between any two things that the device does.

        Args:
            n_apart: tokens that each belong to a sequence of its own, in row i that of `runs[i]`; 0: all to one.
        """
        low, walks = self.lowering(graph), list[Walk]()
        if n_apart:
            low = replace(
                low, apart=self.runs.ctypes.data, n_apart=n_apart
            )  # how the device lays out a batch depends on the graph's n_tokens
        for kind, nodes in segments(pack(graph.placed, CPU, lambda type_: sizes.is_quantised(int(type_)))):
            if kind == CPU:
                lowered = lower([p.node for p in nodes], low)
                walks.append(Walk(lowered, self.program([r for _, records in lowered for r in records])))
        return walks

    def lowering(self, graph: GraphPlan) -> Lowering:
        """What lowering a node of a graph needs to know, without records."""
        base = self.arena.ctypes.data
        return Lowering(
            n_tokens=graph.placed.n_tokens,
            store=self.store,
            kv_cache=self._kv_cache,
            tensors={entry.name: base + entry.offset for entry in graph.arenas[CPU].slots},
            areas={name: area.ctypes.data for name, area in self._areas.items()},
            rope_table=self.rope_table.ctypes.data,
            table_bytes=self.rope_table[0].nbytes,
            counts=self.counts.ctypes.data,
            cold=self._cold,
            cold_neurons=self._cold_neurons,
            reads_disk=self._reads_disk,
        )

    def area(self, name: str, n_bytes: int) -> NDArray[np.uint8]:
        """The first bytes of a workspace area, as the last node left them."""
        return self._areas[name][:n_bytes]

    def overflow(self, n_keys: int | None, slot: int = 0) -> int | None:
        """See `KVCache.overflow`."""
        return self._kv_cache.overflow(n_keys, slot)

    def blocks(self, n: int, slot: int = 0) -> list[NDArray[np.uint8]]:
        """What a slot's caches hold of the first n positions, an array a layer: views, to be read and written.

        There is memory for all layers, unused for those whose caches are on a device.
        """
        return self._kv_cache.blocks(n, slot)

    def program(self, records: list[Record]) -> Program:
        """Records that the team walks in one go."""
        return Program(records, self.run)


def host_arena_bytes(graphs: Sequence[GraphPlan]) -> int:
    """Bytes that serve every graph in turn."""
    return max(64, *(aligned(graph.arenas[CPU].n_bytes) for graph in graphs))
