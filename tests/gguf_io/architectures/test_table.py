"""The tables of architectures: roles that the engine has, sizes that can be known, names once."""

from dataclasses import fields

import pytest

from hotcold.engine.graph.architectures import BUILD
from hotcold.engine.model.experts import Experts
from hotcold.engine.model.model import Layer, Model
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.table import Architecture, TensorRule, by_neuron, sizes_of

SIZES = {*sizes_of(n_embd=1, n_ff=1, n_head=1, n_head_kv=1, head_dim=1), "n_vocab", "n_positions"}
SIZES |= {*Experts(1, 1, 1, 0, "softmax", False).sizes}
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda a: a.name)


def roles(rule: TensorRule) -> set[str]:
    return {role for role, _ in rule.parts} or {rule.role}


@EACH
def test_every_role_is_a_field_of_the_engine(architecture: Architecture) -> None:
    layer, whole = ({field.name for field in fields(kind)} for kind in (Layer, Model))
    for rule in (*architecture.layer, *by_neuron(architecture.layer)):
        assert roles(rule) <= layer
    for rule in architecture.whole:
        assert roles(rule) <= whole


@EACH
def test_every_layer_has_what_no_architecture_lacks(architecture: Architecture) -> None:
    wanted = {field.name for field in fields(Layer) if field.default is not None}
    assert wanted <= {role for rule in architecture.layer if not rule.optional for role in roles(rule)}


def test_experts_replace_an_ffn() -> None:
    llama = ARCHITECTURES["llama"]
    assert llama.experts is not None
    dense, mixed = ({rule.role for rule in rules} for rules in (llama.layer, llama.experts.layer))
    assert dense - mixed == {"ffn_gate", "ffn_up", "ffn_down"}
    assert mixed - dense == {"ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}


@EACH
def test_sizes_are_known(architecture: Architecture) -> None:
    for rule in (*architecture.whole, *architecture.layer):
        assert {*rule.shape} | {size for _, size in rule.parts} <= SIZES


@EACH
def test_names_are_told_once(architecture: Architecture) -> None:
    rules = (*architecture.whole, *architecture.layer)
    assert len({rule.name for rule in rules}) == len({rule.source for rule in rules}) == len(rules)


def test_every_architecture_has_a_graph() -> None:
    assert {*BUILD} == {*ARCHITECTURES}


def test_a_down_projection_by_neuron_is_the_other_way_round() -> None:
    down = {rule.role: rule for rule in by_neuron(ARCHITECTURES["opt"].layer)}
    assert (down["ffn_down_t"].name, down["ffn_down_t"].shape) == (
        "blk.{i}.ffn_down_t.weight",
        ("n_ff", "n_embd"),
    )
    assert down["ffn_down_t"].source_shape == ("n_embd", "n_ff")
    assert down["ffn_down_bias"].name == "blk.{i}.ffn_down_t.bias"


def test_other_sources_are_those_of_a_weight_and_its_bias() -> None:
    one_norm = ARCHITECTURES["falcon"].with_sources({"attn_norm": "norm.{i}"})
    assert one_norm.rule("attn_norm").source == "norm.{i}.weight"
    assert one_norm.rule("attn_norm_bias").source == "norm.{i}.bias"
    assert one_norm.rule("attn_norm_2") == ARCHITECTURES["falcon"].rule("attn_norm_2")
