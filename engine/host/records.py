"""Op records in the making: what lowering a node needs to know, and the records so far.

A graph of one token and a graph of a batch lower to different ops: rows stream through dot products for
one token, and are used for several tokens at a time in a batch.
"""

from dataclasses import dataclass, field
from typing import Any

from hotcold.engine.graph.graph import Node, Tensor
from hotcold.engine.host.cold_rows import ColdNeurons, ColdRows
from hotcold.engine.host.stores import HostStore, KVCache
from hotcold.engine.model.model import Weight
from hotcold.kernels.cpu import program, sizes

Record = dict[str, Any]


@dataclass
class Lowering:
    """Addresses of everything that records name, and the records so far.

    Attributes:
        tensors: address of each intermediate by name.
        areas: address of each workspace area.
        rope_table: address of (cos, sin) float32 [n_ctx, n_pairs, 2] of each rotation; table_bytes of one.
        counts: address of int64 [n_layer, MAX_CHUNKS, 2], listed and live neurons.
        cold: of each layer whose FFN is split, the rows that are the CPU's, or the experts.
        apart: address of run parameters, one behind the other, of n_apart tokens that each belong to a sequence of
            their own; 0 where all belong to one.
        cold_neurons: of each layer whose experts are split by neurons, the rows that are the CPU's.
        reads_disk: whether the file is larger than memory, so that the system is told which experts come next.
    """

    n_tokens: int
    store: HostStore
    kv_cache: KVCache
    tensors: dict[str, int]
    areas: dict[str, int]
    rope_table: int
    table_bytes: int
    counts: int
    cold: dict[int, ColdRows]
    cold_neurons: dict[int, ColdNeurons]
    apart: int = 0
    n_apart: int = 0
    reads_disk: bool = False
    records: list[Record] = field(default_factory=list)

    @property
    def one_token(self) -> bool:
        """Whether this is the decode graph."""
        return self.n_tokens == 1

    def emit(self, code: int, chunks: int, **fields: Any) -> None:
        """Append one record."""
        self.records.append({"code": code, "chunks": chunks, **fields})

    def emit_by_position(self, code: int, chunks: int, **fields: Any) -> None:
        """Append what depends on the positions of tokens, which are shared out."""
        chunks = min(chunks, self.n_apart) if self.apart else chunks
        self.emit(code, chunks, apart=self.apart, **fields)

    def layer_counts(self, layer: int) -> int:
        """Address of a layer's counts."""
        return self.counts + layer * program.MAX_CHUNKS * 16

    def token_chunks(self, n: int) -> int:
        """Chunks of an op that shares out tokens of n numbers each."""
        return max(1, min(self.n_tokens, 4 * n * self.n_tokens // program.CHUNK_BYTES, program.MAX_CHUNKS))

    def vector(self, tensor: Tensor) -> tuple[int, int]:
        """Address and row stride of an intermediate's float32."""
        return self.tensors[tensor.name], 4 * tensor.shape[1]

    def input_of(self, node: Node, weight: Weight) -> tuple[int, int]:
        """Address and row stride of a node's x as one of its weights wants it: float32, or packed."""
        x = node.tensor("x")
        if sizes.is_quantised(int(weight.type)):
            return self.areas["packed"], sizes.packed_bytes(x.shape[1])
        return self.vector(x)

    def pack(self, x: Tensor) -> None:
        """Append the packing of an intermediate, which may have been rounded on the device."""
        if x.dtype != "q8":
            self._pack(*self.vector(x), x.shape[1])
            return
        n, at = x.shape[1], self.tensors[x.name]
        scales = {"z": at + n * self.n_tokens, "z_stride": n // 32 * 4}
        y = {"y": self.areas["packed"], "y_stride": sizes.packed_bytes(n)}
        self.emit(program.PACK_ROUNDED, self.token_chunks(n), x=at, x_stride=n, **scales, **y, k=n)

    def hidden_input(self, weight: Weight, hidden: tuple[int, int]) -> tuple[int, int]:
        """A node's own vector, of which this weight reads all: as it is, or packed here."""
        if not sizes.is_quantised(int(weight.type)):
            return hidden
        self._pack(*hidden, weight.ne[0])
        return self.areas["packed"], sizes.packed_bytes(weight.ne[0])

    def _pack(self, x: int, x_stride: int, n: int) -> None:
        y = {"y": self.areas["packed"], "y_stride": sizes.packed_bytes(n)}
        self.emit(program.PACK, self.token_chunks(n), x=x, x_stride=x_stride, k=n, **y)

    def weight(self, weight: Weight, name: str = "w") -> Record:
        """Record fields that say where a matrix lies."""
        stride = sizes.row_bytes(int(weight.type), weight.ne[0])
        return {name: self.store.address(weight), f"{name}_type": int(weight.type), f"{name}_stride": stride}

    def matrix(
        self, weight: Weight, x: tuple[int, int], y: tuple[int, int], code: int | None = None, **own: int
    ) -> None:
        """Append y = weight . x for every token, by an op that may have fields of its own."""
        k, n_rows = weight.ne
        if code is None:
            code = program.MAT_VEC if self.one_token else program.MUL_MAT
        chunks = program.row_chunks(n_rows, sizes.row_bytes(int(weight.type), k))
        if code in (program.MUL_MAT, program.MASK_ROWS):
            chunks = program.panel_chunks(n_rows)
        at = {"x": x[0], "x_stride": x[1], "y": y[0], "y_stride": y[1]}
        self.emit(code, chunks, **self.weight(weight), n_rows=n_rows, k=k, **at, **own)

    def thresholds(self, node: Node) -> Record:
        """Fields of what an FFN's neurons have to reach; none where there are no thresholds."""
        weight = node.find_weight("threshold")
        return {} if weight is None else {"least": self.store.address(weight)}

    def bias(self, bias: Weight | None, y: tuple[int, int]) -> None:
        """Append y += bias for every token, if there is one."""
        if bias is not None:
            at = {"x": y[0], "x_stride": y[1], "y": y[0], "y_stride": y[1], "z": self.store.address(bias)}
            self.emit(program.ADD, self.token_chunks(bias.ne[0]), **at, k=bias.ne[0])
