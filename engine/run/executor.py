"""Runs a plan's graphs: one token at a time, or a batch of prompt tokens.

The executor knows nodes, not architectures. Both graphs are lowered once; a run sets its parameters
(token ids, positions, where the logits go) and takes the steps of its graph: on the CPU alone one walk of
the team, with a device also launches and copies.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotcold.closing import Closing
from hotcold.engine.graph.graph import check
from hotcold.engine.graph.placed import CPU
from hotcold.engine.host.machine import default_threads
from hotcold.engine.host.resident import fits_memory
from hotcold.engine.host.side import HostSide, host_arena_bytes
from hotcold.engine.host.speed import products_a_second
from hotcold.engine.host.steps import Context, Step, take_all
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Weight
from hotcold.engine.plan.plan import Plan
from hotcold.engine.run.checks import check_apart, check_candidates, check_positions, check_run
from hotcold.engine.run.run_steps import RunSteps
from hotcold.engine.run.sides import takes_graphs
from hotcold.engine.run.slots import Slots
from hotcold.errors import DeviceError, SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Team
from hotcold.kernels.formats import EXACT_POSITIONS, parts_for

if TYPE_CHECKING:
    from hotcold.engine.device.cards import Cards
    from hotcold.engine.device.store import DeviceStore
    from hotcold.kernels.cuda.device.device import Device


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
        slots: which positions the sequences' caches hold.
        run_steps: the steps of a run, by its number of tokens.
        stores: what the plan put on each device; none on the CPU alone.
        n_tokens: that have run so far.
        n_alone: tokens that ran by themselves with a device.
        enqueueing: seconds of those runs in which the host neither computed nor waited.
        prompts: how large batches of prompts run, in words; "" where there is nothing to say.
        taking: takes a run's steps, and has to take them all in order; to be set for tracing and measuring.
    """

    def __init__(
        self, plan: Plan, file: GGUFFile, n_threads: int, stores: "Sequence[DeviceStore]" = ()
    ) -> None:
        """Lower the plan's graphs.

        Args:
            file: whose weights the CPU reads.
            stores: the plan's memory on each device, loaded; it is the executor's from here on, and freed
                if anything fails. None for a plan that puts nothing there.

        Raises:
            SettingError: a context beyond the learned positions.
            DoesNotFitError: page-locked memory, or the system, has less room than the plan takes.
            DeviceError: the device fails.
        """
        self.plan, self.model = plan, plan.model
        self.n_ctx, self.n_batch, self.n_threads = plan.n_ctx, plan.n_batch, n_threads
        self.stores, self.taking, self.n_tokens = tuple(stores), take_all, 0
        self.n_alone, self.enqueueing = 0, 0.0
        self.n_slots, self.prompts = plan.n_slots, ""
        self.slots = Slots(plan)
        self._cards: Cards | None = None
        self._is_under_way = False  # a run with a device
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
        check_positions(self.plan)
        arena_bytes, host_store = host_arena_bytes(self.plan.all_graphs), HostStore(file)
        if not self.stores:
            arena = program.aligned(arena_bytes)
        else:
            from hotcold.engine.device.cards import Cards  # CUDA's modules are for those who have a device

            self._cards = Cards(self.stores, arena_bytes, host_store)
            arena = self._cards.arena.array
        reads_disk = self.model.experts is not None and not fits_memory(self.plan, file)
        self.host = HostSide(self.plan, host_store, arena, reads_disk)
        if self._cards is not None:
            self._cards.fill_tables(self.host.rope_table)
        self.run_steps = RunSteps(self.plan, self.host, self._cards)
        self._team = Team(self.n_threads, lingers=self.n_threads <= default_threads())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Neurons that each layer's sparse FFN listed on the CPU, and those that fired.

        int64 [n_layer, MAX_CHUNKS, 2], summed over chunks, tokens and time by whoever reads them. Those fire
        whose gate (or `up` without one) was positive.
        """
        return self.host.counts

    @property
    def gives_candidates(self) -> bool:
        """Whether the head is on a device, which then can tell the likeliest tokens alone."""
        return self._cards is not None and all(
            any(p.node.op == "logits" and p.side != CPU for p in graph.placed.nodes)
            for graph in self.plan.graphs
        )

    def device_counts(self) -> NDArray[np.uint32]:
        """Rows that the device's masks listed since loading, uint32 [n_layer], wrapping; 0 without a device."""
        return np.zeros(self.model.n_layer, np.uint32) if self._cards is None else self._cards.counts()

    def intermediate(self, name: str, side: str, n_bytes: int) -> NDArray[np.uint8]:
        """The first bytes of an intermediate of the last run, while nothing has taken its place: a copy."""
        arena = self.run_steps.last.arenas[side]
        at = arena.slot(name).offset
        if self._cards is not None and side != CPU:
            return self._cards.intermediate(side, at, n_bytes)
        return self.host.arena[at : at + n_bytes].copy()

    def overflow(self, n_keys: int | None = None, slot: int = 0) -> int | None:
        """The first layer with a key or value that its cache could not hold; None without.

        Args:
            n_keys: keys of so many positions of one slot alone; None: keys and values of all.
        """
        found = [self.host.overflow(n_keys, slot)]
        found += [store.overflow(n_keys, slot) for store in self.stores]
        return min((layer for layer in found if layer is not None), default=None)

    def caches(self, n: int, slot: int = 0) -> list[NDArray[np.uint8]]:
        """What a slot's caches hold of the first n positions, an array a layer: copies, see `KVCache.blocks`.

        Those on the device come in the same layout.
        """
        found = [each.copy() for each in self.host.blocks(n, slot)]
        for store, layer, n_held in self._caches_on_device(n):
            found[layer] = store.blocks(layer, n_held, slot)
        return found

    def fill_caches(self, n: int, blocks: Sequence[NDArray[np.uint8]], slot: int = 0) -> None:
        """Let a slot's caches hold n positions of what `caches` gave, wherever the plan has them.

        Raises:
            DeviceError: the device fails.
        """
        for place, each in zip(self.host.blocks(n, slot), blocks, strict=True):
            place[...] = each
        for store, layer, n_held in self._caches_on_device(n):
            store.fill_cache(layer, n_held, blocks[layer], slot)

    def _caches_on_device(self, n: int) -> Iterator[tuple["DeviceStore", int, int]]:
        """Of each layer the store, its number, and how many of n positions it holds."""
        for cache in self.plan.caches if self.stores else ():
            if cache.side != CPU:
                yield self.store_of(cache.layer), cache.layer, min(n, cache.n_positions)

    @property
    def walked(self) -> float:
        """Seconds of the CPU's part of all runs so far."""
        return self._check_open().walked

    def bus_speed(self) -> float | None:
        """Bytes a second to the device, measured here and now; None without one."""
        return None if self._cards is None else self._cards.bus_speed()

    def products_a_second(self, weight: Weight) -> float:
        """Of this weight with numbers of a prompt on the CPU, measured here and now."""
        return products_a_second(self._check_open(), self.host.store, weight)

    @property
    def devices(self) -> "tuple[Device, ...]":
        """What the plan is carried out on, in the order of the layers; none on the CPU alone."""
        return () if self._cards is None else self._cards.devices

    def sends_for(self, n_tokens: int) -> bool:
        """Whether a device is sent what it lacks for so many tokens of a prompt."""
        return self.run_steps.sends_for(n_tokens)

    def store_of(self, layer: int) -> "DeviceStore":
        """What the plan put on the device that has a layer."""
        return self.stores[self.plan.caches[layer].card]

    def run(
        self,
        ids: NDArray[np.int32],
        n_past: int,
        logits: NDArray[np.float32] | None = None,
        slot: int = 0,
        sends: bool = True,
        candidates: NDArray[np.int32] | None = None,
    ) -> None:
        """Let tokens of one sequence pass, at positions n_past, n_past + 1 and so on.

        Args:
            ids: int32 [n], 1 <= n <= n_batch, each below n_vocab.
            logits: float32 [n_out, n_vocab], filled with the logits after the last n_out tokens; None
                for tokens whose logits nobody wants.
            slot: whose caches are the sequence's.
            sends: whether the device may be sent what it lacks for many tokens, which then have other bits than
                single ones.
            candidates: int32 [n_out, CANDIDATE_WORDS], filled as `ref.candidates` has it in the place of the logits,
                which then come only in rows that are not all finite. For an executor that `gives_candidates`.

        Raises:
            SettingError: no or too many tokens, an id outside the vocabulary, a wrong array, no such slot.
            DoesNotFitError: positions beyond n_ctx, or behind what a window's cache holds.
            DeviceError: the device fails; the positions of this run then hold nothing of use.
        """
        self._check_open()
        check_run(self.plan, ids, logits)
        check_candidates(self.gives_candidates, logits, candidates)
        self.slots.take(n_past, ids.size, slot)
        self.host.run[program.KV_OFFSET] = slot * self.host.slot_bytes
        positions, steps = np.arange(n_past, n_past + ids.size), self.run_steps.of(ids.size, sends)
        self._take(ids, positions, [slot] * ids.size, steps, logits, candidates)

    def run_apart(
        self,
        ids: NDArray[np.int32],
        n_past: Sequence[int],
        slots: Sequence[int],
        logits: NDArray[np.float32],
        candidates: NDArray[np.int32] | None = None,
    ) -> None:
        """Let one token of each of several sequences pass; what each gives does not depend on the others.

        Args:
            ids: int32 [n], 2 <= n <= n_slots. n_past: the position of each. slots: of each, no two the same.
            logits: float32 [n, n_vocab], filled. candidates: see `run`.

        Raises:
            SettingError, DoesNotFitError, DeviceError: see `run`.
        """
        self._check_open()
        check_run(self.plan, ids, logits)
        check_candidates(self.gives_candidates, logits, candidates)
        check_apart(ids.size, len(n_past), list(slots), logits.shape[0])
        for position, slot, run in zip(n_past, slots, self.host.runs, strict=False):
            self.slots.take(position, 1, slot)
            run[program.N_TOKENS], run[program.N_PAST] = 1, position
            run[program.KV_OFFSET] = slot * self.host.slot_bytes
        if self.plan.sparsity == "threshold" and min(n_past) < EXACT_POSITIONS:
            # of which all neurons run, by the position of the run's first token
            for i, slot in enumerate(slots):
                found = None if candidates is None else candidates[i : i + 1]
                self.run(ids[i : i + 1], n_past[i], logits[i : i + 1], slot, candidates=found)
            return
        self._take(ids, np.array(n_past), slots, self.run_steps.apart(ids.size), logits, candidates)

    def _take(
        self,
        ids: NDArray[np.int32],
        positions: NDArray[np.integer],
        slots: Sequence[int],
        steps: Sequence[Step],
        logits: NDArray[np.float32] | None,
        candidates: NDArray[np.int32] | None,
    ) -> None:
        """A run's steps, with its parameters."""
        team = self._check_open()
        ids = np.ascontiguousarray(ids, np.int32)
        run = self.host.run
        self.n_tokens += ids.size
        run[program.N_TOKENS] = ids.size
        run[program.N_PAST] = positions[0]
        run[program.TOKEN_IDS] = ids.ctypes.data
        run[program.LOGITS_ADDRESS] = 0 if logits is None else logits.ctypes.data
        run[program.LOGITS_FROM] = ids.size - (0 if logits is None else logits.shape[0])
        parts = parts_for(int(positions.max()) + 1, self.n_ctx)
        context = Context(team, ids.size, parts, logits, candidates)
        if self._cards is None:
            self.taking(steps, context)
        else:
            self._run_both(self._cards, (positions, slots), steps, context)

    def _run_both(
        self,
        cards: "Cards",
        places: tuple[NDArray[np.integer], Sequence[int]],
        steps: Sequence[Step],
        context: Context,
    ) -> None:
        """A run with a device, of tokens at these positions and of these slots.

        Nothing is under way when it ends, however it ends, but for a second Ctrl-C: see `_settle`.
        """
        self._settle()
        started, elsewhere = perf_counter(), self._elsewhere()
        self._is_under_way = True
        try:
            is_decode_step = len(set(places[1])) == context.n_tokens  # and no part of a prompt
            if is_decode_step and takes_graphs(self.taking):
                steps = cards.replayed(steps, context.n_tokens)
            cards.send_positions(*places)
            self.taking(steps, context)
            if context.logits is None:  # else the wait for them was the last thing to happen
                cards.settle()
        except BaseException:
            self._settle()
            raise
        self._is_under_way = False
        cards.drop_graphs()
        if context.n_tokens == 1:
            self.n_alone += 1
            self.enqueueing += perf_counter() - started - (self._elsewhere() - elsewhere)

    def _settle(self) -> None:
        """Wait for what a run has left under way; if Ctrl-C ends that too, the next run or the end does it."""
        if self._is_under_way and self._cards is not None:
            with suppress(DeviceError):  # a lost device has nothing to wait for
                self._cards.settle()
            self._is_under_way = False

    def _elsewhere(self) -> float:
        """Seconds of all runs in which the host computed, or waited for a device."""
        return self.walked + sum(device.tally.waiting for device in self.devices)

    def _check_open(self) -> Team:
        """The team; SettingError for an executor that was closed."""
        if self._team is None:
            raise SettingError("executor", "closed", next_step="load the model again")
        return self._team

    def close(self) -> None:
        """End the threads and free the device's memory; the executor cannot run any more."""
        if self._team is not None:
            self._free()

    def _free(self) -> None:
        team, self._team = self._team, None
        if team is not None:
            team.close()
        if self._cards is not None:
            self._settle()
            self._cards.free_pinned()
        for store in self.stores:
            store.free()
