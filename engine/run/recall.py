"""How well the predictors know the gates: of the neurons that fire, the share that they list.

It is measured while the first prompt passes, in a few layers and for some neurons. Their rows are copied when
the model is loaded, and the walk of that prompt has a few records more, which multiply them and keep the masks:
no stop, no thread of another library, and less than a hundredth of the prompt's time (`bench/recall.py`). Where a
device does all of the prompt, since it is sent what it lacks, what these FFNs are about to read is fetched there.
Predictors of other weights list what they like, and the text is garbage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.arena import tensor_bytes
from hotcold.engine.graph.graph import Node, Tensor, layer_of, tensors_of
from hotcold.engine.graph.placed import CPU, PlacedNode
from hotcold.engine.host.records import Lowering, Record
from hotcold.engine.host.steps import Context, Step, Walk
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Weight
from hotcold.engine.plan.plan import GraphPlan
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile
from hotcold.kernels import ref
from hotcold.kernels.cpu import program
from hotcold.kernels.cpu.team import Program
from hotcold.kernels.formats import mask_bytes

N_NEURONS, N_TOKENS, FEWEST = 96, 64, 24
N_FETCHED = 16  # tokens of a device's batch, whose products are formed one by one
# of a smaller file more than a layer would be more than 1 % of the work, and so is one where a single token passes,
# which lets too few neurons fire to tell anything
N_LAYERS, SMALL_BYTES = 3, 64 << 20
GOOD_ENOUGH = 0.5
NOT_TOLD = "whether the predictors belong to the weights is not told"
ON_THE_DEVICE, TOO_SHORT = "their layers are on the device", "a first prompt of one token is too short"
SENT_THERE = "the device did all of the first prompt"
ADVICE = (
    "they may belong to other weights: use --sparsity exact, or convert the model with its own predictors"
)


@dataclass(frozen=True)
class Recall:
    """Neurons that fired, those of them that were listed, and the layers that were looked at.

    Attributes:
        untold: why nothing was looked at.
    """

    n_firing: int
    n_listed: int
    layers: tuple[int, ...]
    untold: str = ON_THE_DEVICE

    @property
    def share(self) -> float:
        """Of the firing neurons that are listed."""
        return self.n_listed / self.n_firing

    def line(self) -> str:
        """What -v says: the share, or why there is none."""
        if not self.layers:
            return f"{NOT_TOLD}: {self.untold}"
        where = (
            f"on the first prompt, in layer{'s' * (len(self.layers) > 1)} {', '.join(map(str, self.layers))}"
        )
        if self.n_firing < FEWEST:
            only = f"only {self.n_firing} sampled neuron{'s' * (self.n_firing != 1)} fired"
            return f"{NOT_TOLD}: {only} {where}"
        share = f"predictors list {self.share:.0%} of the neurons that fire"
        return f"{share}: {self.n_listed} of {self.n_firing} {where}"

    def warning(self) -> str:
        """What a user should know; "" if nothing."""
        if self.n_firing < FEWEST or self.share >= GOOD_ENOUGH:
            return ""
        return f"the predictors list only {self.share:.0%} of the neurons that fire; {ADVICE}"


@dataclass(frozen=True)
class Sample:
    """Some neurons of a layer's FFN.

    Attributes:
        ids: int64 [n], ascending.
        matrices: what decides whether they fire: rows of gate, of up or of both, with their type.
        bias: float32 [n] of the product, or [1] zero.
    """

    layer: int
    ids: NDArray[np.int64]
    matrices: tuple[tuple[Weight, NDArray[np.uint8]], ...]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class Kept:
    """What a walk leaves of one layer.

    Attributes:
        products: float32 [n_tokens, n], one for each matrix.
        masks: uint8 [n_tokens, bytes].
        all_set: uint8 [bytes], what the mask is copied through.
    """

    sample: Sample
    products: tuple[NDArray[np.float32], ...]
    masks: NDArray[np.uint8]
    all_set: NDArray[np.uint8]

    def counts(self, tokens: slice) -> tuple[int, int]:
        """How many fired for some tokens, and how many of those were listed."""
        ids = self.sample.ids
        fires = self.products[0][tokens] + self.sample.bias > 0
        for more in self.products[1:]:
            fires &= more[tokens] > 0
        listed = fires & (self.masks[tokens][:, ids >> 3] >> (ids & 7).astype(np.uint8) & 1 != 0)
        return int(np.count_nonzero(fires)), int(np.count_nonzero(listed))


class Watching:
    """Takes a run's steps as ever; walks that hold a sampled FFN keep something more.

    Attributes:
        n_tokens: of the last run.
        added: the records that its walks have more, of the graph of one token (True), and of the one of more.
    """

    def __init__(self, executor: Executor, file: GGUFFile, n_layers: int | None = None) -> None:
        """Read the rows of the neurons that are looked at, and make the longer walks.

        Args:
            n_layers: to look at; None: what is cheap for the size of the file.
        """
        self.n_tokens, self._is_kept = 0, False
        is_small = n_layers is None and file.size < SMALL_BYTES
        self._store = HostStore(file)
        self._samples = _samples(executor, self._store, n_layers or (1 if is_small else N_LAYERS))
        self._programs: dict[int, Program] = {}
        self._executor, self._fetched = executor, list[Kept]()
        self._kept: dict[bool, list[Kept]] = {}  # as `added`
        self.added: dict[bool, list[Record]] = {True: [], False: []}
        for graph in executor.plan.graphs if self._samples else ():
            if is_small and graph.placed.n_tokens == 1:
                continue
            self._kept[graph.placed.n_tokens == 1] = [
                kept
                for walk in executor.run_steps.walks[graph.placed.n_tokens]
                for kept in self._longer(walk, graph, executor)
            ]

    def _longer(self, walk: Walk, graph: GraphPlan, executor: Executor) -> list[Kept]:
        """Make a walk's program with what is to be kept, if anything is."""
        more, kept, at = list[tuple[int, list[Record]]](), list[Kept](), 0
        nodes = {p.node.name: p.node for p in graph.placed.nodes}  # which read x as it is, not packed
        for lowered, records in walk.lowered:
            node = nodes.get(lowered.name)
            if node is not None and node.layer in self._samples and node.find_tensor("mask") is not None:
                low = executor.host.lowering(graph)
                kept.append(_keep(low, node, self._samples[node.layer]))
                n_packing = sum(r["code"] in (program.PACK, program.PACK_ROUNDED) for r in records[:1])
                more.append((at + n_packing, low.records))
            at += len(records)
        if kept:
            self._programs[id(walk)] = walk.program.with_more(more)
            self.added[graph.placed.n_tokens == 1] += [record for _, records in more for record in records]
        return kept

    def __call__(self, steps: Sequence[Step], context: Context) -> None:
        """Take them."""
        self.n_tokens = context.n_tokens
        self._is_kept = any(id(step) in self._programs for step in steps)  # else the device does all of it
        streaming, last = self._executor.plan.streaming, self._executor.run_steps.last
        looked_at = self._on_device(last) if streaming is not None and last is streaming.graph else {}
        self._fetched = []
        for step in steps:
            longer = self._programs.get(id(step))
            if longer is not None:
                context.team.walk(longer)
                continue
            for node in step.nodes:
                if node.name in looked_at:
                    self._fetched.append(self._fetch(*looked_at[node.name]))
            step.run(context)

    def _on_device(self, graph: GraphPlan) -> dict[str, tuple[PlacedNode, Node]]:
        """Sampled FFNs that run there, the first part of each, and the norms that they read, by name."""
        made = {p.node.output.name: p for p in graph.placed.nodes}
        found = dict[int | None, tuple[PlacedNode, Node]]()
        for p in reversed(graph.placed.nodes):
            if p.side == CPU or p.node.layer not in self._samples or p.node.find_tensor("mask") is None:
                continue
            norm = made[p.node.tensor("x").name]
            if norm.node.op == "quantise":
                norm = made[tensors_of(norm.node)[0].name]
            if norm.side == p.side and norm.node.op in ("rms_norm", "layer_norm"):
                found[p.node.layer] = p, norm.node
        return {p.node.name: (p, norm) for p, norm in found.values()}

    def _fetch(self, p: PlacedNode, norm: Node) -> Kept:
        """What an FFN of a device is about to read of the last tokens, with the products that decide what fires.

        Its input is made again from what the norm has read: the device may have left it rounded, in a place of kernels.
        """
        from hotcold.gguf_io.blocks import dequantize  # which brings the whole gguf package

        some = slice(max(0, self.n_tokens - N_FETCHED), self.n_tokens)
        sample, masks = self._samples[layer_of(p.node)], self._rows_of(p.node.tensor("mask"), p.side)[some]
        before, eps = self._rows_of(norm.tensor("x"), p.side).view(np.float32)[some], norm.attributes["eps"]
        weight = self._vector(norm.weight("weight"))
        bias = norm.find_weight("bias")
        inputs = (
            ref.rms_norm(before, weight, eps)
            if bias is None
            else ref.layer_norm(before, weight, self._vector(bias), eps)
        )
        matrices = (dequantize(rows, weight.type) for weight, rows in sample.matrices)
        products = tuple(  # without BLAS's threads
            np.einsum("tk,nk->tn", inputs.astype(np.float32), rows) for rows in matrices
        )
        return Kept(sample, products, masks, np.zeros(0, np.uint8))

    def _vector(self, weight: Weight) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self._store.rows(weight).view(np.float32)[0]
        return vector

    def _rows_of(self, tensor: Tensor, side: str) -> NDArray[np.uint8]:
        """An intermediate of the run's tokens, uint8 [n_tokens, bytes]."""
        n_bytes = tensor_bytes(tensor) // tensor.shape[0]
        data = self._executor.intermediate(tensor.name, side, self.n_tokens * n_bytes)
        return data.reshape(self.n_tokens, n_bytes)

    def recall(self) -> Recall:
        """Of the last tokens that have passed."""
        some = slice(max(0, self.n_tokens - N_TOKENS), self.n_tokens)
        kept = self._kept.get(self.n_tokens == 1)
        if self._fetched:
            some, kept = slice(None), self._fetched
        elif kept is None:
            return Recall(0, 0, (), TOO_SHORT if self._samples else ON_THE_DEVICE)
        elif not self._is_kept:
            return Recall(0, 0, (), SENT_THERE)
        counts = [each.counts(some) for each in kept]
        layers = tuple(each.sample.layer for each in kept)
        return Recall(sum(firing for firing, _ in counts), sum(listed for _, listed in counts), layers)


