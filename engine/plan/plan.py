"""What a plan says: frozen values that the planner makes and everything else reads."""

from collections import Counter
from dataclasses import dataclass, field, fields, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.arena import Arena, aligned
from hotcold.engine.graph.graph import ALL, Graph
from hotcold.engine.graph.placed import CPU, GPU, SPLIT, PlacedGraph, Sides, card_side
from hotcold.engine.model.model import Model, Weight
from hotcold.engine.plan.budget import Budget
from hotcold.kernels.formats import granules

Ids = NDArray[np.int32]
MOST_TOKENS = 1 << 30  # more than any batch has
USUAL_BUS, USUAL_PRODUCTS = 25e9, 300e9
"""Bytes that a copy to a card reaches, and products of a prompt on a CPU of a few fast cores; a second."""


@dataclass(frozen=True)
class WeightEntry:
    """One weight's place.

    Attributes:
        name: of the tensor in the file, with its rows where it is a part of one; or of a tied head.
        tensor: the tensor in the file.
        role: "embedding", "rope", "norm", "bias", "attention", "sinks", "predictor", "threshold", "router",
            "shared", "ffn", "head" or "profile", which says what of the head is computed.
        n_bytes: in the file; 0 for the head of a tied model, whose bytes are the embedding's.
        n_rows, device_rows: all rows, and those on the device.
        host_bytes: of the file's bytes, those that only the host serves.
        device_bytes: what the rows on the device take there, repacked.
        side: "cpu", "gpu" or "split".
        why: in words.
        weight: whose place it is.
        card: whose layers it belongs to; where nothing of it is on a device that says nothing.
    """

    name: str
    tensor: str
    role: str
    layer: int | None
    type: str
    ne: tuple[int, ...]
    n_bytes: int
    n_rows: int
    device_rows: int
    host_bytes: int
    device_bytes: int
    side: str
    why: str
    weight: Weight = field(repr=False)
    card: int = 0


@dataclass(frozen=True)
class CacheEntry:
    """One layer's KV cache.

    Attributes:
        n_positions: that it holds for a sequence: all of the context, or a window's with a batch's.
        n_bytes: for all sequences.
        card: whose layer it is, wherever the cache is.
    """

    layer: int
    n_positions: int
    n_bytes: int
    side: str
    why: str
    card: int = 0


@dataclass(frozen=True)
class ExpertsSplit:
    """What of each expert of a layer is on the device.

    Attributes:
        n_each: neurons of an expert that are placed one by one; 1 where experts go whole.
        hot: how many of them are on the device, int64 [n_expert].
        counted: firings of all of them, or how often each was chosen, float64 [n_expert].
    """

    n_each: int
    hot: NDArray[np.int64]
    counted: NDArray[np.float64]

    @property
    def n_by_side(self) -> dict[str, int]:
        """How many experts are on each side, or divided."""
        n_gpu, n_cpu = int((self.hot == self.n_each).sum()), int((self.hot == 0).sum())
        return {GPU: n_gpu, SPLIT: self.hot.size - n_gpu - n_cpu, CPU: n_cpu}


@dataclass(frozen=True)
class FfnSplit:
    """Which neurons of a layer are on the device.

    Attributes:
        hot: their numbers, ascending, int32 [n_hot].
        neuron_bytes: of one neuron's rows on the device, repacked.
        covered, measured: firings counted for the hot neurons, and for all.
        n_bytes: of the hot rows.
        index_bytes, threshold_bytes: of the numbers and of the thresholds of the hot rows, as many as there may be.
        experts: None without.
    """

    layer: int
    n_ff: int
    hot: Ids = field(compare=False)
    neuron_bytes: int
    covered: float
    measured: float
    n_bytes: int
    index_bytes: int
    threshold_bytes: int
    why: str
    experts: ExpertsSplit | None = field(default=None, compare=False)

    @property
    def n_hot(self) -> int:
        """Number of neurons on the device."""
        return int(self.hot.size)


@dataclass(frozen=True)
class GraphPlan:
    """A graph, and what all passes made of it."""

    graph: Graph = field(compare=False, repr=False)
    placed: PlacedGraph
    arenas: dict[str, Arena]


