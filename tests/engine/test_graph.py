"""Graphs: shapes, printing, and what `check` refuses."""

import dataclasses

import pytest
from gguf import GGMLQuantizationType

from hotcold.engine.graph import Graph, check
from hotcold.engine.model import Weight
from hotcold.errors import HotcoldError


def weight(name: str, *ne: int) -> Weight:
    return Weight(name, GGMLQuantizationType.F32, ne, 0)


def small(n_tokens: int = 3) -> Graph:
    graph = Graph(n_tokens)
    x = graph.add("embed", weight("token_embd", 8, 100), name="x")
    k = graph.add("mul_mat", weight("attn_k", 8, 4), x, name="k")
    stored = graph.add("kv_store", k, k, layer=0, name="stored")
    y = graph.add("attention", x, stored, layer=0, name="y")
    mask = graph.add("predictor", x, weight("fc1", 8, 2), weight("fc2", 2, 70), threshold=0.0, name="mask")
    y = graph.add("sparse_ffn", y, mask, weight("up", 8, 70), name="h")
    graph.add("logits", weight("output", 8, 100), graph.add("add", x, y, name="sum"), name="logits")
    return graph


def test_shapes_follow_from_the_operands() -> None:
    shapes = {node.name: (node.output.shape, node.output.dtype) for node in small().nodes}
    assert shapes == {
        "x": ((3, 8), "f32"),
        "k": ((3, 4), "f32"),
        "stored": ((3, 0), "none"),
        "y": ((3, 8), "f32"),
        "mask": ((3, 70), "mask"),
        "h": ((3, 8), "f32"),
        "sum": ((3, 8), "f32"),
        "logits": ((3, 100), "f32"),
    }


def test_a_whole_graph_passes() -> None:
    check(small())


def test_it_prints_a_line_a_node() -> None:
    lines = str(small()).splitlines()
    assert lines[0] == "graph of 3 tokens"
    assert len(lines) == 1 + len(small().nodes)
    assert "mul_mat" in lines[2]
    assert "attn_k, x" in lines[2]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("i", range(8))
def test_removing_a_node_is_refused(i: int) -> None:
    graph = small()
    graph.nodes = (*graph.nodes[:i], *graph.nodes[i + 1 :])
    with pytest.raises(HotcoldError):
        check(graph)


def test_two_nodes_of_one_name_are_refused() -> None:
    graph = small()
    graph.nodes = (*graph.nodes[:1], graph.nodes[0], *graph.nodes[1:])
    with pytest.raises(HotcoldError, match="name of a node: x "):
        check(graph)


def test_a_swapped_order_is_refused() -> None:
    graph = small()
    first, second, *rest = graph.nodes
    graph.nodes = (second, first, *rest)
    with pytest.raises(HotcoldError, match="operand of node k: x "):
        check(graph)


def test_nodes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().nodes[0].op = "add"  # type: ignore[misc]


def test_an_op_on_weights_alone_is_refused() -> None:
    with pytest.raises(HotcoldError, match="an intermediate is wanted"):
        Graph(1).add("add", weight("a", 8), weight("b", 8))
