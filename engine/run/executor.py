"""Runs a plan's graphs: one token at a time, or a batch of prompt tokens.

The executor knows nodes, not architectures. Both graphs are lowered once; a run sets its parameters
(token ids, positions, where the logits go) and takes the steps of its graph: on the CPU alone one walk of
the team, with a device also launches and copies.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotcold.closing import Closing
from hotcold.engine.graph.graph import Node, check
from hotcold.engine.graph.placed import GPU
from hotcold.engine.host.records import Record
from hotcold.engine.host.side import HostSide, host_arena_bytes
from hotcold.engine.host.steps import Context, Step, take_all
from hotcold.engine.host.stores import HostStore
from hotcold.engine.plan.plan import GraphPlan, Plan
from hotcold.engine.run.side_times import SideTimes
from hotcold.errors import DeviceError, DoesNotFitError, SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Team
from hotcold.kernels.formats import EXACT_POSITIONS

if TYPE_CHECKING:
    from hotcold.engine.device.side import DeviceSide
    from hotcold.engine.device.store import DeviceStore
    from hotcold.kernels.cuda.device.device import Device

TAILS = 8  # lengths of a prompt's last batch whose launches are kept


class Executor(Closing):
    """A plan that is ready to run, on the CPU or divided between a device and the CPU.

    Attributes:
        plan: what is where; for a budget of 0 everything is on the CPU.
        model: of the plan.
        n_ctx: positions of the KV cache.
        n_batch: most tokens of one run.
        n_slots: sequences that have a KV cache of their own; a run's tokens belong to one, or each to another.
        n_threads: of the team.
        host: the CPU's memory and programs.
        walks: the CPU's part of a run, by number of tokens of its graph (1, n_batch).
        device_store: what the plan put on the device; None on the CPU alone.
        n_tokens: that have run so far.
        taking: takes a run's steps, and has to take them all in order; to be set for tracing and measuring.
    """

    def __init__(
        self, plan: Plan, file: GGUFFile, n_threads: int, device_store: "DeviceStore | None" = None
    ) -> None:
        """Lower the plan's graphs.

        Args:
            file: whose weights the CPU reads.
            device_store: the plan's memory on a device, loaded; it is the executor's from here on, and freed
                if anything fails. None for a plan that puts nothing there.

        Raises:
            SettingError: a context beyond the learned positions.
            DoesNotFitError: page-locked memory, or the system, has less room than the plan takes.
            DeviceError: the device fails.
        """
        self.plan, self.model = plan, plan.model
        self.n_ctx, self.n_batch, self.n_threads = plan.n_ctx, plan.n_batch, n_threads
        self.device_store, self.taking, self.n_tokens = device_store, take_all, 0
        self.n_slots = plan.n_slots
        self._oldest = [0] * plan.n_slots  # position up to which a window's cache has been written over
        self._steps_apart = dict[int, list[Step]]()
        self._side: DeviceSide | None = None
        self._team: Team | None = None
        try:
            self._make(file)
        except BaseException:
            self._free()
            raise

    def _make(self, file: GGUFFile) -> None:
        """Both sides, the steps of both graphs, and the team."""
        for graph in self.plan.graphs:
            check(graph.graph)
        _check_positions(self.plan)
        arena_bytes = host_arena_bytes(self.plan.graphs)
        if self.device_store is None:
            arena = program.aligned(arena_bytes)
        else:
            from hotcold.engine.device.side import (
                DeviceSide,  # CUDA's modules are for those who have a device
            )

            self._side = DeviceSide(self.device_store, arena_bytes)
            arena = self._side.arena.array
        self.host = HostSide(self.plan, HostStore(file), arena)
        if self._side is not None:
            self._side.fill_tables(self.host.rope_table)
        self.walks = {graph.placed.n_tokens: self.host.walks(graph) for graph in self.plan.graphs}
        self._steps = {n: self._make_steps(n) for n in self.walks}
        self._team = Team(self.n_threads)

    def graph(self, n_tokens: int) -> GraphPlan:
        """The graph that a run of so many tokens goes through."""
        return self.plan.decode if n_tokens == 1 else self.plan.batch

    def _make_steps(self, n_tokens: int) -> list[Step]:
        graph = self.graph(n_tokens)
        walks = self.walks[graph.placed.n_tokens]
        return [*walks] if self._side is None else self._side.steps(graph, n_tokens, walks)

    @property
    def lowered(self) -> dict[int, list[tuple[Node, list[Record]]]]:
        """By number of tokens (1, n_batch), every node of the CPU with its op records."""
        return {n: [pair for walk in walks for pair in walk.lowered] for n, walks in self.walks.items()}

    @property
    def counts(self) -> NDArray[np.int64]:
        """Neurons that each layer's sparse FFN listed on the CPU, and those that fired.

        int64 [n_layer, MAX_CHUNKS, 2], summed over chunks, tokens and time by whoever reads them. Those fire
        whose gate (or `up` without one) was positive.
        """
        return self.host.counts

    def device_counts(self) -> NDArray[np.uint32]:
        """Rows that the device's masks listed since loading, uint32 [n_layer], wrapping; 0 without a device."""
        return np.zeros(self.model.n_layer, np.uint32) if self._side is None else self._side.counts()

    def overflow(self, n_keys: int | None = None, slot: int = 0) -> int | None:
        """The first layer with a key or value that its cache could not hold; None without.

        Args:
            n_keys: keys of so many positions of one slot alone; None: keys and values of all.
        """
        found = [self.host.overflow(n_keys, slot)]
        if self.device_store is not None:
            found.append(self.device_store.overflow(n_keys))
        return min((layer for layer in found if layer is not None), default=None)

    @property
    def device(self) -> "Device | None":
        """What the plan was carried out on; None on the CPU alone."""
        return self._side.device if self._side is not None else None

    def cached(self, n: int, slot: int = 0) -> list[NDArray[np.uint8]]:
        """What a slot's caches hold of the first n positions, an array a layer: views, to be read and written.

        Raises:
            SettingError: some lie on a device.
        """
        if any(cache.side == GPU for cache in self.plan.caches):
            raise SettingError("KV cache", "on the device", "it is read on the CPU", "use --device cpu")
        return self.host.blocks(n, slot)

    def set_oldest(self, position: int, slot: int = 0) -> None:
        """Say up to which position windows' caches have been written over, where `cached` was written."""
        self._oldest[slot] = position

    def oldest(self, slot: int = 0) -> int:
        """Up to which position windows' caches have been written over."""
        return self._oldest[slot]

    def can_go_on(self, n_past: int, slot: int = 0) -> bool:
        """Whether a slot's caches still hold what a token at position n_past sees.

        Those of layers with a window hold the last positions alone; what they have written over is gone, and only
        a text that starts again at position 0 brings it back.
        """
        windows = self.model.windows
        return windows is None or max(0, n_past + 1 - windows.size) >= self._oldest[slot] or n_past == 0

    def _written(self, n_past: int, n: int, slot: int) -> None:
        """Keep in mind what n positions from n_past on have written over."""
        held = min((cache.n_positions for cache in self.plan.caches), default=self.n_ctx)
        before = self._oldest[slot] if n_past else 0
        self._oldest[slot] = max(before, n_past + n - held)

    def run(
        self, ids: NDArray[np.int32], n_past: int, logits: NDArray[np.float32] | None = None, slot: int = 0
    ) -> None:
        """Let tokens of one sequence pass, at positions n_past, n_past + 1 and so on.

        Args:
            ids: int32 [n], 1 <= n <= n_batch, each below n_vocab.
            logits: float32 [n_out, n_vocab], filled with the logits after the last n_out tokens; None
                for tokens whose logits nobody wants.
            slot: whose caches are the sequence's.

        Raises:
            SettingError: no or too many tokens, an id outside the vocabulary, a wrong array, no such slot.
            DoesNotFitError: positions beyond n_ctx, or behind what a window's cache holds.
            DeviceError: the device fails; the positions of this run then hold nothing of use.
        """
        self._check_run(ids, logits)
        self._check_place(n_past, ids.size, slot)
        self._written(n_past, ids.size, slot)
        self.host.run[program.KV_OFFSET] = slot * self.host.slot_bytes
        self._take(ids, np.arange(n_past, n_past + ids.size), self.steps(ids.size), logits)

    def run_apart(
        self,
        ids: NDArray[np.int32],
        n_past: Sequence[int],
        slots: Sequence[int],
        logits: NDArray[np.float32],
    ) -> None:
        """Let one token of each of several sequences pass; what each gives does not depend on the others.

        Args:
            ids: int32 [n], 2 <= n <= n_slots. n_past: the position of each. slots: of each, no two the same.
            logits: float32 [n, n_vocab], filled.

        Raises:
            SettingError, DoesNotFitError, DeviceError: see `run`.
        """
        self._check_run(ids, logits)
        n = ids.size
        if not n == len(n_past) == len(set(slots)) == len(slots) == logits.shape[0] or n < 2:
            raise SettingError(
                "sequences of one run", n, "2 or more, each with a position and a slot of its own"
            )
        for position, slot, run in zip(n_past, slots, self.host.runs, strict=False):
            self._check_place(position, 1, slot)
            self._written(position, 1, slot)
            run[program.N_TOKENS], run[program.N_PAST] = 1, position
            run[program.KV_OFFSET] = slot * self.host.slot_bytes
        if self.plan.sparsity == "threshold" and min(n_past) < EXACT_POSITIONS:
            # of which all neurons run, by the position of the run's first token
            for i, slot in enumerate(slots):
                self.run(ids[i : i + 1], n_past[i], logits[i : i + 1], slot)
            return
        if n not in self._steps_apart:
            walks = self.host.walks(self.plan.batch, n)
            side = self._side
            self._steps_apart[n] = [*walks] if side is None else side.steps(self.plan.batch, n, walks)
        self._take(ids, np.array(n_past), self._steps_apart[n], logits)

    def _take(
        self,
        ids: NDArray[np.int32],
        positions: NDArray[np.integer],
        steps: Sequence[Step],
        logits: NDArray[np.float32] | None,
    ) -> None:
        """A run's steps, with its parameters."""
        team = self._team
        if team is None:
            raise SettingError("executor", "closed", next_step="load the model again")
        ids = np.ascontiguousarray(ids, np.int32)
        run = self.host.run
        self.n_tokens += ids.size
        run[program.N_TOKENS] = ids.size
        run[program.N_PAST] = positions[0]
        run[program.TOKEN_IDS] = ids.ctypes.data
        run[program.LOGITS_ADDRESS] = 0 if logits is None else logits.ctypes.data
        run[program.LOGITS_FROM] = ids.size - (0 if logits is None else logits.shape[0])
        context = Context(team, ids.size, logits)
        if self._side is None:
            self.taking(steps, context)
        else:
            self._run_both(self._side, positions, steps, context)

    def _run_both(
        self, side: "DeviceSide", positions: NDArray[np.integer], steps: Sequence[Step], context: Context
    ) -> None:
        """A run with a device. Nothing is under way when it ends, however it ends."""
        try:
            if context.n_tokens == 1 and not self._looks_at_steps():
                steps = side.replayed(steps, context.logits is not None)
            side.send_positions(positions)
            self.taking(steps, context)
            if context.logits is None:  # else the wait for them was the last thing to happen
                side.settle()
        except BaseException:
            with suppress(DeviceError):  # a lost device has nothing to wait for
                side.settle()
            raise

    def last_states(self, n_tokens: int) -> NDArray[np.float32]:
        """What the head has read of the last run's tokens, of which there were n: float32 [n, n_embd], a view.

        Raises:
            SettingError: it lies on a device.
        """
        graph = self.graph(n_tokens)
        found = self.host.last_states(graph)
        if found is None:
            raise SettingError(
                "states of tokens", "on the device", "they are read on the CPU", "use --device cpu"
            )
        return found[:n_tokens]

    def _looks_at_steps(self) -> bool:
        """Whether somebody wants to see the device's steps one by one, which a graph does not show."""
        return self.taking is not take_all and not isinstance(self.taking, SideTimes)

    def steps(self, n_tokens: int) -> list[Step]:
        """The steps of a run; those of the last few other lengths than 1 and n_batch are kept.

        The CPU's programs take any number of tokens; only launches and copies are made for one.
        """
        if self._side is None and n_tokens > 1:
            n_tokens = self.n_batch
        if n_tokens not in self._steps:
            tails = [n for n in self._steps if n not in self.walks]
            if len(tails) >= TAILS:
                del self._steps[tails[0]]
            self._steps[n_tokens] = self._make_steps(n_tokens)
        return self._steps[n_tokens]

    def _check_place(self, n_past: int, n: int, slot: int) -> None:
        """Refuse positions that a slot's caches do not hold."""
        if not 0 <= slot < self.n_slots:
            raise SettingError("slot", slot, f"0 to {self.n_slots - 1}", "load the model with more n_slots")
        if n_past < 0 or n_past + n > self.n_ctx:
            raise DoesNotFitError(
                "positions in use", n_past + n, f"the context holds {self.n_ctx}", "raise n_ctx"
            )
        if not self.can_go_on(n_past, slot):
            bound = f"a window's cache holds what positions from {self._oldest[slot]} on see"
            raise DoesNotFitError("position to go on from", n_past, bound, "start again at position 0")

    def _check_run(self, ids: NDArray[np.int32], logits: NDArray[np.float32] | None) -> None:
        if self._team is None:
            raise SettingError("executor", "closed", next_step="load the model again")
        n, n_vocab = ids.size, self.model.n_vocab
        if not 1 <= n <= self.n_batch:
            raise SettingError("tokens of one run", n, f"1 to n_batch = {self.n_batch}")
        if ids.min() < 0 or ids.max() >= n_vocab:
            bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise SettingError("token id", bad, f"the vocabulary has 0 to {n_vocab - 1}")
        if logits is None:
            return
        shape = (min(logits.shape[0], n), n_vocab)
        if logits.shape != shape or logits.dtype != np.float32 or not logits.flags.c_contiguous:
            raise SettingError(
                "logits array", f"{logits.dtype} {logits.shape}", f"wanted: contiguous float32 {shape}"
            )

    def close(self) -> None:
        """End the threads and free the device's memory; the executor cannot run any more."""
        if self._team is not None:
            self._free()

    def _free(self) -> None:
        team, self._team = self._team, None
        if team is not None:
            team.close()
        if self._side is not None:
            self._side.free_pinned()
        if self.device_store is not None:
            self.device_store.free()


def _check_positions(plan: Plan) -> None:
    """Refuse a context beyond the table of learned positions: there is no row to read."""
    n = plan.model.n_positions
    if n is not None and plan.n_ctx > n:
        raise SettingError("n_ctx", plan.n_ctx, f"the model has learned {n} positions", f"use {n} at most")
