"""The last pass: each side's intermediates get bytes of that side's arena, from lifetimes."""

from collections.abc import Mapping
from dataclasses import replace

from hotcold.engine.graph.arena import (
    Arena,
    ArenaSlot,
    Span,
    aligned,
    arrange,
    bytes_together,
    places_together,
)
from hotcold.engine.graph.copies import read_in_place
from hotcold.engine.graph.graph import Tensor, tensors_of
from hotcold.engine.graph.ops import FFN_OPS
from hotcold.engine.graph.placed import CPU, PlacedGraph, all_sides, is_own_array, results

FUSED = {"add": ("mul_mat", "merge", *FFN_OPS), "quantise": ("rms_norm", "layer_norm")}
"""What the device does in one go: an op, and those right before it that take it along."""


def offsets(placed: PlacedGraph, n_cards: int = 1) -> dict[str, Arena]:
    """An arena for each side. What crosses in one copy lies side by side, on both sides."""
    spans = placed_lifetimes(placed)
    wanted: dict[str, list[Span]] = {side: [] for side in all_sides(n_cards)}
    together = _together(placed)
    members: dict[str, tuple[Tensor, ...]] = {}
    for p in placed.nodes:
        for result in results(p.node):
            group = together.get(result.name, (result,))
            if is_own_array(p) or group[0].name in members:
                continue
            members[group[0].name] = group
            lives = [spans[member.name] for member in group]
            first, last = min(first for first, _ in lives), max(last for _, last in lives)
            wanted[p.side].append(Span(group[0].name, aligned(bytes_together(group)), first, last))
    for each in wanted.values():
        each.sort(key=lambda span: span.first_step)
    return {side: _apart(arrange(each, len(placed.nodes)), members, spans) for side, each in wanted.items()}


def placed_lifetimes(placed: PlacedGraph) -> dict[str, tuple[int, int]]:
    """First and last step of every result, on whichever side.

    What crosses the bus stays where it comes from until the CPU's next node: the host waits for its copies only then,
    and other nodes run beside them. So it gets bytes on the device that no node there uses any more that may still be
    running when the host lets it go up. The same holds for what a kernel reads in the host's arena. What the device
    reads for a node stays until the next one is done, where they are one launch.
    """
    spans: dict[str, tuple[int, int]] = {}
    for step, p in enumerate(placed.nodes):
        first = _last_waited(placed, step) if p.node.op == "copy" and p.side != CPU else step
        spans |= {result.name: (first, step) for result in results(p.node)}
        last = _last_read(placed, step)
        for operand in tensors_of(p.node):
            spans[operand.name] = (spans[operand.name][0], max(spans[operand.name][1], last))
    for step, tensor in read_in_place(placed):
        spans[tensor.name] = (spans[tensor.name][0], _next_on_the_cpu(placed, step))
    return spans


def _last_read(placed: PlacedGraph, step: int) -> int:
    """The step at which a node's operands are read for the last time on its behalf."""
    p, following = placed.nodes[step], placed.nodes[step + 1 : step + 2]
    if p.node.op == "copy":
        return _next_on_the_cpu(placed, step)
    if (
        p.side != CPU
        and placed.n_tokens == 1
        and p.node.op == "mul_mat"
        and (end := _rotation_behind(placed, step))
    ):
        return end
    if p.side != CPU and following and p.node.op in FUSED.get(following[0].node.op, ()):
        return step + 1  # one launch does both, so what comes out may not take the operand's bytes
    return step


def _rotation_behind(placed: PlacedGraph, step: int) -> int | None:
    """The last rotation of what a product and its neighbours make: one launch of a token may be all of them."""
    end = step
    while placed.nodes[end].side == placed.nodes[step].side and placed.nodes[end].node.op in (
        "mul_mat",
        "rope",
    ):
        end += 1
    return end - 1 if placed.nodes[end - 1].node.op == "rope" else None


def _next_on_the_cpu(placed: PlacedGraph, step: int) -> int:
    """The next step at which the CPU computes, else the last."""
    later = (i for i in range(step, len(placed.nodes)) if placed.nodes[i].side == CPU)
    return next((i for i in later if placed.nodes[i].node.op != "copy"), len(placed.nodes) - 1)


def _last_waited(placed: PlacedGraph, step: int) -> int:
    """The last copy down that the host has waited for when it sends up what a step wants; 0 where there is none.

    The host waits before it computes, for the copies down before that.
    """
    card, made_on = placed.nodes[step].side, dict[str, str]()
    found = waited = 0
    for i, p in enumerate(placed.nodes[:step]):
        made_on |= {result.name: p.side for result in results(p.node)}
        if p.side == CPU and p.node.op != "copy":
            waited = found
        elif p.side == CPU and made_on[tensors_of(p.node)[0].name] == card:
            found = i
    return waited


def _together(placed: PlacedGraph) -> dict[str, tuple[Tensor, ...]]:
    """For what crosses the bus with others: all of them, in the order of the copy."""
    groups: dict[str, tuple[Tensor, ...]] = {}
    for p in placed.nodes:
        if "parts" in p.node.attributes:
            for group in (tuple(tensors_of(p.node)), results(p.node)):
                groups |= {member.name: group for member in group}
    return groups


def _apart(
    arena: Arena, members: Mapping[str, tuple[Tensor, ...]], spans: Mapping[str, tuple[int, int]]
) -> Arena:
    """The arena with a slot for each of what lies side by side."""
    slots: list[ArenaSlot] = []
    for slot in arena.slots:
        group = members[slot.name]
        places = [*places_together(group), slot.n_bytes]
        reused_by = tuple(member.name for name in slot.reused_by for member in members[name])
        for member, start, end in zip(group, places, places[1:], strict=False):
            first, last = spans[member.name]
            slots.append(ArenaSlot(member.name, slot.offset + start, end - start, first, last, reused_by))
    return replace(arena, slots=tuple(slots))
