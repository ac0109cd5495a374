"""Gemma 3: llama with norms of each head of q and k, and of what attention and FFN give.

The weights of its norms are one less in a directory than in a file, which has the numbers that multiply.
"""

from dataclasses import replace

from hotcold.gguf_io.architectures.llama import DENSE, gated, normed_heads
from hotcold.gguf_io.architectures.table import Architecture, TensorRule, WindowFacts, in_layer, weight

LAYERS_OF_27B = 62  # the model whose scores are scaled as if heads were n_embd / n_head wide


def _with_numbers_that_multiply(architecture: Architecture) -> Architecture:
    """The same, with 1 added to the weights of norms on their way from a directory."""

    def changed(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
        return tuple(replace(r, layout="plus_one") if r.role.endswith("norm") else r for r in rules)

    return replace(architecture, whole=changed(architecture.whole), layer=changed(architecture.layer))


_GEMMA3 = replace(
    gated(
        "gemma3",
        ("gelu", "relu"),
        in_layer(
            "model.layers.{i}.",
            (
                weight("attn_norm", "input_layernorm", "n_embd"),
                *normed_heads(),
                weight("post_attention_norm", "post_attention_layernorm", "n_embd"),
                weight("ffn_norm", "pre_feedforward_layernorm", "n_embd"),
                *DENSE,
                weight("post_ffw_norm", "post_feedforward_layernorm", "n_embd"),
            ),
        ),
    ),
    windows=WindowFacts(period=6, freq_base=10000.0, scaled=False),
)
GEMMA3 = _with_numbers_that_multiply(_GEMMA3)
