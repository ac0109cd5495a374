"""Falcon in Hugging Face's layout, also under its first name, RefinedWeb.

The 7 B model has one norm for attention and FFN, the 40 B model ("new_decoder_architecture") two. The first
1 B and 7 B models with ALiBi are no such models.
"""

from hotcold.gguf_io.architectures.falcon import FALCON, ONE_NORM
from hotcold.gguf_io.huggingface.fields import MAX_LAYERS, Fields
from hotcold.gguf_io.huggingface.model import HFModel, context_length, head_sizes
from hotcold.gguf_io.huggingface.rope import read_rope

# GGML's GELU is the tanh form; the exact one that "gelu" means differs by 1e-3 at most
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
N_CTX_TRAIN = 2048  # where config.json does not say
NORM_EPS = 1e-5
SECOND_NORM = frozenset({"attn_norm_2", "attn_norm_2_bias"})


def read_falcon(fields: Fields, sparse: bool) -> HFModel:
    """A Falcon; `sparse`: it comes with predictors, and is a ReLU model where it does not say."""
    new = fields.flag("new_decoder_architecture", fields.values["model_type"] == "RefinedWeb")
    fields.only("alibi", False, "positions by ALiBi are not supported")
    fields.only("bias", False, "projections with a bias are not supported")
    if not new:
        fields.only("parallel_attn", True, "attention and FFN one after the other are not supported")
    n_embd = fields.size("hidden_size")
    n_head, n_head_kv, head_dim = head_sizes(
        fields, n_embd, ("num_attention_heads", "n_head"), ("num_kv_heads", "n_head_kv")
    )
    if not new and fields.flag("multi_query", True):
        n_head_kv = 1
    n_norms = fields.size("num_ln_in_parallel_attn", 2 if new else 1, largest=2)
    activation = fields.named("activation", "hidden_act")
    silent = sparse and fields.values.get(activation) is None
    n_ctx_train = context_length(fields, N_CTX_TRAIN)
    return HFModel(
        architecture=FALCON if n_norms == 2 else ONE_NORM,
        optional=SECOND_NORM if n_norms == 2 else frozenset(),
        n_vocab=fields.size("vocab_size"),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=fields.size(fields.named("num_hidden_layers", "n_layer"), largest=MAX_LAYERS),
        n_ff=fields.size("ffn_hidden_size", 4 * n_embd),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        norm_eps=fields.positive("layer_norm_epsilon", NORM_EPS),
        rope=read_rope(fields, head_dim, n_ctx_train),
        ffn_activation=fields.choice(activation, ACTIVATIONS, "relu" if sparse else "gelu"),
        tied=fields.flag("tie_word_embeddings", False) if "tie_word_embeddings" in fields.values else None,
        token_ids=fields.token_ids(),
        warnings=("config.json names no activation: ReLU is taken, since there are predictors",) * silent,
    )
