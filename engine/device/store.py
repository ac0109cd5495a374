"""Where the numbers of a model lie while it runs: the device's side.

Three slabs, as large as the plan says: weights with the index of hot rows, KV cache, arena with the
kernels' workspace. Weights are repacked on their way (`staging.py`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.device.matrix import DeviceMatrix, matrix_at
from hotcold.engine.device.staging import Staging
from hotcold.engine.graph.graph import ALL
from hotcold.engine.graph.placed import GPU
from hotcold.engine.host.stores import HostStore, first_infinite
from hotcold.engine.model.model import Weight
from hotcold.engine.plan.neurons import index_of
from hotcold.engine.plan.plan import Plan, SentPiece, WeightEntry
from hotcold.errors import DeviceError
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.cpu.team import Team
from hotcold.kernels.cuda.device.buffers import Buffer
from hotcold.kernels.cuda.device.device import Device
from hotcold.kernels.cuda.device.slabs import Slabs, allocate_slabs
from hotcold.kernels.formats import mask_words
from hotcold.kernels.kv_layout import blocks_of_rows, fill_rows

LoadProgress = Callable[[int, int, float], None]
"""Hears bytes that are on the device, bytes in all, and seconds since the start."""


class DeviceStore:
    """What a plan puts on a device.

    Attributes:
        card: the plan's part that is the device's.
        arena: of intermediates.
        areas: of the kernels' workspace, by name.
        staged: two buffers for what is sent for a prompt, or none.
        loaded_bytes, load_seconds: of what was copied from the file.
    """

    def __init__(self, device: Device, plan: Plan, number: int = 0) -> None:
        """Allocate; DoesNotFitError leaves nothing behind.

        Args:
            number: of the card in the plan.
        """
        self.device, self.plan, self.card = device, plan, plan.cards[number]
        self.slabs: Slabs = allocate_slabs(device, *self.card.totals.slabs)
        self.staged: list[Buffer] = []
        self.arena, self.areas = self._arena_views()
        self._matrices: dict[tuple[str, int, str], DeviceMatrix] = {}
        self._neurons: dict[int, Buffer] = {}
        self._thresholds: dict[int, Buffer] = {}
        self._sent: dict[tuple[str, int, str], DeviceMatrix] = {}
        self._sent_neurons: dict[tuple[int, str], Buffer] = {}
        self._sent_thresholds: dict[tuple[int, str], Buffer] = {}
        self._place_sent()
        self.loaded_bytes, self.load_seconds = 0, 0.0

    def _arena_views(self) -> tuple[Buffer | None, dict[str, Buffer]]:
        slab, totals = self.slabs.arena, self.card.totals
        offset = totals.arena
        if slab is None:
            return None, {}
        areas = {}
        for name, n_bytes in self.card.workspace.items():
            if n_bytes:
                areas[name] = slab.view(offset, n_bytes, np.uint8)
                offset += n_bytes
        if half := totals.staging // 2:
            self.staged = [slab.view(offset + i * half, half, np.uint8) for i in (0, 1)]
        return slab.view(0, totals.arena, np.uint8), areas

    def _place_sent(self) -> None:
        """The pieces in the staging buffers, in turn."""
        streaming = self.plan.streaming
        for number, piece in enumerate(() if streaming is None else streaming.pieces_of(self.card.layers)):
            self._place_piece(piece, self.staged[number % 2])

    def _place_piece(self, piece: SentPiece, buffer: Buffer) -> None:
        """Views of a buffer for a piece's rows, and behind them for what kernels find them by, and their thresholds."""
        offset = 0
        for sent in piece.sent:
            packed = buffer.view(offset, sent.n_bytes, np.uint8)
            key = (*_key(sent.weight, False)[:2], sent.rows)
            self._sent[key] = matrix_at(packed, sent.weight, sent.n_rows)
            offset += sent.n_bytes
        if piece.index is not None:
            index = buffer.view(piece.index_at, piece.index.size, np.int32)
            self._sent_neurons[piece.layer, piece.rows] = index
        if piece.n_thresholds:
            least = buffer.view(piece.thresholds_at, piece.n_thresholds, np.float32)
            self._sent_thresholds[piece.layer, piece.rows] = least

    def load(self, host: HostStore, progress: LoadProgress | None = None, n_threads: int = 1) -> None:
        """Copy every row that the plan puts on the device; where that fails nothing is left there.

        Args:
            n_threads: that gather and repack.

        Raises:
            DoesNotFitError: no page-locked memory for the staging buffer.
            DeviceError: a copy failed.
        """
        try:
            with Team(n_threads) as team:
                self._load(host, progress, team)
        except BaseException:
            self.free()
            raise

    def _load(self, host: HostStore, progress: LoadProgress | None, team: Team) -> None:
        if self.slabs.weights is None:
            return
        entries = [e for e in self.plan.weights if e.device_rows and e.card == self.card.number]
        total, started = sum(entry.device_bytes for entry in entries), time.perf_counter()
        with Staging(self.device, max(total, 1)) as staging:
            offset = 0
            for entry in entries:
                matrix = self._place(entry, offset)
                offset += entry.device_bytes
                for n_bytes in staging.send(team, host.rows(entry.weight), self._rows_of(entry), matrix):
                    self.loaded_bytes += n_bytes
                    if progress is not None:
                        progress(self.loaded_bytes, total, time.perf_counter() - started)
            self._send_index(staging, offset, host)
        self.load_seconds = time.perf_counter() - started

    def _place(self, entry: WeightEntry, offset: int) -> DeviceMatrix:
        """Views of an entry's bytes in the slab of weights."""
        weights = self.slabs.weights
        if weights is None:
            raise DeviceError("slab of weights", "none", "the plan puts rows there")
        packed = weights.view(offset, entry.device_bytes, np.uint8)
        weight, n_rows = entry.weight, entry.device_rows
        matrix = matrix_at(packed, weight, n_rows)
        self._matrices[_key(weight, entry.role == "head")] = matrix
        return matrix

    def _rows_of(self, entry: WeightEntry) -> NDArray[np.int32] | None:
        """The rows to copy, those of an expert together; None for all of them."""
        if entry.device_rows == entry.n_rows or entry.layer is None:
            return None
        split = self.plan.layers[entry.layer]
        return rows_of_units(split.hot, entry.n_rows // split.n_ff)

    def _send_index(self, staging: Staging, offset: int, host: HostStore) -> None:
        """Of each layer the numbers of its hot rows, and their thresholds."""
        for split in (self.plan.layers[i] for i in self.card.layers):
            if split.n_hot and split.index_bytes:
                index = np.ascontiguousarray(index_of(self.plan.model, split.hot), np.int32)
                self._neurons[split.layer] = self._put(staging, index, offset)
            offset += split.index_bytes
            if split.n_hot and split.threshold_bytes:
                least = thresholds_of(self.plan, split.layer, split.hot, host)
                self._thresholds[split.layer] = self._put(staging, least, offset)
            offset += split.threshold_bytes

    def _put(self, staging: Staging, array: NDArray[np.generic], offset: int) -> Buffer:
        """Copy an array into the slab of weights."""
        assert self.slabs.weights is not None  # there are hot rows
        buffer = self.slabs.weights.view(offset, array.size, array.dtype)
        staging.copy(array, buffer)
        return buffer

    def matrix(self, weight: Weight, head: bool = False, rows: str = ALL) -> DeviceMatrix:
        """A weight's rows; all of them, or the hot ones. A tied head is the embedding's second place.

        What is not here, and the "cold" rows of a prompt, are those that are sent: for a part of these, or for all.
        """
        name, first_row, head_or_not = _key(weight, head)
        sent = self._sent.get((name, first_row, rows)) or self._sent.get((name, first_row, ALL))
        return sent or self._matrices[name, first_row, head_or_not]

    def vector(self, weight: Weight, rows: str = ALL) -> Buffer:
        """A weight of one row, float32; or of one an expert, side by side."""
        return self.matrix(weight, rows=rows).planes[0]

    def neurons(self, layer: int, rows: str = ALL) -> Buffer:
        """Numbers of a layer's hot neurons, int32 [n_hot]; of "cold" ones, or without hot ones, of those that are sent.

        Of experts: see `index_of`.
        """
        return self._sent_neurons.get((layer, rows)) or self._neurons[layer]

    def thresholds(self, layer: int, rows: str = ALL) -> Buffer | None:
        """What those of `neurons` have to reach: float32 [n], of whole experts [n, n_ff]; None without."""
        return self._sent_thresholds.get((layer, rows)) or self._thresholds.get(layer)

    def cache(self, layer: int) -> tuple[Buffer, Buffer]:
        """Keys and values of a layer, [n_slots, n_head_kv, n_ctx, head_dim] each; q8_0 as int8, then float16 scales."""
        plan, slab = self.plan, self.slabs.kv_cache
        here = plan.caches[self.card.layers.start : layer]
        before = sum(cache.n_bytes for cache in here if cache.side == GPU)
        half = plan.caches[layer].n_bytes // 2
        dtype = np.dtype({"f16": np.float16, "f32": np.float32, "q8_0": np.int8}[plan.kv_type])
        if slab is None:
            raise DeviceError("KV cache on the device", f"layer {layer}", "the plan puts none there")
        keys, values = (slab.view(before + i * half, half // dtype.itemsize, dtype) for i in (0, 1))
        return keys, values

    def blocks(self, layer: int, n: int, slot: int = 0) -> NDArray[np.uint8]:
        """What a slot's cache here holds of a layer's first n positions, as the host has it; call it between runs."""
        keys, values = (
            np.concatenate([self.fetch(part) for part in parts]) for parts in self._slot_parts(layer, slot)
        )
        return blocks_of_rows(self.plan.kv_type, self._cache_shape(layer), (keys, values), n)

    def fill_cache(self, layer: int, n: int, blocks: NDArray[np.uint8], slot: int = 0) -> None:
        """Let a slot's cache of a layer here hold n positions of the host's blocks; nothing may be under way."""
        both = self._slot_parts(layer, slot)
        keys, values = (np.zeros(sum(part.shape[0] for part in parts), parts[0].dtype) for parts in both)
        fill_rows(self.plan.kv_type, self._cache_shape(layer), (keys, values), n, blocks)
        for array, parts in zip((keys, values), both, strict=True):
            for part, there in zip(np.split(array, [parts[0].shape[0]]), parts, strict=False):
                self.send(part, there)

    def _cache_shape(self, layer: int) -> tuple[int, int, int]:
        """Of a slot's."""
        return self.plan.model.n_head_kv, self.plan.caches[layer].n_positions, self.plan.model.head_dim

    def _slot_parts(self, layer: int, slot: int) -> list[list[Buffer]]:
        """A slot's keys, and its values: numbers, and of q8_0 scales, which lie behind the numbers of all slots."""
        n = math.prod(self._cache_shape(layer))
        spans = [(slot * n, n)]
        if self.plan.kv_type == "q8_0":
            spans.append((self.plan.n_slots * n + slot * (n // 16), n // 16))
        return [
            [whole.view(first * whole.dtype.itemsize, count, whole.dtype) for first, count in spans]
            for whole in self.cache(layer)
        ]

    def overflow(self, n_keys: int | None, slot: int = 0) -> int | None:
        """As `KVCache.overflow`, of the layers whose cache is here; nothing may be under way."""
        plan, model = self.plan, self.plan.model
        slots = range(plan.n_slots) if n_keys is None else (slot,)

        def read(layer: int) -> Iterator[NDArray[np.generic]]:
            n_rows = plan.caches[layer].n_positions
            for each in slots:
                for *_, of_half_floats in self._slot_parts(layer, each)[: 2 if n_keys is None else 1]:
                    host = self.fetch(of_half_floats).view(np.uint8)
                    yield host.reshape(model.n_head_kv, n_rows, -1)[:, :n_keys]

        if plan.kv_type == "f32":
            return None
        here = (plan.caches[i] for i in self.card.layers)
        return first_infinite((cache.layer for cache in here if cache.side == GPU), read)

    def fetch(self, buffer: Buffer) -> NDArray[Any]:
        """What a buffer holds, of its type; nothing may be under way."""
        array = buffer.array
        fetched: NDArray[Any] = array.get() if hasattr(array, "get") else array
        return fetched

    def send(self, array: NDArray[np.generic], buffer: Buffer) -> None:
        """Copy an array of the host's to the device, and wait for it."""
        with Staging(self.device, array.nbytes) as staging:
            staging.copy(array, buffer)

    def free(self) -> None:
        """Free all of it."""
        self.slabs.free()


def loaded_stores(
    devices: Sequence[Device],
    plan: Plan,
    file: GGUFFile,
    progress: LoadProgress | None = None,
    n_threads: int = 1,
) -> tuple[DeviceStore, ...]:
    """What the plan puts on each device, allocated and copied; none if that is nothing, or there is none.

    Raises:
        DoesNotFitError: the device, or page-locked memory, has less room than the plan takes.
        DeviceError: the device fails.
    """
    stores = allocated_stores(devices, plan)
    load_stores(stores, HostStore(file), progress, n_threads)
    return stores


def allocated_stores(devices: Sequence[Device], plan: Plan) -> tuple[DeviceStore, ...]:
    """Memory for what the plan puts on each device, all or nothing; DoesNotFitError without room."""
    stores: list[DeviceStore] = []
    try:
        for number, device in enumerate(devices if plan.totals.used else ()):
            stores.append(DeviceStore(device, plan, number))
    except BaseException:
        for store in stores:
            store.free()
        raise
    return tuple(stores)


def load_stores(
    stores: Sequence[DeviceStore], host: HostStore, progress: LoadProgress | None, n_threads: int
) -> None:
    """Load each of them, one after the other; where that fails nothing is left on any.

    Args:
        progress: hears of all of them together.
    """
    before, started = 0, time.perf_counter()
    for store in stores:
        total = sum(entry.device_bytes for entry in store.plan.weights)

        def hear(done: int, _: int, seconds: float, before: int = before, total: int = total) -> None:
            if progress is not None:
                progress(before + done, total, time.perf_counter() - started)

        try:
            store.load(host, hear, n_threads)
        except BaseException:
            for other in stores:
                if other is not store:
                    other.free()
            raise
        before += store.loaded_bytes


def rows_of_units(units: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    """The rows of neurons or experts of n rows each, those of one together."""
    rows: NDArray[np.int32] = np.add.outer(units * np.int32(n), np.arange(n, dtype=np.int32))
    return rows.reshape(-1)


def held_bits(plan: Plan) -> NDArray[np.uint32]:
    """Of each layer a bit for each hot neuron, then one for each of the others, as masks have them, in a row."""
    n_ff = plan.model.n_ff
    hot = np.zeros((plan.model.n_layer, 2, 32 * mask_words(n_ff)), bool)
    for split in plan.layers:
        hot[split.layer, 0, split.hot] = True
        hot[split.layer, 1, :n_ff] = ~hot[split.layer, 0, :n_ff]
    return np.packbits(hot, bitorder="little").view("<u4").astype(np.uint32)


def thresholds_of(plan: Plan, layer: int, units: NDArray[np.int32], host: HostStore) -> NDArray[np.float32]:
    """What some of a layer's neurons, or all neurons of some experts, have to reach, in their order."""
    weight = plan.model.layers[layer].ffn_threshold
    assert weight is not None  # the plan has bytes for them
    numbers = host.rows(weight).view(np.float32).reshape(plan.layers[layer].n_ff, -1)
    return np.ascontiguousarray(numbers[units]).reshape(-1)


def _key(weight: Weight, head: bool) -> tuple[str, int, str]:
    return weight.name, weight.first_row, "head" if head else ""
