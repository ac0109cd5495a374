"""Which layers of a plan are alike, and where those that are differ.

Layers are of one kind if their weights and KV caches are the same but for their numbers: names, types, shapes
and sides. How many of their neurons are hot may differ, and so may what crosses the bus at their edges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from hotcold.engine.dump.report import Report

BANDS = 16  # most rows of the split


@dataclass(frozen=True)
class Kind:
    """Layers that are alike.

    Attributes:
        layers: their numbers, ascending.
        example: the one that stands for all: the first whose nodes are those of most.
        others: layers with other nodes, and what is different there, in words.
    """

    layers: tuple[int, ...]
    example: int
    others: tuple[tuple[tuple[int, ...], str], ...]


@dataclass(frozen=True)
class Band:
    """Neighbouring layers in the split.

    Attributes:
        rows: the report's, one a layer.
    """

    rows: tuple[Report, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(row["layer"] for row in self.rows)

    @property
    def n_hot(self) -> tuple[int, int]:
        """Fewest and most hot neurons of a layer."""
        counts = [row["gpu_bucket"][0] for row in self.rows]
        return min(counts), max(counts)

    def shares(self, name: str) -> tuple[float, float]:
        """Smallest and largest "hot_share" or "coverage"."""
        values = [row[name] for row in self.rows]
        return min(values), max(values)

    @property
    def n_bytes(self) -> int:
        """Of the hot rows of all of them."""
        return sum(row["bytes"] for row in self.rows)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: "0 to 3, 5, 7 and 8"."""
    texts = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        if len(found) == 2:
            texts += [str(found[0]), str(found[1])]
        else:
            texts.append(str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}")
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def kinds(report: Report) -> list[Kind]:
    """The kinds of layers, in the order of their first ones."""
    of_kind: dict[tuple[object, ...], list[int]] = {}
    caches = {row["layer"]: (row["device"], row["bytes"]) for row in report["kv_cache"]}
    for layer in range(report["model"]["n_layer"]):
        weights = [row for row in report["weights"] if row["layer"] == layer]
        key = tuple((_unnumbered(w), w["role"], w["type"], tuple(w["ne"]), w["device"]) for w in weights)
        of_kind.setdefault((*key, caches[layer]), []).append(layer)
    return [_kind(report, layers) for layers in of_kind.values()]


def _kind(report: Report, layers: Sequence[int]) -> Kind:
    nodes = {layer: tuple(_nodes(report, layer)) for layer in layers}
    found = list(nodes.values())
    usual = max(dict.fromkeys(found), key=found.count)
    others: dict[str, list[int]] = {}
    for layer in layers:
        if nodes[layer] != usual:
            others.setdefault(_difference(nodes[layer], usual), []).append(layer)
    example = next(layer for layer in layers if nodes[layer] == usual)
    return Kind(tuple(layers), example, tuple((tuple(found), text) for text, found in others.items()))


def _nodes(report: Report, layer: int) -> Iterator[tuple[str, str, str]]:
    """Name without number, op and side of what one decoded token's nodes make in a layer."""
    for row in report["intermediates"]["decode"]:
        if row["layer"] == layer:
            yield _unnumbered(row), row["op"], row["device"]


def _unnumbered(row: Report) -> str:
    """The name of a weight or a result without the number of its layer."""
    number, name = row["layer"], str(row["name"])
    return name.removeprefix(f"blk.{number}.").replace(f"-{number}", "", 1)


def _difference(nodes: tuple[tuple[str, str, str], ...], usual: tuple[tuple[str, str, str], ...]) -> str:
    more = [_said(node) for node in nodes if node not in usual]
    less = [_said(node) for node in usual if node not in nodes]
    texts = (f"also {', '.join(more)}" if more else "", f"no {', '.join(less)}" if less else "")
    return "; ".join(filter(None, texts)) or "the same in another order"


def _said(node: tuple[str, str, str]) -> str:
    name, op, side = node
    return f"{name} ({op}, {side})"


def bands(report: Report, most: int = BANDS) -> list[Band]:
    """The split in a few rows: layers with equally many hot neurons, or as many neighbours as it takes."""
    rows = report["layers"]
    runs = [Band(tuple(run)) for _, run in groupby(rows, lambda row: row["gpu_bucket"])]
    if len(runs) <= most:
        return runs
    at_once = -(-len(rows) // most)
    return [Band(tuple(rows[i : i + at_once])) for i in range(0, len(rows), at_once)]
