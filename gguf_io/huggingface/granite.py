"""Granite in Hugging Face's layout."""

from dataclasses import replace

from hotcold.gguf_io.architectures.granite import GRANITE
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.llama import BIASES, read_gated
from hotcold.gguf_io.huggingface.model import HFModel

MULTIPLIERS = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
"""GGUF's keys and the config's names; without a word each is 1."""


def read_granite(fields: Fields, sparse: bool) -> HFModel:
    """A Granite; `sparse`: it comes with predictors."""
    biased = fields.flag("attention_bias", False)
    fields.only("mlp_bias", False, "an FFN with biases is not supported")
    return replace(
        read_gated(fields, GRANITE),
        optional=BIASES if biased else frozenset(),
        keys={key: fields.positive(name, 1.0) for key, name in MULTIPLIERS.items()},
        powerinfer_warnings=("PowerInfer itself does not know granite, hotcold does",),
    )