def _samples(executor: Executor, store: HostStore, n_layers: int) -> dict[int, Sample]:
    """By layer: neurons of FFNs that go by a mask on the CPU; one in the middle first."""
    nodes = (p.node for p in executor.plan.decode.placed.nodes if p.side == CPU)
    found = [node for node in nodes if node.find_tensor("mask") is not None]
    picked = [i for i in dict.fromkeys((len(found) // 2, len(found) - 1, 0)) if 0 <= i < len(found)]
    samples = [_sample(found[i], store) for i in picked[:n_layers]]
    return {sample.layer: sample for sample in samples}


def _sample(node: Node, store: HostStore) -> Sample:
    gate, up, bias = node.find_weight("gate"), node.weight("up"), node.find_weight("up_bias")
    n_ff = up.ne[1]
    ids = np.sort(np.random.default_rng(n_ff).choice(n_ff, min(N_NEURONS, n_ff), replace=False))
    both = node.attributes["activation"] == "relu_both"
    return Sample(
        layer_of(node),
        ids,
        tuple(
            (each, _copied(store.rows(each), ids)) for each in ([gate or up, up] if both else [gate or up])
        ),
        np.zeros(1, np.float32) if bias is None else store.rows(bias).view(np.float32)[0][ids],
    )


def _copied(matrix: NDArray[np.uint8], ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Rows of it, on a cache line."""
    some = program.aligned(ids.size * matrix.shape[1]).reshape(ids.size, -1)
    some[:] = matrix[ids]
    return some


def _keep(low: Lowering, node: Node, sample: Sample) -> Kept:
    """Append records that multiply a sample's rows, and copy the mask before anything takes its place."""
    n, n_ff = sample.ids.size, node.weight("up").ne[1]
    products = []
    for weight, some in sample.matrices:
        x, x_stride = low.input_of(node, weight)
        product = np.empty((low.n_tokens, n), np.float32)
        low.emit(
            program.MAT_VEC if low.one_token else program.MUL_MAT,
            program.row_chunks(n, some.shape[1]) if low.one_token else program.panel_chunks(n),
            w=some.ctypes.data,
            w_type=int(weight.type),
            w_stride=some.shape[1],
            x=x,
            x_stride=x_stride,
            y=product.ctypes.data,
            y_stride=4 * n,
            n_rows=n,
            k=weight.ne[0],
        )
        products.append(product)
    masks = np.empty((low.n_tokens, mask_bytes(n_ff)), np.uint8)
    all_set = np.full(masks.shape[1], 0xFF, np.uint8)
    of = {"z": low.tensors[node.tensor("mask").name], "z_stride": masks.shape[1], "x": all_set.ctypes.data}
    to = {"y": masks.ctypes.data, "y_stride": masks.shape[1], "n_rows": n_ff}
    low.emit(program.AND_BITS, low.token_chunks(n_ff // 32), **of, **to)
    return Kept(sample, tuple(products), masks, all_set)
