"""What a driver keeps of graphs in a card's memory, outside the budget: assumed, for no card has been asked.

For each node of a graph that can be launched the driver holds a record on the card. Of graphs with 500, 1000 and 2000
empty kernels a user of driver 470 (CUDA 11.2) saw 362, 395 and 458 MiB taken, so 64 KiB a node
(forums.developer.nvidia.com, thread 244901); the authors of NVIDIA's CCCL reckon with about 10 KB
(github.com/NVIDIA/cccl, pull request 3768). The larger figure is taken. `bench/launches.py` measures a card's own.
"""

from hotcold.engine.graph import architectures, passes
from hotcold.engine.graph.placed import GPU
from hotcold.engine.model.model import Model
from hotcold.engine.plan.launches import launches_of
from hotcold.engine.plan.reserve import extremes

NODE_BYTES = 64 << 10
OTHER_STEPS = 2
"""Of how many numbers of tokens graphs are kept at a time beside those of one token: of steps of several slots."""


def graph_nodes(model: Model, sparsity: str, kv_type: str, n_slots: int = 1) -> int:
    """Most nodes that a card's graphs have at a time, whatever a plan puts there and whatever is wanted of the head.

    A kernel is a node, and a copy down with its event are two; a wait for a copy up is one, and counts as two. What a
    merge reads over the bus takes none.
    """
    n_others = _other_steps(n_slots)
    others = n_others * _nodes_of_a_step(model, sparsity, kv_type, n_slots) if n_others else 0
    return _nodes_of_a_step(model, sparsity, kv_type, 1) + others


def graphs_kept(n_slots: int) -> str:
    """What there are graphs of at a time, in words."""
    others = _other_steps(n_slots)
    more = f", of one token and of {others} other number{'s' * (others > 1)} of slots" if others else ""
    return f"graphs{more}"


def _other_steps(n_slots: int) -> int:
    return min(n_slots - 1, OTHER_STEPS)


def _nodes_of_a_step(model: Model, sparsity: str, kv_type: str, n_tokens: int) -> int:
    graph = architectures.build(model, n_tokens, sparsity)
    placed = [passes.run_passes(graph, sides)[0] for sides in extremes(model, sparsity)]
    return max(
        launches_of(each, [GPU], kv_type, model.head_dim) + 2 * sum(p.node.op == "copy" for p in each.nodes)
        for each in placed
    )


def graph_bytes(model: Model, sparsity: str, kv_type: str, n_slots: int = 1) -> int:
    """What they take of a card's memory, assumed; of several cards each is reckoned to have all layers."""
    return NODE_BYTES * graph_nodes(model, sparsity, kv_type, n_slots)
