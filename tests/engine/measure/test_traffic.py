"""Bytes that a token reads, of mixtures of experts."""

from dataclasses import replace
from pathlib import Path

from hotcold.engine.measure.traffic import dense_bytes, expert_bytes, token_bytes
from hotcold.engine.model.load import load_model
from hotcold.gguf_io import open_gguf


def test_experts_weigh_the_same_the_other_way_round(data: Path) -> None:
    with open_gguf(data / "llamacpp" / "mixtral.f16.gguf") as file:
        model = load_model(file)
    turned = replace(
        model,
        layers=tuple(
            replace(layer, ffn_down_exps=None, ffn_down_exps_t=layer.ffn_down_exps) for layer in model.layers
        ),
    )
    assert expert_bytes(turned.layers[0]) == expert_bytes(model.layers[0]) > 0
    assert dense_bytes(turned, predictors=False) == dense_bytes(model, predictors=False)
    assert token_bytes(turned) == token_bytes(model)
