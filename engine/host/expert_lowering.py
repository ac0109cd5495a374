"""From the nodes of a mixture of experts to op records.

A pair is a token and one of its experts. One token's pairs all read its one vector; a batch's vectors are put in
the order of the pairs first, so that each expert meets its tokens as a batch of their own.
"""

import mmap

import numpy as np

from hotcold.engine.graph.graph import COLD, Node, ffn_matrices, layer_of
from hotcold.engine.host.cold_rows import ColdNeurons
from hotcold.engine.host.records import Lowering, Record
from hotcold.engine.host.workspace import vector_bytes
from hotcold.engine.model.model import Weight
from hotcold.kernels.cpu import program, sizes
from hotcold.kernels.formats import ACTIVATIONS, GATINGS, chosen_bytes


def top_k(low: Lowering, node: Node) -> None:
    logits, n_used = node.tensor("logits"), node.output.shape[1]
    x, x_stride = low.vector(logits)
    low.emit(
        program.TOP_K,
        low.token_chunks(logits.shape[1]),
        x=x,
        x_stride=x_stride,
        y=low.tensors[node.output.name],
        y_stride=chosen_bytes(1, n_used),
        n_rows=logits.shape[1],
        k=n_used,
        gating=GATINGS[node.attributes["gating"]],
        normed=int(node.attributes["normed"]),
        weight_scale=node.attributes["scale"],
    )


def mul_sigmoid(low: Lowering, node: Node) -> None:
    x, gate = node.tensor("x"), node.tensor("gate")
    (at, stride), (z, z_stride), (y, _) = low.vector(x), low.vector(gate), low.vector(node.output)
    fields = {"x": at, "x_stride": stride, "z": z, "z_stride": z_stride, "y": y, "y_stride": stride}
    low.emit(program.MUL_SIGMOID, low.token_chunks(x.shape[1]), **fields, k=x.shape[1])


