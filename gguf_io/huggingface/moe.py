"""Mixtures of experts in Hugging Face's layout: Mixtral, Qwen's, OLMoE, SmallThinker, gpt-oss."""

from dataclasses import replace

from hotcold.gguf_io.architectures.llama import LLAMA
from hotcold.gguf_io.architectures.moe import GPT_OSS, OLMOE, QWEN2MOE, QWEN3MOE, SMALLTHINKER
from hotcold.gguf_io.architectures.table import MAX_EXPERTS
from hotcold.gguf_io.huggingface.fields import Fields
from hotcold.gguf_io.huggingface.llama import read_gated, without_window
from hotcold.gguf_io.huggingface.model import HFModel
from hotcold.gguf_io.huggingface.stacked import GPT_OSS as STACKED

SOFTMAX, SIGMOID = 1, 2  # GGUF's expert_gating_func
SWIGLU_LIMIT = 7.0  # of gpt-oss's gate and up, for which GGUF has no key


def with_experts(fields: Fields, model: HFModel, n_expert: str, n_used: str, n_ff: str) -> HFModel:
    """The model with its experts, by the names of their numbers."""
    count = fields.size(n_expert, largest=MAX_EXPERTS)
    used = fields.size(n_used, largest=count)
    width = fields.size(n_ff)
    keys = {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width}
    sizes = {"n_expert": count, "n_ff_exp": width}
    return replace(model, keys={**model.keys, **keys}, expert_sizes=sizes)


def read_mixtral(fields: Fields, sparse: bool) -> HFModel:
    """A Mixtral."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    model = without_window(fields, read_gated(fields, LLAMA))
    model = with_experts(fields, model, "num_local_experts", "num_experts_per_tok", "intermediate_size")
    return replace(model, keys={k: v for k, v in model.keys.items() if k != "expert_feed_forward_length"})


def _every_layer_alike(fields: Fields) -> None:
    """Refuse layers without experts among those that have some."""
    if fields.values.get("mlp_only_layers"):
        raise fields.wrong("mlp_only_layers", "none: every layer has experts", "use another model")
    if fields.size("decoder_sparse_step", 1) != 1:
        raise fields.wrong("decoder_sparse_step", "1: every layer has experts", "use another model")


def read_qwen3_moe(fields: Fields, sparse: bool) -> HFModel:
    """A Qwen3-MoE."""
    fields.only("use_sliding_window", False, "attention to the last positions only is not supported")
    fields.only("attention_bias", False, "projections with a bias are not supported")
    _every_layer_alike(fields)
    if not fields.flag("norm_topk_prob", False):
        raise fields.wrong(
            "norm_topk_prob", "true: qwen3moe's weights of experts add up to 1", "use another model"
        )
    model = read_gated(fields, QWEN3MOE)
    return with_experts(fields, model, "num_experts", "num_experts_per_tok", "moe_intermediate_size")


def read_qwen2_moe(fields: Fields, sparse: bool) -> HFModel:
    """A Qwen2-MoE, with its shared expert."""
    fields.only("use_sliding_window", False, "attention to the last positions only is not supported")
    _every_layer_alike(fields)
    fields.only("norm_topk_prob", False, "qwen2moe's weights of experts are as they are")
    model = read_gated(fields, QWEN2MOE)
    model = with_experts(fields, model, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    shared = fields.size("shared_expert_intermediate_size")
    keys = {**model.keys, "expert_shared_feed_forward_length": shared}
    return replace(model, keys=keys, expert_sizes={**model.expert_sizes, "n_ff_shexp": shared})


def read_olmoe(fields: Fields, sparse: bool) -> HFModel:
    """An OLMoE."""
    fields.only("attention_bias", False, "projections with a bias are not supported")
    fields.only("norm_topk_prob", False, "olmoe's weights of experts are as they are")
    if fields.values.get("clip_qkv") is not None:
        raise fields.wrong("clip_qkv", "none: queries and keys are not cut off", "use another model")
    model = read_gated(fields, OLMOE)
    return with_experts(fields, model, "num_experts", "num_experts_per_tok", "intermediate_size")


def read_smallthinker(fields: Fields, sparse: bool) -> HFModel:
    """A SmallThinker, whose windows are GGUF's: three of four layers, which rotate."""
    names = "moe_num_primary_experts", "moe_num_active_primary_experts", "moe_ffn_hidden_size"
    values = fields.values | {
        "intermediate_size": fields.values.get("moe_ffn_hidden_size"),
        "hidden_act": "relu",
    }
    fields = Fields(fields.path, values)
    model = with_experts(fields, read_gated(fields, SMALLTHINKER), *names)
    keys = {**model.keys, "expert_gating_func": _gating(fields)}
    if any(_layout(fields, "sliding_window_layout", model.n_layer)):
        keys["attention.sliding_window"] = fields.size("sliding_window_size")
    _check_layouts(fields, model.n_layer, "attention.sliding_window" in keys)
    return replace(model, keys=keys)


def _gating(fields: Fields) -> int:
    return SOFTMAX if fields.flag("moe_primary_router_apply_softmax", False) else SIGMOID


def _layout(fields: Fields, name: str, n_layer: int) -> list[int]:
    """A 0 or 1 a layer; without a word 0."""
    values = fields.values.get(name) or [0] * n_layer
    if not isinstance(values, list) or len(values) != n_layer or not all(value in (0, 1) for value in values):
        raise fields.wrong(name, f"a list of {n_layer} times 0 or 1")
    return values


def _check_layouts(fields: Fields, n_layer: int, has_windows: bool) -> None:
    """Refuse other layers with windows, or that rotate, than GGUF's smallthinker has."""
    wanted = [int(i % 4 != 0) if has_windows else 0 for i in range(n_layer)]
    if _layout(fields, "sliding_window_layout", n_layer) != wanted:
        raise fields.wrong(
            "sliding_window_layout", "0 in the first of four layers, else 1", "use another model"
        )
    rotating = wanted if has_windows and n_layer != 4 else [1] * n_layer
    if fields.values.get("rope_layout") is not None and _layout(fields, "rope_layout", n_layer) != rotating:
        raise fields.wrong("rope_layout", f"{rotating[:8]} and so on", "use another model")


def read_gpt_oss(fields: Fields, sparse: bool) -> HFModel:
    """A gpt-oss, whose experts are published as MXFP4."""
    if not fields.flag("attention_bias", True):
        raise fields.wrong("attention_bias", "true: gpt-oss's projections have biases", "use another model")
    if fields.positive("swiglu_limit", SWIGLU_LIMIT) != SWIGLU_LIMIT:
        raise fields.wrong("swiglu_limit", f"{SWIGLU_LIMIT:g}", "use another model")
    scaling = fields.values.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("truncate") is False:
        # llama.cpp rounds the ends of YaRN's ramp in every gpt-oss, and GGUF has no key that says otherwise
        fields = Fields(fields.path, fields.values | {"rope_scaling": {**scaling, "truncate": True}})
    model = replace(read_gated(fields, GPT_OSS, "silu"), ffn_activation="swiglu_oai", stacks=STACKED)
    used = fields.named("num_experts_per_tok", "experts_per_token")
    model = with_experts(fields, model, "num_local_experts", used, "intermediate_size")
    kinds = fields.values.get("layer_types")
    wanted = ["full_attention" if i % 2 else "sliding_attention" for i in range(model.n_layer)]
    if kinds is not None and kinds != wanted:
        raise fields.wrong(
            "layer_types", "sliding_attention and full_attention in turns", "use another model"
        )
    return replace(model, keys={**model.keys, "attention.sliding_window": fields.size("sliding_window")})
