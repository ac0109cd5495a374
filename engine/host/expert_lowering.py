"""From the nodes of a mixture of experts to op records.

A pair is a token and one of its experts. One token's pairs all read its one vector; a batch's vectors are put in
the order of the pairs first, so that each expert meets its tokens as a batch of their own.
"""

from hotcold.engine.graph.graph import COLD, Node, ffn_matrices, layer_of
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
        self.sums = low.areas["second"], 4 * self.n_embd

    @property
    def chosen(self) -> tuple[int, int]:
        """Address and stride of what the router chose."""
        return self.low.tensors[self.node.tensor("chosen").name], chosen_bytes(1, self.n_used)

    def group(self) -> None:
        """Put pairs in the order of their experts."""
        x, x_stride = self.chosen
        fields = {"x": x, "x_stride": x_stride, "k": self.n_used, "n_rows": self.n_expert}
        fields |= {"w": self._here(), "y": self.groups, "z": self.places}
        self.low.emit(program.GROUP, 1, **fields, counts=self.low.layer_counts(layer_of(self.node)))

    def _here(self) -> int:
        """The addresses of the experts that the node is about: all of them, or the cold ones."""
        if self.node.rows != COLD:
            return self.low.store.experts(self.gate)
        return self.low.store.experts(self.gate, self.low.cold[layer_of(self.node)].listed[1:])

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

    def multiply(self, weight: Weight, bias: Weight | None, x: tuple[int, int], y: tuple[int, int]) -> None:
        """y[p] = the matrix of the pair's expert . x[p] + its bias."""
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
        fields: Record = {"w": self.low.store.experts(weight), "w_type": int(weight.type), "w_stride": stride}
        fields |= {"x": x[0], "x_stride": x[1], "y": y[0], "y_stride": y[1], "n_rows": n_rows, "k": k, **own}
        self.low.emit(code, chunks, **fields, groups=self.groups)

    def hidden(self, activation: str) -> None:
        """first = act(first) * second."""
        (x, stride), (z, _) = self.first, self.second
        fields = {"x": x, "x_stride": stride, "z": z, "z_stride": stride, "y": x, "y_stride": stride}
        own = {"activation": ACTIVATIONS[activation], "groups": self.groups}
        self.low.emit(program.ACT_MUL, self._chunks(self.n_ff), **fields, k=self.n_ff, **own)

    def packed(self, x: tuple[int, int]) -> tuple[int, int]:
        """The hidden vectors as `down` wants them."""
        if not sizes.is_quantised(int(self.down.type)):
            return x
        y, stride = self.low.areas["pairs"], sizes.packed_bytes(self.n_ff)
        fields = {"x": x[0], "x_stride": x[1], "y": y, "y_stride": stride, "k": self.n_ff}
        self.low.emit(program.PACK, self._chunks(self.n_ff), **fields, groups=self.groups)
        return y, stride

    def sum(self) -> None:
        """The sum of each token's experts by their weights."""
        (x, x_stride), (z, z_stride), (y, y_stride) = (
            self.sums,
            self.chosen,
            self.low.vector(self.node.output),
        )
        fields = {"x": x, "x_stride": x_stride, "z": z, "z_stride": z_stride, "y": y, "y_stride": y_stride}
        own = {"n_used": self.n_used, "pairs": self.places, "k": self.n_embd}
        self.low.emit(program.EXPERT_SUM, max(1, self.n_embd // 256), **fields, **own)

    def _chunks(self, n: int) -> int:
        """Chunks of an op that shares out pairs of n numbers each."""
        return max(1, min(self.n_pairs, 4 * n * self.n_pairs // program.CHUNK_BYTES, program.MAX_CHUNKS))


def expert_ffn(low: Lowering, node: Node) -> None:
    pairs = _Pairs(low, node)
    pairs.group()
    x = pairs.vectors(pairs.gate)
    pairs.multiply(pairs.gate, node.find_weight("gate_bias"), x, pairs.first)
    if vector_bytes(pairs.up) != vector_bytes(pairs.gate):
        x = pairs.vectors(pairs.up)
    pairs.multiply(pairs.up, node.find_weight("up_bias"), x, pairs.second)
    pairs.hidden(node.attributes["activation"])
    pairs.multiply(pairs.down, node.find_weight("down_bias"), pairs.packed(pairs.first), pairs.sums)
    pairs.sum()
