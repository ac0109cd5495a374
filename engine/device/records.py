"""Launches in the making: where operands lie on the device, and the launches so far."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hotcold.engine.device.matrix import DeviceMatrix
from hotcold.engine.device.steps import Launches, LaunchesByParts
from hotcold.engine.device.store import DeviceStore
from hotcold.engine.graph.graph import COLD, Node, Tensor, layer_of, tensors_of
from hotcold.engine.graph.placed import CPU, PlacedGraph
from hotcold.engine.model.model import Weight
from hotcold.engine.plan.plan import GraphPlan
from hotcold.errors import DeviceError
from hotcold.kernels.cuda.add import HAS_BIAS, HAS_OTHER, HAS_RESIDUAL
from hotcold.kernels.cuda.attention import Sequences
from hotcold.kernels.cuda.device.buffers import Buffer, Pinned
from hotcold.kernels.cuda.device.device import Prepared
from hotcold.kernels.cuda.matmul_few import batch_product
from hotcold.kernels.cuda.matvec import matvec
from hotcold.kernels.cuda.quantise import quantise
from hotcold.kernels.cuda.sum_groups import sum_groups
from hotcold.kernels.cuda.work import Work
from hotcold.kernels.formats import mask_words, most_parts, n_groups, part_classes
from hotcold.kernels.weight_table import QUANTISED

Input = tuple[Buffer, ...]
"""A vector as a weight wants it: (x,), or rounded: (q, d, sum)."""


@dataclass(frozen=True)
class GroupSums:
    """The sums of one token's groups of rows, which are still to be added up, and a bias onto them.

    Attributes:
        partial: float32 [n_groups(n_rows), n].
    """

    partial: Buffer
    n_rows: int
    bias: Weight | None


class DeviceLowering:
    """What lowering the device's nodes of one graph needs to know.

    Attributes:
        n_tokens: of the run, at most the graph's.
        sequences: whose these are.
        host: the host's arena, page-locked.
        placed: the graph, with the `pack` nodes of all cards.
        readers: how many nodes read a result.
        unsummed: by result, what its only reader adds up in its place.
    """

    def __init__(
        self,
        store: DeviceStore,
        graph: GraphPlan,
        n_tokens: int,
        placed: PlacedGraph,
        host: Pinned,
        apart: bool = False,
    ) -> None:
        self.store, self.plan, self.model = store, store.plan, store.plan.model
        self.n_tokens, self.n_planned = n_tokens, graph.placed.n_tokens
        self.sequences = Sequences(self.plan.n_slots, n_tokens if apart else 1)
        self.placed = placed
        self.readers = Counter(t.name for p in self.placed.nodes for t in tensors_of(p.node))
        self._offsets = {entry.name: entry.offset for entry in graph.arenas[store.card.side].slots}
        self.host = host
        self._on_the_host = {entry.name: entry.offset for entry in graph.arenas[CPU].slots}
        self._launches: list[Prepared] = []
        self._by_parts = dict[int, tuple[Prepared, ...]]()
        self.unsummed: dict[str, GroupSums] = {}

    def launch(self, work: Work, *arguments: Any) -> None:
        """Append a launch."""
        self._launches.append(work.prepare(self.store.device, arguments))

    def launch_by_parts(self, n_rows: int, launch: Callable[[int], None]) -> None:
        """Append what `launch` appends for the number of parts of a token's context; nothing follows in its step.

        Args:
            n_rows: positions that the layer's cache holds.
        """
        before, most = self.take(), most_parts(n_rows, self.plan.n_ctx)
        for parts in sorted({min(each, most) for each in part_classes(self.plan.n_ctx)}):
            launch(parts)
            self._by_parts[parts] = before + self.take()

    def take(self) -> tuple[Prepared, ...]:
        """The launches since the last call."""
        taken, self._launches = tuple(self._launches), []
        return taken

    def step(self, nodes: tuple[Node, ...]) -> Launches:
        """The launches since the last call as the step of some nodes."""
        by_parts, self._by_parts = self._by_parts, {}
        if not by_parts:
            return Launches(self.store.device, nodes, self.take())
        return LaunchesByParts(self.store.device, nodes, by_parts[1], by_parts)

    # Where things lie

    def view(self, tensor: Tensor, offset: int, count: int, dtype: DTypeLike) -> Buffer:
        """A part of an intermediate's bytes."""
        if self.store.arena is None:
            raise DeviceError("intermediate", tensor.name, "the plan has no arena on the device")
        return self.store.arena.view(self._offsets[tensor.name] + offset, count, dtype)

    def vector(self, tensor: Tensor) -> Buffer:
        """An intermediate's float32 [n_tokens, n]."""
        return self.view(tensor, 0, self.n_tokens * tensor.shape[1], np.float32)

    def addend(self, tensor: Tensor) -> Buffer | Pinned:
        """What a merge reads, float32 [n_tokens, n]: an intermediate, or where the CPU has made one."""
        if tensor.name in self._offsets:
            return self.vector(tensor)
        return self.host.view(self._on_the_host[tensor.name], self.n_tokens * tensor.shape[1], np.float32)

    def mask(self, tensor: Tensor) -> Buffer:
        """A mask's words, uint32 [n_tokens, mask_words]."""
        return self.view(tensor, 0, self.n_tokens * mask_words(tensor.shape[1]), np.uint32)

    def chosen(self, tensor: Tensor) -> Buffer:
        """What a router chose, int32 [n_tokens, 2 n_used]."""
        return self.view(tensor, 0, self.n_tokens * 2 * tensor.shape[1], np.int32)

    def rounded(self, tensor: Tensor) -> Input:
        """Numbers, scales and sums of a rounded intermediate, each behind all that may be before it."""
        n, blocks = tensor.shape[1], tensor.shape[1] // 32
        scales = self.n_planned * n
        sums = scales + 4 * self.n_planned * blocks
        return (
            self.view(tensor, 0, self.n_tokens * n, np.int8),
            self.view(tensor, scales, self.n_tokens * blocks, np.float32),
            self.view(tensor, sums, self.n_tokens * blocks, np.int32),
        )

    def area(self, name: str, count: int, dtype: DTypeLike, offset: int = 0) -> Buffer:
        """A part of the workspace."""
        return self.store.areas[name].view(offset, count, dtype)

    def positions(self, first: int = 0, count: int | None = None) -> Buffer:
        """Positions of the run's tokens, int32 [n_tokens], or of count of them from `first` on."""
        return self.area("positions", count or self.n_tokens, np.int32, 4 * first)

    def places(self) -> Buffer:
        """The positions for who writes or reads caches: with several slots these lie behind them."""
        return self.positions(0, self.n_tokens * (1 if self.plan.n_slots == 1 else 2))

    def least(self, node: Node, first: int = 0, count: int | None = None) -> tuple[Buffer, Buffer, int]:
        """The last arguments of kernels that leave small neurons out: thresholds, positions, whether there are any."""
        positions, layer = self.positions(first, count), layer_of(node)
        found = self.store.thresholds(layer, node.rows) if node.find_weight("threshold") is not None else None
        if found is None:
            return self.area("counts", 1, np.float32), positions, 0
        return found, positions, 1

    def cos_sin(self, table: int) -> Buffer:
        """A rotation's table, float32 [n_ctx, n_rot / 2, 2]; any buffer for a model without one."""
        if "cos_sin" not in self.store.areas:
            return self.area("positions", self.n_tokens, np.float32)
        count = self.plan.n_ctx * self.model.n_rot
        return self.area("cos_sin", count, np.float32, 4 * table * count)

    # Rows of an FFN's node, which are all of them, or the hot ones, or the cold ones where those are sent

    def matrix(self, node: Node, weight: Weight) -> DeviceMatrix:
        """The rows that the node is about."""
        return self.store.matrix(weight, rows=node.rows)

    def neurons(self, node: Node) -> Buffer:
        """Numbers of the neurons whose rows these are."""
        return self.store.neurons(layer_of(node), node.rows)

    def held(self, node: Node) -> Buffer:
        """A bit for each neuron whose row is among these, as masks have them."""
        layer, words = layer_of(node), mask_words(self.model.n_ff)
        at = 2 * layer + (node.rows == COLD or not self.plan.layers[layer].n_hot)
        return self.area("held", words, np.uint32, 4 * words * at)

    # Inputs

    def input_of(self, node: Node, weight: Weight) -> Input:
        """A node's x as one of its weights wants it."""
        x = node.tensor("x")
        if x.dtype == "q8":
            return self.rounded(x)
        return self.packed(x.shape[1]) if weight.type in QUANTISED else (self.vector(x),)

    def hidden_input(self, weight: Weight, hidden: Buffer, to: Input | None = None) -> Input:
        """A node's own vector float32 [n_tokens, n], of which this weight reads all: as it is, or rounded here.

        Args:
            to: where it is rounded to; by default the area of rounded vectors.
        """
        if weight.type not in QUANTISED:
            return (hidden,)
        n = weight.ne[0]
        to = to or self.packed(n)
        self.quantise(hidden, to, n)
        return to

    def packed(self, n: int, area: str = "quantised", offset: int = 0) -> Input:
        """The area of rounded vectors, for one of n numbers; or a place in another area."""
        count, blocks = self.n_tokens * n, self.n_tokens * n // 32
        return (
            self.area(area, count, np.int8, offset),
            self.area(area, blocks, np.float32, offset + count),
            self.area(area, blocks, np.int32, offset + count + 4 * blocks),
        )

    def quantise(self, x: Buffer, to: Input, n: int) -> None:
        """Round x to blocks of 32."""
        self.launch(quantise(self.n_tokens, n), x, *to, self.n_tokens * n // 32)

    def tokens_of(self, x: Input, first: int, count: int, n: int) -> Input:
        """Some tokens' part of a vector of n numbers a token."""
        sizes = (n,) if len(x) == 1 else (n, n // 32, n // 32)
        return tuple(
            part.view(first * size * part.dtype.itemsize, count * size, part.dtype)
            for part, size in zip(x, sizes, strict=True)
        )

    # Products, and what follows them

    def product(
        self,
        matrix: DeviceMatrix,
        x: Input,
        y: Buffer,
        *,
        flags: int = 0,
        bias: Buffer | None = None,
        residual: Buffer | None = None,
        n_tokens: int | None = None,
    ) -> None:
        """y = residual + act(matrix x + bias) for all tokens, or for n_tokens of them; see `matvec`."""
        count = n_tokens or self.n_tokens
        rest = bias or y, residual or y, y, matrix.n_rows, matrix.n, flags
        shape = matrix.weight.type, count, matrix.n_rows, matrix.n, flags
        if count == 1:
            self.launch(matvec(*shape), *matrix.planes, *x, *rest)
        else:
            work = batch_product(*shape, self.store.device.facts.n_sm)
            self.launch(work, *matrix.planes, *x, *rest, count)

    def is_alone(self, reader: Node, made: Node) -> bool:
        """Whether a node is the only one that reads another's result."""
        return self.readers[made.output.name] == 1 and made.output in tensors_of(reader)

    def is_merged_next(self, made: Node) -> bool:
        """Whether a merge is the only one that reads a node's result, and nothing runs on the device before it."""
        nodes = [p.node for p in self.placed.nodes if p.side == self.store.card.side and p.node.op != "copy"]
        following = next((b for a, b in pairwise(nodes) if a.output.name == made.output.name), None)
        return following is not None and following.op == "merge" and self.is_alone(following, made)

    def sum_groups(
        self, sums: GroupSums, y: Buffer, other: Buffer | Pinned | None, residual: Buffer | None
    ) -> None:
        """y = ((sum of the groups + bias) + other) + residual."""
        n, bias = y.shape[0], self.store.vector(sums.bias) if sums.bias is not None else None
        flags = HAS_BIAS * (bias is not None) | HAS_OTHER * (other is not None)
        flags |= HAS_RESIDUAL * (residual is not None)
        addends = bias or y, other or y, residual or y
        work = sum_groups(1, sums.n_rows, n, flags)
        self.launch(work, sums.partial, *addends, y, n_groups(sums.n_rows), n, flags)

    def residual(self, nodes: Any) -> tuple[Tensor | None, Tensor, int]:
        """What the next node adds to the first one's result, if it does and nobody else reads that.

        Returns:
            the addend or None, the result to write, and the nodes that this takes.
        """
        made = nodes[0]
        if len(nodes) < 2 or nodes[1].op != "add" or not self.is_alone(nodes[1], made):
            return None, made.output, 1
        other = next(tensor for tensor in tensors_of(nodes[1]) if tensor != made.output)
        return other, nodes[1].output, 2
