"""Runs a model's graphs: one token at a time, or a batch of prompt tokens.

The executor knows nodes, not architectures. Both graphs are built, placed and lowered once; a run sets
its parameters (token ids, positions, where the logits go) and takes the steps of its graph: on the CPU
alone one walk of the team, with a device also launches and copies.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.device.side import DeviceSide
from hotcold.engine.device.steps import (
    CopyDown,
    CopyUp,
    Launches,
    Logits,
    Step,
    WaitFor,
    Walk,
    nodes_of,
    segments,
)
from hotcold.engine.device.store import DeviceStore, Progress
from hotcold.engine.graph import architectures
from hotcold.engine.graph.graph import Graph, Node, check
from hotcold.engine.graph.passes import run_passes
from hotcold.engine.graph.placed import CPU, GPU, Homes
from hotcold.engine.host.cold_rows import cold_rows
from hotcold.engine.host.records import Record
from hotcold.engine.host.side import HostSide, host_arena_bytes
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Model
from hotcold.engine.plan.plan import GraphPlan, Plan
from hotcold.engine.run.trace import Trace
from hotcold.errors import DeviceError, DoesNotFitError, SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program, Team
from hotcold.kernels.cuda.device.device import Device

TAILS = 8  # lengths of a prompt's last batch whose launches are kept


def _check_positions(model: Model, n_ctx: int) -> None:
    """Refuse a context beyond the table of learned positions: there is no row to read."""
    n = model.n_positions
    if n is not None and n_ctx > n:
        raise SettingError("n_ctx", n_ctx, f"the model has learned {n} positions", f"use {n} at most")


class Executor:
    """A model ready to run, on the CPU or divided between a device and the CPU.

    Attributes:
        n_ctx: positions of the KV cache. n_batch: most tokens of one run. n_threads: of the team.
        plan: what is where; None on the CPU alone.
        counts: int64 [n_layer, MAX_CHUNKS, 2]: neurons that each layer's sparse FFN listed on the CPU, and
            those whose gate (or `up` without one) was positive, summed over chunks, tokens and time by
            whoever reads them.
        trace: when set, hears of each node as it has run; runs then go node by node.
        taking: when set, is given a run's steps, and what takes one, and has to take them all in order: for
            measuring.
        lowered: by number of tokens (1, n_batch), every node of the CPU with its op records.
        device: what the plan was carried out on; None on the CPU alone.
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
        self._load(model, file, _on_the_cpu(model, graphs), n_ctx, n_threads, kv_type)

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
        """An executor, on the CPU, of graphs made elsewhere: the one for a token, and one for a batch."""
        self = cls.__new__(cls)
        self._load(model, file, _on_the_cpu(model, graphs), n_ctx, n_threads, kv_type)
        return self

    @classmethod
    def from_plan(
        cls,
        plan: Plan,
        file: GGUFFile,
        n_threads: int,
        device: Device | None = None,
        progress: Progress | None = None,
    ) -> "Executor":
        """An executor that carries out a plan.

        Args:
            device: for a plan that puts something there. progress: hears of the loading.

        Raises:
            DoesNotFitError: the device, or page-locked memory, has less room than the plan takes; nothing
                is left there.
            DeviceError: the device fails.
        """
        store = DeviceStore(device, plan) if device is not None and plan.totals.used else None
        return cls.from_store(plan, file, n_threads, store, progress)

    @classmethod
    def from_store(
        cls,
        plan: Plan,
        file: GGUFFile,
        n_threads: int,
        store: DeviceStore | None,
        progress: Progress | None = None,
    ) -> "Executor":
        """As `from_plan`, with the plan's memory allocated already; it is freed if anything fails."""
        self = cls.__new__(cls)
        try:
            plans = [plan.decode, plan.batch] if plan.n_batch > 1 else [plan.decode]
            self._load(plan.model, file, plans, plan.n_ctx, n_threads, plan.kv_type, store, progress)
        except BaseException:
            if store is not None:
                store.free()
            raise
        return self

    def _load(
        self,
        model: Model,
        file: GGUFFile,
        plans: Sequence[GraphPlan],
        n_ctx: int,
        n_threads: int,
        kv_type: str,
        store: DeviceStore | None = None,
        progress: Progress | None = None,
    ) -> None:
        graphs = [plan.graph for plan in plans]
        for graph in graphs:
            check(graph)
        _check_positions(model, n_ctx)
        self.model, self.n_ctx, self.n_threads, self.kv_type = model, n_ctx, n_threads, kv_type
        self.n_batch = max(graph.n_tokens for graph in graphs)
        self.graphs, self.store, self.plan = graphs, HostStore(file), store.plan if store else None
        self.trace: Trace | None = None
        self.taking: Callable[[Sequence[Step], Callable[[Step], None]], None] | None = None
        self._team: Team | None = None
        self._side = DeviceSide(store, host_arena_bytes(plans)) if store else None
        try:
            self._make(plans, store, progress)
            self._team = Team(n_threads)
        except BaseException:
            if self._side is not None:
                self._side.free_pinned()
            raise

    def _make(self, plans: Sequence[GraphPlan], store: DeviceStore | None, progress: Progress | None) -> None:
        """Both sides, and the steps of both graphs."""
        side, plan = self._side, self.plan
        arena = program.aligned(host_arena_bytes(plans)) if side is None else side.arena.array
        splits = plan.layers if plan is not None else ()
        cold = {s.layer: cold_rows(s.hot, s.n_ff) for s in splits if 0 < s.n_hot < s.n_ff}
        self.host = HostSide(self.model, self.store, self.graphs, arena, self.n_ctx, self.kv_type, cold)
        if store is not None and side is not None:
            store.load(self.store, progress)
            side.fill_tables(self.host.rope_table)
        self._plans = {graph.placed.n_tokens: graph for graph in plans}
        self._walks = {n: self._lower(graph) for n, graph in self._plans.items()}
        self.lowered = {
            n: [pair for walk in walks for pair in walk.nodes] for n, walks in self._walks.items()
        }
        self._steps: dict[int, list[Step]] = {n: self._make_steps(n) for n in self._plans}
        self._node_programs: dict[tuple[int, str], Program] = {}

    def _lower(self, graph: GraphPlan) -> list[Walk]:
        """The CPU's walks of a graph, in order."""
        low, walks = self.host.lowering(graph), []
        for kind, nodes in segments(graph.placed):
            if kind == CPU:
                lowered = self.host.lower([p.node for p in nodes], low)
                records = [record for _, records in lowered for record in records]
                walks.append(Walk(lowered, self.host.program(records)))
        return walks

    def _make_steps(self, n_tokens: int) -> list[Step]:
        planned = 1 if n_tokens == 1 else self.n_batch
        if self._side is None:
            return list(self._walks[planned])
        return self._side.steps(self._plans[planned], n_tokens, self._walks[planned])

    @property
    def counts(self) -> NDArray[np.int64]:
        """See the class."""
        return self.host.counts

    def device_counts(self) -> NDArray[np.uint32]:
        """Rows that the device's masks listed since loading, uint32 [n_layer], wrapping; 0 without a device."""
        if self._side is None:
            return np.zeros(self.model.n_layer, np.uint32)
        return self._side.counts()

    @property
    def load_bytes(self) -> int:
        """Bytes that were copied to the device when it was loaded."""
        return self._side.store.loaded_bytes if self._side is not None else 0

    @property
    def device(self) -> Device | None:
        """See the class."""
        return self._side.device if self._side is not None else None

    def run(self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None = None) -> None:
        """Let tokens pass, at positions n_past, n_past + 1, …

        Args:
            ids: int32 [n], 1 <= n <= n_batch, each below n_vocab.
            logits: float32 [n_out, n_vocab], filled with the logits after the last n_out tokens; None
                for tokens whose logits nobody wants.

        Raises:
            SettingError: no or too many tokens, an id outside the vocabulary, a wrong array.
            DoesNotFitError: positions beyond n_ctx.
            DeviceError: the device fails; the positions of this run then hold nothing of use.
        """
        if self._team is None:
            raise SettingError("executor", "closed", next_step="load the model again")
        self._check_run(ids, n_past, logits)
        ids = np.ascontiguousarray(ids, np.int32)
        n_out = 0 if logits is None else logits.shape[0]
        run = self.host.run
        run[program.N_TOKENS] = ids.size
        run[program.N_PAST] = n_past
        run[program.TOKEN_IDS] = ids.ctypes.data
        run[program.LOGITS_ADDRESS] = 0 if logits is None else logits.ctypes.data
        run[program.LOGITS_FROM] = ids.size - n_out
        if self._side is None:
            self._take(self.steps(ids.size), ids.size, logits)
        else:
            self._run_both(self._side, ids.size, n_past, logits)

    def _run_both(self, side: DeviceSide, n: int, n_past: int, logits: NDArray[np.float32] | None) -> None:
        """A run with a device. Nothing is under way when it ends, however it ends."""
        try:
            steps = self.steps(n)
            side.send_positions(n_past, n)
            self._take(steps, n, logits)
            if logits is None:  # else the wait for them was the last thing to happen
                side.settle()
        except BaseException:
            with suppress(DeviceError):  # a lost device has nothing to wait for
                side.settle()
            raise

    def steps(self, n_tokens: int) -> list[Step]:
        """The steps of a run; those of the last few other lengths than 1 and n_batch are kept.

        The CPU's programs take any number of tokens; only launches and copies are made for one.
        """
        if self._side is None and n_tokens > 1:
            n_tokens = self.n_batch
        if n_tokens not in self._steps:
            tails = [n for n in self._steps if n not in self._plans]
            if len(tails) >= TAILS:
                del self._steps[tails[0]]
            self._steps[n_tokens] = self._make_steps(n_tokens)
        return self._steps[n_tokens]

    def _take(self, steps: list[Step], n: int, logits: NDArray[np.float32] | None) -> None:
        """Take every step; with a trace each is waited for."""
        if self.trace is not None:
            self._take_traced(steps, n, logits, self.trace)
            return
        if self.taking is not None:
            self.taking(steps, lambda step: self._step(step, n, logits))
            return
        for step in steps:
            self._step(step, n, logits)

    def _step(self, step: Step, n: int, logits: NDArray[np.float32] | None) -> None:
        if isinstance(step, Walk):
            self._walk(step.program)
            return
        side = self._side
        if side is None:
            return
        device, stream = side.device, side.stream
        if isinstance(step, Launches):
            for launch in step.launches:
                device.run(launch, stream)
        elif isinstance(step, CopyDown):
            device.download(step.host, step.buffer, stream)
            step.event.record(stream)
        elif isinstance(step, CopyUp):
            device.upload(step.buffer, step.host, stream)
        elif isinstance(step, WaitFor):
            if step.record:
                step.event.record(stream)
            step.event.synchronize()
        elif logits is not None:
            _device_logits(side, step, n, logits)

    def _walk(self, job: Program) -> None:
        if self._team is not None:
            self._team.walk(job)

    def _take_traced(
        self, steps: list[Step], n: int, logits: NDArray[np.float32] | None, trace: Trace
    ) -> None:
        """Step by step, the CPU's nodes one by one: the same records in the same order."""
        planned = 1 if n == 1 else self.n_batch
        number = {p.node.name: i for i, p in enumerate(self._plans[planned].placed.nodes)}
        for step in steps:
            if isinstance(step, Walk):
                for node, records in step.nodes:
                    self._trace_node(node, records, number[node.name], planned, trace)
                continue
            started = time.perf_counter()
            self._step(step, n, logits)
            if self._side is not None:
                self._side.settle()
            seconds = time.perf_counter() - started
            nodes, none = nodes_of(step), np.zeros_like(self.counts[:, 0])
            for node in nodes:
                trace(number[node.name], node, planned, seconds, none, GPU, nodes)

    def _trace_node(self, node: Node, records: list[Record], step: int, n_tokens: int, trace: Trace) -> None:
        key = n_tokens, node.name
        if key not in self._node_programs:
            self._node_programs[key] = self.host.program(records)
        counted, started = self.counts.sum(axis=1), time.perf_counter()
        self._walk(self._node_programs[key])
        seconds = time.perf_counter() - started
        trace(step, node, n_tokens, seconds, self.counts.sum(axis=1) - counted, CPU, (node,))

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
        """End the threads and free the device's memory; the executor cannot run any more."""
        if self._team is None:
            return
        self._team.close()
        self._team = None
        if self._side is not None:
            self._side.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _on_the_cpu(model: Model, graphs: Sequence[Graph]) -> list[GraphPlan]:
    homes = Homes(kv=(CPU,) * model.n_layer)
    return [GraphPlan(graph, *run_passes(graph, homes)) for graph in graphs]


def _device_logits(side: DeviceSide, step: Logits, n: int, logits: NDArray[np.float32]) -> None:
    """The head for the last tokens, one at a time: it is large, and mostly one is wanted."""
    device, stream = side.device, side.stream
    for launch in step.rounding:
        device.run(launch, stream)
    first = n - len(logits)
    for i, row in enumerate(logits):
        for launch in step.launches(first + i):
            device.run(launch, stream)
        device.download(side.logits, step.buffer, stream)
        side.event.record(stream)
        side.event.synchronize()
        row[:] = side.logits.array
