"""Granite, dense and with experts, in Hugging Face's layout."""

from dataclasses import replace

from hotcold.gguf_io.architectures.granite import GRANITE
from hotcold.gguf_io.architectures.moe import GRANITEMOE
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.llama import BIASES, read_gated
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.moe import with_experts
from hotcold.gguf_io.huggingface.stacked import GRANITE as STACKED

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
        keys=_multipliers(fields),
        powerinfer_warnings=("PowerInfer itself does not know granite, hotcold does",),
    )


def _multipliers(fields: Fields) -> dict[str, int | float | tuple[bool, ...]]:
    return {key: fields.positive(name, 1.0) for key, name in MULTIPLIERS.items()}


def read_granite_moe(fields: Fields, sparse: bool) -> HFModel:
    """A Granite with experts, and maybe one that every token goes to."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    model = replace(read_gated(fields, GRANITEMOE), keys=_multipliers(fields), stacks=STACKED)
    model = with_experts(fields, model, "num_local_experts", "num_experts_per_tok", "intermediate_size")
    keys = {key: value for key, value in model.keys.items() if key != "expert_feed_forward_length"}
    if not fields.values.get("shared_intermediate_size"):
        return replace(model, keys=keys)
    shared = fields.size("shared_intermediate_size")
    return replace(
        model,
        keys={**keys, "expert_shared_feed_forward_length": shared},
        expert_sizes={**model.expert_sizes, "n_ff_shexp": shared},
        optional=frozenset(rule.role for rule in GRANITEMOE.layer if rule.role.endswith("_shexp")),
    )
