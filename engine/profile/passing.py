"""What a batch of ids leaves on its way through an executor: each node heard of, what it made read on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.graph.graph import Node
from hotcold.engine.graph.placed import CPU
from hotcold.engine.run.choices import chosen_ids
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.trace import Trace, Tracing
from hotcold.errors import SettingError
from hotcold.kernels.cpu import program, sizes

# the area that holds the hidden values when the op of a batch is done
HIDDEN = {
    "dense_gated_ffn": "first",
    "sparse_gated_ffn": "second",
    "dense_ffn": "first",
    "sparse_ffn": "first",
}
FEWEST = 4  # tokens of a batch, so that no run has one alone


def check_executor(executor: Executor, on_device: bool = False) -> None:
    """Refuse an executor whose intermediates cannot be read.

    Args:
        on_device: whether those of a device can.

    Raises:
        SettingError: n_batch below 4, or an executor on a device.
    """
    if executor.n_batch < FEWEST:
        raise SettingError("n_batch", executor.n_batch, f"at least {FEWEST} to look at batches", "raise -b")
    if executor.devices and not on_device:
        bound = "what passes is looked at on the CPU"
        raise SettingError("device", executor.devices[0].name, bound, "use --device cpu")


@contextmanager
def heard(executor: Executor, hear: Trace, on_device: bool = False) -> Iterator[None]:
    """Let somebody hear of each node of the executor's runs, who may then read what it made and what it read.

    Args:
        on_device: whether they can read what a device made.

    Raises:
        SettingError: see `check_executor`.
    """
    check_executor(executor, on_device)
    before, executor.taking = executor.taking, Tracing(executor, hear)
    try:
        yield
    finally:
        executor.taking = before


def run_chunk(
    executor: Executor, ids: NDArray[np.int32], after: Callable[[], None], most: int | None = None
) -> None:
    """Let a chunk of two ids or more pass from an empty cache, no batch of which is one token alone.

    Args:
        most: tokens of a batch; n_batch where it is not given.
    """
    at = 0
    while at < ids.size:
        n = min(executor.n_batch, most or executor.n_batch, ids.size - at)
        n -= ids.size - at - n == 1
        executor.run(ids[at : at + n], at, sends=False)  # who counts looks at what each side computes
        after()
        at += n


def n_passing(executor: Executor) -> int:
    """Tokens of the batch that passes."""
    return int(executor.host.run[program.N_TOKENS])


def intermediate(executor: Executor, name: str, width: int) -> NDArray[np.float32]:
    """A batch's intermediate while nothing has taken its place, float32 [n_tokens, width]."""
    n_tokens = n_passing(executor)
    data = executor.intermediate(name, CPU, 4 * n_tokens * width)
    return data.view(np.float32).reshape(n_tokens, width)


def hidden_values(executor: Executor, node: Node) -> NDArray[np.float32]:
    """What a batch's FFN has just multiplied the rows of `down` with, float32 [n_tokens, n_ff]."""
    n_tokens, n_ff = n_passing(executor), node.weight("up").ne[1]
    area = executor.host.area(HIDDEN[node.op], 4 * n_tokens * n_ff)
    return area.view(np.float32).reshape(n_tokens, n_ff)


def hidden_of_experts(executor: Executor, node: Node) -> NDArray[np.float32]:
    """The same of the experts of a batch, float32 [n_tokens, n_expert n_ff], 0 where an expert was not chosen."""
    n_tokens, (_, n_ff, n_expert) = n_passing(executor), node.weight("gate").ne
    experts, tokens, of_pairs = hidden_of_pairs(executor, node)
    of_pairs = of_pairs[: experts.size]  # of a split layer those whose experts have rows here
    hidden = np.zeros((n_tokens, n_expert, n_ff), np.float32)
    hidden[tokens, experts] = of_pairs
    return hidden.reshape(n_tokens, -1)


def hidden_of_pairs(
    executor: Executor, node: Node
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The expert and the token of each pair of a batch, and their hidden values, float32 [n_pairs, n_ff]."""
    _, n_ff, n_expert = node.weight("gate").ne
    n_pairs = n_passing(executor) * node.tensor("chosen").shape[1]
    area = executor.host.area("second" if node.attributes["skip"] else "first", 4 * n_pairs * n_ff)
    groups = executor.host.area("groups", sizes.group_bytes(n_expert, n_pairs))
    return *pairs_of(groups, n_expert), area.view(np.float32).reshape(n_pairs, n_ff)


def pairs_of(groups: NDArray[np.uint8], n_expert: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The expert and the token of each pair, out of what GROUP writes (see `kernels/cpu/experts.py`)."""
    words = groups.view(np.int64)
    n_active, n_pairs = words[:2].tolist()
    head, entry = sizes.GROUP_HEAD // 8, sizes.GROUP_ENTRY // 8
    active = words[head : head + entry * n_active].reshape(n_active, entry)
    tokens = words[head + entry * n_expert :][:n_pairs]
    return np.repeat(active[:, 0], active[:, 2]), tokens


def chosen_experts(executor: Executor, node: Node, n_expert: int, side: str = CPU) -> NDArray[np.bool_]:
    """Which experts a batch's router has just chosen, bool [n_tokens, n_expert].

    Args:
        side: where the router is, "cpu" or "gpu".
    """
    n_tokens = n_passing(executor)
    fired = np.zeros((n_tokens, n_expert), bool)
    np.put_along_axis(fired, chosen_ids(executor, node.output, n_tokens, side), True, axis=1)
    return fired
