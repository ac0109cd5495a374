"""How many kernels a decode step launches on the device, by its graph, and in how many CUDA graphs.

A step is of one token, or of one of each of several slots.

The lowering decides (`engine/device/lowering.py`); this follows its fusions without a device, for the model of a card.
"""

from collections.abc import Sequence

from hotcold.engine.graph.graph import Node
from hotcold.engine.graph.ops import FFN_OPS
from hotcold.engine.graph.pack import pack
from hotcold.engine.graph.placed import CPU, PlacedGraph
from hotcold.engine.plan.device_workspace import NEURON_TOKENS
from hotcold.engine.plan.plan import Plan
from hotcold.kernels.formats import kv_block
from hotcold.kernels.weight_table import QUANTISED

SEVERAL = {
    "predictor": 2,
    "sparse_gated_ffn": 2,
    "dense_gated_ffn": 2,
    "sparse_ffn": 2,
    "dense_ffn": 2,
    "expert_ffn": 5,
}
"""Kernels of an op that takes more than one."""
SEVERAL_OF_A_BATCH = SEVERAL | {
    "sparse_gated_ffn": 6,
    "dense_gated_ffn": 6,
    "sparse_ffn": 5,
    "dense_ffn": 5,
}
"""Of several tokens, at most: lists, products, hidden values, the down rows, and what is added to them."""
TAKEN_BY_THE_ONE_BEFORE = {
    ("mul_mat", "add"),
    ("merge", "add"),
    *((ffn, "add") for ffn in FFN_OPS),
    ("rope", "rope"),
    ("rope", "kv_store"),
    ("rms_norm", "quantise"),
    ("layer_norm", "quantise"),
    ("rms_norm", "pack"),
    ("layer_norm", "pack"),
}
"""Of two nodes that follow each other, those that are one launch."""
SUMMED_BY_THE_MERGE = {(ffn, "merge") for ffn in FFN_OPS}
"""Likewise where the hot rows of one token leave their sums to it."""
STORED_WITH_THE_PRODUCTS = {("mul_mat", "rope"), ("mul_mat", "kv_store")}
"""Likewise where a number of the cache needs no other."""
ROUNDED_WITH_THE_HEADS = {("attention", "pack")}
"""Likewise where heads are whole blocks."""


def launches_of_a_token(plan: Plan) -> int:
    """Kernels, with the head's, and with the one that finds the candidates among its logits."""
    sides = [card.side for card in plan.cards]
    return launches_of(plan.decode.placed, sides, plan.kv_type, plan.model.head_dim)


def graphs_of_a_token(plan: Plan) -> int:
    """CUDA graphs of a token: one ends where the CPU computes, and where something is copied up."""
    count, goes_on = 0, False
    for p in plan.decode.placed.nodes:
        is_copy, is_on_cpu = p.node.op == "copy", p.side == CPU
        is_in_one = is_copy == is_on_cpu  # a kernel, or a copy down
        count, goes_on = count + (is_in_one and not goes_on), is_in_one
    return count


def launches_of(placed: PlacedGraph, sides: Sequence[str], kv_type: str, head_dim: int) -> int:
    """Kernels of a placed graph: exactly those of one token, and at most those of one of each of several slots.

    The head's are counted once; beyond the first slot's they are in no graph.

    Args:
        sides: of the cards.
    """
    n_tokens = placed.n_tokens
    for side in sides:
        placed = pack(placed, side, QUANTISED.__contains__)
    nodes = [p.node for p in placed.nodes if p.side != CPU and p.node.op != "copy"]
    several = SEVERAL if n_tokens == 1 else SEVERAL_OF_A_BATCH
    taken = TAKEN_BY_THE_ONE_BEFORE | (ROUNDED_WITH_THE_HEADS if head_dim % 32 == 0 else set())
    if n_tokens == 1:
        taken |= SUMMED_BY_THE_MERGE | (STORED_WITH_THE_PRODUCTS if kv_block(kv_type) == 1 else set())
    count, before = 0, ""
    for i, node in enumerate(nodes):
        if (before, node.op) not in taken and not (
            n_tokens == 1 and (_is_of_three(nodes, i) or _is_by_the_norm(nodes[i : i + 4]))
        ):
            count += (several.get(node.op, 1) + _more(node)) * _turns(node, n_tokens)
        before = node.op
    return count


def _more(node: Node) -> int:
    """What an op takes beside: a rounding of its own, a profile's question for rows, the search in the result."""
    rounds = {"predictor": "fc2", "logits": "weight"}.get(node.op)
    if node.op in (*FFN_OPS, "expert_ffn") and not node.attributes.get("transposed", True):
        rounds = "down"
    is_head, looks = node.op == "logits", node.find_tensor("profile") is not None
    return int(rounds is not None and node.weight(rounds).type in QUANTISED) + is_head + looks


def _turns(node: Node, n_tokens: int) -> int:
    """In how many turns an op takes its tokens."""
    by_neuron = node.op == "expert_ffn" and node.attributes["transposed"]
    return -(-n_tokens // NEURON_TOKENS) if by_neuron else 1


def _is_by_the_norm(nodes: list[Node]) -> bool:
    """Whether a rounding for a predictor is done by the norm behind it, which reads the same and is rounded too."""
    if [node.op for node in nodes[:2]] != ["pack", "predictor"] or len(nodes) < 4:
        return False
    is_norm = nodes[2].op in ("rms_norm", "layer_norm") and nodes[3].op in ("quantise", "pack")
    return is_norm and nodes[2].tensor("x") == nodes[0].tensor("x")


def _is_of_three(nodes: list[Node], i: int) -> bool:
    """Whether a product is the second or third of q, k and v, which one launch does."""

    def reads(j: int) -> str | None:
        is_product = 0 <= j < len(nodes) and nodes[j].op == "mul_mat"
        return nodes[j].tensor("x").name if is_product else None

    x = reads(i)
    return x is not None and reads(i - 1) == x
