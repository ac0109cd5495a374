"""OPT in Hugging Face's layout.

OPT-350m has its norms behind and a smaller embedding, and is no such model.
"""

from hotcold.gguf_io.architectures.opt import OPT
from hotcold.gguf_io.huggingface.fields import MAX_LAYERS, Fields
from hotcold.gguf_io.huggingface.model import HFModel, context_length, head_sizes

NORM_EPS = 1e-5  # torch's default, which config.json does not name
N_CTX_POWERINFER = 2048


def read_opt(fields: Fields, sparse: bool) -> HFModel:
    """An OPT; `sparse`: it comes with predictors."""
    fields.only("do_layer_norm_before", True, "norms behind attention and FFN are not supported")
    fields.only("enable_bias", True, "projections without biases are not supported")
    fields.only("layer_norm_elementwise_affine", True, "norms without weights are not supported")
    fields.only("_remove_final_layer_norm", False, "a model without its last norm is not supported")
    n_embd = fields.size("hidden_size")
    if fields.size("word_embed_proj_dim", n_embd) != n_embd:
        bound = f"an embedding of another size than hidden_size {n_embd} is not supported"
        raise fields.wrong("word_embed_proj_dim", bound, "use another model")
    n_head, n_head_kv, head_dim = head_sizes(
        fields, n_embd, ("num_attention_heads",), ("num_attention_heads",)
    )
    n_ctx_train = context_length(fields)
    rows = f"PowerInfer itself needs {N_CTX_POWERINFER} positions, not {n_ctx_train}; hotcold does not"
    return HFModel(
        architecture=OPT,
        n_vocab=fields.size("vocab_size"),
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_layer=fields.size("num_hidden_layers", largest=MAX_LAYERS),
        n_ff=fields.size("ffn_dim"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        norm_eps=NORM_EPS,
        rope=None,
        ffn_activation=fields.choice("activation_function", {"relu": "relu"}, "relu"),
        tied=fields.flag("tie_word_embeddings", True),
        token_ids=fields.token_ids(),
        powerinfer_warnings=(rows,) * (n_ctx_train != N_CTX_POWERINFER),
    )
