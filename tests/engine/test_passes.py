"""place, split, copies, offsets: where nodes run, and what crosses the bus."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from hotcold.engine import architectures, memory, placement
from hotcold.engine.budget import Budget
from hotcold.engine.graph import Graph
from hotcold.engine.passes import GPU, Homes, bus, copies, offsets, place, run_passes, split
from hotcold.engine.shapes import Shape, build

MODEL = build("small", Shape("llama", 2, 256, 512, 4, 2, 100, 64, "relu"), T.Q4_0, 32)
DENSE = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "fc1", "fc2")


def homes(ffn: str) -> Homes:
    """Layer 0 on the GPU with this FFN; layer 1 and the head on the CPU."""
    sides = {f"blk.0.{role}.weight": "gpu" for role in DENSE}
    sides |= {f"blk.0.{role}.weight": ffn for role in ("ffn_gate", "ffn_up", "ffn_down_t")}
    return Homes(sides, ("gpu", "cpu"), "cpu")


def graph(n_tokens: int = 1) -> Graph:
    return architectures.build(MODEL, n_tokens, "predictor")


def test_without_a_device_the_placed_graph_is_the_graph() -> None:
    for n_tokens in (1, 8):
        placed, arenas = run_passes(graph(n_tokens), Homes({}, ("cpu",) * 2))
        assert [p.node for p in placed.nodes] == list(graph(n_tokens).nodes)
        assert arenas["cpu"] == memory.offsets(graph(n_tokens))
        assert arenas[GPU].n_bytes == 0


def test_a_node_runs_where_its_weight_is_else_where_its_first_operand_is() -> None:
    placed = {p.node.name: p for p in place(graph(), homes("cpu")).nodes}
    assert (placed["inp_embd"].side, placed["Qcur-0"].side, placed["Qcur-1"].side) == ("cpu", "gpu", "cpu")
    assert placed["Qcur-0"].rule == "its weight blk.0.attn_q.weight"
    assert (placed["Qrope-0"].side, placed["Qrope-0"].rule) == ("gpu", "its first operand Qcur-0")
    assert (placed["kqv_out-0"].side, placed["kqv_out-0"].rule) == ("gpu", "KV cache of layer 0")
    assert placed["l_out-0"].side == "cpu"  # its first operand is the FFN's result


def test_a_split_node_becomes_two_and_a_merge() -> None:
    nodes = [p for p in split(place(graph(), homes("split"))).nodes if p.node.name.startswith("ffn_out")]
    assert [(p.node.op, p.node.name, p.side) for p in nodes] == [
        ("sparse_ffn", "ffn_out_gpu-0", "gpu"),
        ("sparse_ffn", "ffn_out_cpu-0", "cpu"),
        ("merge", "ffn_out-0", "gpu"),
        ("sparse_ffn", "ffn_out-1", "cpu"),
    ]
    assert [p.node.attributes.get("rows") for p in nodes[:2]] == ["hot", "cold"]


def test_operands_cross_the_bus_once_each() -> None:
    placed = copies(split(place(graph(), homes("split"))))
    crossing = [(p.node.inputs[0].name, p.side) for p in placed.nodes if p.node.op == "copy"]
    assert crossing == [
        ("inp_embd", "gpu"),
        ("ffn_norm-0", "cpu"),
        ("mlp_pre_out-0", "cpu"),
        ("ffn_out_cpu-0", "gpu"),
        ("l_out-0", "cpu"),
    ]
    vector, mask = 4 * 256, 512 // 8
    assert bus(placed) == {
        "gpu": {"copies": 2, "bytes": 2 * vector},
        "cpu": {"copies": 3, "bytes": 2 * vector + mask},
    }


def test_the_cold_rows_operands_come_before_the_hot_rows_begin() -> None:
    names = [p.node.name for p in copies(split(place(graph(), homes("split")))).nodes]
    at = names.index("ffn_out_gpu-0")
    assert names[at - 2 : at + 4] == [
        "ffn_norm-0@cpu",
        "mlp_pre_out-0@cpu",
        "ffn_out_gpu-0",
        "ffn_out_cpu-0",
        "ffn_out_cpu-0@gpu",
        "ffn_out-0",
    ]


def test_every_operand_is_made_before_on_the_same_side() -> None:
    for ffn in ("cpu", "split", "gpu"):
        placed, arenas = run_passes(graph(8), homes(ffn))
        made: dict[str, str] = {}
        for p in placed.nodes:
            for operand in p.node.inputs:
                if hasattr(operand, "dtype"):
                    assert made[operand.name] == (p.side if p.node.op != "copy" else made[operand.name])
            made[p.node.name] = p.side
        for side, arena in arenas.items():
            assert all(made[entry.name] == side for entry in arena.entries)


def test_logits_on_the_device_come_home_into_the_runs_array() -> None:
    placed = copies(place(graph(), Homes({}, ("cpu",) * 2, "gpu")))
    assert placed.nodes[-1].node.op == "copy"
    assert placed.nodes[-1].side == "cpu"
    names = {entry.name for arena in offsets(placed).values() for entry in arena.entries}
    assert not {name for name in names if name.startswith("result_output")}


def test_each_pass_prints() -> None:
    placed = place(graph(), homes("split"))
    assert "ffn_out-0" in str(placed) and "split" in str(placed)
    text = str(copies(split(placed)))
    assert text.splitlines()[0] == "placed graph of 1 token"
    assert "cold rows of blk.0.ffn_gate.weight" in text
    assert max(len(line) - len(line.rstrip()) for line in text.splitlines()) == 0


@pytest.mark.parametrize("n_hot", [1, 512])
def test_a_layer_wholly_hot_needs_no_merge(n_hot: int) -> None:
    ids = [np.arange(n_hot, dtype=np.int32), np.arange(512, dtype=np.int32)]
    plan = placement.plan(MODEL, None, Budget("1", 1 << 30, ""), "predictor", 64, 8, hot=ids)
    merges = [p.node.name for p in plan.decode.placed.nodes if p.node.op == "merge"]
    assert merges == ([] if n_hot == 512 else ["ffn_out-0"])


def test_the_bias_of_a_divided_down_projection_is_added_once() -> None:
    model = build("small", Shape("opt", 1, 256, 512, 4, 4, 100, 64, "relu", n_positions=66), T.Q4_0, 32)
    sides = dict.fromkeys(("blk.0.ffn_up.weight", "blk.0.ffn_down_t.weight"), "split")
    placed = split(place(architectures.build(model, 1, "predictor"), Homes(sides, ("cpu",))))
    hot, cold = (p.node for p in placed.nodes if p.node.op == "sparse_mlp")
    assert "blk.0.ffn_down_t.bias" in [operand.name for operand in hot.inputs]
    assert "blk.0.ffn_down_t.bias" not in [operand.name for operand in cold.inputs]
    assert "blk.0.ffn_up.bias" in [operand.name for operand in cold.inputs]
