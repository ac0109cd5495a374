"""Falcon in Hugging Face's layout, also under its first name, RefinedWeb.

The 7 B model has one norm for attention and FFN, the 40 B model ("new_decoder_architecture") two. One
matrix holds queries, keys and values in groups. The first 1 B and 7 B models with ALiBi are no such models.
"""

from hotcold.gguf_io.huggingface.fields import MAX_LAYERS, Fields
from hotcold.gguf_io.huggingface.model import HFModel, context_length, head_sizes
from hotcold.gguf_io.huggingface.rope import read_rope
from hotcold.gguf_io.names import LAYER_NORM_EPS, ArchitectureNames, TensorRule

# GGML's GELU is the tanh form; the exact one that "gelu" means differs by 1e-3 at most
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
N_CTX_TRAIN = 2048  # where config.json does not say
NORM_EPS = 1e-5
LAYER = "transformer.h.{i}."
ONE_NORM = {"attn_norm": "input_layernorm"}
TWO_NORMS = {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}


def names(norms: dict[str, str]) -> ArchitectureNames:
    """The tensors of a Falcon with these norms a layer."""
    return ArchitectureNames(
        architecture="falcon",
        norm_eps=LAYER_NORM_EPS,
        prefix="transformer.",
        whole=(
            TensorRule("token_embd.weight", "transformer.word_embeddings.weight", ("n_vocab", "n_embd")),
            TensorRule("output_norm.weight", "transformer.ln_f.weight", ("n_embd",)),
            TensorRule("output_norm.bias", "transformer.ln_f.bias", ("n_embd",)),
        ),
        output=TensorRule("output.weight", "lm_head.weight", ("n_vocab", "n_embd")),
        layer=(
            *(
                TensorRule(f"blk.{{i}}.{name}.{part}", f"{LAYER}{source}.{part}", ("n_embd",))
                for name, source in norms.items()
                for part in ("weight", "bias")
            ),
            TensorRule(
                "blk.{i}.attn_qkv.weight",
                f"{LAYER}self_attention.query_key_value.weight",
                ("n_qkv_dim", "n_embd"),
                "stack_qkv",
            ),
            TensorRule(
                "blk.{i}.attn_output.weight", f"{LAYER}self_attention.dense.weight", ("n_embd", "n_head_dim")
            ),
            TensorRule("blk.{i}.ffn_up.weight", f"{LAYER}mlp.dense_h_to_4h.weight", ("n_ff", "n_embd")),
        ),
        down=TensorRule("blk.{i}.ffn_down.weight", f"{LAYER}mlp.dense_4h_to_h.weight", ("n_embd", "n_ff")),
        ignored=("rotary_emb.inv_freq", "rotary.inv_freq"),
    )


def read_falcon(fields: Fields, sparse: bool) -> HFModel:
    """A Falcon; `sparse`: it comes with predictors, and is a ReLU model where it does not say."""
    new = fields.flag("new_decoder_architecture", fields.values["model_type"] == "RefinedWeb")
    fields.only("alibi", False, "positions by ALiBi are not supported")
    fields.only("bias", False, "projections with a bias are not supported")
    if not new:
        fields.only("parallel_attn", True, "attention and FFN one after the other are not supported")
    n_embd = fields.size("hidden_size")
    n_head, n_head_kv = head_sizes(
        fields, n_embd, ("num_attention_heads", "n_head"), ("num_kv_heads", "n_head_kv")
    )
    if not new and fields.flag("multi_query", True):
        n_head_kv = 1
    n_norms = fields.size("num_ln_in_parallel_attn", 2 if new else 1, largest=2)
    activation = fields.named("activation", "hidden_act")
    silent = sparse and fields.values.get(activation) is None
    return HFModel(
        names=names(TWO_NORMS if n_norms == 2 else ONE_NORM),
        n_vocab=fields.size("vocab_size"),
        n_ctx_train=context_length(fields, N_CTX_TRAIN),
        n_embd=n_embd,
        n_layer=fields.size(fields.named("num_hidden_layers", "n_layer"), largest=MAX_LAYERS),
        n_ff=fields.size("ffn_hidden_size", 4 * n_embd),
        n_head=n_head,
        n_head_kv=n_head_kv,
        norm_eps=fields.positive("layer_norm_epsilon", NORM_EPS),
        rope=read_rope(fields, n_embd // n_head),
        ffn_activation=fields.choice(activation, ACTIVATIONS, "relu" if sparse else "gelu"),
        tied=fields.flag("tie_word_embeddings", False) if "tie_word_embeddings" in fields.values else None,
        token_ids=fields.token_ids(),
        warnings=("config.json names no activation: ReLU is taken, since there are predictors",) * silent,
    )
