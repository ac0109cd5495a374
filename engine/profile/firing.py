"""How often each neuron fires, and how much it matters, added up while batches of ids pass.

A ReLU's neuron fires on a token if its hidden value, what it multiplies its row of `down` with, is not zero. A
SiLU's or GELU's is never idle: it matters by the sum of |hidden| times the length of that row. Of a mixture of
experts whose down projections have a row an output, experts are counted in place of neurons: one fires on a token
that it is chosen for. Where a layer's neurons are divided the device's come first, then the CPU's.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import COLD, Node, layer_of
from hotcold.engine.graph.placed import CPU
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.profile.passing import (
    HIDDEN,
    chosen_experts,
    hidden_of_experts,
    hidden_values,
)
from hotcold.engine.profile.passing_device import device_hidden, device_hidden_of_experts
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.blocks import dequantize

SLAB_ELEMENTS = 1 << 22  # of a matrix that are widened at once

Counted = NDArray[np.float64]


class Firing:
    """Adds up what an executor's runs do while it hears of their nodes.

    Attributes:
        fired: of each layer's last batch, bool [n_tokens, n_units]; empty for neurons of other functions than ReLU.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor, model = executor, executor.model
        self._relu = model.ffn_activation == "relu"
        self._counts: Counted = np.zeros((model.n_layer, model.n_units))
        self.fired: list[NDArray[np.bool_]] = [np.zeros((0, model.n_units), bool)] * model.n_layer

    def hear(self, taken: Taken) -> None:
        """A node of a batch has run."""
        node, executor = taken.node, self._executor
        experts = executor.model.experts
        if experts is not None and not executor.model.experts_by_neuron:
            if node.op == "top_k":
                self._note(node, chosen_experts(executor, node, experts.n_expert, taken.side))
        elif node.op in HIDDEN or node.op == "expert_ffn":
            if experts is None:
                of_side = device_hidden if taken.side != CPU else hidden_values
            else:
                of_side = device_hidden_of_experts if taken.side != CPU else hidden_of_experts
            self._add(node, of_side(executor, node))

    def _add(self, node: Node, hidden: NDArray[np.float32]) -> None:
        if self._relu:
            self._note(node, hidden != 0)
        else:
            self._counts[layer_of(node)] += np.abs(hidden).sum(0, dtype=np.float64)

    def _note(self, node: Node, fired: NDArray[np.bool_]) -> None:
        layer = layer_of(node)
        self._counts[layer] += fired.sum(0)
        self.fired[layer] = self.fired[layer] | fired if node.rows == COLD else fired

    def take(self) -> Counted:
        """What was added up since the last call, float64 [n_layer, n_ff].

        Of a ReLU's neurons whole numbers of tokens, of others sums of |hidden|.
        """
        counts = self._counts.copy()
        self._counts[...] = 0
        return counts


def down_lengths(file: GGUFFile, model: Model) -> Counted:
    """The length of what each neuron adds to the residual where its hidden value is 1: float64 [n_layer, n_ff]."""
    store = HostStore(file)
    return np.stack([layer_lengths(store, layer).reshape(-1) for layer in model.layers])


def layer_lengths(store: HostStore, layer: Layer) -> Counted:
    """The same of one layer: float64 [n_expert, n_ff], or [1, n_ff] without experts."""
    weight, by_neuron = layer.down, (layer.ffn_down_t or layer.ffn_down_exps_t) is not None
    if layer.ffn_down_exps is None and layer.ffn_down_exps_t is None:
        matrices = [store.rows(weight)]
    else:
        matrices = [store.expert_rows(weight, e) for e in range(weight.ne[2])]
    return np.stack([_lengths(rows, weight, by_neuron) for rows in matrices])


def _lengths(rows: NDArray[np.uint8], weight: Weight, by_neuron: bool) -> Counted:
    slabs = _slabs(rows, weight)
    if by_neuron:
        squares = np.concatenate([(slab**2).sum(1) for slab in slabs])
    else:
        squares = np.sum([(slab**2).sum(0) for slab in slabs], axis=0)
    lengths: Counted = np.sqrt(squares)
    return lengths


def _slabs(rows: NDArray[np.uint8], weight: Weight) -> Sequence[Counted]:
    step = max(1, SLAB_ELEMENTS // weight.ne[0])
    return [dequantize(rows[i : i + step], weight.type).astype(np.float64) for i in range(0, len(rows), step)]
