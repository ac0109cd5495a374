"""Runs a model's graphs: one token at a time, or a batch of prompt tokens.

The executor knows nodes, not architectures. Both graphs are built, placed in memory and lowered once;
a run sets its parameters (token ids, positions, where the logits go) and lets the team walk.
"""

import time
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hotcold.engine import architectures, memory, workspace
from hotcold.engine.graph import Graph, Node, check
from hotcold.engine.lowering import Lowering, Record, lower
from hotcold.engine.model import N_UNUSED_POSITIONS, Model
from hotcold.engine.stores import HostStore, allocate_kv_cache
from hotcold.engine.trace import Trace
from hotcold.errors import DoesNotFitError, SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program, Team

POSITIONS_AT_ONCE = 4096  # so that the float64 angles of a long context take no memory worth naming


def rope_table(model: Model, n_ctx: int, factors: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """(cos, sin) of position * scale * base^(-2i / n_rot) / factors[i], float32 [n_ctx, n_rot / 2, 2]."""
    exponents = -np.arange(0, model.n_rot, 2) / model.n_rot
    frequencies = model.rope_freq_scale * model.rope_freq_base**exponents
    if factors is not None:
        frequencies = frequencies / factors
    table = np.empty((n_ctx, len(frequencies), 2), np.float32)
    for start in range(0, n_ctx, POSITIONS_AT_ONCE):
        some = table[start : start + POSITIONS_AT_ONCE]
        angles = np.arange(start, start + len(some))[:, None] * frequencies
        some[..., 0], some[..., 1] = np.cos(angles), np.sin(angles)
    return table


def _check_positions(model: Model, n_ctx: int) -> None:
    """Refuse a context beyond the table of learned positions: there is no row to read."""
    if model.position_embd is None:
        return
    n = model.position_embd.ne[1] - N_UNUSED_POSITIONS
    if n_ctx > n:
        raise SettingError("n_ctx", n_ctx, f"the model has learned {n} positions", f"use {n} at most")


class Executor:
    """A model ready to run on the CPU.

    Attributes:
        n_ctx: positions of the KV cache. n_batch: most tokens of one run. n_threads: of the team.
        counts: int64 [n_layer, MAX_CHUNKS, 2]: neurons that each layer's sparse FFN listed, and those
            whose gate (or `up` without one) was positive, summed over chunks, tokens and time by whoever
            reads them.
        trace: when set, hears of each node as it has run; runs then go node by node.
        lowered: by number of tokens (1, n_batch), every node with its op records.
    """

    def __init__(
        self,
        model: Model,
        file: GGUFFile,
        n_ctx: int,
        n_batch: int,
        n_threads: int,
        kv_type: str = "f16",
        sparsity: str = "off",
    ) -> None:
        graphs = [architectures.build(model, n, sparsity) for n in dict.fromkeys((1, n_batch))]
        self._load(model, file, graphs, n_ctx, n_threads, kv_type)

    @classmethod
    def from_graphs(
        cls,
        model: Model,
        file: GGUFFile,
        graphs: list[Graph],
        n_ctx: int,
        n_threads: int,
        kv_type: str = "f16",
    ) -> "Executor":
        """An executor of graphs made elsewhere: the one for a token, and one for a batch."""
        self = cls.__new__(cls)
        self._load(model, file, graphs, n_ctx, n_threads, kv_type)
        return self

    def _load(
        self, model: Model, file: GGUFFile, graphs: list[Graph], n_ctx: int, n_threads: int, kv_type: str
    ) -> None:
        for graph in graphs:
            check(graph)
        _check_positions(model, n_ctx)
        self.model, self.n_ctx, self.n_threads = model, n_ctx, n_threads
        self.n_batch = max(graph.n_tokens for graph in graphs)
        self.graphs = graphs
        self.store = HostStore(file)
        self.kv_cache = allocate_kv_cache(model, n_ctx, kv_type)
        factors = None
        if model.rope_freqs is not None:
            factors = self.store.rows(model.rope_freqs).view(np.float32)[0]
        self._rope_table = rope_table(model, n_ctx, factors)
        self.counts = program.aligned(model.n_layer * program.MAX_CHUNKS * 16).view(np.int64)
        self.counts = self.counts.reshape(model.n_layer, program.MAX_CHUNKS, 2)
        arenas = [memory.offsets(graph) for graph in graphs]
        self._arena = program.aligned(max(arena.n_bytes for arena in arenas))
        self._areas = self._allocate_areas()
        self.lowered = {
            graph.n_tokens: self._lower(graph, arena) for graph, arena in zip(graphs, arenas, strict=True)
        }
        self._programs = {
            n: Program([record for _, records in nodes for record in records])
            for n, nodes in self.lowered.items()
        }
        self._team: Team | None = Team(n_threads)
        self.trace: Trace | None = None
        self._node_programs: dict[int, list[tuple[Node, Program]]] = {}

    def _allocate_areas(self) -> dict[str, NDArray[np.uint8]]:
        sizes = [workspace.graph_area_bytes(graph) for graph in self.graphs]
        return {area: program.aligned(max(size[area] for size in sizes)) for area in workspace.AREAS}

    def _lower(self, graph: Graph, arena: memory.Arena) -> list[tuple[Node, list[Record]]]:
        base = self._arena.ctypes.data
        low = Lowering(
            n_tokens=graph.n_tokens,
            store=self.store,
            kv_cache=self.kv_cache,
            tensors={entry.name: base + entry.offset for entry in arena.entries},
            areas={name: area.ctypes.data for name, area in self._areas.items()},
            rope_table=self._rope_table.ctypes.data,
            counts=self.counts.ctypes.data,
        )
        return lower(graph, low)

    def run(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None = None) -> None:
        """Let tokens pass, at positions n_past, n_past + 1, …

        Args:
            ids: int32 [n], 1 <= n <= n_batch, each below n_vocab.
            logits: float32 [n_out, n_vocab], filled with the logits after the last n_out tokens; None
                for tokens whose logits nobody wants.

        Raises:
            SettingError: no or too many tokens, an id outside the vocabulary, a wrong array.
            DoesNotFitError: positions beyond n_ctx.
        """
        if self._team is None:
            raise SettingError("executor", "closed", next_step="load the model again")
        self._check_run(ids, n_past, logits)
        ids = np.ascontiguousarray(ids, np.int32)
        job = self._programs[1 if ids.size == 1 else self.n_batch]
        n_out = 0 if logits is None else logits.shape[0]
        job.run[program.N_TOKENS] = ids.size
        job.run[program.N_PAST] = n_past
        job.run[program.TOKEN_IDS] = ids.ctypes.data
        job.run[program.LOGITS_ADDRESS] = 0 if logits is None else logits.ctypes.data
        job.run[program.LOGITS_FROM] = ids.size - n_out
        if self.trace is None:
            self._team.walk(job)
        else:
            self._walk_nodes(job, 1 if ids.size == 1 else self.n_batch, self.trace)

    def _walk_nodes(self, job: Program, n_tokens: int, trace: Trace) -> None:
        """Walk node by node, and report each; the same records in the same order."""
        if self._team is None:
            return
        if n_tokens not in self._node_programs:
            pairs = self.lowered[n_tokens]
            self._node_programs[n_tokens] = [(node, Program(records)) for node, records in pairs]
        for step, (node, program_of_node) in enumerate(self._node_programs[n_tokens]):
            program_of_node.run[:] = job.run
            counted, started = self.counts.sum(axis=1), time.perf_counter()
            self._team.walk(program_of_node)
            seconds = time.perf_counter() - started
            trace(step, node, n_tokens, seconds, self.counts.sum(axis=1) - counted)

    def _check_run(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None) -> None:
        n, n_vocab = ids.size, self.model.n_vocab
        if not 1 <= n <= self.n_batch:
            raise SettingError("tokens of one run", n, f"1 to n_batch = {self.n_batch}")
        if ids.min() < 0 or ids.max() >= n_vocab:
            bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise SettingError("token id", bad, f"the vocabulary has 0 to {n_vocab - 1}")
        if n_past < 0 or n_past + n > self.n_ctx:
            raise DoesNotFitError(
                "positions in use", n_past + n, f"the context holds {self.n_ctx}", "raise n_ctx"
            )
        if logits is None:
            return
        shape = (min(logits.shape[0], n), n_vocab)
        if logits.shape != shape or logits.dtype != np.float32 or not logits.flags.c_contiguous:
            raise SettingError(
                "logits array", f"{logits.dtype} {logits.shape}", f"wanted: contiguous float32 {shape}"
            )

    def close(self) -> None:
        """End the threads; the executor cannot run any more."""
        if self._team is not None:
            self._team.close()
        self._team = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
