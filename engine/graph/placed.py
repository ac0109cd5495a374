"""A placed graph: the nodes of a graph with the side that each runs on, and why; what all passes share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hotcold.engine.graph.graph import Node, Tensor

CPU, GPU, SPLIT = "cpu", "gpu", "split"
BOTH_SIDES = (GPU, CPU)


def card_side(card: int) -> str:
    """What a card's side is called: "gpu" that of the first, or only, one, then "gpu1" and so on."""
    return f"{GPU}{card}" if card else GPU


def all_sides(n_cards: int) -> tuple[str, ...]:
    """The cards' sides, and the CPU's."""
    return (*map(card_side, range(n_cards)), CPU)


@dataclass(frozen=True)
class Sides:
    """Where weights and KV caches are.

    Attributes:
        weights: by name; what is not named is on the CPU. `gate` of a split FFN stands for its rows.
        kv: a side for each layer.
        head: of the output weight, which may be the embedding's again.
        cards: the card of each layer, whatever of it is there, ascending; none where there is but one card.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    kv: tuple[str, ...] = ()
    head: str = CPU
    cards: tuple[int, ...] = ()

    @property
    def n_cards(self) -> int:
        """How many there are; 1 for a device that has nothing."""
        return max(self.cards, default=0) + 1


@dataclass(frozen=True)
class PlacedNode:
    """A node, the side it runs on ("cpu", a card's, or "split" before the pass of that name), and why."""

    node: Node
    side: str
    rule: str


@dataclass(frozen=True)
class PlacedGraph:
    """Placed nodes in the order in which they run."""

    n_tokens: int
    nodes: tuple[PlacedNode, ...]

    def __str__(self) -> str:
        """A line a node: step, side, result, op, operands, rule."""
        rows = [
            (str(i), p.side, p.node.name, p.node.op, ", ".join(o.name for o in p.node.inputs), p.rule)
            for i, p in enumerate(self.nodes)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
        lines = [f"placed graph of {self.n_tokens} token{'s' if self.n_tokens > 1 else ''}"]
        for row in rows:
            lines.append(
                " ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            )
        return "\n".join(lines)


def results(node: Node) -> tuple[Tensor, ...]:
    """What a node makes: its output, or all parts of what a copy carries."""
    parts: tuple[Tensor, ...] = node.attributes.get("parts", (node.output,))
    return parts


def sides_of_results(placed: PlacedGraph) -> dict[str, str]:
    """The side that every result is made on, by its name."""
    return {result.name: p.side for p in placed.nodes for result in results(p.node)}


def is_own_array(p: PlacedNode) -> bool:
    """Whether a node's result lies outside the arenas: the run's logits."""
    return p.node.op == "logits" or bool(p.node.attributes.get("own_array"))
