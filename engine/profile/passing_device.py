"""What a batch's FFN leaves on the device when its launches are over, for as many tokens as it takes at once.

The rows that are there are those of the plan's hot neurons, or all; what others do passes on the CPU.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node, layer_of
from hotcold.engine.graph.placed import GPU
from hotcold.engine.model.model import Model
from hotcold.engine.plan.device_workspace import FFN_TOKENS, NEURON_TOKENS
from hotcold.kernels.formats import chosen_bytes

if TYPE_CHECKING:
    from hotcold.engine.device.store import DeviceStore


def tokens_at_once(model: Model) -> int:
    """Tokens of a batch whose hidden values all lie there together."""
    return NEURON_TOKENS if model.experts_by_neuron else FFN_TOKENS


def device_hidden(store: "DeviceStore", node: Node, n_tokens: int) -> NDArray[np.float32]:
    """Hidden values of the layer's neurons, float32 [n_tokens, n_ff], 0 for those of the CPU."""
    split = store.plan.layers[layer_of(node)]
    hidden = np.zeros((n_tokens, split.n_ff), np.float32)
    here = _floats(store, "first", n_tokens * split.n_hot).reshape(n_tokens, -1)
    hidden[:, split.hot] = here
    return hidden


def device_hidden_of_experts(store: "DeviceStore", node: Node, n_tokens: int) -> NDArray[np.float32]:
    """The same of experts' neurons, float32 [n_tokens, n_expert n_ff], 0 where an expert was not chosen."""
    split, (_, n_ff, n_expert) = store.plan.layers[layer_of(node)], node.weight("gate").ne
    starts = np.searchsorted(split.hot, np.arange(n_expert + 1) * n_ff)
    chosen = device_choices(store, node.tensor("chosen").name, n_tokens, node.tensor("chosen").shape[1])
    pairs = _floats(store, "first", chosen.size * n_ff).reshape(*chosen.shape, n_ff)
    hidden = np.zeros((n_tokens, split.n_ff), np.float32)
    for (token, choice), expert in np.ndenumerate(chosen):
        here = split.hot[starts[expert] : starts[expert + 1]]
        hidden[token, here] = pairs[token, choice, : here.size]
    return hidden


def device_choices(store: "DeviceStore", name: str, n_tokens: int, n_used: int) -> NDArray[np.int32]:
    """The experts that a router on the device has chosen, int32 [n_tokens, n_used]."""
    assert store.arena is not None  # the node is there
    offset = store.plan.batch.arenas[GPU].slot(name).offset
    count = chosen_bytes(n_tokens, n_used) // 4
    chosen = store.fetch(store.arena.view(offset, count, np.int32))
    return chosen.reshape(n_tokens, -1)[:, :n_used]


def _floats(store: "DeviceStore", area: str, count: int) -> NDArray[np.float32]:
    return store.fetch(store.areas[area].view(0, count, np.float32))
