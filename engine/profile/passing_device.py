"""What a batch's FFN leaves on the device when its launches are over, for as many tokens as it takes at once.

The rows that are there are those of the plan's hot neurons, or all; what others do passes on the CPU.
"""

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node, layer_of
from hotcold.engine.model.model import Model
from hotcold.engine.plan.device_workspace import FFN_TOKENS, NEURON_TOKENS
from hotcold.engine.profile.passing import n_passing
from hotcold.engine.run.choices import chosen_ids
from hotcold.engine.run.executor import Executor


def tokens_at_once(model: Model) -> int:
    """Tokens of a batch whose hidden values all lie there together."""
    return NEURON_TOKENS if model.experts_by_neuron else FFN_TOKENS


def device_hidden(executor: Executor, node: Node) -> NDArray[np.float32]:
    """Hidden values of the layer's neurons, float32 [n_tokens, n_ff], 0 for those of the CPU."""
    split, n_tokens = executor.plan.layers[layer_of(node)], n_passing(executor)
    hidden = np.zeros((n_tokens, split.n_ff), np.float32)
    hidden[:, split.hot] = _first(executor, split.layer, n_tokens * split.n_hot).reshape(n_tokens, -1)
    return hidden


def device_hidden_of_experts(executor: Executor, node: Node) -> NDArray[np.float32]:
    """The same of experts' neurons, float32 [n_tokens, n_expert n_ff], 0 where an expert was not chosen."""
    split, n_tokens = executor.plan.layers[layer_of(node)], n_passing(executor)
    _, n_ff, n_expert = node.weight("gate").ne
    starts = np.searchsorted(split.hot, np.arange(n_expert + 1) * n_ff)
    chosen = chosen_ids(executor, node.tensor("chosen"), n_tokens, executor.store_of(split.layer).card.side)
    pairs = _first(executor, split.layer, chosen.size * n_ff).reshape(*chosen.shape, n_ff)
    hidden = np.zeros((n_tokens, split.n_ff), np.float32)
    for (token, choice), expert in np.ndenumerate(chosen):
        here = split.hot[starts[expert] : starts[expert + 1]]
        hidden[token, here] = pairs[token, choice, : here.size]
    return hidden


def _first(executor: Executor, layer: int, count: int) -> NDArray[np.float32]:
    """The first numbers of the area where the layer's device has hidden values."""
    store = executor.store_of(layer)
    return store.fetch(store.areas["first"].view(0, count, np.float32))