@dataclass(frozen=True)
class SentRows:
    """Rows of a weight that are sent to the device for a prompt: all of them, or a divided FFN's cold ones.

    Attributes:
        rows: of the node that reads them.
        n_bytes: on the device.
    """

    weight: Weight
    rows: str
    n_rows: int
    n_bytes: int


@dataclass(frozen=True)
class SentPiece:
    """What is sent together, into one of two staging buffers.

    Attributes:
        layer: that it is of, or mostly of.
        units: whose rows it has, neurons or experts, int32, ascending; None for what is no FFN by units.
        index: how kernels find them, see `index_of`; int32.
        n_thresholds: of their neurons, behind the index, float32; 0 without.
        rows: of the FFN's node that is about these units.
    """

    layer: int
    sent: tuple[SentRows, ...]
    units: Ids | None = field(compare=False)
    index: Ids | None = field(compare=False)
    n_thresholds: int = 0
    rows: str = ALL

    @property
    def n_bytes(self) -> int:
        """In a staging buffer."""
        return self.thresholds_at + aligned(4 * self.n_thresholds)

    @property
    def index_at(self) -> int:
        """Where the index begins there, behind all rows."""
        return sum(each.n_bytes for each in self.sent)

    @property
    def thresholds_at(self) -> int:
        """Where the thresholds begin there."""
        return self.index_at + (0 if self.index is None else aligned(self.index.nbytes))


@dataclass(frozen=True)
class Streaming:
    """How a prompt's batch runs on the device alone: what it lacks is sent there, piece by piece.

    Attributes:
        graph: of such a batch.
        pieces: in their order.
        asked: tokens from which on batches are sent, as asked for; None: where it pays.
        work: products of a weight with a number that the CPU would do for a token in its place, at most.
        stays: what the CPU does all the same, and why, in words.
    """

    graph: GraphPlan
    pieces: tuple[SentPiece, ...]
    asked: int | None
    work: float
    stays: tuple[str, ...] = ()

    @property
    def least(self) -> int:
        """Tokens from which on batches are sent: as asked for, or by usual speeds of a bus and a CPU."""
        return self.asked if self.asked is not None else self.pays_from(USUAL_BUS, USUAL_PRODUCTS)

    @property
    def sent_bytes(self) -> int:
        """Over the bus, for a batch of any size."""
        return sum(piece.n_bytes for piece in self.pieces)

    def pieces_of(self, layers: range) -> tuple[SentPiece, ...]:
        """Those of a card's layers, which go through its own two staging buffers."""
        return tuple(piece for piece in self.pieces if piece.layer in layers)

    def buffer_bytes(self, layers: range) -> int:
        """Of each of a card's two staging buffers; 0 if nothing is sent there."""
        return max((piece.n_bytes for piece in self.pieces_of(layers)), default=0)

    def pays_from(self, bus_bytes: float, cpu_products: float) -> int:
        """The smallest batch for which sending takes less time than the CPU's part; at least 2.

        Args:
            bus_bytes: a second.
            cpu_products: of a weight with a number, a second, in a prompt's tiles.
        """
        sending, a_token = self.sent_bytes / bus_bytes, self.work / cpu_products
        return max(2, ceil(sending / a_token)) if a_token else MOST_TOKENS


@dataclass(frozen=True)
class Totals:
    """What a card's budget is spent on, in bytes, or those of all cards; everything adds up to it.

    Attributes:
        padding: what the allocator adds to each of a card's three slabs.
    """

    budget: int
    weights: int
    predictors: int
    kv_cache: int
    hot_rows: int
    index: int
    thresholds: int
    arena: int
    workspace: int
    staging: int = 0
    padding: int = 0

    @property
    def slabs(self) -> tuple[int, int, int]:
        """Bytes of the three allocations: weights with what belongs to them, KV cache, arena with the rest."""
        weights = self.weights + self.predictors + self.hot_rows + self.index + self.thresholds
        return weights, self.kv_cache, self.arena + self.workspace + self.staging

    def padded(self) -> "Totals":
        """One card's, with what its allocator adds."""
        return replace(self, padding=sum(granules(n_bytes) - n_bytes for n_bytes in self.slabs))

    @property
    def used(self) -> int:
        """All that is allocated on the device."""
        return sum(self.slabs) + self.padding

    @property
    def left_over(self) -> int:
        """What nothing takes."""
        return self.budget - self.used


