"""Areas of device memory that serve nodes in turn."""

import pytest
from gguf import GGMLQuantizationType

from hotcold.engine.graph import architectures
from hotcold.engine.model.shape import Shape
from hotcold.engine.model.shapes import build
from hotcold.engine.plan.device_workspace import FFN_TOKENS, device_areas
from hotcold.kernels.formats import group_sums_bytes, quantised_bytes


@pytest.mark.parametrize("n_tokens", [1, 8, 100])
def test_each_area_holds_what_its_kernel_writes(n_tokens: int) -> None:
    shape = Shape("llama", 2, 256, 512, 4, 2, 96, 64, "relu")
    model = build("small", shape, GGMLQuantizationType.Q4_0, 32)
    graphs = [architectures.build(model, n, "predictor") for n in (1, n_tokens)]
    at_once = min(n_tokens, FFN_TOKENS)
    up = -64
    of_batch = {
        "first": 4 * at_once * 512,
        "second": 4 * at_once * 512,
        "ids": -(4 * at_once * 513 // up) * 64,
    }
    assert device_areas(graphs, model, 64) == (of_batch if n_tokens > 1 else {}) | {
        "all": 64,
        "cos_sin": 4 * 64 * 64,
        "positions": -(4 * n_tokens // up) * 64,
        "quantised": -(quantised_bytes(n_tokens, 256) // up) * 64,
        "attention": 0,
        "arrived": 64,
        "counts": 64,
        "hidden": -(4 * n_tokens * 32 // up) * 64,
        "held": 2 * 2 * 64,  # of two layers 512 bits, twice
        "partial": group_sums_bytes(1, 512, 256),
        "logits": 4 * 96,
        "candidates": 1088,  # 64 keys and a word of 8 bytes each, then 129 words of 4, in whole cache lines
    }


def test_plain_weights_need_no_quantised_input_and_an_ordinary_ffn_two_hidden_vectors() -> None:
    model = build("small", Shape("llama", 1, 256, 512, 4, 2, 96, 64), GGMLQuantizationType.F16)
    areas = device_areas([architectures.build(model, 8, "off")], model, 64)
    assert areas["quantised"] == 0
    assert areas["first"] == areas["second"] == 4 * 8 * 512
    assert "partial" not in areas and "ids" not in areas


def test_a_long_context_needs_the_sums_of_its_parts_for_one_token() -> None:
    model = build("small", Shape("llama", 2, 256, 512, 4, 2, 96, 64), GGMLQuantizationType.F16)
    graphs = [architectures.build(model, n, "off") for n in (1, 100)]
    assert device_areas(graphs, model, 3000)["attention"] == 4 * 4 * 12 * 66  # whole cache lines
    assert device_areas(graphs[1:], model, 3000)["attention"] == 0
