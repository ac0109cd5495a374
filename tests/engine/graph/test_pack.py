"""`pack`: what quantised weights read is packed once for all that read it in a row."""

import dataclasses

import pytest
from gguf import GGMLQuantizationType as T

from hotcold.engine.graph import architectures
from hotcold.engine.graph.graph import Graph, Node
from hotcold.engine.graph.pack import pack
from hotcold.engine.graph.passes import run_passes
from hotcold.engine.graph.placed import CPU, GPU, PlacedGraph, PlacedNode, Sides
from hotcold.engine.model.model import Model, Weight
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build

SMALL = Shape("llama", 1, 256, 512, 4, 2, 100, 64, "relu")


def model(kind: T) -> Model:
    return build("small", SMALL, kind, 32)


def placed(m: Model, sparsity: str = "predictor", side: str = CPU) -> PlacedGraph:
    graph: Graph = architectures.build(m, 1, sparsity)
    weights = {w.name: side for node in graph.nodes for w in node.inputs if w.name.endswith(".weight")}
    return run_passes(graph, Sides(weights, (side,), side))[0]


def packed(whole: PlacedGraph, side: str = CPU) -> list[Node]:
    return [p.node for p in pack(whole, side, lambda kind: kind == T.Q4_0).nodes]


def named(nodes: list[Node]) -> list[str]:
    """Names in order, each `pack` with what it packs."""
    return [f"pack {node.tensor('x').name}" if node.op == "pack" else node.name for node in nodes]


def test_once_for_all_that_read_in_a_row() -> None:
    names = named(packed(placed(model(T.Q4_0))))
    assert [name.removeprefix("pack ") for name in names if name.startswith("pack ")] == [
        "attn_norm-0",
        "kqv_out-0",
        "ffn_inp-0",
        "ffn_norm-0",
        "result_norm",
    ]
    at = names.index("pack attn_norm-0")
    assert names[at + 1 : at + 4] == ["Qcur-0", "Kcur-0", "Vcur-0"]


def test_readers_read_the_packed_one() -> None:
    nodes = {node.name: node for node in packed(placed(model(T.Q4_0)))}
    assert nodes["Qcur-0"].tensor("x").dtype == "packed"
    assert nodes["Qcur-0"].tensor("x") == nodes["attn_norm_packed-0"].output
    assert nodes["ffn_out-0"].tensor("x") == nodes["ffn_norm_packed-0"].output


def test_float_weights_need_none() -> None:
    whole = placed(model(T.F16), "exact")
    assert packed(whole) == [p.node for p in whole.nodes]


def test_a_node_with_both_kinds_of_weights_reads_both() -> None:
    m = model(T.Q4_0)
    layer = dataclasses.replace(m.layers[0], ffn_up=model(T.F16).layers[0].ffn_up)
    nodes = {node.name: node for node in packed(placed(dataclasses.replace(m, layers=(layer,))))}
    assert nodes["ffn_out-0"].tensor("x").name == "ffn_norm-0"
    assert nodes["ffn_out-0"].tensor("packed") == nodes["ffn_norm_packed-0"].output


@pytest.mark.parametrize(("down", "again"), [(T.Q4_0, True), (T.F16, False)])
def test_a_vector_of_the_nodes_own_takes_the_area(down: T, again: bool) -> None:
    """An FFN packs its hidden vector for a down projection with a row an output."""
    graph = Graph(1)
    x = graph.add("embed", weight(T.F16, 256, 8), name="x")
    matrices = weight(T.Q4_0, 256, 512), weight(T.Q4_0, 256, 512), weight(down, 512, 256)
    h = graph.add("dense_gated_ffn", x, *matrices, activation="silu", transposed=False, name="h")
    graph.add("add", h, graph.add("mul_mat", weight(T.Q4_0, 256, 256), x, name="y"), name="sum")
    whole = PlacedGraph(1, tuple(PlacedNode(node, CPU, "") for node in graph.nodes))
    wanted = ["x", "pack x", "h", *(["pack x"] if again else []), "y", "sum"]
    assert named(packed(whole)) == wanted


def weight(kind: T, *ne: int) -> Weight:
    return Weight(f"{kind.name} {ne}", kind, ne, 0)


def test_the_devices_head_packs_with_itself() -> None:
    """Its logits are not always wanted."""
    names = named(packed(placed(model(T.Q4_0), side=GPU), GPU))
    assert "pack ffn_norm-0" in names and "pack result_norm" not in names


def test_the_other_side_is_left_alone() -> None:
    whole = placed(model(T.Q4_0))
    assert packed(whole, GPU) == [p.node for p in whole.nodes]
