"""Which experts a run's routers have chosen, on whichever side they are."""

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Tensor
from hotcold.engine.run.executor import Executor
from hotcold.kernels.formats import chosen_bytes


def chosen_ids(executor: Executor, chosen: Tensor, n_tokens: int, side: str) -> NDArray[np.int32]:
    """The experts of each token of the last run, int32 [n_tokens, n_used], while nothing has taken their place.

    Args:
        chosen: what a router writes: of each token n_used experts, and behind them their weights.
        side: "cpu" or "gpu", where it lies.
    """
    n_used = chosen.shape[1]
    data = executor.intermediate(chosen.name, side, chosen_bytes(n_tokens, n_used))
    return data.view(np.int32).reshape(n_tokens, -1)[:, :n_used]
