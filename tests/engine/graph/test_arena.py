"""The arena: lifetimes that overlap never share bytes."""

import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from hotcold.engine.graph.arena import ALIGNMENT, Arena, tensor_bytes
from hotcold.engine.graph.graph import Graph, Tensor
from hotcold.engine.graph.offsets import offsets as offsets_of_both_sides
from hotcold.engine.graph.offsets import placed_lifetimes
from hotcold.engine.graph.placed import CPU, PlacedGraph, PlacedNode
from hotcold.engine.model.model import Weight


def on_the_cpu(graph: Graph) -> PlacedGraph:
    return PlacedGraph(graph.n_tokens, tuple(PlacedNode(node, CPU, "") for node in graph.nodes))


def offsets(graph: Graph) -> Arena:
    return offsets_of_both_sides(on_the_cpu(graph))[CPU]


def weight(k: int, n: int) -> Weight:
    return Weight(f"w{k}x{n}", GGMLQuantizationType.F32, (k, n), 4 * k * n)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs of products and sums, where any earlier result may be read again."""
    graph = Graph(draw(st.integers(1, 5)))
    made = [graph.add("embed", weight(draw(st.integers(1, 300)), 8))]
    for _ in range(draw(st.integers(0, 25))):
        x = draw(st.sampled_from(made))
        same = [t for t in made if t.shape == x.shape]
        if draw(st.booleans()):
            made.append(graph.add("add", x, draw(st.sampled_from(same))))
        else:
            made.append(graph.add("mul_mat", weight(x.shape[1], draw(st.integers(1, 300))), x))
    return graph


@given(graphs())
def test_overlapping_lifetimes_never_overlap_in_the_arena(graph: Graph) -> None:
    arena = offsets(graph)
    for i, a in enumerate(arena.slots):
        assert a.offset % ALIGNMENT == 0
        assert a.offset + a.n_bytes <= arena.n_bytes
        for b in arena.slots[i + 1 :]:
            alive_together = a.first_step <= b.last_step and b.first_step <= a.last_step
            apart = a.offset + a.n_bytes <= b.offset or b.offset + b.n_bytes <= a.offset
            assert apart or not alive_together


@given(graphs())
def test_the_arena_is_no_smaller_than_its_peak_and_no_larger_than_everything(graph: Graph) -> None:
    arena = offsets(graph)
    alive = [e.n_bytes for e in arena.slots if e.first_step <= arena.peak_step <= e.last_step]
    assert sum(alive) <= arena.n_bytes <= sum(e.n_bytes for e in arena.slots)


@given(graphs())
def test_successors_take_bytes_after_the_last_use(graph: Graph) -> None:
    arena = offsets(graph)
    for entry in arena.slots:
        for name in entry.reused_by:
            other = arena.slot(name)
            assert other.first_step > entry.last_step
            assert other.offset < entry.offset + entry.n_bytes
            assert entry.offset < other.offset + other.n_bytes


def test_a_chain_needs_two_places() -> None:
    graph = Graph(1)
    x: Tensor = graph.add("embed", weight(64, 8))
    for i in range(6):
        x = graph.add("mul_mat", weight(64, 64), x, name=f"x{i}")
    arena = offsets(graph)
    assert arena.n_bytes == 2 * 4 * 64
    assert placed_lifetimes(on_the_cpu(graph))["x0"] == (1, 2)
    assert arena.slot("x0").reused_by == ("x2",)


@given(graphs())
def test_offsets_are_the_same_each_time(graph: Graph) -> None:
    assert offsets(graph) == offsets(graph)


@given(graphs())
def test_lifetimes_reach_from_the_maker_to_the_last_reader(graph: Graph) -> None:
    for name, (first, last) in placed_lifetimes(on_the_cpu(graph)).items():
        assert graph.nodes[first].output.name == name
        readers = [i for i, node in enumerate(graph.nodes) if name in {x.name for x in node.inputs}]
        assert last == max(readers, default=first)


@given(graphs(), st.integers(1, 300))
def test_logits_lie_in_the_runs_own_array(graph: Graph, n_vocab: int) -> None:
    x = graph.nodes[-1].output
    graph.add("logits", weight(x.shape[1], n_vocab), x, name="logits")
    assert "logits" not in {entry.name for entry in offsets(graph).slots}
    assert {entry.name for entry in offsets(graph).slots} == {n.name for n in graph.nodes[:-1]}


@pytest.mark.parametrize(
    ("tensor", "n_bytes"),
    [
        (Tensor("x", (3, 5)), 60),
        (Tensor("m", (3, 64), "mask"), 24),
        (Tensor("m", (3, 65), "mask"), 48),
        (Tensor("m", (1, 1), "mask"), 8),
        (Tensor("o", (3, 0), "none"), 0),
    ],
)
def test_bytes_of_a_tensor(tensor: Tensor, n_bytes: int) -> None:
    assert tensor_bytes(tensor) == n_bytes


def test_an_order_takes_no_bytes() -> None:
    graph = Graph(2)
    x = graph.add("embed", weight(64, 8), name="x")
    stored = graph.add("kv_store", x, x, name="stored")
    graph.add("attention", x, stored, name="y")
    assert [entry.name for entry in offsets(graph).slots] == ["x", "y"]


def test_a_result_never_lies_on_an_operand() -> None:
    """A node reads its operands while it writes."""
    graph = Graph(1)
    a = graph.add("embed", weight(64, 8), name="a")
    b = graph.add("add", a, a, name="b")
    graph.add("add", b, b, name="c")
    arena = offsets(graph)
    assert [entry.offset for entry in arena.slots] == [0, 256, 0]


def test_the_smallest_gap_that_fits_is_taken() -> None:
    """The first gap is larger than what is wanted, the second is just right."""
    graph = Graph(1)
    large = graph.add("embed", weight(128, 8), name="large")
    first = graph.add("mul_mat", weight(128, 16), large, name="first")
    right = graph.add("mul_mat", weight(128, 64), large, name="right")
    second = graph.add("mul_mat", weight(16, 16), first, name="second")
    graph.add("kv_store", large, right, name="last use")
    graph.add("mul_mat", weight(16, 50), second, name="new")
    graph.add("kv_store", first, second, name="still alive")
    arena = offsets(graph)
    places = {entry.name: (entry.offset, entry.n_bytes) for entry in arena.slots}
    assert places == {
        "large": (0, 512),
        "first": (512, 64),
        "right": (576, 256),
        "second": (832, 64),
        "new": (576, 256),
    }
    assert arena.slot("right").reused_by == ("new",)
    assert arena.n_bytes == 896


def test_an_empty_graph_needs_nothing() -> None:
    assert offsets(Graph(1)) == Arena((), 0, 0)
