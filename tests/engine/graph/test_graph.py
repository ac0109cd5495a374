"""Graphs: shapes, printing, freezing, and what `check` refuses."""

import dataclasses

import pytest
from gguf import GGMLQuantizationType

from hotcold.engine.graph.graph import Graph, Node, Operand, Tensor, by_role, check, check_operands
from hotcold.engine.graph.ops import OPS
from hotcold.engine.model.model import Weight
from hotcold.errors import HotcoldError


def weight(name: str, *ne: int) -> Weight:
    return Weight(name, GGMLQuantizationType.F32, ne, 0)


def small(n_tokens: int = 3) -> Graph:
    graph = Graph(n_tokens)
    x = graph.add("embed", weight("token_embd", 8, 100), name="x")
    k = graph.add("mul_mat", weight("blk.7.attn_k.weight", 8, 4), x, name="k", layer=7)
    stored = graph.add("kv_store", k, k, name="stored")
    y = graph.add("attention", x, stored, name="y")
    mask = graph.add("predictor", x, weight("fc1", 8, 2), weight("fc2", 2, 70), threshold=0.0, name="mask")
    matrices = [weight(name, 8, 70) for name in ("gate", "up", "down_t")]
    y = graph.add("sparse_gated_ffn", y, mask, *matrices, name="h")
    graph.add("logits", weight("output", 8, 100), graph.add("add", x, y, name="sum"), name="logits")
    return graph


