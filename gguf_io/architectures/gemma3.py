"""Gemma 3: llama with norms of each head of q and k, and of what attention and FFN give.

The weights of its norms are one less in a directory than in a file, which has the numbers that multiply.
"""

from dataclasses import replace

from hotcold.gguf_io.architectures.llama import DENSE, gated, normed_heads
from hotcold.gguf_io.architectures.table import WindowFacts, in_layer, weight

GEMMA3 = replace(
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
