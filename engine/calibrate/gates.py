"""What a batch's neurons are worth: |act(gate)| and |up| of each, read while the batch passes.

A dense FFN has both in the CPU's workspace when its node is done. What experts leave there has been written over, so
theirs are worked out again from the node's input.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node, layer_of
from hotcold.engine.host.stores import HostStore
from hotcold.engine.model.model import Weight
from hotcold.engine.profile.passing import chosen_experts, intermediate, n_passing
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Taken
from hotcold.gguf_io.blocks import dequantize
from hotcold.kernels import ref

F32 = NDArray[np.float32]
Seen = tuple[int, int, F32, F32]
"""Layer, expert (0 without), then |act(gate)| and |up|, float32 [n_tokens, n_ff], of the tokens that went there."""


class Gates:
    """Reads what nodes of an executor's batches have made of gates and ups."""

    def __init__(self, executor: Executor, store: HostStore) -> None:
        self._executor, self._store = executor, store
        self._chosen: NDArray[np.bool_] = np.zeros((0, 0), bool)

    def read(self, taken: Taken) -> Iterator[Seen]:
        """What a node that has just run tells; nothing of most."""
        node, experts = taken.node, self._executor.model.experts
        if node.op == "top_k" and experts is not None:
            self._chosen = chosen_experts(self._executor, node, experts.n_expert)
        if node.op == "expert_ffn":
            yield from self._of_experts(node)
        if node.op == "sparse_gated_ffn":
            yield layer_of(node), 0, *self._of_ffn()

    def _of_ffn(self) -> tuple[F32, F32]:
        """Where nothing is left out, up is hidden / act(gate)."""
        n_tokens, n_ff = n_passing(self._executor), self._executor.model.n_ff
        act, hidden = (
            np.abs(self._executor.host.area(name, 4 * n_tokens * n_ff).view(np.float32))
            for name in ("first", "second")
        )
        up = np.divide(hidden, act, out=np.zeros_like(hidden), where=act > 0)
        return act.reshape(n_tokens, n_ff), up.reshape(n_tokens, n_ff)

    def _of_experts(self, node: Node) -> Iterator[Seen]:
        x = intermediate(self._executor, node.tensor("x").name, node.tensor("x").shape[1])
        activation = ref.ACTIVATIONS[node.attributes["activation"]]
        for e in np.flatnonzero(self._chosen.any(0)):
            some = np.ascontiguousarray(x[self._chosen[:, e]])
            gate, up = (self._product(node, role, int(e), some) for role in ("gate", "up"))
            yield (
                layer_of(node),
                int(e),
                np.abs(activation(gate.astype(np.float64))).astype(np.float32),
                np.abs(up),
            )

    def _product(self, node: Node, role: str, e: int, x: F32) -> F32:
        y: F32 = x @ self._expert(node.weight(role), e).T
        bias = node.find_weight(f"{role}_bias")
        return y if bias is None else y + self._expert(bias, e).reshape(-1)

    def _expert(self, weight: Weight, e: int) -> F32:
        """One expert's rows as float32; of a bias one row."""
        return dequantize(self._store.expert_rows(weight, e), weight.type)
