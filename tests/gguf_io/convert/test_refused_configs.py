"""`config.json` files that are refused, with the key, its value and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
from conversion_refusals import MakeLlama, refusal


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model_type": "gpt2"},
            "model_type: 'gpt2' (supported: llama, mistral, bamboo, falcon, RefinedWeb, RefinedWebModel, opt, ",
        ),
        ({"model_type": ["llama"]}, "model_type: ['llama']"),
        ({"model_type": None}, "model_type: missing"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' (supported: silu, swish, relu)"),
        ({"hidden_size": None}, "hidden_size: missing (a whole number from 1"),
        ({"hidden_size": 64.0}, "hidden_size: 64.0"),
        ({"hidden_size": "64"}, "hidden_size: '64'"),
        ({"hidden_size": True}, "hidden_size: True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 (a whole number from 1 to 4096)"),
        ({"vocab_size": -1}, "vocab_size: -1"),
        ({"num_attention_heads": 3}, "num_attention_heads: 3 (must divide hidden_size 64)"),
        ({"num_attention_heads": 64}, "a head of 1 elements cannot rotate"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 (must divide num_attention_heads 4)"),
        ({"head_dim": 32}, "self_attn.q_proj.weight: shape [64, 64] (config.json says [128, 64])"),
        ({"head_dim": 15}, "a head of 15 elements cannot rotate"),
        ({"head_dim": 2048}, "head_dim: 2048 (a whole number from 1 to 1024)"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: nan"),
        ({"rms_norm_eps": False}, "rms_norm_eps: False"),
        ({"rope_theta": float("inf")}, "rope_theta: inf"),
        ({"rope_theta": 10**400}, "rope_theta: 1000"),
        (
            {"rope_scaling": {"rope_type": "mrope", "factor": 2}},
            "rope_type: 'mrope' (rope scaling: supported are linear, llama3, yarn, longrope, dynamic)",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 0}}, "factor: 0"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1] * 8}}, "long_factor: missing"),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1] * 7, "long_factor": [1] * 8}},
            "short_factor: [1, 1, 1, 1, 1, 1, 1] (a list of 8 numbers)",
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1] * 8, "long_factor": [1] * 7 + [-1]}},
            "long_factor[7]: -1",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor: missing"),
        ({"rope_scaling": "linear"}, "rope_scaling: 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"model_type": "gemma3"}, "text_config: missing"),
        ({"attention_bias": True}, "no model.layers.0.self_attn.q_proj.bias"),
        ({"mlp_bias": True}, "mlp_bias: True (an FFN with biases is not supported)"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no'"),
        ({"hidden_size": 128}, "shape [40, 64] (config.json says [40, 128])"),
        ({"intermediate_size": 64}, "mlp.gate_proj.weight: shape [96, 64] (config.json says [64, 64])"),
        ({"vocab_size": 2**31 - 1}, "shape [40, 64] (config.json says [2147483647, 64])"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj.weight: shape [32, 64]"),
        ({"num_hidden_layers": 3}, "no model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "also model.layers.1."),
    ],
)
def test_configs_that_are_refused(llama: MakeLlama, out: Path, changes: dict[str, Any], text: str) -> None:
    model = llama()
    model.rewrite(**changes)
    assert text in str(refusal(model.folder, out))
