"""One weight's place, as the plan lists it."""

from dataclasses import fields

from hotcold.engine.graph.placed import CPU, GPU, SPLIT
from hotcold.engine.model.model import Model, Weight
from hotcold.engine.plan.footprint import Obstacle, WeightGroup, device_bytes
from hotcold.engine.plan.plan import WeightEntry


def part_entries(
    model: Model, part: WeightGroup, what: str, obstacle: Obstacle | None, layer: int | None = None
) -> list[WeightEntry]:
    """A part's weights, all on the device, or on the CPU for this reason."""
    why = what if obstacle is None else f"{what}: {obstacle.reason}"
    return [
        entry(model, role, weight, why, weight.n_rows if obstacle is None else 0, layer)
        for role, weight in part.weights
    ]


def entry(
    model: Model, role: str, weight: Weight, why: str, device_rows: int = 0, layer: int | None = None
) -> WeightEntry:
    """A weight of which so many rows are on the device."""
    tied = role == "head" and weight is model.token_embd
    name = f"output.weight (tied to {weight.name})" if tied else _name(weight, model, layer)
    n_bytes = 0 if tied else weight.n_bytes
    return WeightEntry(
        name=name,
        tensor=weight.name,
        role=role,
        layer=layer,
        type=weight.type.name,
        ne=weight.ne,
        n_bytes=n_bytes,
        n_rows=weight.n_rows,
        device_rows=device_rows,
        host_bytes=n_bytes // weight.n_rows * (weight.n_rows - device_rows),
        device_bytes=device_bytes(weight) // weight.n_rows * device_rows if device_rows else 0,
        side=CPU if not device_rows else GPU if device_rows == weight.n_rows else SPLIT,
        why=why,
        weight=weight,
    )


def _name(weight: Weight, model: Model, number: int | None) -> str:
    """The tensor's name, with the rows where several weights are stacked in it."""
    if number is None:
        parts = zip(model.head_profile, ("rows of the profile", "rows of the vocabulary"), strict=False)
        of_profile = [f"{weight.name} {rows}" for fc, rows in parts if fc is weight]
        return of_profile[0] if of_profile else weight.name
    layer = model.layers[number]
    others = (getattr(layer, field.name) for field in fields(layer))
    if not any(each is not None and each != weight and each.name == weight.name for each in others):
        return weight.name
    return f"{weight.name}[{weight.first_row}:{weight.first_row + weight.n_rows}]"
