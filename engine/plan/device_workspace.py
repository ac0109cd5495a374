"""Memory that nodes need on the device beside their operands and results.

Areas serve all nodes in turn, each as large as the node that wants most of it. The sizes are those of
kernels/formats.py, for the largest number of rows that any layer can have on the device, so
they do not depend on what a plan puts there.

* cos_sin, positions: the rotations' tables, and the tokens' positions, with several slots behind them the tokens' slots
* quantised: one vector a token, rounded for quantised weights
* hidden: of a predictor: fc1's result
* attention: sums of the parts of a long context
* arrived: how many of a launch's blocks are done, of attention and of the candidates; zero between launches
* all: a mask of all neurons, for modes without a predictor
* counts: of each layer, how many rows the mask listed since loading, uint32 that wraps
* held: of each layer which neurons are on the device, then which are not, as masks have them
* ids: of a batch, rows of an FFN that the mask lists, and their number
* partial: the sums of the groups of one token's rows; before them what its predictor's matrices read, rounded
* first, second: hidden vectors: of a batch, and of an FFN with a row an output
* logits: of one token
* candidates: the likeliest tokens of each part of them, and of all
"""

from hotcold.engine.graph.arena import aligned
from hotcold.engine.graph.graph import Graph, Node, reading_matrices, weights_of
from hotcold.engine.graph.ops import FFN_OPS
from hotcold.engine.model.model import Model
from hotcold.kernels.formats import (
    CANDIDATE_WORDS,
    attention_sums_bytes,
    candidate_parts_bytes,
    cos_sin_bytes,
    group_sums_bytes,
    is_split,
    mask_words,
    quantised_bytes,
)
from hotcold.kernels.weight_table import QUANTISED, share_an_input

FFN_TOKENS = 64  # of a batch that an FFN with a row a neuron takes at once: two tiles of its products
NEURON_TOKENS = (
    8  # likewise experts of which single neurons are there: each of their pairs has sums of groups
)


def node_areas(node: Node, n_tokens: int, n_ctx: int, n_slots: int = 1) -> dict[str, int]:
    """Bytes of each area that one node uses for n_tokens tokens, or for one of each slot where that takes more."""
    weights = weights_of(node)
    areas: dict[str, int] = {}
    if reading_matrices(node):
        areas["quantised"] = max(
            (quantised_bytes(n_tokens, w.ne[0]) for w in weights if w.type in QUANTISED), default=0
        )
    if node.op == "predictor":
        areas["hidden"] = 4 * n_tokens * node.weight("fc1").n_rows
    if node.op == "attention":
        n_head, head_dim = node.attributes["n_head"], node.attributes["head_dim"]
        areas["attention"] = n_slots * attention_sums_bytes(n_tokens, n_head, head_dim, n_ctx)
        areas["arrived"] = 4 * n_slots * n_head if is_split(n_tokens, n_ctx) else 0
    if node.op in FFN_OPS:
        areas |= _ffn(node, n_tokens)
    if node.op == "expert_ffn":
        areas |= _expert_ffn(node, n_tokens, areas["quantised"])
    if node.op == "logits":
        n_vocab = node.weight("weight").n_rows
        areas["logits"], areas["arrived"] = 4 * n_vocab, 4
        areas["candidates"] = candidate_parts_bytes(n_vocab) + 4 * CANDIDATE_WORDS
    return areas


def _goes_by_neurons(node: Node) -> bool:
    return node.op in FFN_OPS and node.attributes.get("transposed", True)


def _ffn(node: Node, n_tokens: int) -> dict[str, int]:
    n, n_ff = node.weight("up").ne
    all_neurons = {"all": 4 * mask_words(n_ff)}
    if not _goes_by_neurons(node):
        return {"first": 4 * n_tokens * n_ff, "second": 4 * n_tokens * n_ff, **all_neurons}
    at_once = min(n_tokens, FFN_TOKENS)
    if n_tokens == 1 and share_an_input(weight.type for weight in reading_matrices(node)):
        return {"partial": group_sums_bytes(1, n_ff, n), **all_neurons}
    hidden = {"first": 4 * at_once * n_ff, "second": 4 * at_once * n_ff}
    return {"ids": 4 * at_once * (n_ff + 1), **hidden, **all_neurons}


def _expert_ffn(node: Node, n_tokens: int, quantised: int) -> dict[str, int]:
    """Of some tokens at a time, vectors of each of their experts; x of all of them stays rounded meanwhile."""
    gate, down = node.weight("gate"), node.weight("down")
    n_embd, n_ff, _ = gate.ne
    n_used = node.tensor("chosen").shape[1]
    if node.attributes["transposed"]:
        n_pairs = min(n_tokens, NEURON_TOKENS) * n_used
        of_groups = group_sums_bytes(n_pairs, n_ff, n_embd)
        return {
            "first": 4 * n_pairs * n_ff,
            "second": 4 * n_pairs * n_embd,
            "partial": of_groups,
            "quantised": quantised,
        }
    n_pairs = min(n_tokens, FFN_TOKENS) * n_used
    hidden = quantised_bytes(n_pairs, n_ff) if down.type in QUANTISED else 0
    sums = 4 * n_pairs * max(n_ff, n_embd)
    return {
        "first": 4 * n_pairs * n_ff,
        "second": sums,
        "hidden": hidden,
        "quantised": quantised,
        "all": 4 * mask_words(n_ff),
    }


def device_areas(
    graphs: list[Graph], model: Model, n_ctx: int, layers: range | None = None, n_slots: int = 1
) -> dict[str, int]:
    """Bytes of each area that serve every node of all graphs, whole cache lines.

    Args:
        layers: of the card, which has the head with the last one; None for all.
    """
    here = layers or range(model.n_layer)
    sizes = {
        "cos_sin": aligned(len(model.rotations) * cos_sin_bytes(n_ctx, model.n_rot)),
        "counts": aligned(4 * model.n_layer),
    }
    if any(_goes_by_neurons(node) for graph in graphs for node in graph.nodes):
        sizes["held"] = aligned(2 * 4 * mask_words(model.n_ff) * model.n_layer)
    for graph in graphs:
        of_token = 4 if n_slots == 1 else 8
        sizes["positions"] = max(sizes.get("positions", 0), aligned(of_token * graph.n_tokens))
        for node in graph.nodes:
            if (model.n_layer - 1 if node.layer is None else node.layer) not in here:
                continue
            for area, n_bytes in node_areas(node, graph.n_tokens, n_ctx, n_slots).items():
                sizes[area] = max(sizes.get(area, 0), aligned(n_bytes))
    return sizes
