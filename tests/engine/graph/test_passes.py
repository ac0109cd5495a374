"""place, split, quantise, copies, offsets: where nodes run, and what crosses the bus."""

from itertools import pairwise

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from hotcold.engine.graph import architectures
from hotcold.engine.graph.copies import bus, copies, read_in_place
from hotcold.engine.graph.graph import Graph, tensors_of
from hotcold.engine.graph.offsets import FUSED, offsets, placed_lifetimes
from hotcold.engine.graph.passes import run_passes
from hotcold.engine.graph.place import place
from hotcold.engine.graph.placed import GPU, PlacedGraph, Sides, results
from hotcold.engine.graph.quantise import quantise
from hotcold.engine.graph.split import split
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build
from hotcold.engine.plan import placement
from hotcold.engine.plan.budget import Budget
from hotcold.engine.plan.wanted import Wanted

MODEL = build("small", Shape("llama", 2, 256, 512, 4, 2, 100, 64, "relu"), T.Q4_0, 32)
FFN = ("ffn_gate", "ffn_up", "ffn_down_t")
DENSE = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "fc1", "fc2")


def sides(ffn: str) -> Sides:
    """Layer 0 on the GPU with this FFN; layer 1 and the head on the CPU."""
    sides = {f"blk.0.{role}.weight": "gpu" for role in DENSE}
    sides |= {f"blk.0.{role}.weight": ffn for role in ("ffn_gate", "ffn_up", "ffn_down_t")}
    return Sides(sides, ("gpu", "cpu"), "cpu")


def graph(n_tokens: int = 1) -> Graph:
    return architectures.build(MODEL, n_tokens, "predictor")


def test_without_a_device_the_placed_graph_is_the_graph() -> None:
    for n_tokens in (1, 8):
        placed, arenas = run_passes(graph(n_tokens), Sides({}, ("cpu",) * 2))
        assert [p.node for p in placed.nodes] == list(graph(n_tokens).nodes)
        assert arenas[GPU].n_bytes == 0


def placed(ffn: str, n_tokens: int = 1) -> PlacedGraph:
    return copies(quantise(split(place(graph(n_tokens), sides(ffn)))))


def test_a_node_runs_where_its_weight_or_its_cache_is() -> None:
    nodes = {p.node.name: p for p in place(graph(), sides("cpu")).nodes}
    assert (nodes["inp_embd"].side, nodes["Qcur-0"].side, nodes["Qcur-1"].side) == ("cpu", "gpu", "cpu")
    assert nodes["Qcur-0"].rule == "its weight blk.0.attn_q.weight"
    for name in ("Qrope-0", "Krope-0", "kv_store-0", "kqv_out-0"):
        assert (nodes[name].side, nodes[name].rule) == ("gpu", "KV cache of layer 0")


def test_an_add_runs_where_its_sum_is_read_next() -> None:
    for ffn in ("cpu", "split", "gpu"):
        nodes = {p.node.name: p for p in place(graph(), sides(ffn)).nodes}
        assert (nodes["ffn_inp-0"].side, nodes["ffn_inp-0"].rule) == (
            "gpu",
            "the next weight blk.0.fc1.weight",
        )
        assert (nodes["l_out-0"].side, nodes["l_out-0"].rule) == (
            "cpu",
            "the next weight blk.1.attn_norm.weight",
        )


def test_rotation_follows_a_cache_that_is_not_beside_its_layer() -> None:
    sides = {f"blk.{i}.{role}.weight": "gpu" for i in range(2) for role in DENSE}
    nodes = {p.node.name: p.side for p in place(graph(), Sides(sides, ("cpu", "gpu"))).nodes}
    assert (nodes["Qcur-0"], nodes["Qrope-0"], nodes["Krope-0"], nodes["kqv_out-0"]) == (
        "gpu",
        "cpu",
        "cpu",
        "cpu",
    )
    assert (nodes["Qrope-1"], nodes["attn_out-0"]) == ("gpu", "gpu")


def test_a_split_node_becomes_two_and_a_merge() -> None:
    nodes = [p for p in split(place(graph(), sides("split"))).nodes if p.node.name.startswith("ffn_out")]
    assert [(p.node.op, p.node.name, p.side) for p in nodes] == [
        ("sparse_gated_ffn", "ffn_out_gpu-0", "gpu"),
        ("sparse_gated_ffn", "ffn_out_cpu-0", "cpu"),
        ("merge", "ffn_out-0", "gpu"),
        ("sparse_gated_ffn", "ffn_out-1", "cpu"),
    ]
    assert [p.node.rows for p in nodes[:2]] == ["hot", "cold"]