def test_shapes_follow_from_the_operands() -> None:
    shapes = {node.name: (node.output.shape, node.output.dtype) for node in small().nodes}
    assert shapes == {
        "x": ((3, 8), "f32"),
        "k-7": ((3, 4), "f32"),
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
    assert str(small()).splitlines() == [
        "graph of 3 tokens",
        "0 x            8 embed            token_embd",
        "1 k-7          4 mul_mat          attn_k, x",
        "2 stored       - kv_store         k-7, k-7",
        "3 y            8 attention        x, stored",
        "4 mask   70 bits predictor        x, fc1, fc2",
        "5 h            8 sparse_gated_ffn y, mask, gate, up, down_t",
        "6 sum          8 add              x, h",
        "7 logits     100 logits           output, sum",
    ]


def test_an_empty_graph_prints_its_head_and_is_refused() -> None:
    assert str(Graph(1)) == "graph of 1 token"
    with pytest.raises(HotcoldError, match="last node of the graph: none"):
        check(Graph(1))


def test_a_frozen_graph_takes_no_node() -> None:
    graph = small().freeze()
    before = graph.nodes
    with pytest.raises(HotcoldError, match="node for a frozen graph: more"):
        graph.add("add", graph.nodes[0].output, graph.nodes[0].output, name="more")
    assert graph.nodes == before


def test_attributes_are_read_only() -> None:
    node = small().nodes[4]
    assert node.attributes["threshold"] == 0.0
    with pytest.raises(TypeError):
        node.attributes["threshold"] = 1  # type: ignore[index]


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
    with pytest.raises(HotcoldError, match="operand of node k-7: x "):
        check(graph)


def test_a_result_that_nobody_reads_is_refused() -> None:
    """Its reader is gone: the run would answer without it."""
    graph = small()
    skips_the_ffn = dataclasses.replace(graph.nodes[6], inputs=(graph.nodes[0].output,) * 2)
    graph.nodes = (*graph.nodes[:6], skips_the_ffn, graph.nodes[7])
    with pytest.raises(HotcoldError, match="nodes of the graph: h .no later node reads"):
        check(graph)


def test_nodes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().nodes[0].op = "add"  # type: ignore[misc]


def test_an_op_on_weights_alone_is_refused() -> None:
    with pytest.raises(HotcoldError, match="operands of the op: add .add takes a=f32:E b=f32:E"):
        Graph(1).add("add", weight("a", 8), weight("b", 8))


def test_an_operand_is_more_than_its_name() -> None:
    """A node that reads another shape than its maker gives would read beyond its bytes."""
    graph = small()
    wide = dataclasses.replace(graph.nodes[0].output, shape=(3, 16))
    reader = dataclasses.replace(graph.nodes[1], inputs=(weight("w", 16, 4), wide))
    graph.nodes = (graph.nodes[0], reader, *graph.nodes[2:])
    with pytest.raises(HotcoldError, match="operand of node k-7: x "):
        check(graph)


def node(op: str, *operands: Operand | None) -> Node:
    given = by_role(op, operands) if op in OPS else {}
    return Node(op, "n", tuple(given.values()), Tensor("n", (1, 8)), roles=tuple(given))


X, MASK, ORDER = Tensor("x", (1, 8)), Tensor("m", (1, 70), "mask"), Tensor("o", (1, 0), "none")
UP, DOWN = weight("up", 8, 70), weight("down", 70, 8)
NORM, UP_BIAS, DOWN_BIAS = weight("norm", 8), weight("up_bias", 70), weight("down_bias", 8)
CHOSEN, UP_BIASES = Tensor("chosen", (1, 2), "chosen"), weight("up_bias", 70, 6)
EXPERTS, DOWN_EXPERTS = weight("exps", 8, 70, 6), weight("down_exps", 70, 8, 6)
GOOD = [
    node("embed", weight("e", 8, 100)),
    node("positions", weight("position_embd", 8, 30)),
    node("rms_norm", X, weight("norm", 8)),
    node("rms_norm_heads", X, weight("norm", 4)),
    node("layer_norm", X, NORM, NORM),
    node("mul_mat", UP, X),
    node("mul_mat", UP, X, UP_BIAS),
    node("rope", X),
    node("rope", X, weight("rope_freqs", 2)),
    node("kv_store", X, X),
    node("attention", X, ORDER),
    node("predictor", X, weight("fc1", 8, 2), weight("fc2", 2, 70)),
    node("sparse_gated_ffn", X, None, UP, UP, UP),
    node("sparse_gated_ffn", X, MASK, UP, UP, UP),
    node("dense_gated_ffn", X, UP, UP, DOWN),
    node("dense_gated_ffn", X, UP, UP, UP),
    node("sparse_ffn", X, None, UP, None, UP),
    node("sparse_ffn", X, MASK, UP, UP_BIAS, UP, DOWN_BIAS),
    node("dense_ffn", X, UP, None, DOWN),
    node("dense_ffn", X, UP, UP_BIAS, UP, DOWN_BIAS),
    node("rms_norm_heads", X, weight("norm", 4)),
    node("top_k", Tensor("logits", (1, 6))),
    node("expert_ffn", X, CHOSEN, EXPERTS, EXPERTS, DOWN_EXPERTS),
    node(
        "expert_ffn",
        X,
        CHOSEN,
        EXPERTS,
        EXPERTS,
        DOWN_EXPERTS,
        UP_BIASES,
        UP_BIASES,
        weight("down_bias", 8, 6),
    ),
    node("mul_sigmoid", X, Tensor("gate", (1, 1))),
    node("scale", X),
    node("add", X, X),
    node("logits", weight("output", 8, 100), X),
]


@pytest.mark.parametrize("good", GOOD, ids=lambda n: n.op)
def test_operands_that_fit(good: Node) -> None:
    check_operands(good)


def test_every_op_is_tried() -> None:
    assert {good.op for good in GOOD} == set(OPS)


WIDE = Tensor("x", (1, 9))
BAD = [
    node("softmax", X),
    node("embed", X),
    node("embed", weight("e", 8)),
    node("rms_norm", WIDE, weight("norm", 8)),
    node("rms_norm", X),
    node("rms_norm", X, weight("norm", 8), X),
    node("positions", X),
    node("layer_norm", X, NORM),
    node("layer_norm", X, NORM, UP_BIAS),
    node("mul_mat", UP, X, DOWN_BIAS),
    node("sparse_ffn", X, None, UP, None, DOWN),
    node("sparse_ffn", X, None, UP, None, UP, UP_BIAS),
    node("sparse_ffn", X, MASK, UP, DOWN_BIAS, UP, UP_BIAS),
    node("dense_ffn", X, UP),
    node("dense_ffn", X, UP, DOWN_BIAS, DOWN),
    node("mul_mat", UP, WIDE),
    node("mul_mat", X, UP),
    node("mul_mat", UP, MASK),
    node("rope", X, UP),
    node("kv_store", X, WIDE),
    node("attention", X, X),
    node("attention", X),
    node("predictor", X, weight("fc1", 8, 2), weight("fc2", 3, 70)),
    node("predictor", X, weight("fc1", 9, 2), weight("fc2", 2, 70)),
    node("predictor", X, weight("fc1", 8, 2)),
    node("sparse_gated_ffn", X, Tensor("m", (1, 64), "mask"), UP, UP, UP),
    node("sparse_gated_ffn", X, X, UP, UP, UP),
    node("sparse_gated_ffn", X, MASK, UP, UP, DOWN),
    node("sparse_gated_ffn", X, MASK, UP, UP),
    node("dense_gated_ffn", X, UP, weight("up", 8, 71), DOWN),
    node("dense_gated_ffn", X, MASK, UP, UP, DOWN),
    node("add", X, WIDE),
    node("add", X, MASK),
    node("add", X),
    node("add", X, X, X),
    node("logits", weight("output", 9, 100), X),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda n: f"{n.op}-{len(n.inputs)}")
def test_operands_that_do_not_fit(bad: Node) -> None:
    with pytest.raises(HotcoldError, match="operands of node n: |op of node n: softmax "):
        check_operands(bad)


def test_a_misfit_names_the_operands() -> None:
    graph = Graph(1)
    x = graph.add("embed", weight("token_embd", 8, 100), name="x")
    y = graph.add("mul_mat", weight("w", 16, 4), x, name="y")
    graph.add("logits", weight("output", 4, 100), y)
    with pytest.raises(HotcoldError, match=r"operands of node y: w \[16, 4\], x \[1, 8\] "):
        check(graph)


def test_an_operand_that_a_model_lacks_is_left_out() -> None:
    graph = Graph(1)
    x = graph.add("embed", weight("e", 8, 100))
    y = graph.add("mul_mat", UP, x, None)
    assert graph.nodes[1].inputs == (UP, x)
    assert y.shape == (1, 70)


def test_a_wanted_operand_that_a_model_lacks_is_refused() -> None:
    graph = Graph(1)
    x = graph.add("embed", weight("e", 8, 100), name="x")
    y = graph.add("layer_norm", x, NORM, None, name="y")
    graph.add("logits", weight("output", 8, 100), y)
    with pytest.raises(HotcoldError, match="operands of node y: x .*, norm "):
        check(graph)
