"""The device's part of a run: its memory, its page-locked mirror of the host, and its nodes as steps."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.device.bus import bytes_a_second
from hotcold.engine.device.records import DeviceLowering
from hotcold.engine.device.sending import Sender
from hotcold.engine.device.steps import CopyDown, CopyUp, Logits
from hotcold.engine.device.store import DeviceStore, held_bits
from hotcold.engine.graph.arena import bytes_together
from hotcold.engine.graph.graph import tensors_of
from hotcold.engine.graph.placed import CPU, PlacedNode, results
from hotcold.engine.host.stores import HostStore
from hotcold.engine.plan.plan import GraphPlan
from hotcold.kernels.cuda.candidates import candidates
from hotcold.kernels.cuda.device.buffers import Buffer, Pinned
from hotcold.kernels.cuda.device.device import Prepared
from hotcold.kernels.cuda.keep_some import keep_some
from hotcold.kernels.cuda.matvec import WHERE_POSITIVE
from hotcold.kernels.formats import CANDIDATE_WORDS, candidate_parts_bytes


class DeviceSide:
    """What the executor needs of one device.

    Attributes:
        arena: the host's intermediates, page-locked, so that copies need no staging; of all devices.
        down, up: recorded behind the last copy each way.
        positions: page-locked too, int32 [n_batch], with several slots twice: behind them are the tokens' slots.
        logits, found, counted: likewise, float32 [n_vocab], int32 [CANDIDATE_WORDS], and bytes of the counts.
        sender: of what the device lacks for a prompt; None where that is not sent.
    """

    def __init__(self, store: DeviceStore, arena: Pinned, host: HostStore) -> None:
        plan, device = store.plan, store.device
        self.store, self.device, self.stream = store, device, device.compute
        self.down, self.up = device.event(external=True), device.event(external=True)
        self.pinned: list[Pinned] = []
        self._looked_at: Pinned | None = None
        self.arena = arena
        try:
            self.positions = self._pinned(plan.n_batch * (1 if plan.n_slots == 1 else 2), np.int32)
            self.logits = self._pinned(plan.model.n_vocab, np.float32)
            self.found = self._pinned(CANDIDATE_WORDS, np.int32)
            self.counted = self._pinned(store.areas["counts"].n_bytes, np.uint8)
            self.sender = Sender(store, host, plan.streaming) if plan.streaming and store.staged else None
            if self.sender is not None:
                self.pinned.append(self.sender.staging.pinned)
        except BaseException:
            self.free_pinned()
            raise

    def _pinned(self, count: int, dtype: type[np.generic]) -> Pinned:
        self.pinned.append(self.device.pinned(count, dtype))
        return self.pinned[-1]

    def fill_tables(self, rope_table: NDArray[np.float32]) -> None:
        """Copy what kernels find: the rotation's table, a mask of all neurons, which are hot, and counts of 0."""
        areas = self.store.areas
        for name in {"counts", "arrived"} & areas.keys():
            self.store.send(np.zeros(areas[name].n_bytes, np.uint8), areas[name])
        if rope_table.size and "cos_sin" in areas:
            self.store.send(rope_table, areas["cos_sin"].view(0, rope_table.nbytes, np.uint8))
        if "all" in areas:
            self.store.send(np.full(areas["all"].n_bytes, 0xFF, np.uint8), areas["all"])
        if "held" in areas:
            held = held_bits(self.store.plan)
            self.store.send(held, areas["held"].view(0, held.size, held.dtype))

    def counts(self) -> NDArray[np.uint32]:
        """How many rows each layer's masks listed on the device since loading, uint32 [n_layer], wrapping."""
        self.device.download(self.counted, self.store.areas["counts"], self.stream)
        self.settle()
        counts: NDArray[np.uint32] = self.counted.array.view(np.uint32)[
            : self.store.plan.model.n_layer
        ].copy()
        return counts

    def intermediate(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """Bytes of the device's arena, once all that is enqueued has run."""
        assert self.store.arena is not None
        if self._looked_at is None or self._looked_at.array.size < n_bytes:
            self._looked_at = self._pinned(n_bytes, np.uint8)
        host = self._looked_at.view(0, n_bytes, np.uint8)
        self.device.download(host, self.store.arena.view(offset, n_bytes, np.uint8), self.stream)
        self.settle()
        return np.array(host.array, np.uint8)

    def send_positions(self, positions: NDArray[np.integer], slots: Sequence[int]) -> None:
        """Enqueue the copy of the positions of a run's tokens, and where there are several slots of each one's slot."""
        n = positions.size
        self.positions.array[:n] = positions
        if self.store.plan.n_slots > 1:
            self.positions.array[n : 2 * n] = slots
            n *= 2
        host, buffer = self.positions.view(0, n, np.int32), self.store.areas["positions"]
        self.device.upload(buffer.view(0, n, np.int32), host, self.stream)

    def copy_of(self, p: PlacedNode, graph: GraphPlan, n_tokens: int) -> CopyDown | CopyUp:
        """The copy of one node: several operands lie side by side, on both sides, and go whole."""
        parts = results(p.node)
        n_bytes = bytes_together(parts)
        if len(parts) == 1 and parts[0].dtype != "q8":
            n_bytes = n_bytes // graph.placed.n_tokens * n_tokens
        source, target = tensors_of(p.node)[0].name, parts[0].name
        if p.side == CPU:
            host, buffer = self._of_host(graph, target, n_bytes), self._of_arena(graph, source, n_bytes)
            return CopyDown(self.device, (p.node,), host, buffer, self.down)
        host, buffer = self._of_host(graph, source, n_bytes), self._of_arena(graph, target, n_bytes)
        return CopyUp(self.device, (p.node,), host, buffer, self.up)

    def _of_arena(self, graph: GraphPlan, name: str, n_bytes: int) -> Buffer:
        assert self.store.arena is not None
        return self.store.arena.view(graph.arenas[self.store.card.side].slot(name).offset, n_bytes, np.uint8)

    def _of_host(self, graph: GraphPlan, name: str, n_bytes: int) -> Pinned:
        return self.arena.view(graph.arenas[CPU].slot(name).offset, n_bytes, np.uint8)

    def logits_of(self, low: DeviceLowering, nodes: list[PlacedNode]) -> Logits:
        """The head's step."""
        node = nodes[0].node
        weight, profile = node.weight("weight"), node.find_tensor("profile")
        n, listed, flags = weight.ne[0], None, 0
        if profile is not None:
            listed, flags = low.vector(profile), WHERE_POSITIVE
            low.launch(keep_some(profile.shape[1]), listed, profile.shape[1])
        x = low.hidden_input(weight, low.vector(node.tensor("x")))
        before = low.take()
        matrix = self.store.matrix(weight, head=True)
        y = low.area("logits", matrix.n_rows, np.float32)
        parts_bytes = candidate_parts_bytes(matrix.n_rows)
        parts = low.area("candidates", parts_bytes // 8, np.uint64)
        found = low.area("candidates", CANDIDATE_WORDS, np.int32, parts_bytes)
        given = y, parts, low.area("arrived", 1, np.uint32), found, matrix.n_rows, int(profile is not None)
        low.launch(candidates(matrix.n_rows), *given)
        choosing = low.take()

        @cache
        def of_token(token: int) -> tuple[Prepared, ...]:
            low.product(matrix, low.tokens_of(x, token, 1, n), y, flags=flags, bias=listed, n_tokens=1)
            return low.take()

        for token in range(low.n_tokens - low.sequences.n_apart, low.n_tokens):
            of_token(token)  # those that are mostly wanted: the last, or that of each sequence
        all_nodes = tuple(p.node for p in nodes)
        arrives = self.logits, found, self.found, self.down
        return Logits(self.device, all_nodes, before, y, *arrives, choosing, of_token)

    def bus_speed(self) -> float:
        """Bytes a second to the device, measured between two runs: to a staging buffer, or of intermediates."""
        if self.sender is not None:
            return bytes_a_second(self.device, self.sender.staging.pinned, self.store.staged[0])
        assert self.store.arena is not None
        return bytes_a_second(self.device, self.arena, self.store.arena)

    def settle(self) -> None:
        """Wait until nothing is under way."""
        self.stream.synchronize()
        self.device.crossing.synchronize()
        if self.sender is not None:
            self.device.copy.synchronize()

    def free_pinned(self) -> None:
        """Give page-locked memory back."""
        for pinned in self.pinned:
            pinned.free()
        self.pinned = []