def test_operands_cross_the_bus_once_each() -> None:
    whole = placed("split")
    crossing = [([t.name for t in p.node.inputs], p.side) for p in whole.nodes if p.node.op == "copy"]
    assert crossing == [
        (["inp_embd"], "gpu"),
        (["mlp_pre_out-0", "ffn_norm_q8-0"], "cpu"),
        (["ffn_out-0", "ffn_inp-0"], "cpu"),
    ]
    names = [p.node.name for p in whole.nodes]
    in_place = [(names[step], tensor.name) for step, tensor in read_in_place(whole)]
    assert in_place == [("ffn_out-0", "ffn_out_cpu-0")]
    vector, mask, rounded = 4 * 256, 512 // 8, 256 + 256 // 32 * 8
    assert bus(whole) == {
        "gpu": {"copies": 1, "bytes": 2 * vector},
        "cpu": {"copies": 2, "bytes": 2 * vector + mask + rounded},
        "in_place": vector,
    }


def test_a_split_layer_between_others_has_one_copy_down_and_one_read() -> None:
    """Layer 1 of 3, all of whose dense parts are on the device."""
    model = build("small", Shape("llama", 3, 256, 512, 4, 2, 100, 64, "relu"), T.F16, 32)
    sides = {f"blk.{i}.{role}.weight": "gpu" for i in range(3) for role in (*DENSE, *FFN)}
    sides |= {f"blk.1.{role}.weight": "split" for role in FFN}
    sides |= {"output_norm.weight": "gpu"}
    whole, _ = run_passes(architectures.build(model, 1, "predictor"), Sides(sides, ("gpu",) * 3, "gpu"))
    crossing = [p for p in whole.nodes if p.node.op == "copy" and p.node.name.endswith(("-1@cpu", "-1@gpu"))]
    assert [p.side for p in crossing] == ["cpu"]
    assert [tensor.name for _, tensor in read_in_place(whole)] == ["ffn_out_cpu-1"]
    assert bus(whole)["cpu"]["bytes"] - 4 * 100 == 4 * 256 + 512 // 8  # without the logits
    assert bus(whole)["gpu"]["bytes"] - 4 * 256 == 4 * 256  # without the embedding's row


def test_the_cold_rows_operands_come_before_the_hot_rows_begin() -> None:
    names = [p.node.name for p in placed("split").nodes]
    at = names.index("ffn_out_gpu-0")
    assert names[at - 3 : at + 3] == [
        "ffn_norm-0",
        "ffn_norm_q8-0",
        "ffn_out_cpu_in-0@cpu",
        "ffn_out_gpu-0",
        "ffn_out_cpu-0",
        "ffn_out-0",
    ]


def test_what_crosses_together_lies_together() -> None:
    for n_tokens in (1, 8):
        whole, arenas = run_passes(graph(n_tokens), sides("split"))
        copy = next(p.node for p in whole.nodes if p.node.name == "ffn_out_cpu_in-0@cpu")
        for side, members in ((GPU, copy.inputs), ("cpu", results(copy))):
            mask, vector = (arenas[side].slot(member.name) for member in members)
            assert vector.offset == mask.offset + n_tokens * 512 // 8
            assert mask.offset % 64 == 0


def test_nothing_lies_on_what_is_still_needed() -> None:
    """On either side, also not while the device has still to read what is copied up."""
    for ffn in ("cpu", "split", "gpu"):
        whole, arenas = run_passes(graph(8), sides(ffn))
        spans = placed_lifetimes(whole)
        for arena in arenas.values():
            for a in arena.slots:
                for b in arena.slots:
                    apart = a.offset + a.n_bytes <= b.offset or b.offset + b.n_bytes <= a.offset
                    (a_first, a_last), (b_first, b_last) = spans[a.name], spans[b.name]
                    assert a is b or apart or a_last < b_first or b_last < a_first, (a.name, b.name)


