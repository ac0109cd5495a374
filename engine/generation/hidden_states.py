"""What a model makes of a text as one vector: the mean of the states that its head reads."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.generation.generation import Engine


def mean_state(engine: Engine, ids: Sequence[int], slot: int = 0) -> NDArray[np.float32]:
    """The mean over all tokens of the normed states behind the last layer, of length 1: float32 [n_embd].

    Args:
        ids: 1 to n_ctx of them. slot: whose caches they go through.

    Raises:
        DeviceError: the device fails.
    """
    engine.take_turn()
    tokens, n_batch = np.array(ids, np.int32), engine.n_batch
    total = np.zeros(engine.model.n_embd)
    for start in range(0, tokens.size, n_batch):
        batch = tokens[start : start + n_batch]
        engine.executor.run(batch, start, None, slot)
        total += last_states(engine, batch.size).astype(np.float64).sum(axis=0)
    length = float(np.linalg.norm(total))
    return (total / (length or 1.0)).astype(np.float32)


def last_states(engine: Engine, n_tokens: int) -> NDArray[np.float32]:
    """Those of the last run's n_tokens tokens, from the side that has the head: float32 [n_tokens, n_embd].

    Raises:
        DeviceError: the device fails.
    """
    executor = engine.executor
    head = next(p for p in executor.run_steps.last.placed.nodes if p.node.op == "logits")
    x = head.node.tensor("x")
    data = executor.intermediate(x.name, head.side, 4 * n_tokens * x.shape[1])
    return data.view(np.float32).reshape(n_tokens, -1)
