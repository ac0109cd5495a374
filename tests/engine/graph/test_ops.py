"""The table of ops: an op that lacks its code on a side, or its definition, is named here."""

import pytest

from hotcold.engine.device import lowering as device
from hotcold.engine.graph.ops import OPS
from hotcold.engine.host import lowering as host
from hotcold.engine.host import workspace
from hotcold.kernels import ref, ref_experts

OF_PASSES = {"pack", "quantise", "copy", "merge"}  # nodes that passes make, which no table knows
CPU_ONLY = {"embed", "positions"}  # rows of the file, which the CPU reads for both sides

WITH_HEAD = {"logits"}  # which the device prepares once for any token, in `DeviceSide`
# ops that move numbers, and those that are another op in another shape
DEFINED_BY = {
    "embed": None,
    "positions": None,
    "kv_store": "cached",
    "rms_norm_heads": "rms_norm",
    "logits": "mul_mat",
    "dense_ffn": "sparse_ffn",
}


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_its_code_on_both_sides_and_its_definition(op: str) -> None:
    assert op in host.LOWER, "a function in engine/host that emits its records, and its entry in LOWER"
    assert op in {*device.LOWER, *CPU_ONLY, *WITH_HEAD}, "its launch in engine/device, or why it has none"
    oracle = DEFINED_BY.get(op, op)
    definition = oracle and getattr(ref, oracle, None) or getattr(ref_experts, str(oracle), None)
    assert oracle is None or callable(definition), "its definition in kernels/ref.py, or ref_experts.py"


def test_no_side_knows_an_op_that_the_table_does_not() -> None:
    assert {*host.LOWER} - {*OPS} <= OF_PASSES
    assert {*device.LOWER} - {*OPS} <= OF_PASSES
    assert {*workspace.OWN} <= {*OPS}


def test_the_matrices_that_x_is_multiplied_with() -> None:
    reading = {name: op.reading for name, op in OPS.items() if op.reading}
    assert reading == {
        "mul_mat": ("weight",),
        "predictor": ("fc1",),
        "sparse_gated_ffn": ("gate", "up"),
        "dense_gated_ffn": ("gate", "up"),
        "sparse_ffn": ("up",),
        "dense_ffn": ("up",),
        "expert_ffn": ("gate", "up"),
        "logits": ("weight",),
    }
