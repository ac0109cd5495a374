"""What is taken off a budget before anything is placed: arena, workspace, index and thresholds of all layers.

Each is as large as when everything is on the device, so it does not depend on what a plan puts there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from hotcold.engine.graph import architectures, passes
from hotcold.engine.graph.arena import aligned
from hotcold.engine.graph.graph import Graph
from hotcold.engine.graph.placed import CPU, GPU, SPLIT, Sides
from hotcold.engine.model.model import Layer, Model, Weight
from hotcold.engine.plan.budget import mib
from hotcold.engine.plan.device_workspace import device_areas
from hotcold.engine.plan.division import Share
from hotcold.engine.plan.footprint import INDEX_BYTES, WeightGroup, dense_part, ffn_part, head_part
from hotcold.errors import DoesNotFitError
from hotcold.kernels.formats import GRANULE


@dataclass(frozen=True)
class Reserve:
    """What is taken off a budget before anything is placed.

    Attributes:
        graphs: of one token and of a batch.
        workspace: bytes of each area.
        staging: bytes of both buffers for what is sent for a prompt.
    """

    n_batch: int
    graphs: tuple[Graph, Graph]
    arena: int
    workspace: dict[str, int]
    index: int
    thresholds: int
    staging: int = 0

    @property
    def n_bytes(self) -> int:
        """All of it, with the most that the allocator may add to the three slabs."""
        held = self.arena + sum(self.workspace.values()) + self.index + self.thresholds + self.staging
        return held + 3 * (GRANULE - 1)


def _all_on_device(model: Model, sparsity: str, divided: tuple[str, ...]) -> Sides:
    """Everything on the device that can be, with FFNs that go by neurons on these sides, layer by layer in turns."""
    sides: dict[str, str] = {}
    for i, layer in enumerate(model.layers):
        sides |= {w.name: GPU for _, w in _placeable(dense_part(layer, sparsity))}
        ffn = _placeable(ffn_part(layer, sparsity))
        sides |= {w.name: divided[i % len(divided)] if layer.ffn_down is None else GPU for _, w in ffn}
    head = head_part(model)
    sides |= {w.name: GPU for role, w in _placeable(head) if role != "head"}
    return Sides(sides, (GPU,) * model.n_layer, CPU if head.obstacle else GPU)


def extremes(model: Model, sparsity: str) -> list[Sides]:
    """Placements of which one has as much on the device as any plan can have, by arena or by graph nodes."""
    return [_all_on_device(model, sparsity, divided) for divided in _divisions(model)]


def _placeable(part: WeightGroup) -> tuple[tuple[str, Weight], ...]:
    return () if part.obstacle else part.weights


def nothing_reserved(model: Model, sparsity: str, n_batch: int) -> Reserve:
    """The reserve of a plan that puts nothing on a device."""
    return Reserve(n_batch, graphs_of(model, sparsity, n_batch), 0, {}, 0, 0)


def graphs_of(model: Model, sparsity: str, n_batch: int) -> tuple[Graph, Graph]:
    """Of one token and of a batch, which may be one and the same."""
    one = architectures.build(model, 1, sparsity)
    return one, one if n_batch == 1 else architectures.build(model, n_batch, sparsity)


def reserve_for(model: Model, sparsity: str, n_ctx: int, n_batch: int, n_slots: int = 1) -> Reserve:
    """The reserve of both graphs: the largest arena, the workspace, and room for every neuron in the index."""
    (reserve,) = reserves_for(model, sparsity, n_ctx, n_batch, (range(model.n_layer),), n_slots)
    return reserve


def reserves_for(
    model: Model, sparsity: str, n_ctx: int, n_batch: int, cards: Sequence[range], n_slots: int = 1
) -> tuple[Reserve, ...]:
    """Of cards that have these layers. Each arena is that of one card with all of them."""
    graphs = graphs_of(model, sparsity, n_batch)
    placements = extremes(model, sparsity)
    arenas = [passes.run_passes(graph, sides)[1][GPU] for graph in graphs for sides in placements]
    arena = max(each.n_bytes for each in arenas)
    return tuple(
        Reserve(
            n_batch,
            graphs,
            arena,
            device_areas(list(graphs), model, n_ctx, layers, n_slots),
            sum(layer_index_bytes(model.layers[i], model.n_units, sparsity) for i in layers),
            sum(layer_threshold_bytes(model.layers[i], sparsity) for i in layers),
        )
        for layers in cards
    )


def _divisions(model: Model) -> Iterable[tuple[str, ...]]:
    """Where FFNs may be: all alike, and those of mixtures, whose layers have few hot units, in turns too."""
    yield from ((CPU,), (SPLIT,), (GPU,))
    if model.experts is not None:
        yield from permutations((CPU, SPLIT, GPU), 2)


def layer_index_bytes(layer: Layer, n_ff: int, sparsity: str) -> int:
    """Bytes of the numbers of a layer's rows, were all hot; of neurons of experts, of where each one's begin."""
    if layer.ffn_down is not None or ffn_part(layer, sparsity).obstacle:
        return 0
    return aligned(INDEX_BYTES * (n_ff if layer.ffn_down_exps_t is None else layer.n_expert + 1))


def layer_threshold_bytes(layer: Layer, sparsity: str) -> int:
    """Bytes of the thresholds of a layer's hot rows, were all of them hot."""
    weight = layer.ffn_threshold
    if sparsity != "threshold" or weight is None or ffn_part(layer, sparsity).obstacle:
        return 0
    return aligned(4 * weight.n_rows * weight.ne[0])


def fitting_reserves(
    model: Model, shares: Sequence[Share], sparsity: str, n_ctx: int, n_batch: int, n_slots: int = 1
) -> tuple[Reserve, ...]:
    """Each card's reserve for the largest of n_batch, n_batch / 2, ... n_slots that leaves room for one layer on each.

    Raises:
        DoesNotFitError: not even a batch of one token a slot does; the text has the sum that is needed.
    """
    while True:
        reserves = reserves_for(model, sparsity, n_ctx, n_batch, [share.layers for share in shares], n_slots)
        needs = [
            smallest_useful(model, sparsity, each, share.layers)
            for each, share in zip(reserves, shares, strict=True)
        ]
        short = [pair for pair in zip(shares, needs, strict=True) if pair[1] > pair[0].budget.n_bytes]
        if not short:
            return reserves
        if n_batch <= n_slots:
            (share, needed), budget = short[0], short[0][0].budget
            of_card = f" of layers {share.layers.start} to {share.layers.stop - 1}" if len(shares) > 1 else ""
            raise DoesNotFitError(
                "vram_budget",
                f"{budget.text}, {budget.n_bytes} bytes",
                f"the smallest useful plan{of_card} needs {needed} bytes, {mib(needed)}",
                "raise it, lower n_ctx, or take 0 for the CPU alone",
            )
        n_batch = max(n_batch // 2, n_slots)


def smallest_useful(model: Model, sparsity: str, reserve: Reserve, layers: range | None = None) -> int:
    """Bytes of a plan that puts the dense part of one layer on the device, and nothing else.

    Args:
        layers: of a card; None for all.
    """
    parts = [dense_part(model.layers[i], sparsity) for i in layers or range(model.n_layer)]
    return reserve.n_bytes + next((part.n_bytes for part in parts if not part.obstacle), 0)