@pytest.mark.parametrize("n_embd", [128, 256])
@pytest.mark.parametrize("n_tokens", [1, 8])
def test_one_launch_never_writes_over_what_it_reads(n_tokens: int, n_embd: int) -> None:
    """Its blocks run in any order, so one would find what another has written."""
    model = build("small", Shape("llama", 2, n_embd, 1024, 4, 2, 100, 64, "relu"), T.Q4_0, 32)
    for ffn in ("split", "gpu"):
        sides = {f"blk.{i}.{role}.weight": "gpu" for i in (0, 1) for role in DENSE}
        sides |= {f"blk.{i}.{role}.weight": ffn for i in (0, 1) for role in FFN}
        everything = Sides({**sides, "output_norm.weight": "gpu"}, ("gpu", "gpu"), "gpu")
        whole, arenas = run_passes(architectures.build(model, n_tokens, "predictor"), everything)
        for first, then in pairwise(whole.nodes):
            if first.side != GPU or first.node.op not in FUSED.get(then.node.op, ()):
                continue
            written = arenas[GPU].slot(then.node.name)
            for name in [t.name for t in tensors_of(first.node) if not t.name.startswith("ffn_out_cpu")]:
                read = arenas[GPU].slot(name)
                ends = read.offset + read.n_bytes, written.offset + written.n_bytes
                assert ends[0] <= written.offset or ends[1] <= read.offset, (first.node.name, name)


def test_what_goes_up_stays_until_the_cpu_goes_on() -> None:
    """By a copy, or read in its place."""
    whole, _ = run_passes(graph(), sides("split"))
    names = [p.node.name for p in whole.nodes]
    spans = placed_lifetimes(whole)
    assert spans["inp_embd"][1] == names.index("ffn_out_cpu-0")
    assert spans["ffn_out_cpu-0"][1] == names.index("l_out-0")


def test_every_operand_is_made_before_on_the_same_side() -> None:
    for ffn in ("cpu", "split", "gpu"):
        whole, arenas = run_passes(graph(8), sides(ffn))
        made: dict[str, str] = {}
        for p in whole.nodes:
            for operand in p.node.inputs:
                if hasattr(operand, "dtype") and p.node.op != "copy":
                    in_place = p.node.op == "merge" and operand.name.startswith("ffn_out_cpu")
                    assert made[operand.name] == ("cpu" if in_place else p.side)
            made |= {result.name: p.side for result in results(p.node)}
        for side, arena in arenas.items():
            assert all(made[entry.name] == side for entry in arena.slots)


def test_logits_on_the_device_come_home_into_the_runs_array() -> None:
    placed = copies(place(graph(), Sides({}, ("cpu",) * 2, "gpu")))
    assert placed.nodes[-1].node.op == "copy"
    assert placed.nodes[-1].side == "cpu"
    names = {entry.name for arena in offsets(placed).values() for entry in arena.slots}
    assert not {name for name in names if name.startswith("result_output")}


def test_each_pass_prints() -> None:
    placed = place(graph(), sides("split"))
    assert "ffn_out-0" in str(placed) and "split" in str(placed)
    text = str(copies(split(placed)))
    assert text.splitlines()[0] == "placed graph of 1 token"
    assert "cold rows of blk.0.ffn_gate.weight" in text
    assert max(len(line) - len(line.rstrip()) for line in text.splitlines()) == 0


@pytest.mark.parametrize("n_hot", [1, 512])
def test_a_layer_wholly_hot_needs_no_merge(n_hot: int) -> None:
    ids = [np.arange(n_hot, dtype=np.int32), np.arange(512, dtype=np.int32)]
    plan = placement.plan(MODEL, Wanted("predictor", 64, 8), Budget("1", 1 << 30, ""), hot=ids)
    merges = [p.node.name for p in plan.decode.placed.nodes if p.node.op == "merge"]
    assert merges == ([] if n_hot == 512 else ["ffn_out-0"])


def test_the_bias_of_a_divided_down_projection_is_added_once() -> None:
    model = build("small", Shape("opt", 1, 256, 512, 4, 4, 100, 64, "relu", n_positions=66), T.Q4_0, 32)
    sides = dict.fromkeys(("blk.0.ffn_up.weight", "blk.0.ffn_down_t.weight"), "split")
    placed = split(place(architectures.build(model, 1, "predictor"), Sides(sides, ("cpu",))))
    hot, cold = (p.node for p in placed.nodes if p.node.op == "sparse_ffn")
    assert "blk.0.ffn_down_t.bias" in [operand.name for operand in hot.inputs]
    assert "blk.0.ffn_down_t.bias" not in [operand.name for operand in cold.inputs]
    assert "blk.0.ffn_up.bias" in [operand.name for operand in cold.inputs]
