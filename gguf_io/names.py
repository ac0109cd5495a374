"""What each architecture calls its tensors, in the model's directory and in a GGUF file.

`{i}` stands for the layer. Shapes are NumPy order (row length last) in names of hyperparameters;
"n_head_dim" is n_head * head_dim and "n_head_kv_dim" is n_head_kv * head_dim. An architecture that
hotcold does not know yet is one more entry of `ARCHITECTURES`.
"""

from dataclasses import dataclass
from typing import Literal

Layout = Literal["same", "permute_q", "permute_k", "transpose"]


@dataclass(frozen=True)
class TensorRule:
    """One tensor: its name in the file, its name and shape in the source, and what happens on the way.

    permute_q and permute_k: rows of each head go from "first half, second half" to pairs, since
    GGUF's `llama` rotates neighbours (2i, 2i + 1). transpose: rows become columns.
    """

    name: str
    source: str
    shape: tuple[str, ...]
    layout: Layout = "same"


@dataclass(frozen=True)
class ArchitectureNames:
    """The tensors of one architecture.

    Attributes:
        architecture: GGUF's general.architecture.
        model_type: config.json's model_type.
        whole: tensors that occur once. output: the head, absent where it is tied to the embedding.
        layer: tensors of every layer, without the down projection.
        down: the down projection as llama.cpp has it. down_t: transposed, one row a neuron.
        ignored: endings of source tensors that carry nothing to convert.
    """

    architecture: str
    model_type: str
    whole: tuple[TensorRule, ...]
    output: TensorRule
    layer: tuple[TensorRule, ...]
    down: TensorRule
    down_t: TensorRule
    ignored: tuple[str, ...]


LLAMA = ArchitectureNames(
    architecture="llama",
    model_type="llama",
    whole=(
        TensorRule("token_embd.weight", "model.embed_tokens.weight", ("n_vocab", "n_embd")),
        TensorRule("output_norm.weight", "model.norm.weight", ("n_embd",)),
    ),
    output=TensorRule("output.weight", "lm_head.weight", ("n_vocab", "n_embd")),
    layer=(
        TensorRule("blk.{i}.attn_norm.weight", "model.layers.{i}.input_layernorm.weight", ("n_embd",)),
        TensorRule(
            "blk.{i}.attn_q.weight",
            "model.layers.{i}.self_attn.q_proj.weight",
            ("n_head_dim", "n_embd"),
            "permute_q",
        ),
        TensorRule(
            "blk.{i}.attn_k.weight",
            "model.layers.{i}.self_attn.k_proj.weight",
            ("n_head_kv_dim", "n_embd"),
            "permute_k",
        ),
        TensorRule(
            "blk.{i}.attn_v.weight", "model.layers.{i}.self_attn.v_proj.weight", ("n_head_kv_dim", "n_embd")
        ),
        TensorRule(
            "blk.{i}.attn_output.weight", "model.layers.{i}.self_attn.o_proj.weight", ("n_embd", "n_head_dim")
        ),
        TensorRule(
            "blk.{i}.ffn_norm.weight", "model.layers.{i}.post_attention_layernorm.weight", ("n_embd",)
        ),
        TensorRule("blk.{i}.ffn_gate.weight", "model.layers.{i}.mlp.gate_proj.weight", ("n_ff", "n_embd")),
        TensorRule("blk.{i}.ffn_up.weight", "model.layers.{i}.mlp.up_proj.weight", ("n_ff", "n_embd")),
    ),
    down=TensorRule("blk.{i}.ffn_down.weight", "model.layers.{i}.mlp.down_proj.weight", ("n_embd", "n_ff")),
    down_t=TensorRule(
        "blk.{i}.ffn_down_t.weight", "model.layers.{i}.mlp.down_proj.weight", ("n_embd", "n_ff"), "transpose"
    ),
    ignored=("rotary_emb.inv_freq",),
)

ARCHITECTURES: dict[str, ArchitectureNames] = {names.model_type: names for names in (LLAMA,)}

PREDICTOR_NAMES = ("blk.{i}.fc1.weight", "blk.{i}.fc2.weight")

SPARSE_THRESHOLD = "powerinfer.sparse_threshold"
FFN_ACTIVATION = "hotcold.ffn_activation"
ACTIVATION_COUNTS = "hotcold.activation.{i}"
