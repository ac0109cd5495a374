"""Passes from a graph to a placed one, each a function in a file of its name, each result prints.

place     a node runs where its weight or its KV cache is
split     a node whose weight's rows are divided becomes partial nodes, two or more, and merges on the GPU
quantise  what an FFN on the CPU reads from the GPU is rounded there
cards     with several cards, a node goes to the card of its layer
copies    what a node reads from the other side arrives by one copy node, or is read where it lies
offsets   each side's intermediates get bytes of that side's arena
"""

from collections.abc import Mapping

from hotcold.engine.graph.arena import Arena
from hotcold.engine.graph.cards import cards
from hotcold.engine.graph.copies import copies
from hotcold.engine.graph.graph import Graph
from hotcold.engine.graph.offsets import offsets
from hotcold.engine.graph.place import place
from hotcold.engine.graph.placed import CPU, PlacedGraph, Sides
from hotcold.engine.graph.quantise import quantise
from hotcold.engine.graph.split import split


def run_passes(
    graph: Graph, sides: Sides, streams: Mapping[int, tuple[str, ...]] | None = None
) -> tuple[PlacedGraph, dict[str, Arena]]:
    """All passes in order: the placed graph, and each side's arena.

    Args:
        streams: of layers whose cold rows come to the device, which rows the parts of a divided FFN are about.
    """
    placed = place(graph, sides)
    if any(p.side != CPU for p in placed.nodes):  # on the CPU alone nothing is divided and nothing crosses
        placed = copies(cards(quantise(split(placed, streams or {})), sides.cards))
    return placed, offsets(placed, sides.n_cards)
