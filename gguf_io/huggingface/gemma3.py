"""Gemma 3's text model in Hugging Face's layout.

What a config leaves out means what transformers' Gemma3TextConfig says.
"""

from dataclasses import replace
from typing import Any

from hotcold.gguf_io.architectures.gemma3 import GEMMA3, LAYERS_OF_27B
from hotcold.gguf_io.huggingface.fields import MAX_LAYERS, Fields
from hotcold.gguf_io.huggingface.model import HFModel, head_sizes
from hotcold.gguf_io.huggingface.rope import read_rope

USUAL: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "query_pre_attn_scalar": 256,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu", "relu": "relu"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
RENAMED = (
    ("model.language_model.model.", "model."),
    ("model.language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
"""Names in a model that reads images too, as older and newer versions of transformers write them; `open_weights`
puts `model.` in front of the older ones."""
BESIDE = ("model.vision_tower.", "model.multi_modal_projector.")
Keys = dict[str, int | float | tuple[bool, ...]]


def read_gemma3(fields: Fields, sparse: bool) -> HFModel:
    """A Gemma 3; `sparse`: it comes with predictors."""
    given = {name: value for name, value in fields.values.items() if value is not None}
    fields = Fields(fields.path, USUAL | given)
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        if fields.values.get(name) is not None:
            raise fields.wrong(name, "soft caps are not supported", "use another model")
    fields.only("attention_bias", False, "projections with a bias are not supported")
    n_embd, n_layer = fields.size("hidden_size"), fields.size("num_hidden_layers", largest=MAX_LAYERS)
    n_head, n_head_kv, head_dim = head_sizes(
        fields, n_embd, ("num_attention_heads",), ("num_key_value_heads",)
    )
    _check_scale(fields, n_embd / n_head if n_layer == LAYERS_OF_27B else head_dim)
    n_ctx_train = fields.size("max_position_embeddings")
    return HFModel(
        architecture=GEMMA3,
        n_vocab=fields.size("vocab_size"),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=n_layer,
        n_ff=fields.size("intermediate_size"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        norm_eps=fields.positive("rms_norm_eps"),
        rope=read_rope(fields, head_dim, n_ctx_train),
        ffn_activation=fields.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        tied=fields.flag("tie_word_embeddings", True),
        token_ids=fields.token_ids(),
        keys=_windows(fields, n_layer),
        powerinfer_warnings=("PowerInfer itself does not know gemma3, hotcold does",),
    )


def read_gemma3_with_images(fields: Fields, sparse: bool) -> HFModel:
    """The text model of a Gemma 3 that reads images too; what reads them is left out."""
    text = fields.values.get("text_config")
    if not isinstance(text, dict):
        raise fields.wrong("text_config", "an object")
    ids = {name: fields.values[name] for name in TOKEN_IDS if fields.values.get(name) is not None}
    model = read_gemma3(Fields(fields.path, ids | text), sparse)
    left_out = "what reads images is left out: hotcold runs the text model"
    return replace(model, renamed=RENAMED, beside=BESIDE, warnings=(left_out,))


def _check_scale(fields: Fields, wanted: float) -> None:
    """GGUF has no key for what scores are divided by the root of."""
    if fields.positive("query_pre_attn_scalar") != wanted:
        bound = f"GGUF's gemma3 means {wanted:g} with these sizes"
        raise fields.wrong("query_pre_attn_scalar", bound, "use another model")


def _windows(fields: Fields, n_layer: int) -> Keys:
    """The window, its layers and their rotation; what a file means without a word is left out."""
    keys: Keys = {"attention.sliding_window": fields.size("sliding_window")}
    local = fields.positive("rope_local_base_freq")
    if local != USUAL["rope_local_base_freq"]:
        keys["rope.freq_base_swa"] = local
    period, kinds = fields.size("sliding_window_pattern"), fields.values.get("layer_types")
    by_period = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(n_layer)]
    kinds = by_period if kinds is None else kinds
    known = {"sliding_attention", "full_attention"}
    if not isinstance(kinds, list) or len(kinds) != n_layer or any(kind not in known for kind in kinds):
        raise fields.wrong("layer_types", f"one of {', '.join(sorted(known))} for each of {n_layer} layers")
    if kinds != by_period or period != USUAL["sliding_window_pattern"]:
        keys["attention.sliding_window_pattern"] = tuple(kind == "sliding_attention" for kind in kinds)
    return keys