class _Pairs:
    """One node's pairs, and the records that take them."""

    def __init__(self, low: Lowering, node: Node) -> None:
        self.low, self.node = low, node
        self.gate, self.up, self.down = ffn_matrices(node)
        self.n_embd, self.n_ff, self.n_expert = self.gate.ne
        self.n_used = node.tensor("chosen").shape[1]
        self.n_pairs = low.n_tokens * self.n_used
        self.groups = low.areas["groups"]
        self.places = self.groups + sizes.group_bytes(self.n_expert, self.n_pairs)
        self.first, self.second = (low.areas["first"], 4 * self.n_ff), (low.areas["second"], 4 * self.n_ff)

    @property
    def chosen(self) -> tuple[int, int]:
        """Address and stride of what the router chose."""
        return self.low.tensors[self.node.tensor("chosen").name], chosen_bytes(1, self.n_used)

    def group(self) -> None:
        """Put pairs in the order of their experts."""
        x, x_stride = self.chosen
        fields = {"x": x, "x_stride": x_stride, "k": self.n_used, "n_rows": self.n_expert}
        fields |= {"w": self._here(), "y": self.groups, "z": self.places}
        fields |= {"listed": 0 if self.cold is None else self.cold.n.ctypes.data, "n_listed": self.n_ff}
        self.low.emit(program.GROUP, 1, **fields, counts=self.low.layer_counts(layer_of(self.node)))

    @property
    def cold(self) -> ColdNeurons | None:
        """The rows that the node is about, where they are some of the experts'."""
        return self.low.cold_neurons.get(layer_of(self.node)) if self.node.rows == COLD else None

    def _here(self) -> int:
        """The addresses of the experts that the node is about: all of them, or those with cold rows."""
        if self.node.rows != COLD:
            return self.low.store.experts(self.gate)
        if self.cold is not None:
            return self.low.store.experts(self.gate, np.flatnonzero(self.cold.n))
        return self.low.store.experts(self.gate, self.low.cold[layer_of(self.node)].listed[1:])

    def will_need(self) -> None:
        """Tell the system of the experts whose rows come next, so that it reads them all at once."""
        x, x_stride = self.chosen
        fields: Record = {"x": x, "x_stride": x_stride, "k": self.n_used, "n_rows": self.n_expert}
        for name, weight in (("w", self.gate), ("w1", self.up), ("w2", self.down)):
            fields |= {
                name: self.low.store.experts(weight),
                f"{name}_stride": weight.n_bytes // self.n_expert,
            }
        fields["w"] = self._here()
        chunks = min(self.n_expert, self.n_pairs, program.MAX_CHUNKS)
        self.low.emit(program.WILL_NEED, chunks, **fields, advice=int(mmap.MADV_WILLNEED))

    def vectors(self, weight: Weight) -> tuple[int, int]:
        """The pairs' vectors as a matrix wants them: one for all, or gathered."""
        x, stride = self.low.input_of(self.node, weight)
        if self.low.one_token:
            return x, 0
        fields = {"x": x, "x_stride": stride, "y": self.low.areas["pairs"], "y_stride": stride}
        chunks = self._chunks(stride // 4)
        self.low.emit(
            program.GATHER, chunks, **fields, k=stride // 4, n_rows=self.n_expert, groups=self.groups
        )
        return self.low.areas["pairs"], stride

    def sums(self, hidden: tuple[int, int]) -> tuple[int, int]:
        """Where the experts' vectors go: the area that the hidden vectors are not in."""
        area = "second" if hidden[0] == self.first[0] else "first"
        return self.low.areas[area], 4 * self.n_embd

    def multiply(self, weight: Weight, bias: Weight | None, x: tuple[int, int], y: tuple[int, int]) -> None:
        """y[p] = the matrix of the pair's expert . x[p] + its bias, 0 in rows that the node is not about."""
        if self.cold is not None:
            bits = {"z": self.cold.bits.ctypes.data, "z_stride": self.cold.bits.strides[0]}
            self.rows(program.EXPERT_LISTED, weight, x, y, **bits)
            return
        z = {} if bias is None else {"z": self.low.store.address(bias)}
        self.rows(program.EXPERT_ROWS, weight, x, y, **z)

    def rows(self, code: int, weight: Weight, x: tuple[int, int], y: tuple[int, int], **own: int) -> None:
        """An op whose chunks are rows of all experts."""
        k, n_rows, _ = weight.ne
        stride = sizes.row_bytes(int(weight.type), k)
        if self.low.one_token:
            chunks = program.row_chunks(n_rows, self.n_used * stride)
        else:
            chunks = program.panel_chunks(n_rows)
        fields = self._matrix(weight)
        fields |= {"x": x[0], "x_stride": x[1], "y": y[0], "y_stride": y[1], "n_rows": n_rows, "k": k, **own}
        self.low.emit(code, chunks, **fields, groups=self.groups)

    def hidden(self, activation: str) -> None:
        """first = act(first) * second."""
        (x, stride), (z, _) = self.first, self.second
        fields = {"x": x, "x_stride": stride, "z": z, "z_stride": stride, "y": x, "y_stride": stride}
        own = {"activation": ACTIVATIONS[activation], "groups": self.groups}
        self.low.emit(program.ACT_MUL, self._chunks(self.n_ff), **fields, k=self.n_ff, **own)

    def close_small(self) -> None:
        """first = act(first) where it reaches its threshold, else 0; gates stay as they are without thresholds."""
        if least := self.low.thresholds(self.node):
            (x, stride), chunks = self.first, program.row_chunks(self.n_ff, 4 * self.n_pairs)
            fields = {"x": x, "x_stride": stride, "y": x, "y_stride": stride, "n_rows": self.n_ff}
            fields |= {"k": self.n_expert, "activation": ACTIVATIONS[self.node.attributes["activation"]]}
            own = {"apart": self.low.apart, "groups": self.groups}
            self.low.emit(program.EXPERT_THRESHOLD, chunks, **fields, **least, **own)

    def up_rows(self, x: tuple[int, int]) -> None:
        """second = first * (up . x) where first, the gates, says so; other rows are not read."""
        gates = {"z": self.first[0], "z_stride": self.first[1]}
        activation = ACTIVATIONS[self.node.attributes["activation"]]
        counts = self.low.layer_counts(layer_of(self.node))
        self.rows(program.EXPERT_UP, self.up, x, self.second, **gates, activation=activation, counts=counts)

    @property
    def are_fused(self) -> bool:
        """Whether one token takes gate, up and down of a neuron together: behind a ReLU, without biases."""
        relu = self.node.attributes["activation"] in ("relu", "relu_both")
        return (
            relu and self.node.find_weight("gate_bias") is None and self.node.find_weight("up_bias") is None
        )

    def pieces(self) -> tuple[int, int]:
        """All of it for one token where a neuron has a row of each matrix; the pairs' vectors."""
        low, parts = self.low, program.EXPERT_PARTS
        fields: Record = {
            "x": low.input_of(self.node, self.gate)[0],
            "z": low.input_of(self.node, self.up)[0],
        }
        for name, weight in (("w", self.gate), ("w1", self.up), ("w2", self.down)):
            fields |= self._matrix(weight, name)
        fields |= {"scratch": low.areas["second"], "scratch_stride": 4 * self.n_embd}
        fields |= {"skip": int(self.node.attributes["skip"]), "n_rows": self.n_ff, "k": self.n_embd}
        fields |= {"listed": 0 if self.cold is None else self.cold.listed.ctypes.data}
        fields |= {"activation": ACTIVATIONS[self.node.attributes["activation"]], "n_parts": parts}
        fields |= low.thresholds(self.node)
        counts = low.layer_counts(layer_of(self.node))
        low.emit(program.EXPERT_PIECES, self.n_used * parts, **fields, groups=self.groups, counts=counts)
        y, stride = low.areas["first"], 4 * self.n_embd
        at = {"x": low.areas["second"], "x_stride": stride, "y": y, "y_stride": stride, "k": self.n_embd}
        chunks = max(1, self.n_embd // 256)
        low.emit(program.EXPERT_REDUCE, chunks, **at, n_parts=parts, groups=self.groups)
        return y, stride

    def down_rows(self, hidden: tuple[int, int]) -> tuple[int, int]:
        """The pairs' sums of rows of down by their hidden values."""
        y, stride = self.sums(hidden)
        fields = {"x": hidden[0], "x_stride": hidden[1], "y": y, "y_stride": stride}
        fields |= {"n_rows": self.n_ff, "k": self.n_embd, "n_parts": program.EXPERT_PARTS}
        chunks = max(1, self.n_embd // 256)
        self.low.emit(program.EXPERT_DOWN, chunks, **self._matrix(self.down), **fields, groups=self.groups)
        return y, stride

    def _matrix(self, weight: Weight, name: str = "w") -> Record:
        """Fields that say where all experts' matrices lie."""
        stride = sizes.row_bytes(int(weight.type), weight.ne[0])
        return {
            name: self.low.store.experts(weight),
            f"{name}_type": int(weight.type),
            f"{name}_stride": stride,
        }

    def packed(self, x: tuple[int, int]) -> tuple[int, int]:
        """The hidden vectors as `down` wants them."""
        if not sizes.is_quantised(int(self.down.type)):
            return x
        y, stride = self.low.areas["pairs"], sizes.packed_bytes(self.n_ff)
        fields = {"x": x[0], "x_stride": x[1], "y": y, "y_stride": stride, "k": self.n_ff}
        self.low.emit(program.PACK, self._chunks(self.n_ff), **fields, groups=self.groups)
        return y, stride

    def add_up(self, vectors: tuple[int, int]) -> None:
        """The sum of each token's experts' vectors by their weights."""
        (x, x_stride), (z, z_stride), (y, y_stride) = vectors, self.chosen, self.low.vector(self.node.output)
        fields = {"x": x, "x_stride": x_stride, "z": z, "z_stride": z_stride, "y": y, "y_stride": y_stride}
        own = {"n_used": self.n_used, "pairs": self.places, "k": self.n_embd}
        self.low.emit(program.EXPERT_SUM, max(1, self.n_embd // 256), **fields, **own)

    def _chunks(self, n: int) -> int:
        """Chunks of an op that shares out pairs of n numbers each."""
        return max(1, min(self.n_pairs, 4 * n * self.n_pairs // program.CHUNK_BYTES, program.MAX_CHUNKS))


def expert_ffn(low: Lowering, node: Node) -> None:
    pairs, transposed = _Pairs(low, node), node.attributes["transposed"]
    pairs.group()
    if low.one_token and transposed and pairs.are_fused:
        pairs.add_up(pairs.pieces())
        return
    x = pairs.vectors(pairs.gate)
    pairs.multiply(pairs.gate, node.find_weight("gate_bias"), x, pairs.first)
    if vector_bytes(pairs.up) != vector_bytes(pairs.gate):
        x = pairs.vectors(pairs.up)
    hidden = pairs.first
    if node.attributes["skip"]:
        pairs.close_small()
        pairs.up_rows(x)
        hidden = pairs.second
    else:
        pairs.multiply(pairs.up, node.find_weight("up_bias"), x, pairs.second)
        pairs.hidden(node.attributes["activation"])
    if transposed:
        pairs.add_up(pairs.down_rows(hidden))
        return
    sums = pairs.sums(hidden)
    pairs.multiply(pairs.down, node.find_weight("down_bias"), pairs.packed(hidden), sums)
    pairs.add_up(sums)


def will_need(low: Lowering, node: Node) -> None:
    """Append advice to the system of what an `expert_ffn` node will read."""
    _Pairs(low, node).will_need()
