"""How well the predictors know the gates: of the neurons that fire, the share that they list.

It is measured while the first prompt passes, on some of its tokens, in a few layers and for some neurons, so
that it costs next to nothing. Predictors of other weights list what they like, and the text is garbage.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.arena import Arena
from hotcold.engine.graph.graph import Node
from hotcold.engine.graph.placed import CPU
from hotcold.engine.host.steps import Context, Step, Walk
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Weight
from hotcold.engine.run.executor import Executor
from hotcold.gguf_io import GGUFFile
from hotcold.kernels.formats import mask_bytes

N_TOKENS, N_NEURONS, FEWEST = 16, 96, 24
SHARE_OF_TIME = 0.01
GOOD_ENOUGH = 0.5
ADVICE = (
    "they may belong to other weights: use --sparsity exact, or convert the model with its own predictors"
)


@dataclass(frozen=True)
class Recall:
    """Neurons that fired, those of them that were listed, and the layers that were looked at."""

    n_firing: int
    n_listed: int
    layers: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the firing neurons that are listed."""
        return self.n_listed / self.n_firing

    def line(self) -> str:
        """What -v says."""
        layers = ", ".join(map(str, self.layers))
        return (
            f"predictors list {self.share:.0%} of the neurons that fire: {self.n_listed} of {self.n_firing} "
            f"on the first prompt, in layers {layers}"
        )

    def warning(self) -> str:
        """What a user should know; "" if nothing."""
        if self.share >= GOOD_ENOUGH:
            return ""
        return f"the predictors list only {self.share:.0%} of the neurons that fire; {ADVICE}"


@dataclass
class Watching:
    """Takes a run's steps as ever, and keeps what nodes of the CPU make.

    Attributes:
        nodes: FFNs whose input and mask are wanted.
        wanted: the names of those.
        seen: their bytes, of those that the CPU makes.
    """

    executor: Executor
    nodes: Sequence[Node]
    wanted: Collection[str]
    seen: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def __call__(self, steps: Sequence[Step], context: Context) -> None:
        """Take them."""
        arena = self.executor.graph(context.n_tokens).arenas[CPU]
        for step in steps:
            if isinstance(step, Walk) and any(node.name in self.wanted for node in step.nodes):
                self._walk(step, arena, context)
            else:
                step.run(context)

    def _walk(self, step: Walk, arena: Arena, context: Context) -> None:
        """The same records in the same order, with a stop behind each wanted node."""
        places = {entry.name: slice(entry.offset, entry.offset + entry.n_bytes) for entry in arena.slots}
        first = stop = 0
        for node, records in step.lowered:
            stop += len(records)
            if node.name in self.wanted and node.name in places:
                context.team.walk(step.program.part(first, stop))
                self.seen[node.name] = self.executor.host.arena[places[node.name]].copy()
                first = stop
        if first < stop:
            context.team.walk(step.program.part(first, stop))


def watched_nodes(executor: Executor) -> list[Node]:
    """FFNs that go by a mask, of the layers to look at: one in the middle first."""
    found = [node for node in executor.plan.decode.graph.nodes if node.find_tensor("mask") is not None]
    picked = dict.fromkeys((len(found) // 2, len(found) - 1, 0))
    return [found[i] for i in picked if 0 <= i < len(found)]


def watch(executor: Executor) -> Watching:
    """What to take the steps of a run with, to measure recall afterwards."""
    nodes = watched_nodes(executor)
    tensors = (node.tensor(role) for node in nodes for role in ("x", "mask"))
    return Watching(executor, nodes, {tensor.name for tensor in tensors})


def measure(watching: Watching, file: GGUFFile, n_tokens: int, seconds: float) -> Recall | None:
    """The recall on the last of n_tokens tokens that have passed; None if too few neurons fired to tell.

    Args:
        seconds: what the prompt took; from the second layer on no more than a hundredth of it is spent.
    """
    started, store = time.perf_counter(), HostStore(file)
    firing, listed, layers = 0, 0, list[int]()
    for node in _seen(watching):
        if layers and (time.perf_counter() - started) * (1 + 1 / len(layers)) > SHARE_OF_TIME * seconds:
            break
        fires, is_listed = _layer(watching, node, store, n_tokens)
        firing, listed = firing + int(fires.sum()), listed + int((fires & is_listed).sum())
        layers.append(node.layer if node.layer is not None else -1)
    return Recall(firing, listed, tuple(layers)) if firing >= FEWEST else None


def _seen(watching: Watching) -> list[Node]:
    """The watched FFNs whose input and mask have been kept."""
    return [
        node
        for node in watching.nodes
        if {node.tensor("x").name, node.tensor("mask").name} <= set(watching.seen)
    ]


def _layer(
    watching: Watching, node: Node, store: HostStore, n_tokens: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of some tokens and neurons of a layer: which fire, and which are listed."""
    n_embd, n_ff = node.weight("up").ne
    x = watching.seen[node.tensor("x").name].view(np.float32).reshape(-1, n_embd)[:n_tokens][-N_TOKENS:]
    rows = watching.seen[node.tensor("mask").name].reshape(-1, mask_bytes(n_ff))[:n_tokens][-N_TOKENS:]
    ids = np.unique(np.random.default_rng(n_ff).integers(0, n_ff, N_NEURONS))
    is_listed = np.unpackbits(rows, axis=1, bitorder="little")[:, ids].astype(bool)
    gate, up, bias = node.find_weight("gate"), node.weight("up"), node.find_weight("up_bias")
    fires = _products(store, gate or up, ids, x) + _bias(store, bias, ids) > 0
    if node.attributes["activation"] == "relu_both":
        fires &= _products(store, up, ids, x) > 0
    return fires, is_listed


def _products(
    store: HostStore, weight: Weight, ids: NDArray[np.int64], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    from hotcold.gguf_io import blocks

    products: NDArray[np.float32] = x @ blocks.dequantize(store.rows(weight)[ids], weight.type).T
    return products


def _bias(store: HostStore, bias: Weight | None, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.zeros(1, np.float32) if bias is None else store.rows(bias).view(np.float32)[0][ids]
