"""Memory that a node needs beside its operands and its result.

Six areas serve all nodes in turn, each as large as the node that wants most of it:

* packed: one vector a token, rounded for quantised weights; stays until another vector is packed
* first, second: a node's own intermediates, such as the hidden vector of an FFN, or the sums of
  attention over parts of a long context
* listed: the rows that the predictor of a layer lists, from `predictor` to `sparse_gated_ffn`
* pairs: what experts multiply: their tokens' vectors, then their hidden ones
* groups: which expert meets which tokens (see `kernels/cpu/experts.py`), and the pair of each choice
"""

from collections.abc import Callable

from hotcold.engine.graph.graph import Graph, Node, ffn_matrices, reading_matrices, weights_of
from hotcold.engine.model.model import Weight
from hotcold.kernels.cpu import program, sizes

AREAS = ("packed", "first", "second", "listed", "pairs", "groups")


def _packed(node: Node, n_tokens: int) -> int:
    if not reading_matrices(node):
        return 0
    wide = [w.ne[0] for w in weights_of(node) if sizes.is_quantised(int(w.type))]
    return max((n_tokens * sizes.packed_bytes(k) for k in wide), default=0)


def ffn_pieces(node: Node) -> int:
    """Into how many pieces, whose sums are made apart, the neurons of an FFN's node are cut."""
    return program.ffn_pieces(
        sum(sizes.row_bytes(int(w.type), w.ne[0]) * w.ne[1] for w in ffn_matrices(node))
    )


def _partials(node: Node, first: Weight) -> int:
    """Bytes of the pieces' sums of one token."""
    return 4 * ffn_pieces(node) * first.ne[0]


def _predictor(node: Node, n_tokens: int) -> dict[str, int]:
    rank, n_ff = node.weight("fc2").ne
    if n_tokens > 1:
        return {"first": 4 * n_tokens * rank}
    return {"first": 4 * rank, "second": 4 * n_ff, "listed": 8 * (n_ff + 1)}


def _dense_gated_ffn(node: Node, n_tokens: int) -> dict[str, int]:
    gate = node.weight("gate")
    hidden = 4 * n_tokens * gate.ne[1]
    partials = _partials(node, gate) if n_tokens == 1 else 0
    return {"first": max(hidden, partials), "second": hidden}


def _sparse_gated_ffn(node: Node, n_tokens: int) -> dict[str, int]:
    gate = node.weight("gate")
    if n_tokens == 1:
        return {"first": _partials(node, gate)}
    return {"first": 4 * n_tokens * gate.ne[1], "second": 4 * n_tokens * gate.ne[1]}


def _ffn(node: Node, n_tokens: int) -> dict[str, int]:
    up = node.weight("up")
    hidden = 4 * n_tokens * up.ne[1]
    return {"first": max(hidden, _partials(node, up)) if n_tokens == 1 else hidden}


def vector_bytes(weight: Weight) -> int:
    """Bytes of one vector that a matrix multiplies: float32, or packed."""
    k = weight.ne[0]
    return sizes.packed_bytes(k) if sizes.is_quantised(int(weight.type)) else 4 * k


def _expert_ffn(node: Node, n_tokens: int) -> dict[str, int]:
    gate = node.weight("gate")
    n_pairs = n_tokens * node.tensor("chosen").shape[1]
    n_embd, n_ff, n_expert = gate.ne
    vectors = 4 * n_pairs * max(n_ff, n_embd)
    parts = 4 * n_pairs * program.EXPERT_PARTS * n_embd if node.attributes["transposed"] else 0
    return {
        "first": vectors,
        "second": max(vectors, parts) if n_tokens == 1 else vectors,
        "pairs": n_pairs * max(map(vector_bytes, ffn_matrices(node))),
        "groups": sizes.group_bytes(n_expert, n_pairs) + 8 * n_pairs,
    }


OWN: dict[str, Callable[[Node, int], dict[str, int]]] = {
    "predictor": _predictor,
    "dense_gated_ffn": _dense_gated_ffn,
    "sparse_gated_ffn": _sparse_gated_ffn,
    "dense_ffn": _ffn,
    "sparse_ffn": _ffn,
    "expert_ffn": _expert_ffn,
}


def area_bytes(node: Node, n_tokens: int, n_ctx: int) -> dict[str, int]:
    """Bytes of each area that one node uses for n_tokens tokens in a context of n_ctx positions."""
    if node.op == "attention":
        n_head, head_dim = node.attributes["n_head"], node.attributes["head_dim"]
        return {"first": sizes.attention_partial_bytes(n_tokens, n_head, head_dim, n_ctx)}
    own = OWN.get(node.op)
    return {"packed": _packed(node, n_tokens), **(own(node, n_tokens) if own else {})}


def graph_area_bytes(graph: Graph, n_ctx: int) -> dict[str, int]:
    """Bytes of each area that serve every node of a graph, whole cache lines."""
    sizes = dict.fromkeys(AREAS, 0)
    for node in graph.nodes:
        for area, n_bytes in area_bytes(node, graph.n_tokens, n_ctx).items():
            sizes[area] = max(sizes[area], -(-n_bytes // 64) * 64)
    return sizes
