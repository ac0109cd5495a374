"""The type of every matrix in a mix, beside what llama.cpp's quantiser gave it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from hotcold.errors import SettingError
from hotcold.gguf_io.mixes import MIXES, OF_ONE_TYPE
from hotcold.gguf_io.outtypes import (
    OUTTYPES,
    Recipe,
    check_rows,
    intended_type,
    output_type,
    recipe_of,
)
from hotcold.gguf_io.writer import OutputTensor

PLAIN = ("f32", "f16", "bf16")
T = GGMLQuantizationType
RECORDED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "quantise" / "mixes.json").read_text()
)


def shape_of(role: str, model: list[Any]) -> tuple[int, ...]:
    """NumPy order."""
    _, _, n_embd, n_ff, n_head, n_head_kv, _, *n_expert = model
    if "_exps" in role:
        return (*n_expert, *shape_of(role.replace("_exps", ""), model[:7]))
    n_kv = n_embd // n_head * n_head_kv
    rows = {
        "attn_k.weight": n_kv,
        "attn_v.weight": n_kv,
        "attn_qkv.weight": n_embd + 2 * n_kv,
        "ffn_up.weight": n_ff,
        "ffn_gate.weight": n_ff,
        "output.weight": 64,
        "token_embd.weight": 64,
    }
    return rows.get(role, n_embd), n_ff if role == "ffn_down.weight" else n_embd


def matrices(entry: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of each."""
    for role, runs in entry["types"].items():
        kinds = [kind for run in runs.split(", ") for kind in [run.split()[1]] * int(run.split()[0])]
        whole = role in ("output.weight", "token_embd.weight")
        for i, kind in enumerate(kinds):
            yield role if whole else f"blk.{i}.{role}", shape_of(role, entry["model"]), kind


@pytest.mark.parametrize("entry", RECORDED, ids=lambda e: f"{e['model'][0]}{e['model'][1:4]}-{e['outtype']}")
def test_types_are_llama_cpps(entry: dict[str, Any]) -> None:
    shapes = {name: shape for name, shape, _ in matrices(entry)}
    architecture, n_layer, _, _, _, _, tied, *_ = entry["model"]
    recipe = recipe_of(entry["outtype"], architecture, shapes, tied=tied, requantised=True)
    assert recipe.n_layer == n_layer
    for name, shape, kind in matrices(entry):
        assert output_type(name, shape, recipe).name == kind, name


def test_every_mix_is_recorded() -> None:
    for n_expert, more in ((None, {"q6_k"}), (8, {*OUTTYPES} - {*PLAIN, *OF_ONE_TYPE})):
        recorded = {e["outtype"] for e in RECORDED if (*e["model"][7:], None)[0] == n_expert}
        assert recorded == {*MIXES, *more}
    assert MIXES.keys() <= OUTTYPES.keys()


def test_experts_of_an_old_file_are_counted() -> None:
    names = [f"blk.{i}.ffn_{role}.{e}.weight" for i in (0, 1) for role in ("up", "down") for e in range(8)]
    made = recipe_of("q4_k_m", "llama", dict.fromkeys(names, (256, 256)), tied=False, requantised=True)
    assert made.n_expert == 8
    assert output_type("blk.1.attn_k.weight", (64, 256), made) is T.Q8_0


@pytest.mark.parametrize("outtype", OF_ONE_TYPE)
def test_what_is_no_file_type_of_llama_cpp_has_one_type(outtype: str) -> None:
    shapes = {"blk.0.ffn_up_exps.weight": (8, 256, 256)}
    made = recipe_of(outtype, "llama", shapes, tied=False, requantised=True)
    assert output_type("blk.0.attn_v.weight", (64, 256), made) is OUTTYPES[outtype][0]


def recipe(outtype: str, requantised: bool = True, architecture: str = "llama") -> Recipe:
    return recipe_of(
        outtype, architecture, {"blk.7.ffn_up.weight": (2, 2)}, tied=False, requantised=requantised
    )


@pytest.mark.parametrize(
    ("outtype", "again", "fresh"),
    [("f16", T.F16, T.F16), ("q4_0", T.Q4_0, T.Q4_0), ("q8_0", T.Q5_0, T.Q8_0), ("q4_k_m", T.Q5_0, T.Q5_0)],
)
def test_predictors_by_powerinfers_rule(outtype: str, again: T, fresh: T) -> None:
    for requantised, kind in ((True, again), (False, fresh)):
        assert output_type("blk.0.fc1.weight", (64, 256), recipe(outtype, requantised)) is kind


def test_the_down_projection_by_neuron_is_one_too() -> None:
    assert output_type("blk.0.ffn_down_t.weight", (64, 256), recipe("q4_k_m")) is T.Q6_K


@pytest.mark.parametrize(
    ("outtype", "n", "kind"),
    [
        ("q2_k", 288, T.Q4_0),
        ("q3_k", 288, T.Q4_0),
        ("q4_k", 288, T.Q5_0),
        ("q5_k", 288, T.Q5_1),
        ("q6_k", 288, T.Q8_0),
        ("q6_k", 256, T.Q6_K),
        ("q4_k", 40, T.F16),
        ("iq4_nl", 40, T.F16),
        ("mxfp4", 64, T.MXFP4),
    ],
)
def test_fall_backs(outtype: str, n: int, kind: T) -> None:
    assert output_type("blk.0.ffn_up.weight", (4, n), recipe(outtype)) is kind
    wanted = intended_type("blk.0.ffn_up.weight", n, recipe(outtype))
    assert wanted is OUTTYPES[outtype][0]


def test_rows_that_no_block_divides_are_refused() -> None:
    def tensor(n: int, kind: T) -> OutputTensor:
        return OutputTensor("blk.0.ffn_up.weight", kind, (n, 4), 0, lambda: iter(()))

    with pytest.raises(SettingError, match=r"outtype: q4_k \(its blocks divide no row: they have 40, 72 num"):
        check_rows([tensor(72, T.F16), tensor(40, T.F16)], recipe("q4_k"))
    check_rows([tensor(72, T.F16), tensor(64, T.Q5_0)], recipe("q4_k"))
    check_rows([tensor(72, T.F16)], recipe("f16"))
    check_rows([], recipe("q4_k"))