@dataclass(frozen=True)
class CardPlan:
    """What one card is to hold: whole layers in order, the last card also the head.

    Attributes:
        layers: whose it is; some of them may stay on the CPU.
        workspace: bytes of each area on it.
    """

    number: int
    layers: range
    budget: Budget
    workspace: dict[str, int]
    totals: Totals

    @property
    def side(self) -> str:
        """Of its nodes in placed graphs."""
        return card_side(self.number)

    @property
    def name(self) -> str:
        """The device's, or its number where none was asked."""
        return self.budget.device.name if self.budget.device is not None else f"card {self.number}"


@dataclass(frozen=True)
class Plan:
    """Everything that is known before anything is loaded.

    Attributes:
        n_batch: tokens that a prompt's run takes; lowered only if nothing fits otherwise.
        n_slots: sequences that have a KV cache of their own, of n_ctx positions.
        frequencies_from: where the firing counts came from, in words.
        peak_count: the largest count of any neuron: the text had at least that many tokens.
        cards: what each card is to hold, in the order of its layers; one, with a budget of 0, for the CPU alone.
        decode, batch: the graphs of one token and of n_batch tokens.
        notes: what a user should know, a line each.
        streaming: how large batches of a prompt run on the device alone; None if they do not.
        not_streamed: why they do not, or not for the layers of some card, where that was wanted.
    """

    model: Model
    sparsity: str
    n_ctx: int
    n_batch: int
    kv_type: str
    budget: Budget
    frequencies_from: str
    weights: tuple[WeightEntry, ...]
    caches: tuple[CacheEntry, ...]
    layers: tuple[FfnSplit, ...]
    peak_count: float
    cards: tuple[CardPlan, ...]
    decode: GraphPlan
    batch: GraphPlan
    notes: tuple[str, ...]
    n_slots: int = 1
    streaming: Streaming | None = None
    not_streamed: str = ""

    @property
    def totals(self) -> Totals:
        """Of all cards."""
        names = [each.name for each in fields(Totals)]
        return Totals(*(sum(getattr(card.totals, name) for card in self.cards) for name in names))

    @property
    def workspace(self) -> dict[str, int]:
        """Bytes of each area, of all cards."""
        sums = Counter[str]()
        for card in self.cards:
            sums.update(card.workspace)
        return dict(sums)

    @property
    def graphs(self) -> tuple[GraphPlan, ...]:
        """Those that run: of one token, and of a batch if there is one."""
        return (self.decode, self.batch) if self.n_batch > 1 else (self.decode,)

    @property
    def all_graphs(self) -> tuple[GraphPlan, ...]:
        """Those, and that of batches for which rows are sent."""
        return self.graphs if self.streaming is None else (*self.graphs, self.streaming.graph)

    @property
    def head_side(self) -> str:
        """Where the head is."""
        return _head_side(self.weights)

    @property
    def coverage(self) -> float:
        """Share of the measured firings that hot neurons cover."""
        measured = sum(layer.measured for layer in self.layers)
        return sum(layer.covered for layer in self.layers) / measured if measured else 0.0

    @property
    def hot_share(self) -> float:
        """Share of all neurons that are on the device."""
        return sum(layer.n_hot for layer in self.layers) / sum(layer.n_ff for layer in self.layers)

    @property
    def n_dense_layers(self) -> int:
        """Layers whose dense part is on the device."""
        return len({e.layer for e in self.weights if e.role == "attention" and e.side == GPU})


def sides_of(weights: tuple[WeightEntry, ...], caches: tuple[CacheEntry, ...]) -> Sides:
    """What the passes have to know of the entries."""
    sides = {
        entry.tensor: entry.side for entry in weights if entry.side in (GPU, SPLIT) and entry.role != "head"
    }
    cards = tuple(cache.card for cache in caches)
    return Sides(sides, tuple(cache.side for cache in caches), _head_side(weights), cards)


def _head_side(weights: tuple[WeightEntry, ...]) -> str:
    return next((entry.side for entry in weights if entry.role == "head"), CPU)
