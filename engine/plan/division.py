"""Which layers belong to which card: whole layers in order, as many bytes as its part of all budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from hotcold.engine.model.model import Model
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.footprint import dense_part, ffn_part, head_part, kv_positions, layer_kv_bytes
from hotcold.engine.plan.wanted import Wanted
from hotcold.errors import SettingError


@dataclass(frozen=True)
class Share:
    """A card's part of a model.

    Attributes:
        number: of the card. layers: its own.
        has_head: whether the head is there too, behind the last layer.
        budget: of this card alone.
    """

    number: int
    layers: range
    has_head: bool
    budget: Budget


def divide(model: Model, how: Wanted, budget: Budget) -> tuple[Share, ...]:
    """Each card's layers, at least one.

    A layer is its card's by the middle of its bytes on a device. The head counts behind the last layer.

    Raises:
        SettingError: more cards than layers.
    """
    budgets, n_layer = budget.each, model.n_layer
    if len(budgets) > n_layer:
        bound = f"the model has {n_layer} layers, and each card holds whole ones"
        raise SettingError("device", f"{len(budgets)} cards", bound, "name fewer cards")
    ends = [*_ends(_bytes(model, how), [each.n_bytes for each in budgets], n_layer), n_layer]
    ranges = [range(first, end) for first, end in pairwise((0, *ends))]
    return tuple(
        Share(i, layers, layers.stop == n_layer, each)
        for i, (layers, each) in enumerate(zip(ranges, budgets, strict=True))
    )


def _bytes(model: Model, how: Wanted) -> list[int]:
    """Of each layer as if all of it were on a device, and of the head."""
    held = kv_positions(model, how.n_ctx, how.n_batch)
    layers = [
        dense_part(layer, how.sparsity).n_bytes
        + ffn_part(layer, how.sparsity).n_bytes
        + layer_kv_bytes(model, n, how.kv_type, how.n_slots)
        for layer, n in zip(model.layers, held, strict=True)
    ]
    return [*layers, head_part(model).n_bytes]


def _ends(sizes: Sequence[int], budgets: Sequence[int], n_layer: int) -> list[int]:
    """Where the layers of each card but the last end."""
    total, whole = sum(sizes) or 1, sum(budgets) or 1
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)][:n_layer]
    found: list[int] = []
    for card, spent in enumerate(list(accumulate(budgets))[:-1]):
        wanted = sum(middle / total < spent / whole for middle in middles)
        least = found[-1] + 1 if found else 1
        most = n_layer - (len(budgets) - 1 - card)
        found.append(min(max(wanted, least), most))
    return found
