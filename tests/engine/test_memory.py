"""The arena: lifetimes that overlap never share bytes."""

from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from hotcold.engine.graph import Graph, Tensor
from hotcold.engine.memory import ALIGNMENT, lifetimes, offsets
from hotcold.engine.model import Weight


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
    for i, a in enumerate(arena.entries):
        assert a.offset % ALIGNMENT == 0
        assert a.offset + a.n_bytes <= arena.n_bytes
        for b in arena.entries[i + 1 :]:
            alive_together = a.first_step <= b.last_step and b.first_step <= a.last_step
            apart = a.offset + a.n_bytes <= b.offset or b.offset + b.n_bytes <= a.offset
            assert apart or not alive_together


@given(graphs())
def test_the_arena_is_no_smaller_than_its_peak_and_no_larger_than_everything(graph: Graph) -> None:
    arena = offsets(graph)
    alive = [e.n_bytes for e in arena.entries if e.first_step <= arena.peak_step <= e.last_step]
    assert sum(alive) <= arena.n_bytes <= sum(e.n_bytes for e in arena.entries)


@given(graphs())
def test_successors_take_bytes_after_the_last_use(graph: Graph) -> None:
    arena = offsets(graph)
    for entry in arena.entries:
        for name in entry.reused_by:
            other = arena.entry(name)
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
    assert lifetimes(graph)["x0"] == (1, 2)
    assert arena.entry("x0").reused_by == ("x2",)
