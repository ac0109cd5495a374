"""How often each neuron fires, and how much it matters, added up while batches of ids pass.

A ReLU's neuron fires on a token if its hidden value, what it multiplies its row of `down` with, is not zero. A
SiLU's or GELU's is never idle: it matters by the sum of |hidden| times the length of that row. Of a mixture of
experts, experts are counted in place of neurons: one fires on a token that it is chosen for.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node, layer_of
from hotcold.engine.graph.placed import CPU
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken, Tracing
from hotcold.errors import SettingError
from hotcold.gguf_io import GGUFFile
from hotcold.gguf_io.blocks import dequantize
from hotcold.kernels.cpu import program
from hotcold.kernels.formats import chosen_bytes

# the area that holds the hidden values when the op of a batch is done
HIDDEN = {
    "dense_gated_ffn": "first",
    "sparse_gated_ffn": "second",
    "dense_ffn": "first",
    "sparse_ffn": "first",
}
FEWEST = 4  # tokens of a batch, so that no run has one alone
SLAB_ELEMENTS = 1 << 22  # of a matrix that are widened at once

Counted = NDArray[np.float64]


class Firing:
    """Adds up what an executor's runs do, from when it is made until `stop`.

    Attributes:
        fired: of each layer's last batch, bool [n_tokens, n_ff], or [n_tokens, n_expert]; empty for dense models of
            other functions than ReLU.
    """

    def __init__(self, executor: Executor) -> None:
        check_executor(executor)
        self._executor, model = executor, executor.model
        self._relu = model.ffn_activation == "relu"
        self._counts: Counted = np.zeros((model.n_layer, model.n_units))
        self.fired: list[NDArray[np.bool_]] = [np.zeros((0, model.n_units), bool)] * model.n_layer
        self._before = executor.taking
        executor.taking = Tracing(executor, self._hear)

    def _hear(self, taken: Taken) -> None:
        node, experts = taken.node, self._executor.model.experts
        if node.op == "top_k" and experts is not None:
            self._note(layer_of(node), chosen_experts(self._executor, node, experts.n_expert))
        if node.op not in HIDDEN or experts is not None:
            return
        layer, hidden = layer_of(node), hidden_values(self._executor, node)
        if self._relu:
            self._note(layer, hidden != 0)
        else:
            self._counts[layer] += np.abs(hidden).sum(0, dtype=np.float64)

    def _note(self, layer: int, fired: NDArray[np.bool_]) -> None:
        self.fired[layer] = fired
        self._counts[layer] += fired.sum(0)

    def take(self) -> Counted:
        """What was added up since the last call, float64 [n_layer, n_ff].

        Of a ReLU's neurons whole numbers of tokens, of others sums of |hidden|.
        """
        counts = self._counts.copy()
        self._counts[...] = 0
        return counts

    def stop(self) -> None:
        """Let the executor run as before."""
        self._executor.taking = self._before


def check_executor(executor: Executor) -> None:
    """Refuse an executor whose intermediates cannot be read; SettingError."""
    if executor.n_batch < FEWEST:
        raise SettingError("n_batch", executor.n_batch, f"at least {FEWEST} to look at batches", "raise -b")
    if executor.device is not None:
        bound = "what passes is looked at on the CPU"
        raise SettingError("device", executor.device.name, bound, "use --device cpu")


def hidden_values(executor: Executor, node: Node) -> NDArray[np.float32]:
    """What a batch's FFN has just multiplied the rows of `down` with, float32 [n_tokens, n_ff]."""
    n_tokens, n_ff = int(executor.host.run[program.N_TOKENS]), executor.model.n_ff
    area = executor.host.area(HIDDEN[node.op], 4 * n_tokens * n_ff)
    return area.view(np.float32).reshape(n_tokens, n_ff)


def chosen_experts(executor: Executor, node: Node, n_expert: int) -> NDArray[np.bool_]:
    """Which experts a batch's router has just chosen, bool [n_tokens, n_expert]."""
    n_tokens, n_used = int(executor.host.run[program.N_TOKENS]), node.output.shape[1]
    at = executor.graph(n_tokens).arenas[CPU].slot(node.output.name).offset
    chosen = executor.host.arena[at : at + chosen_bytes(n_tokens, n_used)].view(np.int32)
    fired = np.zeros((n_tokens, n_expert), bool)
    np.put_along_axis(fired, chosen.reshape(n_tokens, -1)[:, :n_used], True, axis=1)
    return fired


def run_chunk(executor: Executor, ids: NDArray[np.int32], after: Callable[[], None]) -> None:
    """Let a chunk of two ids or more pass from an empty cache, no batch of which is one token alone."""
    at = 0
    while at < ids.size:
        n = min(executor.n_batch, ids.size - at)
        n -= ids.size - at - n == 1
        executor.run(ids[at : at + n], at)
        after()
        at += n


def down_lengths(file: GGUFFile, model: Model) -> Counted:
    """The length of what each neuron adds to the residual where its hidden value is 1: float64 [n_layer, n_ff]."""
    store = HostStore(file)
    return np.stack([_lengths(store, layer) for layer in model.layers])


def _lengths(store: HostStore, layer: Layer) -> Counted:
    if layer.ffn_down_t is not None:
        squares = np.concatenate([(rows**2).sum(1) for rows in _slabs(store, layer.ffn_down_t)])
    else:
        squares = np.sum([(rows**2).sum(0) for rows in _slabs(store, layer.down)], axis=0)
    lengths: Counted = np.sqrt(squares)
    return lengths


def _slabs(store: HostStore, weight: Weight) -> Sequence[Counted]:
    rows, step = store.rows(weight), max(1, SLAB_ELEMENTS // weight.ne[0])
    return [dequantize(rows[i : i + step], weight.type).astype(np.float64) for i in range(0, len(rows), step)]
