"""Between rounding and copies: with several cards, each node of the device goes to the card of its layer.

Layers lie whole on a card, so that one hidden state crosses from a card to the next. What belongs to no layer is with
the head, on the last card. A sum whose addends both come from the CPU is formed where it is read next.
"""

from collections.abc import Sequence
from dataclasses import replace

from hotcold.engine.graph.graph import tensors_of
from hotcold.engine.graph.ops import OPS, WITH_NEXT
from hotcold.engine.graph.placed import CPU, PlacedGraph, PlacedNode, card_side


def cards(placed: PlacedGraph, of_layers: Sequence[int]) -> PlacedGraph:
    """The graph with the cards' sides in place of the one device's.

    Args:
        of_layers: the card of each layer.
    """
    if not any(of_layers):
        return placed
    sides: dict[str, str] = {}
    found: list[PlacedNode] = []
    for step, p in enumerate(placed.nodes):
        decisive = p
        if p.side != CPU and _is_sum(p) and not _joins(p, sides):
            decisive = _next_on_a_card(placed, step)
        side = p.side if p.side == CPU else card_side(_card(decisive, of_layers))
        sides[p.node.output.name] = side
        found.append(replace(p, side=side))
    return PlacedGraph(placed.n_tokens, tuple(found))


def _is_sum(p: PlacedNode) -> bool:
    return p.node.op in OPS and OPS[p.node.op].runs == WITH_NEXT


def _joins(p: PlacedNode, sides: dict[str, str]) -> bool:
    """Whether an addend is on a card already."""
    return any(sides[tensor.name] != CPU for tensor in tensors_of(p.node))


def _next_on_a_card(placed: PlacedGraph, step: int) -> PlacedNode:
    later = (p for p in placed.nodes[step + 1 :] if p.side != CPU and not _is_sum(p))
    return next(later, placed.nodes[step])


def _card(p: PlacedNode, of_layers: Sequence[int]) -> int:
    return of_layers[-1] if p.node.layer is None else of_layers[p.node.layer]
